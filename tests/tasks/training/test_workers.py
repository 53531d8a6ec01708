"""Two workers under DDP and FSDP: the curves of one, checkpoints for any number of workers, less memory for layers."""

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import nn

from models.config import HourglassConfig, OptimizerConfig, VaeConfig, WarmupCosineSchedule
from models.parallel import for_workers
from tasks.checkpoints import CheckpointFolder, load_model
from tasks.config.training import TrainConfig
from tasks.dataset.versions import DatasetVersion
from tasks.training.job import TrainJob, make_job
from tasks.training.ranks import Requests
from tasks.training.trainer import read_progress
from tasks.training.worker import run_steps
from tests.samples import SMALL_MODEL, short_training
from tests.tasks.training.test_train import at_step, curves, without_numbers

pytestmark = pytest.mark.slow

MODELS: dict[str, Any] = {
    "decoder": replace(SMALL_MODEL, dropout=0.0),
    "hourglass": HourglassConfig(
        d_model=16, n_heads=2, d_ff=32, depths=(1, 1, 1), shorten_factor=2, hidden_loss="cosine", dropout=0.0
    ),
}


VAE = VaeConfig(block=32, d_model=16, n_heads=2, n_layers=1, channels=(12, 8))
SKIPPED = [0, 0, 1, 0, None, 0, 0, 0, 0, None]  # steps of each point; points of validations have none


def training(**settings: object) -> TrainConfig:
    given: dict[str, Any] = {
        "model": MODELS["decoder"], "schedule": WarmupCosineSchedule(max_lr=1e-3, warmup_steps=4), "n_steps": 8,
        "optimizer": OptimizerConfig(max_grad_norm=0.5), "batch_size": 6, "grad_accumulation_steps": 2,
        "validation_windows": 3, "eval_interval": 4, "checkpoint_interval": 4, "log_interval": 1,
    }  # fmt: skip
    return short_training(**given | settings)


def work(rank: int, n_workers: int, jobs: list[tuple[TrainJob, int]], port: int) -> None:
    """Run jobs on one of several processes, each until a stop is requested in a step, if any."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=n_workers)
    Requests.SECONDS = 0.0
    for job, stop_at in jobs:
        done = read_progress(job.run_dir)["step"]

        def wrap(model: nn.Module, job: TrainJob = job, stop_at: int = stop_at, done: int = done) -> nn.Module:
            wrapped = without_numbers(set() if done else {5, 6})(
                for_workers(model, job.config.parallel, torch.device("cpu"))
            )
            return at_step(2 * stop_at, job.stop_request.touch)(wrapped)

        run_steps(job, rank, n_workers, wrap=wrap)
    torch.distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_two_workers_have_the_curves_of_one_and_any_number_goes_on(dataset: DatasetVersion, tmp_path: Path) -> None:
    def jobs(kind: Any, end: str = "") -> list[TrainJob]:
        return [
            make_job(training(model=model, parallel=kind), dataset, tmp_path / f"{name}-{kind}{end}")
            for name, model in MODELS.items()
        ]

    def assert_same_curves(one: TrainJob, two: TrainJob) -> None:
        for point, other in zip(curves(one.run_dir), curves(two.run_dir), strict=True):  # with norms of gradients
            assert other == pytest.approx(point, rel=2e-4, abs=1e-5, nan_ok=True)

    alone, short = jobs("ddp", "-alone"), jobs("ddp", "-short")[:1]
    for job in alone:
        run_steps(job, wrap=without_numbers({5, 6}))  # both parts of the third step
    for job in short:
        run_steps(job, wrap=lambda model, job=job: at_step(10, job.stop_request.touch)(without_numbers({5, 6})(model)))
        job.stop_request.unlink()
    together, stopped = [*jobs("ddp"), *jobs("fsdp")], jobs("fsdp", "-stopped")[:1]
    longer = [replace(job, config=replace(job.config, parallel="fsdp")) for job in short]
    latent = make_job(training(model=VAE, n_steps=2, parallel="fsdp", windows="whole"), dataset, tmp_path / "vae")
    plans = [*((job, 0) for job in (*together, *longer, latent)), *((job, 5) for job in stopped)]
    torch.multiprocessing.spawn(work, (2, plans, free_port()), nprocs=2)  # type: ignore[attr-defined]
    for one, two in zip([*alone, *alone], together, strict=True):
        assert [point.get("train/skipped_steps") for point in curves(two.run_dir)] == SKIPPED
        assert_same_curves(one, two)
        last = CheckpointFolder(two.run_dir / "checkpoints").find("last")
        assert last is not None
        load_model(last)  # the files are those of one worker
    assert read_progress(latent.run_dir)["step"] == 2  # what its latents are depends on the number of workers
    for one, two in zip(alone, stopped, strict=False):
        assert read_progress(two.run_dir)["step"] == 5
        two.stop_request.unlink()
        run_steps(two)
        assert_same_curves(one, two)
    for one, two in zip(alone, longer, strict=False):
        assert_same_curves(one, two)


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 4},
        {"model": HourglassConfig(d_model=16, n_heads=2, d_ff=32, depths=(1, 1, 1), shorten_factor=2)},
        {"model": VAE, "windows": "whole"},
    ],
    ids=["decoder", "hourglass", "vae"],
)
def test_layers_computed_again_give_the_same_bits(
    dataset: DatasetVersion, tmp_path: Path, settings: dict[str, Any]
) -> None:
    for name, again in (("kept", False), ("again", True)):
        config = short_training(n_steps=4, eval_interval=4, **settings, activation_checkpointing=again)
        run_steps(make_job(config, dataset, tmp_path / name))
    kept, again = (load_model(next((tmp_path / name / "checkpoints").glob("step-*4"))) for name in ("kept", "again"))
    assert curves(tmp_path / "kept") == curves(tmp_path / "again")
    assert kept.weights_sha256 == again.weights_sha256
