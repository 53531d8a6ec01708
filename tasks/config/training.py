"""Settings of a training run."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from models.config import DecoderConfig, ModelConfig, NoamSchedule, OptimizerConfig, ScheduleConfig
from models.settings import check_settings, setting
from tasks.config.old_names import current_names


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run; together with the dataset version it determines the weights."""

    preset: str = setting("music_transformer", "Label of runs and registered models; it changes no other setting.")
    model: Annotated[ModelConfig, Field(discriminator="name")] = setting(DecoderConfig, "The model, by its family.")
    schedule: Annotated[ScheduleConfig, Field(discriminator="name")] = setting(NoamSchedule, "The learning rate.")
    optimizer: OptimizerConfig = setting(OptimizerConfig, "The optimizer.")
    n_steps: int = setting(20_000, "Steps of the run.", ge=1)
    batch_size: int = setting(32, "Windows in the global batch, for any `n_workers`.", ge=1)
    seq_len: int = setting(1024, "Tokens of a window.", ge=8, le=2**20)
    windows: Literal["random", "whole", "start", "end", "packed"] = setting(
        "random",
        "How windows are taken from rows of tokens: from anywhere, whole rows, their starts or ends, or packed without"
        " padding.",
    )
    seed: int = setting(0, "Seed of weights, batches and dropout.", ge=0)
    bf16: bool | Literal["auto"] = setting(
        "auto", "Run the forward pass in bfloat16 where torch holds that to be safe; auto: on GPUs."
    )
    compile: bool = setting(False, "Compile the model by torch.compile, which needs a C++ compiler on the machine.")
    grad_accumulation_steps: int = setting(
        1, "Parts of a worker's share of a batch, in sequence; gradients add up, memory does not.", ge=1
    )
    activation_checkpointing: bool = setting(
        False,
        "Compute each layer again in the backward pass instead of keeping its activations: less memory, more time.",
    )
    parallel: Literal["ddp", "fsdp"] = setting(
        "ddp",
        "How workers share a model: ddp gives each all of it, fsdp a part of its weights, gradients and averages.",
    )
    n_workers: int | tuple[int, int] = setting(
        1,
        "Workers of Ray Train; gloo on CPU, NCCL on GPU. A pair, such as [1, 4]: as many as there is room for between"
        " the two, fewer when a node is lost and more when one is added.",
    )
    cpus_per_worker: int = setting(0, "Cores of a worker; 0: the machine's cores shared among the workers.", ge=0)
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "Kind of device; auto: GPUs where the Ray cluster has some, otherwise CPUs."
    )
    gpus_per_worker: float = setting(
        1.0, "GPUs of a worker; below 1, several runs, or points of a sweep, share one.", gt=0, le=1
    )
    accelerator_type: str = setting("", "Type of GPU by Ray's name, such as `H100`; empty: any.")
    validation_windows: int = setting(64, "Windows of the validation split that are scored.", ge=1)
    eval_interval: int = setting(500, "Steps, or epochs, between validations.", ge=1)
    checkpoint_interval: int = setting(500, "Steps, or epochs, between checkpoints.", ge=1)
    interval_unit: Literal["steps", "epochs"] = setting(
        "steps", "What `eval_interval` and `checkpoint_interval` count: steps, or passes over the training split."
    )
    log_interval: int = setting(10, "Steps between logged metrics.", ge=1)
    keep_last_n: int = setting(0, "Periodic checkpoints kept beside the best and the last.", ge=0)
    early_stopping_patience: int = setting(
        0, "Validations in a row without a better figure after which the run ends; 0: it runs to its last step.", ge=0
    )
    early_stopping_metric: Literal["loss", "accuracy"] = setting(
        "loss", "The figure of the validation split that early stopping looks at."
    )
    max_nonfinite_steps: int = setting(
        20,
        "Steps in a row without a finite gradient after which the run has failed; half of a shorter run is enough.",
        ge=1,
    )
    max_failures: int = setting(2, "Worker losses after which the run continues from its last checkpoint.", ge=0)

    @model_validator(mode="before")
    @staticmethod
    def _rename(values: Any) -> Any:
        return current_names(values)

    def __post_init__(self) -> None:
        check_settings(self)
        if not 1 <= self.min_workers <= self.max_workers:
            raise ValueError(f"n_workers={self.n_workers} is neither a number from 1 up nor a pair of rising ones")
        if isinstance(self.n_workers, int) and self.batch_size % self.n_workers:
            raise ValueError(f"batch_size={self.batch_size} is not a multiple of n_workers={self.n_workers}")
        n_windows = self.batch_size // self.max_workers
        if self.grad_accumulation_steps > n_windows:
            raise ValueError(
                f"grad_accumulation_steps={self.grad_accumulation_steps} is above the {n_windows} windows of one worker"
            )
        if self.gpus_per_worker < 1 < self.max_workers:
            raise ValueError(
                f"gpus_per_worker={self.gpus_per_worker}: the workers of a run cannot share a GPU under NCCL; set it to"
                " 1, or n_workers to 1"
            )
        self.model.check_training(self.seq_len, self.max_workers * self.grad_accumulation_steps)

    @property
    def min_workers(self) -> int:
        """The fewest workers that a run goes on with."""
        return self.n_workers if isinstance(self.n_workers, int) else self.n_workers[0]

    @property
    def max_workers(self) -> int:
        """The most workers that a run takes."""
        return self.n_workers if isinstance(self.n_workers, int) else self.n_workers[1]


# Settings that change neither the name of a run nor its numbers, but for rounding on other devices and for the draws of
# dropout and latents, which belong to a worker's rank.
TRAIN_WITHOUT_EFFECT = (
    "activation_checkpointing", "parallel", "n_workers", "cpus_per_worker", "device", "gpus_per_worker",
    "accelerator_type", "max_nonfinite_steps", "max_failures", "keep_last_n", "log_interval",
)  # fmt: skip


def uses_bf16(config: TrainConfig, device_type: str) -> bool:
    """Return whether a run computes in bfloat16 on a type of device, such as `cpu`."""
    return device_type == "cuda" if config.bf16 == "auto" else bool(config.bf16)
