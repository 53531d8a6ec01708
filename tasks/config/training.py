"""Settings of a training run."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from models.config import (
    DecoderConfig,
    ModelConfig,
    NoamSchedule,
    OptimizerConfig,
    ScheduleConfig,
    VaeConfig,
)
from tasks.config.checks import require


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run; together with the dataset version it determines the weights."""

    preset: str = "music_transformer"  # label for runs and registered models
    model: Annotated[ModelConfig, Field(discriminator="name")] = field(default_factory=DecoderConfig)
    schedule: Annotated[ScheduleConfig, Field(discriminator="name")] = field(default_factory=NoamSchedule)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    n_steps: int = 20_000
    batch_size: int = 32  # windows in the global batch, whatever n_workers is
    window_tokens: int = 1024
    windows: Literal["random", "whole", "start", "end", "packed"] = "random"  # how they are taken from rows of tokens
    seed: int = 0
    bf16: bool = False
    compiled: bool = False  # by torch.compile, which needs a C++ compiler on the machine
    n_parts: int = 1  # of a worker's share of a batch, one after the other; gradients add up, memory does not
    n_workers: int = 1  # Ray Train workers; gloo on CPU, NCCL on GPU
    cpus_per_worker: int = 0  # 0: the machine's cores shared among the workers
    validation_windows: int = 64
    evaluate_every: int = 500  # steps
    checkpoint_every: int = 500
    log_every: int = 10
    keep_periodic: int = 0  # periodic checkpoints kept beside best and last
    max_failures: int = 2  # worker losses survived by going on from the last checkpoint

    def __post_init__(self) -> None:
        for name in (
            "n_steps",
            "batch_size",
            "n_parts",
            "n_workers",
            "validation_windows",
            "evaluate_every",
            "checkpoint_every",
            "log_every",
        ):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} is below 1")
        for name in ("seed", "cpus_per_worker", "keep_periodic", "max_failures"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} is below 0")
        if isinstance(self.model, VaeConfig):
            require(
                self.window_tokens == self.model.block,
                f"window_tokens={self.window_tokens}, but model.block={self.model.block}: latents are of whole blocks",
            )
            require(
                self.model.kl_reduction != "sum" or self.n_workers == self.n_parts == 1,
                "model.kl_reduction='sum' is over a whole batch: it needs n_workers=1 and n_parts=1",
            )
        if isinstance(self.model, DecoderConfig) and self.model.absolute_positions == "learned":
            require(
                self.window_tokens <= self.model.max_positions,
                f"window_tokens={self.window_tokens} is above model.max_positions={self.model.max_positions}",
            )
        require(8 <= self.window_tokens <= 2**20, f"window_tokens={self.window_tokens} is outside 8 to {2**20}")
        require(
            self.batch_size % self.n_workers == 0,
            f"batch_size={self.batch_size} is not a multiple of n_workers={self.n_workers}",
        )
        require(
            self.n_parts <= self.batch_size // self.n_workers,
            f"n_parts={self.n_parts} is above the {self.batch_size // self.n_workers} windows of one worker",
        )


# Settings of a training run that are not part of what it is: they change neither its numbers nor its name.
# But for the draws of dropout and latents, which belong to a worker's rank.
TRAIN_WITHOUT_EFFECT = ("n_workers", "cpus_per_worker", "max_failures", "keep_periodic", "log_every")
