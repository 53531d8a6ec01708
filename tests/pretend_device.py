"""A second device where there is none: tensors that say they are on `meta`, but have numbers, which the CPU computes.

They refuse to meet tensors of the CPU, as those of a GPU do, so that a tensor made on the wrong device is found without
a GPU. Inference mode, random generators of the device, and tensors made on it from Python lists are not imitated.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

_aten: Any = torch.ops.aten
_MOVES = (_aten._to_copy.default, _aten.copy_.default)
_INDEXING = (_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default)  # a GPU takes indices of the CPU


class FarTensor(Tensor):
    """A tensor whose device is `meta`; `inner` holds its numbers."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "FarTensor":
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device="meta", requires_grad=False,
        )  # fmt: skip

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self, **_: Any) -> str:
        return f"FarTensor({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Catches what makes tensors of the device from none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    given = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
    far = [one for one in given if isinstance(one, FarTensor)]
    looked_at = [args[0]] if func in _INDEXING else given
    strangers = [one for one in looked_at if not isinstance(one, FarTensor) and one.dim()]
    if far and strangers and func not in _MOVES:
        raise AssertionError(f"{func} meets tensors of meta and of cpu: shapes {[tuple(t.shape) for t in given]}")
    asked = kwargs.get("device")
    is_far = torch.device(asked).type == "meta" if asked is not None else bool(far)
    if func is _aten.copy_.default:
        is_far = isinstance(args[0], FarTensor)
    inner_args, inner_kwargs = tree_map(lambda one: one.inner if isinstance(one, FarTensor) else one, (args, kwargs))
    if asked is not None:
        inner_kwargs = inner_kwargs | {"device": torch.device("cpu")}
    if func is _aten._to_copy.default:
        inner_kwargs = {**inner_kwargs, "non_blocking": False}
    found = func(*inner_args, **inner_kwargs)
    by_inner = {id(one.inner): one for one in far}

    def wrap(one: Any) -> Any:
        if not isinstance(one, Tensor) or not is_far:
            return one
        known = by_inner.get(id(one))
        return FarTensor(one) if known is None else known

    return tree_map(wrap, found)


@contextmanager
def pretended_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let tensors on `meta` be `FarTensor`."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it knows no meta
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a module takes the tensors, not their storage
    try:
        with _Mode():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
        monkeypatch.undo()
