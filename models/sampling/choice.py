"""The choice of ids from logits: penalties, temperature, top-k, top-p and min-p.

Shape letters: see layers.py. Logits are float64 here, whatever the model computes in.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import loops
from models.config import SamplingConfig, check_temperature, check_top_k


def keep_likeliest(
    logits_BV: Tensor, top_k_B: Tensor | None = None, top_p: float | None = None, min_p: float | None = None
) -> Tensor:
    """Return the logits with -inf for all ids outside the top k, the nucleus within these, or below `min_p`."""
    sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)  # stable: of equals, the lowest id first
    drop_BV = torch.zeros_like(sorted_BV, dtype=torch.bool)
    if top_k_B is not None:
        rank_V = torch.arange(logits_BV.shape[1], device=logits_BV.device)
        drop_BV = rank_V >= top_k_B[:, None]
    if top_p is not None:
        shares_BV = sorted_BV.masked_fill(drop_BV, -math.inf).softmax(dim=-1)
        before_BV = shares_BV.cumsum(dim=-1) - shares_BV  # exactly 0 for the likeliest id, which always stays
        drop_BV = drop_BV | (before_BV >= top_p)
    if min_p is not None:
        drop_BV = drop_BV | (sorted_BV < sorted_BV[:, :1] + math.log(min_p))
    return logits_BV.masked_fill(torch.zeros_like(drop_BV).scatter(1, order_BV, drop_BV), -math.inf)


def draw(logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Return for each row the id at which the running sum of probabilities, in order of ids, passes `uniform_B`."""
    if loops.ARE_COMPILED and logits_BV.device.type == "cpu":
        ids_B = torch.empty(len(logits_BV), dtype=torch.long)
        loops.draw_ids(logits_BV.numpy(), uniform_B.numpy(), ids_B.numpy())
        return ids_B
    weights_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)).exp()
    running_BV = weights_BV.cumsum(dim=-1)
    total_B = running_BV[:, -1]
    # The product may round up to the total itself, which no id passes.
    threshold_B = torch.minimum(uniform_B * total_B, torch.nextafter(total_B, torch.zeros_like(total_B)))
    ids_B1 = torch.searchsorted(running_BV, threshold_B[:, None], right=True)
    return ids_B1[:, 0].clamp_max_(logits_BV.shape[1] - 1)  # no effect but on logits that are not finite


@dataclass(frozen=True, slots=True)
class Penalty:
    """What is taken off the logits of ids that were there lately."""

    presence: float
    frequency: float
    n_tokens: int  # looked back on

    @classmethod
    def of(cls, config: SamplingConfig) -> "Penalty | None":
        """Return None where there is none."""
        if not (config.presence_penalty or config.frequency_penalty):
            return None
        return cls(config.presence_penalty, config.frequency_penalty, config.penalty_tokens)

    def on(self, ids_BJ: Tensor, length_B: Tensor, vocab_size: int) -> Tensor:
        """Return what to take off, float64 (B, V).

        Args:
            ids_BJ: of each row; those from `length_B` on mean nothing.
            length_B: 1 or more.
        """
        place_BC = length_B[:, None] - 1 - torch.arange(self.n_tokens, device=ids_BJ.device)
        is_there_BC = (place_BC >= 0).double()
        recent_BC = ids_BJ.gather(1, place_BC.clamp_min(0))
        count_BV = torch.zeros((len(ids_BJ), vocab_size), dtype=torch.float64, device=ids_BJ.device)
        count_BV.scatter_add_(1, recent_BC, is_there_BC)
        return self.frequency * count_BV + self.presence * (count_BV > 0)


def _between(points: Sequence[tuple[int, float]], n_lengths: int) -> NDArray[np.float64]:
    """Return a value for each length from 0 on: straight lines between points, the first and last value beyond them."""
    lengths, values = np.array(points, np.float64).T
    return np.interp(np.arange(n_lengths), lengths, values)


@dataclass(frozen=True, slots=True, eq=False)
class Chooser:
    """Logits and uniforms to ids, with settings that may depend on the length of a piece.

    Attributes:
        temperature_J, top_k_J: one for all lengths, or one for each length.
    """

    temperature_J: Tensor
    top_k_J: Tensor | None
    top_p: float | None
    min_p: float | None
    greedy: bool

    @classmethod
    def of(
        cls,
        config: SamplingConfig,
        vocab_size: int,
        device: torch.device | str = "cpu",
        *,
        temperature: Callable[[int], float] | None = None,
        top_k: Callable[[int], int | None] | None = None,
    ) -> "Chooser":
        """Evaluate all values now, so that a wrong one fails before any work; a piece has at least one id."""
        lengths = range(1, config.max_tokens)
        temperatures = np.array([config.temperature])
        top_ks = np.array([config.top_k or vocab_size], dtype=np.int64)
        if temperature is not None:
            values = (check_temperature(temperature(n), f" at length {n}") for n in lengths)
            temperatures = np.concatenate((temperatures, np.fromiter(values, np.float64)))
        elif config.temperature_points:
            temperatures = _between(config.temperature_points, config.max_tokens)
        elif config.final_temperature is not None:
            temperatures = np.linspace(config.temperature, config.final_temperature, config.max_tokens)
        if top_k is not None:
            counts = (min(check_top_k(top_k(n), f" at length {n}") or vocab_size, vocab_size) for n in lengths)
            top_ks = np.concatenate((top_ks, np.fromiter(counts, np.int64)))
        elif config.top_k_points:
            top_ks = np.minimum(np.rint(_between(config.top_k_points, config.max_tokens)).astype(np.int64), vocab_size)
        return cls(
            temperature_J=torch.as_tensor(temperatures, device=device),
            top_k_J=torch.as_tensor(top_ks, device=device) if (top_ks < vocab_size).any() else None,
            top_p=None if config.top_p == 1.0 else config.top_p,
            min_p=config.min_p,
            greedy=config.greedy,
        )

    def choose(self, logits_BV: Tensor, length_B: Tensor, uniform_B: Tensor) -> Tensor:
        """Return one id a row; -inf marks ids that are not allowed.

        Args:
            length_B: number of ids of each row so far.
        """
        if self.greedy:
            return logits_BV.argmax(dim=-1)  # the first, so the lowest, of equals
        logits_BV = logits_BV / _of_length(self.temperature_J, length_B)[:, None]
        if self.top_k_J is not None or self.top_p is not None or self.min_p is not None:
            top_k_B = None if self.top_k_J is None else _of_length(self.top_k_J, length_B)
            logits_BV = keep_likeliest(logits_BV, top_k_B, self.top_p, self.min_p)
        return draw(logits_BV, uniform_B)


def _of_length(values_J: Tensor, length_B: Tensor) -> Tensor:
    """Return the value of each length; those beyond the last have the last one."""
    if len(values_J) == 1:
        return values_J.expand(len(length_B))
    return values_J[length_B.clamp_max(len(values_J) - 1)]
