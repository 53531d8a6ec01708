"""Settings of a training run."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from models.config import (
    DecoderConfig,
    ModelConfig,
    NoamSchedule,
    OptimizerConfig,
    ScheduleConfig,
    VaeConfig,
)
from tasks.config.checks import require
from tasks.config.old_names import current_names


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run; together with the dataset version it determines the weights."""

    preset: str = "music_transformer"  # label for runs and registered models
    model: Annotated[ModelConfig, Field(discriminator="name")] = field(default_factory=DecoderConfig)
    schedule: Annotated[ScheduleConfig, Field(discriminator="name")] = field(default_factory=NoamSchedule)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    n_steps: int = 20_000
    batch_size: int = 32  # windows in the global batch, whatever n_workers is
    seq_len: int = 1024
    windows: Literal["random", "whole", "start", "end", "packed"] = "random"  # how they are taken from rows of tokens
    seed: int = 0
    bf16: bool = False
    compile: bool = False  # by torch.compile, which needs a C++ compiler on the machine
    grad_accumulation_steps: int = (
        1  # of a worker's share of a batch, one after the other; gradients add up, memory does not
    )
    n_workers: int = 1  # Ray Train workers; gloo on CPU, NCCL on GPU
    cpus_per_worker: int = 0  # 0: the machine's cores shared among the workers
    validation_windows: int = 64
    eval_interval: int = 500  # steps
    checkpoint_interval: int = 500
    log_interval: int = 10
    keep_last_n: int = 0  # periodic checkpoints kept beside best and last
    max_failures: int = 2  # worker losses survived by going on from the last checkpoint

    @model_validator(mode="before")
    @staticmethod
    def _rename(values: Any) -> Any:
        return current_names(values)

    def __post_init__(self) -> None:
        for name in (
            "n_steps",
            "batch_size",
            "grad_accumulation_steps",
            "n_workers",
            "validation_windows",
            "eval_interval",
            "checkpoint_interval",
            "log_interval",
        ):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} is below 1")
        for name in ("seed", "cpus_per_worker", "keep_last_n", "max_failures"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} is below 0")
        if isinstance(self.model, VaeConfig):
            require(
                self.seq_len == self.model.block,
                f"seq_len={self.seq_len}, but model.block={self.model.block}: latents are of whole blocks",
            )
            require(
                self.model.kl_reduction != "sum" or self.n_workers == self.grad_accumulation_steps == 1,
                "model.kl_reduction='sum' is over a whole batch: it needs n_workers=1 and grad_accumulation_steps=1",
            )
        if isinstance(self.model, DecoderConfig) and self.model.absolute_positions == "learned":
            require(
                self.seq_len <= self.model.max_positions,
                f"seq_len={self.seq_len} is above model.max_positions={self.model.max_positions}",
            )
        require(8 <= self.seq_len <= 2**20, f"seq_len={self.seq_len} is outside 8 to {2**20}")
        require(
            self.batch_size % self.n_workers == 0,
            f"batch_size={self.batch_size} is not a multiple of n_workers={self.n_workers}",
        )
        require(
            self.grad_accumulation_steps <= self.batch_size // self.n_workers,
            f"grad_accumulation_steps={self.grad_accumulation_steps} is above the"
            f" {self.batch_size // self.n_workers} windows of one worker",
        )


# Settings of a training run that are not part of what it is: they change neither its numbers nor its name.
# But for the draws of dropout and latents, which belong to a worker's rank.
TRAIN_WITHOUT_EFFECT = ("n_workers", "cpus_per_worker", "max_failures", "keep_last_n", "log_interval")
