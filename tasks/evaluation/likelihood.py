"""Likelihood of held-out music under a model."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from models.registry import Model, has_latents
from models.training import row_losses
from models.vae.latents import latent_use
from tasks.checkpoints import LoadedModel
from tasks.config.evaluation import EvaluateConfig
from tasks.music.arrays import FloatArray
from tasks.sampling.sample_ids import window_of
from tasks.training.token_dataset import TokenDataset

LATENT_ROWS = 1024  # on which the use of latents is measured
COUNTED_AT_ONCE = 2**20


def score_held_out(
    loaded: LoadedModel,
    store: TokenDataset,
    facts: dict[str, Any],
    config: EvaluateConfig,
    on_windows: Callable[[int], None] | None = None,
) -> tuple[dict[str, float], FloatArray]:
    """Return likelihood figures over all tokens of a split, each predicted once, and the nats of each token row.

    Windows of `seq_len` overlap by half, so every token but a piece's first ones has at least half a window of
    context. The figures are nats per token, accuracy, perplexity, bits per note (all tokens' bits over the number of
    notes) and bits per second of music.
    """
    device = next(loaded.model.parameters()).device
    seq_len, stride = scoring_stride(loaded.model, store, config)
    pad_id, rows = loaded.tokenizer.pad_id, store.rows_of_windows(seq_len, stride)
    row_nats, n_targets, n_correct, n_seen = np.zeros(len(store.offsets) - 1), 0, 0, 0
    for tokens, mask in store.sequential_windows(seq_len, stride, config.batch_size, pad_id):
        batch, counted = torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device)
        nats, n_new, n_hit = row_losses(loaded.model, batch, pad_id=pad_id, mask_BT=counted)
        np.add.at(row_nats, rows[n_seen : n_seen + len(tokens)], nats.cpu().numpy())
        n_targets, n_correct, n_seen = n_targets + n_new, n_correct + n_hit, n_seen + len(tokens)
        if on_windows:
            on_windows(len(tokens))
    return likelihood_figures(float(row_nats.sum()), n_targets, n_correct, facts), row_nats


def scoring_stride(model: Model, store: TokenDataset, config: EvaluateConfig) -> tuple[int, int]:
    """Return the tokens of a window that a model can read and a piece can fill, and how far windows are apart."""
    seq_len = max(min(window_of(model, config.seq_len), store.longest_row), 2)
    return seq_len, seq_len // 2


def likelihood_figures(nll: float, n_targets: float, n_correct: float, facts: dict[str, Any]) -> dict[str, float]:
    """Return figures of a summed negative log-likelihood: per token, and of music in bits per note and second."""
    bits = nll / math.log(2)
    figures = {
        "nll_per_token": nll / n_targets,
        "accuracy": n_correct / n_targets,
        "perplexity": math.exp(min(nll / n_targets, 700.0)),  # e**710 is no float any more
        "n_tokens": n_targets,
    }
    if facts["n_notes"]:
        figures |= {"bits_per_note": bits / facts["n_notes"], "bits_per_second": bits / facts["seconds"]}
    return figures


def score_latents(
    loaded: LoadedModel,
    store: TokenDataset,
    facts: dict[str, Any],
    config: EvaluateConfig,
    on_windows: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Return figures of a model with latents over all tokens of a split, in blocks in sequence.

    The likelihood is the evidence lower bound, with one latent drawn for each block: the loss of writing the block
    from it, and what the latent diverges from the prior. So it compares with the likelihood of other models; what only
    the writing costs is `reconstruction`. `latent/gain` is what a block's own latent saves over that of a block half a
    split away, in nats per token, and `latent/n_active` counts numbers that vary; both over `LATENT_ROWS` blocks at
    most.
    """
    model = loaded.model
    assert has_latents(model)
    block, pad_id = model.config.block, loaded.tokenizer.pad_id
    generator = torch.Generator(model.embed.weight.device).manual_seed(config.seed)
    sums, kept = np.zeros(4), list[np.ndarray]()
    every = -(-store.n_sequential_windows(block, block) // LATENT_ROWS)
    n_seen = 0
    for tokens, mask in store.sequential_windows(block, block, config.batch_size, pad_id):
        batch = torch.from_numpy(tokens).to(generator.device)
        with torch.no_grad():
            parts = model.loss_parts(
                batch, sample=True, generator=generator, mask_BT=torch.from_numpy(mask).to(generator.device)
            )
        sums += np.array([float(sum_) for sum_ in (parts.nll_sum, parts.n_targets, parts.n_correct, parts.kl_sum)])
        kept.append(tokens[(np.arange(n_seen, n_seen + len(tokens)) % every) == 0])
        n_seen += len(tokens)
        if on_windows:
            on_windows(len(tokens))
    nll, n_targets, n_correct, kl = sums.tolist()
    figures = likelihood_figures(nll + kl, n_targets, n_correct, facts)
    figures |= {"reconstruction": nll / n_targets, "kl": kl / n_targets}
    rows = np.concatenate(kept)
    if len(rows) < 2:
        return figures
    use = latent_use(model, torch.from_numpy(rows).to(generator.device))
    names = ("gain", "own_nll", "other_nll", "n_active", "n_numbers")
    return figures | {f"latent/{name}": float(getattr(use, name)) for name in names}


def frequency_baseline(store: TokenDataset, train: TokenDataset) -> dict[str, float]:
    """Return how often the training split's most frequent token is right, and the loss of its frequencies in nats.

    What a model is worth that has learned nothing but how frequent each token is; ids that the training split lacks
    count as if seen once.
    """
    is_target = np.ones(store.n_tokens, np.bool_)
    is_target[store.offsets[:-1]] = False
    targets = store.tokens[is_target]
    n_ids = int(targets.max(initial=0)) + 1
    seen = np.zeros(max(n_ids, 1 + np.iinfo(np.uint16).max))
    for begin in range(0, train.n_tokens, COUNTED_AT_ONCE):  # counting makes wide integers of them
        seen += np.bincount(train.tokens[begin : begin + COUNTED_AT_ONCE], minlength=len(seen))
    seen = seen[: max(n_ids, int(seen.nonzero()[0].max(initial=0)) + 1)]
    seen -= np.bincount(train.tokens[train.offsets[:-1]], minlength=len(seen))  # the first of a row is no target
    held_out = np.bincount(targets, minlength=len(seen))
    shares = np.maximum(seen, 1) / np.maximum(seen, 1).sum()
    return {
        "baseline/accuracy": float(held_out[seen.argmax()] / len(targets)),
        "baseline/nll_per_token": float(-(held_out * np.log(shares)).sum() / len(targets)),
    }
