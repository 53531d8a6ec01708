"""Causal attention on CUDA: the form that is fastest for a shape is found when the shape first comes. See layers.py.

| form | relative table | what it keeps for the backward pass |
|---|---|---|
| `fused 64`, `fused 32` | needed | one number a query; see relative_attention_triton.py |
| `blocks` | needed | the weights; see block_attention.py |
| `bias` | needed | the scores of all pairs as a bias of PyTorch's attention |
| `flex` | or none | FlexAttention; with a table the scores per distance |
| `plain` | none | PyTorch's attention |

A form that fails on a card, or does not agree with the first of its list that works, is left out with a warning. Where
torch is told to be deterministic nothing is timed, and the first repeatable form that works is taken.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from models.block_attention import attend_in_blocks

logger = logging.getLogger(__name__)

Form = Callable[[Tensor, Tensor, Tensor, Any, float, float], Tensor]
MIN_TIMED_LENGTH = 128  # shorter rows take the first form of the list
MAX_PAIRS_BYTES = 2**30  # of all scores in one matrix, above which forms that hold them are not tried
MAX_FUSED_D_HEAD = 128
TIMED_ROUNDS, UNTIMED_ROUNDS = 5, 2
WORST_ERROR = {torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}  # of the norm; float32 may be TF32


@dataclass(frozen=True, slots=True)
class Case:
    """What a form is chosen by; the length is rounded up to a power of 2, the rows in use of the table with it."""

    length: int
    d_head: int
    n_distances: int  # 0: no relative table
    is_shared: bool
    dtype: torch.dtype
    trains: bool
    drops: bool
    device: torch.device
    is_deterministic: bool


_chosen: dict[Case, str] = {}


def attend_on_cuda(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, table: Tensor | None, scale: float, dropout: float = 0.0
) -> Tensor:
    """Return y_BHTK, causal attention without padding, by the fastest form.

    Args:
        table: vectors of the distances R - 1 to 0, of shape (H, R, K) or (R, K), with R up to T; further distances
            share the first one. None: no relative positions.
    """
    dtype = v_BHTK.dtype  # norms of queries and keys leave bfloat16 under autocast
    inputs = (q_BHTK.to(dtype), k_BHTK.to(dtype), v_BHTK, table)
    with torch.autocast(v_BHTK.device.type, enabled=False):
        return FORMS[form_for(*inputs, scale, dropout)](*inputs, scale, dropout)


def form_for(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, table: Tensor | None, scale: float, dropout: float) -> str:
    """Return the name of the form to use, which is found by trying all of them when a case first comes."""
    T, K = q_BHTK.shape[2:]
    case = Case(
        length=1 << (T - 1).bit_length(),
        d_head=K,
        n_distances=0 if table is None else 1 << (table.shape[-2] - 1).bit_length(),
        is_shared=table is not None and table.ndim == 2,
        dtype=q_BHTK.dtype,
        trains=torch.is_grad_enabled() and q_BHTK.requires_grad,
        drops=dropout > 0,
        device=q_BHTK.device,
        is_deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    if case not in _chosen:
        names = candidates(case, q_BHTK.shape[0] * q_BHTK.shape[1])
        if len(names) == 1 or (q_BHTK.is_cuda and torch.cuda.is_current_stream_capturing()):
            return names[0]
        devices = [q_BHTK.device] if q_BHTK.is_cuda else []
        with torch.random.fork_rng(devices):  # training draws the same numbers with and without
            _chosen[case] = fastest(names, case, (q_BHTK, k_BHTK, v_BHTK, table), scale, dropout)
    return _chosen[case]


def candidates(case: Case, n_heads: int) -> list[str]:
    """Return the forms to try, the one that always works first.

    Args:
        n_heads: of all rows.
    """
    first = "blocks" if case.n_distances else "plain"
    names = [first]
    if case.length < MIN_TIMED_LENGTH or case.dtype not in WORST_ERROR:
        return names
    pairs_fit = n_heads * case.length**2 * case.dtype.itemsize <= MAX_PAIRS_BYTES
    # Without tensor cores the kernels take minutes to compile, and gain nothing.
    has_tensor_cores = case.dtype != torch.float32 or torch.get_float32_matmul_precision() != "highest"
    if case.n_distances and case.d_head <= MAX_FUSED_D_HEAD and has_tensor_cores:
        names += ["fused 64", "fused 32"]
    if case.n_distances and pairs_fit and not case.is_deterministic:
        names.append("bias")
    # It takes half a minute to compile, which evaluation does not earn back.
    if case.trains and pairs_fit and not case.drops and not case.is_deterministic:
        names.append("flex")
    return names


def fastest(
    names: list[str],
    case: Case,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None],
    scale: float,
    dropout: float = 0.0,
) -> str:
    """Return the form of `names` that takes the least time on tensors like `inputs`.

    Dropout counts for the time alone; results are compared without it.
    """
    drawn = [None if x is None else torch.empty_like(x).normal_().requires_grad_(case.trains) for x in inputs]
    expected, seconds = None, dict[str, float]()
    for name in names:
        try:
            results = results_of(name, drawn, scale, case.trains)
            expected = expected or results
            worst = max(far_off(one, other) for one, other in zip(results, expected, strict=True))
            if worst > WORST_ERROR[case.dtype]:
                raise ArithmeticError(f"results differ from {names[0]!r} by {worst:.1e} of their size")
            seconds[name] = time_of(name, drawn, scale, case.trains, dropout)
        except Exception as error:  # whatever a compiler or driver raises
            # The first form has no memory for long rows, for which the fused kernels are.
            if name == names[0] and not isinstance(error, torch.OutOfMemoryError):
                raise
            logger.warning("attention %r is not used for %s: %s", name, case, str(error).partition("\n")[0])
        if case.is_deterministic and name != names[0] and name in seconds:
            return name
    chosen = min(seconds, key=lambda name: seconds[name], default=names[0])
    logger.info("attention %r for %s: ms %s", chosen, case, {n: round(1e3 * s, 3) for n, s in seconds.items()})
    return chosen


def results_of(
    name: str, inputs: list[Tensor | None], scale: float, trains: bool, dropout: float = 0.0
) -> list[Tensor]:
    """Return what a form gives for `inputs`, and with `trains` its gradients too."""
    q, k, v, table = inputs
    assert q is not None
    assert k is not None
    assert v is not None
    with torch.set_grad_enabled(trains):
        y = FORMS[name](q, k, v, table, scale, dropout)
        if not trains:
            return [y]
        leaves = [x for x in inputs if x is not None]
        return [y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y))]


def far_off(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over the norm of what is expected."""
    difference = (found.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-6)
    return float(difference.nan_to_num(math.inf))


def time_of(name: str, inputs: list[Tensor | None], scale: float, trains: bool, dropout: float) -> float:
    """Return the shortest of a few times in seconds."""
    return min(seconds_of(lambda: results_of(name, inputs, scale, trains, dropout), TIMED_ROUNDS, UNTIMED_ROUNDS))


def seconds_of(work: Callable[[], Any], n_rounds: int, n_untimed: int) -> list[float]:
    """Return how long each round of some work takes, the untimed ones before them left out; on a GPU by its clock."""
    times = []
    for turn in range(n_untimed + n_rounds):
        began = time.perf_counter()
        if torch.cuda.is_available():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            work()
            end.record()
            end.synchronize()
            seconds = start.elapsed_time(end) / 1e3
        else:
            work()
            seconds = time.perf_counter() - began
        times += [seconds] if turn >= n_untimed else []
    return times


def fused(block: int) -> Form:
    """Return the Triton kernels with a size of block as a form."""

    def attend(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, table: Tensor, scale: float, dropout: float) -> Tensor:
        from models.relative_attention_triton import relative_attention

        seed = int(torch.randint(2**32, 2**62, ())) if dropout else 2**32
        return relative_attention(q_BHTK, k_BHTK, v_BHTK, table, scale, block, dropout, seed)[0]

    return attend


def in_blocks(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, table: Tensor, scale: float, dropout: float) -> Tensor:
    """Attend in blocks of queries, as on a CPU."""
    T, R = q_BHTK.shape[2], table.shape[-2]
    repeated = table[..., :1, :].expand(*table.shape[:-2], T - R, -1)
    return attend_in_blocks(q_BHTK * scale, k_BHTK, v_BHTK, torch.cat((repeated, table), dim=-2), None, dropout)


def by_bias(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, table: Tensor, scale: float, dropout: float) -> Tensor:
    """Attend by PyTorch's function, with the scores of distances as a bias."""
    T, last = q_BHTK.shape[2], table.shape[-2] - 1
    time_T = torch.arange(T, device=q_BHTK.device)
    distance_TJ = time_T[:, None] - time_T
    index_TJ = last - distance_TJ.clamp(0, last)
    by_distance_BHTR = (q_BHTK * scale) @ table.to(q_BHTK.dtype).mT
    bias_BHTJ = by_distance_BHTR.gather(-1, index_TJ.expand(*q_BHTK.shape[:2], T, T))
    bias_BHTJ = bias_BHTJ.masked_fill(distance_TJ < 0, -math.inf)
    return functional.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, bias_BHTJ, dropout, scale=scale)


def plain(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, table: None, scale: float, dropout: float) -> Tensor:
    """Attend by PyTorch's function, without relative positions."""
    return functional.scaled_dot_product_attention(
        q_BHTK, k_BHTK, v_BHTK, dropout_p=dropout, is_causal=True, scale=scale
    )


def flex(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, table: Tensor | None, scale: float, dropout: float) -> Tensor:
    """Attend by FlexAttention, compiled and without dropout; a table's scores are added to those of keys."""
    assert not dropout
    blocks = causal_blocks(q_BHTK.shape[2], q_BHTK.device)
    return compiled_flex()(q_BHTK, k_BHTK, v_BHTK, table, scale, blocks)


def flex_with_table(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, table: Tensor | None, scale: float, blocks: Any
) -> Tensor:
    """Return y_BHTK; `blocks` says where keys are seen."""
    from torch.nn.attention.flex_attention import flex_attention

    if table is None:
        return flex_attention(q_BHTK, k_BHTK, v_BHTK, block_mask=blocks, scale=scale)  # type: ignore[return-value]
    last = table.shape[-2] - 1
    by_distance_BHTR = (q_BHTK * scale) @ table.to(q_BHTK.dtype).mT

    def add_distance(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + by_distance_BHTR[b, h, i, last - (i - j).clamp(0, last)]

    return flex_attention(q_BHTK, k_BHTK, v_BHTK, add_distance, blocks, scale)  # type: ignore[return-value]


@cache
def compiled_flex() -> Callable[..., Tensor]:
    """Return `flex_with_table` compiled; only then it is fused."""
    return torch.compile(flex_with_table)


@cache
def causal_blocks(T: int, device: torch.device) -> Any:
    """Return the mask of keys that are not later than their query."""
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(lambda b, h, i, j: i >= j, None, None, T, T, device=str(device))


FORMS: dict[str, Form] = {
    "blocks": in_blocks,
    "fused 64": fused(64),
    "fused 32": fused(32),
    "bias": by_bias,
    "plain": plain,
    "flex": flex,
}
