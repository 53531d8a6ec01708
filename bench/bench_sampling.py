"""What does the key/value cache save, and does a token cost the same however long the piece is?

    PYTHONPATH=. python bench/bench_sampling.py
    PYTHONPATH=. python bench/bench_sampling.py --models rga --batch 64

For the music transformers: samples a batch with the cache, as `orchestrion generate` does, and without it, where each
token costs a pass over all that stands before it. Both draw with the same random numbers. Sampling without the cache
in float64 must give the same ids; the script stops if not. What is timed without the cache is float32.

For `rga`, the model with relative global attention of 10.8 million parameters: one piece of 1,024 tokens at a time, and
a batch, against the plain loop that was published for it: float32, one piece, for every token a whole pass with scores
of all pairs of tokens. That loop is timed at every `--every`th length, each of which stands for those up to it.

Then the time of one step in each quarter of a long piece. Weights are random, and `<end>` is never drawn.
"""

import copy
import math
import statistics
import sys
import time
from typing import Any

import numpy as np
import report
import torch
from torch import Tensor
from torch.nn import functional

from models.config import DecoderConfig, SamplingConfig
from models.decoder.model import Decoder
from models.registry import Model, build_model
from models.sampling.choice import Chooser
from models.sampling.sample import sample
from models.sampling.sampler import piece_uniforms

PACKAGES = ("torch", "numpy")
VOCAB_SIZE, PAD = 416, 0
RGA_VOCAB_SIZE, RGA_PAD = 390, 389
FIRST = 10  # id that all pieces begin with
NEVER = -1  # an id that is not drawn stands for <end>, so that all pieces get their full length
RGA = DecoderConfig(
    d_model=512, n_heads=8, n_layers=6, d_ff=512, dropout=0.1, attention_dropout=0.1, activation="gelu",
    relative_positions="shared", max_relative_distance=1024, absolute_positions="learned", max_positions=1024,
    embedding_scale=False, head="unbiased", norm_eps=1e-5, initialisation="rga",
)  # fmt: skip
MODELS = {
    "music_transformer_tiny": DecoderConfig(
        d_model=128, n_heads=4, n_layers=2, d_ff=256, dropout=0.0, max_relative_distance=256
    ),
    "music_transformer": DecoderConfig(),
    "rga": RGA,
}


def main() -> None:
    options = report.parser((__doc__ or "").splitlines()[0], rounds=3, with_source=False)
    options.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    options.add_argument("--batch", type=int, default=0, help="pieces at once; 0: 64 for rga, 8 for the others")
    options.add_argument("--length", type=int, default=384, help="tokens of a piece, cached against uncached")
    options.add_argument("--long", type=int, default=2048, help="tokens of the long piece")
    options.add_argument("--rga-length", type=int, default=1024, help="tokens of a piece of rga, at most 1024")
    options.add_argument("--every", type=int, default=16, help="distance of the lengths at which rga's loop is timed")
    given = options.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in given.models:
        torch.manual_seed(0)
        is_rga = name == "rga"
        batch_size = given.batch or (64 if is_rga else 8)
        sizes = (RGA_VOCAB_SIZE, RGA_PAD) if is_rga else (VOCAB_SIZE, PAD)
        model = build_model(MODELS[name], *sizes).to(device).eval()
        if isinstance(model, Decoder) and is_rga:
            record = compare_with_plain(model, batch_size, given.rga_length, given.every, given.rounds)
        else:
            record = compare(model, batch_size, given.length, given.rounds) | flatness(model, batch_size, given.long)
        report.save("sampling", f"{name} on {device.type}", record, given.results, PACKAGES)


def compare(model: Model, batch_size: int, length: int, rounds: int) -> dict[str, Any]:
    """Time both ways of sampling the same ids."""
    with_cache, without = (
        cached(copy.deepcopy(model).double(), batch_size, length),
        uncached(model, batch_size, length, torch.float64),
    )
    if not all(torch.equal(a, b) for a, b in zip(with_cache, without, strict=True)):
        sys.exit("cached and uncached sampling gave different ids: nothing was measured")
    timings = report.measure(
        {
            "cached": lambda: cached(model, batch_size, length),
            "uncached": lambda: uncached(model, batch_size, length, torch.float32),
        },
        rounds,
        warm_up=0,
    )
    n_tokens = batch_size * (length - 1)
    return {
        "ratio": round(timings["uncached"].seconds / timings["cached"].seconds, 1),
        "ratio_means": f"tokens/s cached over uncached in float32, {batch_size} pieces of {length} tokens",
        "parameters": model.n_parameters,
        **{
            side: {"tokens_per_second": round(n_tokens / timing.seconds), **timing.as_json()}
            for side, timing in timings.items()
        },
    }


def compare_with_plain(model: Decoder, batch_size: int, length: int, every: int, rounds: int) -> dict[str, Any]:
    """Time one piece and a batch of pieces with the cache, and the plain loop."""
    ids = cached(model, 1, length)[0]
    check_plain(model, ids)
    lengths = range(every, length, every)
    timings = report.measure(
        {
            "plain": lambda: [plain_step(model, ids[:n]) for n in lengths],
            "single": lambda: cached(model, 1, length),
            "batch": lambda: cached(model, batch_size, length),
        },
        rounds,
        warm_up=0,
    )
    tokens_per_second = {
        "plain": len(lengths) / timings["plain"].seconds,
        "single": (length - 1) / timings["single"].seconds,
        "batch": batch_size * (length - 1) / timings["batch"].seconds,
    }
    return {
        "ratio": round(tokens_per_second["single"] / tokens_per_second["plain"], 1),
        "ratio_means": f"tokens/s of one piece of {length} tokens over those of the plain loop without a cache",
        "batch_ratio": round(tokens_per_second["batch"] / tokens_per_second["plain"], 1),
        "batch_ratio_means": f"tokens/s of {batch_size} pieces at once over those of the plain loop with one",
        "parameters": model.n_parameters,
        **{
            side: {"tokens_per_second": round(tokens_per_second[side], 1), **timing.as_json()}
            for side, timing in timings.items()
        },
        "single_flatness": flatness(model, 1, length)["long_piece"],
        "batch_flatness": flatness(model, batch_size, length)["long_piece"],
    }


@torch.inference_mode()
def plain_step(model: Decoder, ids: Tensor) -> Tensor:
    """Draw one id as the published loop does."""
    return torch.multinomial(plain_logits(model, ids)[:RGA_PAD].softmax(-1), 1)


def plain_logits(model: Decoder, ids: Tensor) -> Tensor:
    """Return the logits behind the last of some ids: skewed relative attention with scores of all pairs."""
    parts: Any = model
    T, H = len(ids), model.config.n_heads
    x_1TD = (parts.embed(ids.to(parts.embed.weight.device)) + parts.embed_position.weight[:T])[None]
    later_TT = torch.full((T, T), -math.inf, device=x_1TD.device).triu(1)
    for block in parts.blocks:
        attention = block.attention
        qkv_1TD = attention.to_qkv(block.attention_norm(x_1TD))
        q, k, v = (part.unflatten(-1, (H, -1)).transpose(1, 2) for part in qkv_1TD.chunk(3, dim=-1))
        q = q * q.shape[-1] ** -0.5
        relative = functional.pad(q @ attention.relative_MD[-T:].T, (1, 0)).view(1, H, T + 1, T)[:, :, 1:]
        weights = (q @ k.transpose(-1, -2) + relative + later_TT).softmax(-1)
        x_1TD = x_1TD + attention.to_out((weights @ v).transpose(1, 2).flatten(2))
        feed_forward = block.feed_forward
        hidden = functional.gelu(feed_forward.to_hidden(block.feed_forward_norm(x_1TD)))
        x_1TD = x_1TD + feed_forward.to_out(hidden)
    return parts.head(parts.norm(x_1TD))[0, -1]


@torch.inference_mode()
def check_plain(model: Decoder, ids: Tensor) -> None:
    expected = model(ids[None].to(model.embed.weight.device))[0, -1]
    if not torch.allclose(plain_logits(model, ids), expected, atol=1e-4):
        sys.exit("the plain loop is not the model: nothing was measured")


def flatness(model: Model, batch_size: int, length: int) -> dict[str, Any]:
    """Return the time of one step in each quarter of a long piece."""
    moments = [time.perf_counter()]
    cached(model, batch_size, length, on_step=lambda _: moments.append(time.perf_counter()))
    steps = np.diff(moments[1:])  # the first holds the copy of the model
    quarters = [statistics.median(part) * 1000 for part in np.array_split(steps, 4)]
    return {
        "long_piece": {
            "tokens": length,
            "pieces": batch_size,
            "step_milliseconds_by_quarter": [round(ms, 3) for ms in quarters],
            "last_over_first_quarter": round(quarters[-1] / quarters[0], 2),
            "tokens_per_second": round(batch_size * len(steps) / (moments[-1] - moments[1])),
        }
    }


def cached(model: Model, batch_size: int, length: int, on_step: Any = None) -> list[Tensor]:
    """Sample as the project does."""
    return sample(
        model,
        [torch.tensor([FIRST])] * batch_size,
        piece_indices=range(batch_size),
        seed=0,
        config=SamplingConfig(max_tokens=length),
        end_id=NEVER,
        pad_id=model.pad_id,
        batch_size=batch_size,
        on_step=on_step,
    )


@torch.inference_mode()
def uncached(model: Model, batch_size: int, length: int, dtype: torch.dtype) -> list[Tensor]:
    """Sample with a whole forward pass for each id; in float64 they are those of `cached`."""
    model = copy.deepcopy(model).to(dtype)
    device = model.embed.weight.device
    chooser = Chooser.of(SamplingConfig(max_tokens=length), model.vocab_size, device)
    uniforms = torch.from_numpy(np.stack([piece_uniforms(0, i, length) for i in range(batch_size)])).to(device)
    ids = torch.full((batch_size, 1), FIRST, device=device)
    for n in range(1, length):
        logits = model(ids)[:, -1].double()
        logits[:, model.pad_id] = -math.inf
        chosen = chooser.choose(logits, torch.full((batch_size,), n, device=device), uniforms[:, n])
        ids = torch.cat([ids, chosen[:, None]], dim=1)
    return list(ids.cpu())


if __name__ == "__main__":
    main()
