"""Settings of an evaluation."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import model_validator

from tasks.config.checks import require
from tasks.config.old_names import current_names


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Scores of a model on a split, held out as a rule, and its free samples against that music."""

    split: Literal["train", "validation", "test"] = "test"  # on `train` it shows what was memorised; never a champion
    seq_len: int = 1024
    batch_size: int = 8  # windows at once
    n_samples: int = 8  # pieces sampled without the grammar, for the grammar error rate and the statistics
    sample_tokens: int = 512  # of a sample, and behind the prompt of a continuation, at most
    n_continuations: int = 8  # pieces of the split whose beginning is gone on from, under the grammar; 0: none
    prompt_tokens: int = 64  # of such a beginning, <start> included
    seed: int = 0
    promote: bool = True  # give the alias `champion` to the model if it beats the present one on this dataset version
    promote_by: Literal["interval", "figure"] = "interval"  # beyond noise: the 95 % interval; or by any difference

    @model_validator(mode="before")
    @staticmethod
    def _rename(values: Any) -> Any:
        return current_names(values)

    def __post_init__(self) -> None:
        require(self.seq_len >= 8, f"seq_len={self.seq_len} is below 8")
        require(self.batch_size >= 1, f"batch_size={self.batch_size} is below 1")
        require(self.n_samples >= 0, f"n_samples={self.n_samples} is below 0")
        require(self.sample_tokens >= 8, f"sample_tokens={self.sample_tokens} is below 8")
        require(self.n_continuations >= 0, f"n_continuations={self.n_continuations} is below 0")
        require(self.prompt_tokens >= 2, f"prompt_tokens={self.prompt_tokens} is below 2")
        require(self.seed >= 0, f"seed={self.seed} is below 0")
