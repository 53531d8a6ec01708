"""The error of a fast sampler's logits, and when they are precise enough.

A piece must be the same, id for id, alone and in any batch. Logits in float32 differ with the batch in their last bits,
for matrix products of other shapes add in another order. In float64 that changes about one id in 1e12, but a step
takes two to three times as long. So a step runs in float32, and an id counts only where no error within a wide margin
changes it. Otherwise that row's logits are computed in float64 by a pass over the row's own context, alone. Either way
it is the id that float64 gives for the piece alone: the margin decides how often the slow way is taken, not what comes
out, and may differ from batch to batch.

The margin is `SLACK` times the error that was seen, which is measured on the very model and pieces: at the first step,
then at rising distances, and at each choice that was too close. Errors are sums of many roundings, so one of `SLACK`
standard deviations does not occur. Should a check ever find one of a quarter of that, nothing is taken for granted: all
pieces are begun again in float64. Shape letters: see layers.py.
"""

import copy

import torch
from torch import Tensor

from models.registry import SampledModel
from models.sampling.choice import share_spread

SLACK = 16.0
LEAST_ERROR = 2e-6  # a usual one; a lucky measurement below it must not make the next one look like a loss
GREATEST_ERROR = 1e-4  # beyond this most choices would be too close
LEAST_SPREAD = 1e-8  # below this, errors of shares are lost among the roundings of float64
# Logits in float64 are rounded to this step before they are compared, so that ids which tie in exact arithmetic tie
# always, and the lowest of them wins.
LOGIT_STEP = 2.0**-32


class PrecisionLostError(Exception):
    """Float32 is not good enough for this model."""


class ErrorGauge:
    """The largest error of float32 logits so far."""

    def __init__(self) -> None:
        self.error = 0.0  # 0: none measured yet

    @property
    def margin(self) -> float:
        """How far logits may be wrong."""
        return SLACK * self.error

    def observe(self, fast_V: Tensor, exact_V: Tensor) -> None:
        """Take in one measurement.

        Raises:
            PrecisionLostError: it is so large that earlier choices may have been wrong.
        """
        error = max(logit_error(fast_V, exact_V), LEAST_ERROR)
        if error > GREATEST_ERROR or (self.error and error > SLACK / 4 * self.error):
            raise PrecisionLostError
        self.error = max(self.error, error)


def logit_error(fast_V: Tensor, exact_V: Tensor) -> float:
    """Return the standard deviation of errors of logits, by the logits themselves or by the running shares they give.

    Where the errors of the logits go together, those of the shares are larger than independent ones would make them.
    """
    error_V = fast_V - exact_V
    error_V = error_V - error_V.mean()  # what all logits have in common changes no probability
    exact_share_V = exact_V.softmax(-1)
    running_V, squares_V = exact_share_V.cumsum(-1), exact_share_V.square().cumsum(-1)
    spread_V = share_spread(running_V, squares_V, squares_V[-1:])
    relative_V = ((fast_V.softmax(-1).cumsum(-1) - running_V) / spread_V)[spread_V > LEAST_SPREAD]
    of_shares = float(relative_V.square().mean().sqrt()) if len(relative_V) else 0.0
    return max(float(error_V.square().mean().sqrt()), of_shares)


def rounded(logits: Tensor) -> Tensor:
    """Return float64 logits in whole steps of `LOGIT_STEP`."""
    return (logits / LOGIT_STEP).round_() * LOGIT_STEP


def evaluated_in(dtype: torch.dtype, model: SampledModel) -> SampledModel:
    """Return the model in evaluation mode with weights of `dtype`: itself where it is so, otherwise a copy."""
    if not model.training and all(weight.dtype == dtype for weight in model.parameters()):
        return model
    return copy.deepcopy(model).to(dtype).eval()


class ExactLogits:
    """A model in float64 that computes one piece at a time."""

    def __init__(self, model: SampledModel, room: int) -> None:
        self.model = evaluated_in(torch.float64, model)
        self.cache = self.model.new_cache(1, room)

    def of(self, piece: int, ids: Tensor) -> Tensor:
        """Return the logits, (V), of the id after `ids`."""
        self.cache.start_row(0, piece)
        return rounded(self.model(ids[None].to(self.model.embed.weight.device), self.cache)[0, -1])


class CheckSchedule:
    """At which steps a row is measured though nothing asks for it: 0, 16, 64, 256 and so on."""

    def __init__(self) -> None:
        self.n_steps = 0
        self.next = 0

    def is_due(self) -> bool:
        """Count one step and return whether it is measured; the distance between measured steps grows fourfold."""
        is_due = self.n_steps == self.next
        if is_due:
            self.next = max(16, 4 * self.next)
        self.n_steps += 1
        return is_due
