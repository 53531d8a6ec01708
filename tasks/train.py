"""Ray Train around models/training.py: workers, checkpoints, clean stops. No arithmetic of learning here."""

import logging
import math
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed
from torch import nn

from models.config import VaeConfig
from models.registry import build_model
from models.training import (
    bare_model,
    build_optimizer,
    count_batch,
    eval_step,
    first_beta,
    learning_rate,
    train_step,
)
from tasks.batches import TokenStore
from tasks.checkpoints import CheckpointFolder, read_state, restore
from tasks.config.serialization import digest, to_json
from tasks.config.training import TRAIN_WITHOUT_EFFECT, TrainConfig
from tasks.dataset.versions import DatasetVersion
from tasks.errors import ConfigError, Diverged, HomeError, Interrupted, cause_of
from tasks.metrics_log import MetricsTail, Reporter, sum_over_ranks
from tasks.music.tokenizers.registry import tokenizer_from_json
from tasks.runtime import cluster
from tasks.runtime.signals import SAVE_SECONDS, stop_on_signals
from tasks.runtime.silence import Silence
from tasks.storage.files import storage_problem, write_atomically
from tasks.storage.home import Home
from tasks.storage.parquet import check_shards
from tasks.words import plural

logger = logging.getLogger(__name__)

MOST_SKIPPED = 50  # steps in a row without a finite gradient, after which a run has diverged
_VALIDATION_SEED = 2**31  # away from training seeds, so that no window is drawn for both


@dataclass(frozen=True, slots=True)
class TrainJob:
    """All that a worker needs to know; travels whole."""

    config: TrainConfig
    dataset: dict[str, Any]  # name and version
    tokenizer: dict[str, Any]  # its JSON form
    train_shards: list[Path]
    validation_shards: list[Path]
    flat_tokens: Path
    run_dir: Path
    n_threads: int

    @property
    def shards(self) -> list[Path]:
        return [*self.train_shards, *self.validation_shards]

    @property
    def metrics(self) -> Path:
        return self.run_dir / "metrics.jsonl"

    @property
    def stop_request(self) -> Path:
        return self.run_dir / "stop"

    @property
    def begun(self) -> Path:
        """Made by an attempt just before its first step, so that who stops it earlier has nothing to wait for."""
        return self.run_dir / "begun"

    @property
    def divergence(self) -> Path:
        """Why the last attempt at the run gave up, where it diverged."""
        return divergence_of(self.run_dir)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Where a run ended."""

    run_dir: Path
    checkpoint: Path  # the best one
    step: int
    metrics: dict[str, float]


def divergence_of(run_dir: Path) -> Path:
    """Return the file that says why a run gave up, which there is only if it diverged."""
    return run_dir / "diverged.txt"


def run_dir_of(home: Home, config: TrainConfig, dataset: DatasetVersion) -> Path:
    """Return the folder of the run that (dataset version, settings) determine; the same call goes on there."""
    settings = to_json(config)
    for name in TRAIN_WITHOUT_EFFECT:
        settings.pop(name)
    identity = {"dataset": dataset.name, "dataset_version": dataset.version, "train": settings}
    return home.runs / f"{config.preset}-{digest(identity)[:12]}"


def make_job(config: TrainConfig, dataset: DatasetVersion, run_dir: Path) -> TrainJob:
    """Put together what the workers need.

    Raises:
        ConfigError: more workers than the machine or cluster has cores for, or a model that does not go with the
            dataset's encoding.
    """
    check_model(config, dataset)
    n_cores = cluster.n_cluster_cpus()
    n_threads = config.cpus_per_worker or max(1, n_cores // config.n_workers)
    if config.n_workers * n_threads > n_cores:
        raise ConfigError(
            f"train.n_workers={config.n_workers} x {n_threads} cores each are more than the {n_cores} cores there are"
        )
    return TrainJob(
        config=config,
        dataset={
            "name": dataset.name,
            "version": dataset.version,
            "window_bars": dataset.manifest["config"]["windows"]["bars"],
        },
        tokenizer=dataset.manifest["encoder"]["settings"],
        train_shards=dataset.token_shards("train"),
        validation_shards=dataset.token_shards("validation"),
        flat_tokens=dataset.flat_tokens,
        run_dir=run_dir,
        n_threads=n_threads,
    )


def check_model(config: TrainConfig, dataset: DatasetVersion) -> None:
    """See that the model can be built for a dataset; on shapes alone, without memory for it.

    Raises:
        ConfigError: it cannot.
    """
    tokenizer = tokenizer_from_json(dataset.manifest["encoder"]["settings"])
    model = config.model
    word = model.token_dropout_by if isinstance(model, VaeConfig) and model.token_dropout else "all"
    if word != "all" and tokenizer.name != "mmm":
        raise ConfigError(
            f"train.model.token_dropout_by={word} is a word of mmm, but the dataset is in"
            f" {tokenizer.name}; set it to all, or train.model.token_dropout to 0"
        )
    try:
        with torch.device("meta"):
            build_model(model, tokenizer.vocab_size, tokenizer.pad_id)
    except ValueError as error:
        raise ConfigError(f"train.model: {error}") from None


def fit(job: TrainJob, on_points: Callable[[list[dict[str, float]]], None]) -> TrainResult:
    """Train to the end on Ray Train, going on from the last checkpoint where there is one.

    Args:
        on_points: gets the metric points as they are written, in order, in this thread.
    Raises:
        DamagedFile: a token shard has other bytes than were written; the message names it.
        Interrupted: SIGINT or SIGTERM came; the state was saved first.
        Diverged: see `run_steps`; the last checkpoint is from before.
        HomeError: the disk is full or cannot be written to; the last checkpoint is kept.
    """
    check_shards(job.shards, cluster.n_cpus())
    job.run_dir.mkdir(parents=True, exist_ok=True)
    job.stop_request.unlink(missing_ok=True)
    job.begun.unlink(missing_ok=True)
    job.divergence.unlink(missing_ok=True)
    shutil.rmtree(job.run_dir / "ray", ignore_errors=True)  # of an attempt that was killed
    cluster.connect()
    failure: list[BaseException] = []
    trainer = threading.Thread(target=_fit_in_thread, args=(job, failure), name="ray-train", daemon=True)
    with stop_on_signals(job.stop_request.touch) as stop:
        tail, silence = MetricsTail(job.metrics), Silence(lambda: _words_of_wait(job))
        trainer.start()
        try:
            while trainer.is_alive() and not stop.is_overdue:
                if stop and not job.begun.exists():  # it looks for the request after it has made this file
                    break
                trainer.join(0.25)
                points = tail.new_points()
                on_points(points)
                cluster.require_servers()
                silence.heard() if points else silence.look()
            on_points(tail.new_points())
        except cluster.RayLost:
            raise
        except Exception:  # the tracker's: a retry must not find this training still at work in the same folder
            job.stop_request.touch()
            trainer.join(SAVE_SECONDS)
            raise
        finally:
            if trainer.is_alive():  # it waits for a server that died, or for a worker in a long step
                cluster.disconnect()
            job.begun.unlink(missing_ok=True)
    state = read_progress(job.run_dir)
    if stop and state["step"] < job.config.n_steps:
        raise Interrupted(f"training stopped by {stop.signal} {_words_of_progress(job, state['step'])}")
    if failure:
        error = cause_of(failure[0])
        if problem := storage_problem(error):
            saved = f"{state['step']} of {job.config.n_steps}"
            raise HomeError(f"training stopped after step {saved}, which is saved: {problem}")
        raise error
    if job.divergence.exists():
        raise Diverged(job.divergence.read_text())
    if state["step"] < job.config.n_steps:
        raise Interrupted(f"training stopped by request {_words_of_progress(job, state['step'])}")
    return result_of(job.run_dir)


def _words_of_progress(job: TrainJob, step: int) -> str:
    return f"at step {step} of {job.config.n_steps}; saved" if step else "before there was a step to save"


def _words_of_wait(job: TrainJob) -> str:
    """Return what a training that writes no points waits for."""
    import ray

    n_cores, there = job.config.n_workers * job.n_threads, int(ray.cluster_resources().get("CPU", 0))
    if there < n_cores:
        wanted = f"{plural(job.config.n_workers, 'worker')} of {plural(job.n_threads, 'core')} each"
        known = plural(there, "core is there", "cores are there")
        return f"waiting for {wanted}; {known}{cluster.words_of_nodes()}"
    return f"waiting for the next point{cluster.words_of_nodes()}"


def result_of(run_dir: Path) -> TrainResult:
    """Return where a finished run ended."""
    state = read_progress(run_dir)
    best = CheckpointFolder(run_dir / "checkpoints").find("best")
    assert best is not None
    return TrainResult(run_dir, best, state["step"], state["metrics"])


def read_progress(run_dir: Path) -> dict[str, Any]:
    """Return step and metrics of a run's last checkpoint; step 0 where there is none."""
    last = CheckpointFolder(run_dir / "checkpoints").find("last")
    return read_state(last) if last else {"step": 0, "metrics": {}}


def _fit_in_thread(job: TrainJob, failure: list[BaseException]) -> None:
    # In a thread, because fit() blocks and would put its own SIGINT handler in the main one, which aborts unsaved.
    import ray.train
    from ray.train.torch import TorchTrainer

    storage = job.run_dir / "ray" / str(time.time_ns())  # one of its own: what is left of an attempt removes only that
    use_gpu = torch.cuda.is_available()
    resources = {"CPU": job.n_threads} | ({"GPU": 1} if use_gpu else {})
    try:
        TorchTrainer(
            worker_loop,
            train_loop_config={"job": job},
            scaling_config=ray.train.ScalingConfig(
                num_workers=job.config.n_workers, use_gpu=use_gpu, resources_per_worker=resources
            ),
            run_config=ray.train.RunConfig(
                name="attempt",
                storage_path=str(storage),
                failure_config=ray.train.FailureConfig(max_failures=job.config.max_failures),
            ),
        ).fit()
    except BaseException as error:
        failure.append(error)
    finally:
        shutil.rmtree(storage, ignore_errors=True)
        with suppress(OSError):  # another attempt's folder is there
            storage.parent.rmdir()


def worker_loop(settings: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    # All workers diverge at the same step. What they raise would make Ray begin anew, which cannot help here.
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
    model: Any = torch.compile(bare) if config.compiled else bare
    model = wrap(model) if wrap else model
    reporter = Reporter(job.metrics, rank, state["step"], state.get("unreported"))
    train = TokenStore(job.train_shards, job.flat_tokens)
    validation = TokenStore(job.validation_shards, job.flat_tokens)
    reporter.constant = {"train/tokens_out_of_reach": train.n_out_of_reach(config.window_tokens, config.windows)}
    best_loss, n_skipped = state["best_loss"], state.get("skipped_in_a_row", 0)
    for step in range(state["step"] + 1, 0 if _is_stopped_before(job, rank, world_size) else config.n_steps + 1):
        started = time.perf_counter()
        batch = train.batch(
            config.seed, step, config.batch_size, config.window_tokens, tokenizer.pad_id, config.windows
        )
        counts = count_batch(bare, torch.from_numpy(batch), tokenizer.pad_id).share(world_size)
        torch.manual_seed(_step_seed(config.seed, step, rank))  # dropout: keyed by step, so no RNG state need be kept
        rate = learning_rate(config.schedule, step, config.model.d_model, config.n_steps)
        metrics = train_step(
            model,
            optimizer,
            torch.from_numpy(batch[rank::world_size]).to(device or "cpu"),
            step=step,
            learning_rate=rate,
            first_beta=first_beta(config.schedule, step, config.n_steps),
            max_grad_norm=config.optimizer.max_grad_norm,
            n_targets=counts.n_targets,
            n_hidden=counts.hidden,
            n_parts=config.n_parts,
            pad_id=tokenizer.pad_id,
            bf16=config.bf16,
        )
        is_last = step == config.n_steps
        stop = _any_rank(job.stop_request.exists() if rank == 0 else False, world_size)
        reporter.add(step, metrics, rate, int((batch != tokenizer.pad_id).sum()), time.perf_counter() - started)
        n_skipped = 0 if metrics.applied else n_skipped + 1
        if n_skipped >= min(MOST_SKIPPED, max(config.n_steps // 2, 1)):
            _give_up(job, rank, step, f"{n_skipped} steps in a row had no finite gradient")
        if step % config.log_every == 0 or is_last:
            reporter.flush(world_size)
        is_best, figures = False, None
        if step % config.evaluate_every == 0 or is_last:
            figures = _validate(model, validation, config, tokenizer.pad_id, rank, world_size, device)
            is_best = is_better(figures["val/loss"], best_loss)
            best_loss = figures["val/loss"] if is_best else best_loss
            reporter.write({"step": step} | figures)
            if is_last and not math.isfinite(figures["val/loss"]):
                _give_up(job, rank, step, f"the last validation loss is {figures['val/loss']}")
        if is_best or is_last or stop or step % config.checkpoint_every == 0:
            saved = _state(job, step, best_loss, reporter, world_size, bare) | {"skipped_in_a_row": n_skipped}
            if rank == 0:
                checkpoints.save(bare, optimizer, saved, is_best, config.keep_periodic)
        if on_evaluation and figures:
            on_evaluation(step, figures["val/loss"])
        if stop:
            break
    if world_size > 1:
        torch.distributed.barrier()


def _is_stopped_before(job: TrainJob, rank: int, world_size: int) -> bool:
    """Note that the steps begin, and tell whether an end was asked for before there is one to save."""
    if rank == 0:
        job.begun.touch()
    return _any_rank(job.stop_request.exists() if rank == 0 else False, world_size)


def _give_up(job: TrainJob, rank: int, step: int, reason: str) -> NoReturn:
    said = (
        f"training diverged at step {step} of {job.config.n_steps}: {reason}; no model is registered;"
        " a lower learning rate in train.schedule may help"
    )
    if rank == 0:
        write_atomically(job.divergence, said.encode())
    raise Diverged(said)


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
        # Dropout and batches are drawn anew for each step from (seed, step, rank): this is the whole random state.
        "rng": {"kind": "keyed by (seed, step, rank)", "seed": job.config.seed, "step": step},
    }


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def _validate(
    model: nn.Module,
    store: TokenStore,
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
    has_latents = isinstance(config.model, VaeConfig)
    kind, step = (config.windows, 1) if has_latents else ("random", 0)
    windows = store.batch(_VALIDATION_SEED, step, config.validation_windows, config.window_tokens, pad_id, kind)
    windows = windows[rank::world_size]
    sums = np.zeros(4)
    for start in range(0, len(windows), config.batch_size):
        tokens = torch.from_numpy(windows[start : start + config.batch_size]).to(device or "cpu")
        generator = torch.Generator(tokens.device).manual_seed(_VALIDATION_SEED + start) if has_latents else None
        sums += np.array(
            eval_step(bare_model(model), tokens, pad_id=pad_id, bf16=config.bf16, draw_latents_by=generator)
        )
    nll, n_targets, n_correct, kl = sum_over_ranks(sums, world_size).tolist()
    figures = {"val/loss": (nll + kl) / n_targets, "val/accuracy": n_correct / n_targets}
    return figures | ({"val/reconstruction": nll / n_targets, "val/kl": kl / n_targets} if has_latents else {})


def is_better(loss: float, best_loss: float | None) -> bool:
    """Tell whether a loss is the lowest so far; one that is not finite never is."""
    return math.isfinite(loss) and (best_loss is None or not math.isfinite(best_loss) or loss < best_loss)


def _any_rank(flag: bool, world_size: int) -> bool:
    return bool(sum_over_ranks(np.array([float(flag)]), world_size)[0])
