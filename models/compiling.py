"""Compilation by `torch.compile`, and the functions that it leaves alone."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_left_alone: dict[str, Callable[..., Any]] = {}


def uncompiled(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Return a function that a model of `compile_model` calls as it is.

    `torch.compiler.disable` does the same but imports the compiler, which takes 1.3 s of CPU, so only `compile_model`
    calls it.
    """
    name = f"{function.__module__}.{function.__qualname__}"
    _left_alone[name] = function

    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return _left_alone[name](*args, **kwargs)

    return call


def compile_model(model: nn.Module, **options: Any) -> Any:
    """Return a model compiled by `torch.compile`, which does not compile the functions marked as `uncompiled`."""
    for name, function in _left_alone.items():
        _left_alone[name] = torch.compiler.disable(function)
    return torch.compile(model, **options)
