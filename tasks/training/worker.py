"""The training loop of one worker."""

import math
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed
from torch import nn

from models.compiling import compile_model
from models.parallel import for_workers, recompute_layers
from models.registry import build_model
from models.training import (
    beta1,
    build_optimizer,
    eval_step,
    learning_rate,
    train_step,
    unwrap_model,
)
from models.utilisation import bf16_peak, flops_per_token
from tasks.checkpoints import CheckpointFolder, restore
from tasks.config.serialization import to_json
from tasks.config.training import TrainConfig, uses_bf16
from tasks.errors import Diverged, OutOfMemory
from tasks.music.tokenizers.registry import tokenizer_from_json
from tasks.runtime.devices import explained_memory
from tasks.storage.files import json_text, write_atomically
from tasks.training.batches import Batch, Batches
from tasks.training.job import TrainJob, is_ended
from tasks.training.metrics_log import SPEEDS, Reporter
from tasks.training.ranks import Asked, Requests, sum_over_ranks
from tasks.training.token_dataset import TokenDataset

MOST_WAITING = 100  # steps whose figures stay on the device, where points are written more rarely
_POINTER_OF = {"loss": "best", "accuracy": "best_accuracy"}  # of checkpoints, by the figure they are best at
_VALIDATION_SEED = 2**31  # away from training seeds, so that no window is drawn for both


def worker_loop(settings: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    job: TrainJob = settings["job"]
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device() if job.placement.device == "cuda" else torch.device("cpu")
    wrap = partial(for_workers, kind=job.config.parallel, device=device) if world_size > 1 else None
    if job.memory_note.exists():  # of the attempt before: Ray begins again, which cannot help
        return
    # All workers diverge at the same step. What they raise would make Ray begin again, which cannot help here.
    with suppress(Diverged):
        try:
            with explained_memory(less_memory(job.config)):
                run_steps(
                    job, rank, world_size, device, wrap,
                    on_saved=RayReports(rank, world_size).add,
                    is_preempted=lambda: ray.train.get_preemption_info() is not None,
                )  # fmt: skip
        except OutOfMemory as error:
            write_atomically(job.memory_note, str(error).encode())
            if world_size > 1:  # the others wait for this one
                raise


def less_memory(config: TrainConfig) -> str:
    """Return what lowers the memory that a run needs."""
    return (
        f"lower train.batch_size={config.batch_size}, raise"
        f" train.grad_accumulation_steps={config.grad_accumulation_steps}, or set train.activation_checkpointing=true"
    )


class RayReports:
    """Reports checkpoints to Ray Train, for its dashboard and its `Result`.

    What Ray stores is a pointer, a file with the address of a checkpoint, and is deleted with its folder. A report
    waits until Ray has taken the one before, up to two seconds: they are `SECONDS` apart, and the last one is made.
    """

    SECONDS = 10.0

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size, self.last_time = rank, world_size, -math.inf

    def add(self, metrics: Mapping[str, float], checkpoint: Path, is_last: bool) -> None:
        """Report a checkpoint if it is time; every worker has to call this. `metrics` may hold any figures of it."""
        import ray.train

        is_due = is_last or time.monotonic() - self.last_time >= self.SECONDS
        if not sum_over_ranks(np.array([float(is_due and self.rank == 0)]), self.world_size)[0]:
            return
        self.last_time = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            pointer = None
            if self.rank == 0:
                (Path(folder) / "pointer.json").write_text(json_text({"uri": checkpoint.as_uri()}))
                pointer = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({**metrics, "checkpoint": checkpoint.as_uri()}, checkpoint=pointer)


def run_steps(
    job: TrainJob,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | None = None,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    on_evaluation: Callable[[int, float], None] | None = None,
    on_saved: Callable[[Mapping[str, float], Path, bool], None] | None = None,
    is_preempted: Callable[[], bool] | None = None,
) -> None:
    """Run the steps that are left. Rank 0 writes checkpoints and `metrics.jsonl`.

    On CPU with one worker, a run that was stopped and taken up again ends with the same bits as one that was not.

    Args:
        on_evaluation: gets step and validation loss (nats) once they are written; it may raise to end the run there.
        on_saved: gets step and latest metrics, the folder of a checkpoint, and whether it is the last, on all ranks.
        is_preempted: see `Requests`.
    Raises:
        Diverged: `max_nonfinite_steps` in a row, or half of the run, had no finite gradient, or the last validation
            loss is not finite. Nothing is saved then, so the same call tries again from the last checkpoint.
    """
    worker = _Worker(job, rank, world_size, device or torch.device("cpu"), wrap)
    worker.on_evaluation, worker.on_saved = on_evaluation, on_saved
    worker.run(is_preempted)
    if world_size > 1:
        torch.distributed.barrier()


class _Worker:
    """One worker of a run: its model, the figures so far, and what it does between steps."""

    def __init__(
        self,
        job: TrainJob,
        rank: int,
        world_size: int,
        device: torch.device,
        wrap: Callable[[nn.Module], nn.Module] | None,
    ) -> None:
        self.job, self.config, self.device = job, job.config, device
        self.rank, self.world_size = rank, world_size
        self.pad_id, self.bf16 = tokenizer_from_json(job.tokenizer).pad_id, uses_bf16(job.config, device.type)
        self.on_evaluation: Callable[[int, float], None] | None = None
        self.on_saved: Callable[[Mapping[str, float], Path, bool], None] | None = None
        self.checkpoints = CheckpointFolder(job.run_dir / "checkpoints")
        self.set_up(wrap)
        self.train = TokenDataset(job.train_shards, job.flat_tokens)
        self.validation = TokenDataset(job.validation_shards, job.flat_tokens)
        self.eval_interval, self.checkpoint_interval = _intervals(self.config, self.train)
        self.batches = Batches(
            self.train, self.config, self.bare, self.pad_id, rank, world_size, pins=device.type == "cuda"
        )
        self.reporter = Reporter(job.metrics, rank, self.state["step"], self.state.get("unreported"))
        self.reporter.constant = {
            "train/tokens_out_of_reach": self.train.n_out_of_reach(self.config.seq_len, self.config.windows)
        }
        if self.config.min_workers < self.config.max_workers:
            self.reporter.constant["train/n_workers"] = world_size
        self.reporter.used_share = self._used_share()
        self.best, self.n_skipped = _Best(self.state), self.state.get("skipped_in_a_row", 0)

    def set_up(self, wrap: Callable[[nn.Module], nn.Module] | None) -> None:
        """Build model and optimizer as of the last checkpoint, or new ones at step 0."""
        job, config = self.job, self.config
        torch.set_num_threads(job.n_threads)
        torch.manual_seed(config.seed)
        tokenizer = tokenizer_from_json(job.tokenizer)
        self.bare = build_model(config.model, tokenizer.vocab_size, tokenizer.pad_id).to(self.device)
        if config.activation_checkpointing:
            recompute_layers(self.bare)
        model = wrap(self.bare) if wrap else self.bare
        # The optimizer comes after the wrapper, which may put other parameters into the model.
        self.optimizer = build_optimizer(config.optimizer, self.bare)
        last = self.checkpoints.find("last")
        self.state: dict[str, Any] = restore(last, self.bare, self.optimizer) if last else {"step": 0}
        self.model: Any = compile_model(model) if config.compile else model

    def run(self, is_preempted: Callable[[], bool] | None) -> None:
        """Run the steps that are left."""
        config, begun = self.config, self.state["step"]
        if self.rank == 0:  # from now on a stop has something to wait for
            self.job.begun.touch()
        requests = Requests(self.job.stop_request.exists, self.rank, self.world_size)
        if is_ended(config, self.state) or requests.ask(begun).stop:
            return
        requests.is_preempted = is_preempted
        self.reporter.start_clock()
        with closing(self.batches.ahead(range(begun + 1, config.n_steps + 1))) as ahead:
            for step, batch in ahead:
                self.take_step(step, batch)
                if self.is_over_after(step, requests.ask(step)):
                    return

    def take_step(self, step: int, batch: Batch) -> None:
        """Change the weights once."""
        config = self.config
        # Dropout is keyed by seed, step and rank, so no RNG state need be kept.
        stream = np.random.SeedSequence([config.seed, step, self.rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(stream[0] >> 1))
        rate = learning_rate(config.schedule, step, config.model.d_model, config.n_steps)
        figures = train_step(
            self.model,
            self.optimizer,
            batch.tokens.to(self.device, non_blocking=True),
            step=step,
            learning_rate=rate,
            beta1=beta1(config.schedule, step, config.n_steps),
            max_grad_norm=config.optimizer.max_grad_norm,
            n_targets=batch.counts.n_targets,
            n_hidden=batch.counts.hidden,
            grad_accumulation_steps=config.grad_accumulation_steps,
            pad_id=self.pad_id,
            bf16=self.bf16,
            trust_rows=self.device.type == "cuda" and not self.batches.has_inner_pads,
        )
        self.reporter.add(step, figures, rate, batch.n_tokens)

    def is_over_after(self, step: int, asked: Asked) -> bool:
        """Do what is due after a step: fetch figures, validate, write points, save; return whether it was the last."""
        config, is_last = self.config, step == self.config.n_steps
        is_validated, is_logged = step % self.eval_interval == 0 or is_last, step % config.log_interval == 0
        is_saved = step % self.checkpoint_interval == 0 or asked.stop or asked.save
        # The first step of a process compiles: its time is taken alone.
        is_fetched = self.reporter.n_waiting >= MOST_WAITING or self.reporter.n_steps == 1
        if not (is_validated or is_logged or is_saved or is_fetched):
            return False
        self.fetch()
        gains, scores = frozenset[str](), dict[str, float]()
        if is_validated:
            scores = self.validate()
            gains = self.best.update(scores, config.early_stopping_metric)
            is_last = is_ended(config, {"step": step} | self.best.facts())
        if is_logged or is_last:
            self.reporter.flush(self.world_size)
        if scores:
            self.reporter.write({"step": step} | scores)
            if is_last and not math.isfinite(scores["val/loss"]):
                self.give_up(step, f"the last validation loss is {scores['val/loss']}")
        if is_saved or gains or is_last:
            self.save(step, gains, is_last or asked.stop)
        if self.on_evaluation and scores:
            self.on_evaluation(step, scores["val/loss"])
        self.reporter.start_clock()
        return is_last or asked.stop

    def fetch(self) -> None:
        """Wait for the figures of the steps so far; raise Diverged where too many in a row had no finite gradient."""
        most = min(self.config.max_nonfinite_steps, max(self.config.n_steps // 2, 1))
        for step, metrics in self.reporter.fetch():
            self.n_skipped = 0 if metrics.applied else self.n_skipped + 1
            if self.n_skipped >= most:
                self.give_up(step, f"{self.n_skipped} steps in a row had no finite gradient")

    def validate(self) -> dict[str, float]:
        """Return mean loss (nats) and accuracy over the same windows of the validation split every time.

        The loss of a model with latents is the bound on the cross entropy of the music: that of writing it from latents
        that are drawn, the same every time, and what these diverge from the prior.
        """
        config, has_latents = self.config, self.config.model.has_latents
        kind, step = (config.windows, 1) if has_latents else ("random", 0)
        windows = self.validation.batch(
            _VALIDATION_SEED, step, config.validation_windows, config.seq_len, self.pad_id, kind,
            slice(self.rank, None, self.world_size),
        )  # fmt: skip
        sums = np.zeros(4)
        # Workers that share the weights in parts compute together: one without windows left scores any row.
        n_most = -(-config.validation_windows // self.world_size)
        for start in range(0, n_most, config.batch_size):
            rows = windows[start : start + config.batch_size]
            tokens = torch.from_numpy(rows if len(rows) else np.full((1, config.seq_len + 1), _any_id(self.pad_id)))
            generator = torch.Generator(self.device).manual_seed(_VALIDATION_SEED + start) if has_latents else None
            found = eval_step(
                unwrap_model(self.model), tokens.to(self.device), pad_id=self.pad_id, bf16=self.bf16,
                draw_latents_by=generator,
            )  # fmt: skip
            sums += np.array(found) if len(rows) else 0.0
        nll, n_targets, n_correct, kl = sum_over_ranks(sums, self.world_size).tolist()
        scores = {"val/loss": (nll + kl) / n_targets, "val/accuracy": n_correct / n_targets}
        return scores | ({"val/reconstruction": nll / n_targets, "val/kl": kl / n_targets} if has_latents else {})

    def save(self, step: int, gains: Collection[str], is_last: bool) -> None:
        """Write a checkpoint, to which the pointers `gains` of `CheckpointFolder` move."""
        config = self.config
        state = {
            "step": step,
            "metrics": {key: value for key, value in self.reporter.latest.items() if key not in SPEEDS},
            "unreported": self.reporter.unreported(self.world_size),
            "config": to_json(config),
            "dataset": self.job.dataset,
            "tokenizer": self.job.tokenizer,
            "n_parameters": self.bare.n_parameters,
            # Dropout and batches are drawn again for each step from (seed, step, rank): this is the whole random state.
            "rng": {"kind": "keyed by (seed, step, rank)", "seed": config.seed, "step": step},
            "skipped_in_a_row": self.n_skipped,
        }
        state |= self.best.facts()
        folder = self.checkpoints.save(self.bare, self.optimizer, state, gains, config.keep_last_n, self.rank)
        if self.on_saved:
            self.on_saved({"step": step} | self.reporter.latest, folder, is_last)

    def give_up(self, step: int, reason: str) -> NoReturn:
        """Write down why the run diverged, and end it."""
        message = (
            f"training diverged at step {step} of {self.config.n_steps}: {reason}; no model is registered;"
            " a lower learning rate in train.schedule may help"
        )
        if self.rank == 0:
            write_atomically(self.job.divergence, message.encode())
        raise Diverged(message)

    def _used_share(self) -> float | None:
        """Return what share of the peak of all GPUs one token a second is; None where the peak is not known."""
        if self.device.type != "cuda" or not self.bf16:
            return None
        peak = bf16_peak(torch.cuda.get_device_name(self.device))
        flops = flops_per_token(self.config.model, self.bare.n_parameters, self.config.seq_len)
        return flops / (peak * self.world_size) if flops and peak else None


def _intervals(config: TrainConfig, train: TokenDataset) -> tuple[int, int]:
    """Return the steps between validations and between checkpoints."""
    n_steps = 1
    if config.interval_unit == "epochs":
        n_steps = train.steps_per_epoch(config.batch_size, config.seq_len, config.windows)
    return config.eval_interval * n_steps, config.checkpoint_interval * n_steps


def _any_id(pad_id: int) -> int:
    return 0 if pad_id else 1


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
