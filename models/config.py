"""Settings of models, schedules, optimizers and sampling; importable without torch, so that a typo is told at once."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """Sizes of a `Decoder`; the defaults with 416 tokens have 1,095,200 parameters."""

    name: Literal["decoder"] = "decoder"
    d_model: int = 128
    n_heads: int = 8
    n_layers: int = 3
    d_ff: int = 512
    dropout: float = 0.1
    max_relative_distance: int = 1024  # tokens; further ones share the vector of the furthest
    absolute_positions: Literal["none", "sinusoidal"] = "none"
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for field in ("d_model", "n_heads", "n_layers", "d_ff", "max_relative_distance"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} is below 1")
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} is outside 0 to below 1")
        if self.norm_eps <= 0:
            raise ValueError(f"norm_eps={self.norm_eps} is not above 0")
        if self.absolute_positions not in ("none", "sinusoidal"):
            raise ValueError(f"absolute_positions={self.absolute_positions!r} is neither 'none' nor 'sinusoidal'")

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads


@dataclass(frozen=True, kw_only=True, slots=True)
class NoamSchedule:
    """Rise over `warmup_steps`, then fall with the root of the step. Source: Vaswani et al. 2017, section 5.3.

    With `warmup_steps` of 0 or less there is only the fall, as if 4000 steps had passed.
    """

    name: Literal["noam"] = "noam"
    warmup_steps: int = 2000
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"scale={self.scale} is not above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmupCosineSchedule:
    """Rise in a line to `peak`, then fall along half a cosine to `peak * floor_share`.

    Args:
        total_steps: step that reaches the floor; 0: the last step of the run.
    """

    name: Literal["warmup_cosine"] = "warmup_cosine"
    peak: float = 1e-3
    warmup_steps: int = 200
    total_steps: int = 0
    floor_share: float = 0.1

    def __post_init__(self) -> None:
        if self.peak <= 0:
            raise ValueError(f"peak={self.peak} is not above 0")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps={self.warmup_steps} is below 0")
        if self.total_steps < 0:
            raise ValueError(f"total_steps={self.total_steps} is below 0")
        if not 0 <= self.floor_share <= 1:
            raise ValueError(f"floor_share={self.floor_share} is outside 0-1")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """Settings of Adam, or of AdamW, which decays matrices but no biases and norms.

    Args:
        max_grad_norm: longest gradient, taken over all parameters; None: never shortened.
    """

    name: Literal["adam", "adamw"] = "adam"
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        if self.name not in ("adam", "adamw"):
            raise ValueError(f"name={self.name!r} is neither 'adam' nor 'adamw'")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas} are not two numbers from 0 to below 1")
        if self.eps <= 0:
            raise ValueError(f"eps={self.eps} is not above 0")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay={self.weight_decay} is below 0")
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise ValueError(f"max_grad_norm={self.max_grad_norm} is not above 0; None turns clipping off")


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How ids are drawn: divide by the temperature, keep the `top_k` likeliest, keep the `top_p` nucleus, draw.

    Args:
        temperature: above 0; below 1 favours likely ids.
        top_k: ids to keep; None: all.
        top_p: keep the smallest set of likeliest ids with at least this probability, above 0 to 1; None: all.
        greedy: always take the likeliest id; the three above have no effect.
        max_tokens: longest piece, its prompt included.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool = False
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_top_k(self.top_k)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} is outside above 0 to 1")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens} is below 1")


def check_temperature(temperature: float, where: str = "") -> float:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature={temperature}{where} is not a number above 0; for no randomness set greedy")
    return float(temperature)


def check_top_k(top_k: int | None, where: str = "") -> int | None:
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k}{where} is below 1")
    return top_k


ModelConfig = DecoderConfig  # becomes a union, told apart by `name`, with the second architecture
ScheduleConfig = NoamSchedule | WarmupCosineSchedule
