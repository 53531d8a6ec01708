"""Settings of an evaluation."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import model_validator

from models.settings import Settings, setting
from tasks.config.old_names import current_names


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig(Settings):
    """Scores of a model on a split, held out as a rule, and its free samples against that music."""

    split: Literal["train", "validation", "test"] = setting(
        "test", "Split to score; `train` shows what was memorised and makes no champion."
    )
    seq_len: int = setting(1024, "Tokens of a window.", ge=8)
    batch_size: int = setting(8, "Windows at once.", ge=1)
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "Kind of device; auto: a GPU where the Ray cluster, or without one this machine, has one."
    )
    n_samples: int = setting(8, "Pieces sampled without the grammar, for its error rate and the statistics.", ge=0)
    sample_tokens: int = setting(512, "Most tokens of a sample, and behind the prompt of a continuation.", ge=8)
    n_continuations: int = setting(
        8, "Pieces of the split whose beginning is continued under the grammar; 0: none.", ge=0
    )
    prompt_tokens: int = setting(64, "Tokens of such a beginning, <start> included.", ge=2)
    seed: int = setting(0, "Seed of all draws.", ge=0)
    promote: bool = setting(
        True, "Give the alias `champion` to the model if it beats the present one on this dataset version."
    )
    promote_by: Literal["interval", "figure"] = setting(
        "interval", "Beyond noise, by the 95 % interval; or by any difference."
    )

    @model_validator(mode="before")
    @staticmethod
    def _rename(values: Any) -> Any:
        return current_names(values)
