"""The training loop of one worker."""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed
from torch import nn

from models.compiling import compile_model
from models.registry import build_model
from models.training import (
    beta1,
    build_optimizer,
    count_batch,
    eval_step,
    learning_rate,
    train_step,
    unwrap_model,
)
from tasks.checkpoints import CheckpointFolder, restore
from tasks.config.serialization import to_json
from tasks.config.training import TrainConfig
from tasks.errors import Diverged
from tasks.music.tokenizers.registry import tokenizer_from_json
from tasks.storage.files import write_atomically
from tasks.training.job import TrainJob
from tasks.training.metrics_log import Reporter
from tasks.training.ranks import any_rank, sum_over_ranks
from tasks.training.token_dataset import TokenDataset

MOST_SKIPPED = 50  # steps in a row without a finite gradient, after which a run has diverged
_VALIDATION_SEED = 2**31  # away from training seeds, so that no window is drawn for both


def worker_loop(settings: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    # All workers diverge at the same step. What they raise would make Ray begin again, which cannot help here.
    with suppress(Diverged):
        run_steps(
            settings["job"], context.get_world_rank(), context.get_world_size(), device, ray.train.torch.prepare_model
        )


def run_steps(
    job: TrainJob,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | None = None,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    on_evaluation: Callable[[int, float], None] | None = None,
) -> None:
    """Run the steps that are left. Rank 0 writes checkpoints and `metrics.jsonl`.

    On CPU with one worker, a run that was stopped and taken up again ends with the same bits as one that was not.

    Args:
        on_evaluation: gets step and validation loss (nats) once they are written; it may raise to end the run there.
    Raises:
        Diverged: `MOST_SKIPPED` steps in a row, or half of the run, had no finite gradient, or the last validation loss
            is not finite. Nothing is saved then, so the same call tries again from the last checkpoint.
    """
    config = job.config
    torch.set_num_threads(job.n_threads)
    torch.manual_seed(config.seed)
    tokenizer = tokenizer_from_json(job.tokenizer)
    bare = build_model(config.model, tokenizer.vocab_size, tokenizer.pad_id).to(device or "cpu")
    optimizer = build_optimizer(config.optimizer, bare)
    checkpoints = CheckpointFolder(job.run_dir / "checkpoints")
    last = checkpoints.find("last")
    state = restore(last, bare, optimizer) if last else {"step": 0, "best_loss": None}
    model: Any = compile_model(bare) if config.compile else bare
    model = wrap(model) if wrap else model
    reporter = Reporter(job.metrics, rank, state["step"], state.get("unreported"))
    train = TokenDataset(job.train_shards, job.flat_tokens)
    validation = TokenDataset(job.validation_shards, job.flat_tokens)
    reporter.constant = {"train/tokens_out_of_reach": train.n_out_of_reach(config.seq_len, config.windows)}
    best_loss, n_skipped = state["best_loss"], state.get("skipped_in_a_row", 0)
    for step in range(state["step"] + 1, 0 if _is_stopped_before(job, rank, world_size) else config.n_steps + 1):
        started = time.perf_counter()
        batch = train.batch(config.seed, step, config.batch_size, config.seq_len, tokenizer.pad_id, config.windows)
        counts = count_batch(bare, torch.from_numpy(batch), tokenizer.pad_id).share(world_size)
        # Dropout is keyed by seed, step and rank, so no RNG state need be kept.
        stream = np.random.SeedSequence([config.seed, step, rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(stream[0] >> 1))
        rate = learning_rate(config.schedule, step, config.model.d_model, config.n_steps)
        metrics = train_step(
            model,
            optimizer,
            torch.from_numpy(batch[rank::world_size]).to(device or "cpu"),
            step=step,
            learning_rate=rate,
            beta1=beta1(config.schedule, step, config.n_steps),
            max_grad_norm=config.optimizer.max_grad_norm,
            n_targets=counts.n_targets,
            n_hidden=counts.hidden,
            grad_accumulation_steps=config.grad_accumulation_steps,
            pad_id=tokenizer.pad_id,
            bf16=config.bf16,
        )
        is_last = step == config.n_steps
        stop = any_rank(job.stop_request.exists() if rank == 0 else False, world_size)
        reporter.add(step, metrics, rate, int((batch != tokenizer.pad_id).sum()), time.perf_counter() - started)
        n_skipped = 0 if metrics.applied else n_skipped + 1
        if n_skipped >= min(MOST_SKIPPED, max(config.n_steps // 2, 1)):
            _give_up(job, rank, step, f"{n_skipped} steps in a row had no finite gradient")
        if step % config.log_interval == 0 or is_last:
            reporter.flush(world_size)
        is_best, figures = False, None
        if step % config.eval_interval == 0 or is_last:
            figures = _validate(model, validation, config, tokenizer.pad_id, rank, world_size, device)
            is_best = is_better(figures["val/loss"], best_loss)
            best_loss = figures["val/loss"] if is_best else best_loss
            reporter.write({"step": step} | figures)
            if is_last and not math.isfinite(figures["val/loss"]):
                _give_up(job, rank, step, f"the last validation loss is {figures['val/loss']}")
        if is_best or is_last or stop or step % config.checkpoint_interval == 0:
            saved = _state(job, step, best_loss, reporter, world_size, bare) | {"skipped_in_a_row": n_skipped}
            if rank == 0:
                checkpoints.save(bare, optimizer, saved, is_best, config.keep_last_n)
        if on_evaluation and figures:
            on_evaluation(step, figures["val/loss"])
        if stop:
            break
    if world_size > 1:
        torch.distributed.barrier()


def _is_stopped_before(job: TrainJob, rank: int, world_size: int) -> bool:
    """Record that the steps begin, and return whether a stop was requested before there is a step to save."""
    if rank == 0:
        job.begun.touch()
    return any_rank(job.stop_request.exists() if rank == 0 else False, world_size)


def _give_up(job: TrainJob, rank: int, step: int, reason: str) -> NoReturn:
    message = (
        f"training diverged at step {step} of {job.config.n_steps}: {reason}; no model is registered;"
        " a lower learning rate in train.schedule may help"
    )
    if rank == 0:
        write_atomically(job.divergence, message.encode())
    raise Diverged(message)


def _state(
    job: TrainJob, step: int, best_loss: float | None, reporter: "Reporter", world_size: int, model: Any
) -> dict[str, Any]:
    return {
        "step": step,
        "best_loss": best_loss,
        "metrics": {key: value for key, value in reporter.latest.items() if key != "train/tokens_per_second"},
        "unreported": reporter.unreported(world_size),
        "config": to_json(job.config),
        "dataset": job.dataset,
        "tokenizer": job.tokenizer,
        "n_parameters": model.n_parameters,
        # Dropout and batches are drawn again for each step from (seed, step, rank): this is the whole random state.
        "rng": {"kind": "keyed by (seed, step, rank)", "seed": job.config.seed, "step": step},
    }


def _validate(
    model: nn.Module,
    store: TokenDataset,
    config: TrainConfig,
    pad_id: int,
    rank: int,
    world_size: int,
    device: torch.device | None,
) -> dict[str, float]:
    """Return mean loss (nats) and accuracy over the same windows of the validation split every time.

    The loss of a model with latents is the bound on the cross entropy of the music: that of writing it from latents
    that are drawn, the same every time, and what these diverge from the prior.
    """
    has_latents = config.model.has_latents
    kind, step = (config.windows, 1) if has_latents else ("random", 0)
    windows = store.batch(_VALIDATION_SEED, step, config.validation_windows, config.seq_len, pad_id, kind)
    windows = windows[rank::world_size]
    sums = np.zeros(4)
    for start in range(0, len(windows), config.batch_size):
        tokens = torch.from_numpy(windows[start : start + config.batch_size]).to(device or "cpu")
        generator = torch.Generator(tokens.device).manual_seed(_VALIDATION_SEED + start) if has_latents else None
        sums += np.array(
            eval_step(unwrap_model(model), tokens, pad_id=pad_id, bf16=config.bf16, draw_latents_by=generator)
        )
    nll, n_targets, n_correct, kl = sum_over_ranks(sums, world_size).tolist()
    figures = {"val/loss": (nll + kl) / n_targets, "val/accuracy": n_correct / n_targets}
    return figures | ({"val/reconstruction": nll / n_targets, "val/kl": kl / n_targets} if has_latents else {})


def is_better(loss: float, best_loss: float | None) -> bool:
    """Return whether a loss is the lowest so far; one that is not finite never is."""
    return math.isfinite(loss) and (best_loss is None or not math.isfinite(best_loss) or loss < best_loss)
