"""The training loop of one worker."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed
from torch import nn

from models.compiling import compile_model
from models.registry import Model, build_model
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
from tasks.training.job import TrainJob, is_ended
from tasks.training.metrics_log import Reporter
from tasks.training.ranks import any_rank, sum_over_ranks
from tasks.training.token_dataset import TokenDataset

MOST_SKIPPED = 50  # steps in a row without a finite gradient, after which a run has diverged
_POINTER_OF = {"loss": "best", "accuracy": "best_accuracy"}  # of checkpoints, by the figure they are best at
_VALIDATION_SEED = 2**31  # away from training seeds, so that no window is drawn for both


def worker_loop(settings: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    job: TrainJob = settings["job"]
    device = ray.train.torch.get_device() if job.placement.device == "cuda" else torch.device("cpu")
    wrap = partial(ray.train.torch.prepare_model, move_to_device=device)
    # All workers diverge at the same step. What they raise would make Ray begin again, which cannot help here.
    with suppress(Diverged):
        run_steps(job, context.get_world_rank(), context.get_world_size(), device, wrap)


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
    config, pad_id = job.config, tokenizer_from_json(job.tokenizer).pad_id
    checkpoints = CheckpointFolder(job.run_dir / "checkpoints")
    bare, optimizer, state = _set_up(job, checkpoints, device)
    model: Any = compile_model(bare) if config.compile else bare
    model = wrap(model) if wrap else model
    reporter = Reporter(job.metrics, rank, state["step"], state.get("unreported"))
    train = TokenDataset(job.train_shards, job.flat_tokens)
    validation = TokenDataset(job.validation_shards, job.flat_tokens)
    reporter.constant = {"train/tokens_out_of_reach": train.n_out_of_reach(config.seq_len, config.windows)}
    best = _Best(state)
    n_skipped = state.get("skipped_in_a_row", 0)
    eval_interval, checkpoint_interval = _intervals(config, train)
    is_over = is_ended(config, state) or _is_stopped_before(job, rank, world_size)
    for step in range(state["step"] + 1, 0 if is_over else config.n_steps + 1):
        started = time.perf_counter()
        batch = train.batch(config.seed, step, config.batch_size, config.seq_len, pad_id, config.windows)
        counts = count_batch(bare, torch.from_numpy(batch), pad_id).share(world_size)
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
            pad_id=pad_id,
            bf16=config.bf16,
        )
        is_last = step == config.n_steps
        stop = any_rank(job.stop_request.exists() if rank == 0 else False, world_size)
        reporter.add(step, metrics, rate, int((batch != pad_id).sum()), time.perf_counter() - started)
        n_skipped = 0 if metrics.applied else n_skipped + 1
        if n_skipped >= min(MOST_SKIPPED, max(config.n_steps // 2, 1)):
            _give_up(job, rank, step, f"{n_skipped} steps in a row had no finite gradient")
        gains, figures = frozenset[str](), None
        if step % eval_interval == 0 or is_last:
            figures = _validate(model, validation, config, pad_id, rank, world_size, device)
            gains = best.update(figures, config.early_stopping_metric)
            is_last = is_ended(config, {"step": step} | best.facts())
        if step % config.log_interval == 0 or is_last:
            reporter.flush(world_size)
        if figures:
            reporter.write({"step": step} | figures)
        if figures and is_last and not math.isfinite(figures["val/loss"]):
            _give_up(job, rank, step, f"the last validation loss is {figures['val/loss']}")
        if gains or is_last or stop or step % checkpoint_interval == 0:
            saved = _state(job, step, reporter, world_size, bare) | best.facts() | {"skipped_in_a_row": n_skipped}
            if rank == 0:
                checkpoints.save(bare, optimizer, saved, gains, config.keep_last_n)
        if on_evaluation and figures:
            on_evaluation(step, figures["val/loss"])
        if stop or is_last:
            break
    if world_size > 1:
        torch.distributed.barrier()


def _set_up(
    job: TrainJob, checkpoints: CheckpointFolder, device: torch.device | None
) -> tuple[Model, torch.optim.Optimizer, dict[str, Any]]:
    """Return model, optimizer and state as of the last checkpoint, or new ones at step 0."""
    torch.set_num_threads(job.n_threads)
    torch.manual_seed(job.config.seed)
    tokenizer = tokenizer_from_json(job.tokenizer)
    model = build_model(job.config.model, tokenizer.vocab_size, tokenizer.pad_id).to(device or "cpu")
    optimizer = build_optimizer(job.config.optimizer, model)
    last = checkpoints.find("last")
    return model, optimizer, restore(last, model, optimizer) if last else {"step": 0}


def _intervals(config: TrainConfig, train: TokenDataset) -> tuple[int, int]:
    """Return the steps between validations and between checkpoints."""
    n_steps = 1
    if config.interval_unit == "epochs":
        n_steps = train.steps_per_epoch(config.batch_size, config.seq_len, config.windows)
    return config.eval_interval * n_steps, config.checkpoint_interval * n_steps


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


def _state(job: TrainJob, step: int, reporter: "Reporter", world_size: int, model: Any) -> dict[str, Any]:
    return {
        "step": step,
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


class _Best:
    """The best figures of the validations so far, and how many there were since the last gain."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.loss: float | None = state.get("best_loss")
        self.accuracy: float | None = state.get("best_accuracy")
        self.n_without_gain: int = state.get("n_without_gain", 0)

    def update(self, figures: Mapping[str, float], metric: str) -> frozenset[str]:
        """Take in one validation; return the pointers of `CheckpointFolder` that move to it.

        Args:
            metric: the one whose gains count for early stopping.
        """
        gains = set()
        if is_better(figures["val/loss"], self.loss):
            self.loss = figures["val/loss"]
            gains.add("best")
        if self.accuracy is None or figures["val/accuracy"] > self.accuracy:
            self.accuracy = figures["val/accuracy"]
            gains.add("best_accuracy")
        self.n_without_gain = 0 if _POINTER_OF[metric] in gains else self.n_without_gain + 1
        return frozenset(gains)

    def facts(self) -> dict[str, Any]:
        return {"best_loss": self.loss, "best_accuracy": self.accuracy, "n_without_gain": self.n_without_gain}


def is_better(loss: float, best_loss: float | None) -> bool:
    """Return whether a loss is the lowest so far; one that is not finite never is."""
    return math.isfinite(loss) and (best_loss is None or not math.isfinite(best_loss) or loss < best_loss)
