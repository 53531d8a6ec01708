"""Functions that `torch.compile` leaves alone."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def uncompiled(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Return a function that a compiled model calls as it is; torch's own decorator, with the types kept."""
    disabled: Any = torch.compiler.disable(function)
    return disabled
