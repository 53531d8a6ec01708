"""Runs the kernels of relative attention in Triton's interpreter and prints how far they are from the formula.

    TRITON_INTERPRET=1 python -m tests.models.interpreted_kernels

A process of its own, because Triton asks for the variable when it is imported.
"""

import json
import sys

import torch
from torch import Tensor

from models import relative_attention_triton
from models.relative_attention_triton import relative_attention

# rows of the batch, heads, T, K, rows of the table, heads share it, block, dtype, dropout
CASES = (
    (1, 1, 1, 16, 1, True, 16, "float32", 0.0),
    (2, 2, 17, 20, 5, False, 16, "float32", 0.0),
    (1, 2, 17, 32, 200, True, 16, "float16", 0.0),
    (1, 1, 65, 32, 65, False, 32, "float32", 0.0),
    (1, 1, 65, 16, 18, True, 32, "float32", 0.0),
    (1, 1, 130, 64, 40, True, 64, "float32", 0.0),
    (1, 2, 20, 32, 2, True, 16, "float32", 0.3),
)
SEED = 2**40 + 1


def attend_by_loops(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, table: Tensor, scale: float, kept_BHTJ: Tensor
) -> Tensor:
    B, H, T, _ = q_BHTK.shape
    last, rows = table.shape[-2] - 1, []
    for b in range(B):
        for h in range(H):
            vectors_RK = table[h] if table.ndim == 3 else table
            for i in range(T):
                key_vectors = [k_BHTK[b, h, j] + vectors_RK[last - min(i - j, last)] for j in range(i + 1)]
                logits_J = torch.stack(key_vectors) @ q_BHTK[b, h, i] * scale
                rows.append((logits_J.softmax(0) * kept_BHTJ[b, h, i, : i + 1]) @ v_BHTK[b, h, : i + 1])
    return torch.stack(rows).view(q_BHTK.shape)


def heads(qkv_BTXHK: Tensor) -> tuple[Tensor, ...]:
    return qkv_BTXHK.permute(2, 0, 3, 1, 4).unbind()


def kept_weights(B: int, H: int, T: int, K: int, block: int, dropout: float) -> Tensor:
    """Return what dropout multiplies each weight with: values that are unit vectors show the weights."""
    if not dropout:
        return torch.ones(B, H, T, T)
    nothing, units = torch.zeros(B, H, T, K), torch.eye(T, K).expand(B, H, T, K)
    weights_BHTJ, _ = relative_attention(nothing, nothing, units, torch.zeros(2, K), 1.0, block, dropout, SEED)
    kept_BHTJ = weights_BHTJ[..., :T] * torch.arange(1, T + 1)[:, None]
    share = float(kept_BHTJ.count_nonzero()) / (B * H * T * (T + 1) / 2)
    assert abs(share + dropout - 1) < 0.1, share
    assert not torch.equal(kept_BHTJ[:, 0], kept_BHTJ[:, 1])
    return kept_BHTJ


def far_off(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).detach().norm() / expected.detach().norm().clamp_min(1))


def run(
    B: int, H: int, T: int, K: int, R: int, is_shared: bool, block: int, dtype: str, dropout: float
) -> dict[str, float]:
    torch.manual_seed(T + K + R)
    scale = K**-0.5
    drawn = torch.randn(B, T, 3, H, K), torch.randn((R, K) if is_shared else (H, R, K))
    used = [x.to(getattr(torch, dtype)).requires_grad_() for x in drawn]
    exact = [x.detach().double().requires_grad_() for x in used]
    grad_BHTK = torch.randn(B, H, T, K).to(used[0].dtype)
    found_BHTK, _ = relative_attention(*heads(used[0]), used[1], scale, block, dropout, SEED)
    found = torch.autograd.grad(found_BHTK, used, grad_BHTK)
    expected_BHTK = attend_by_loops(
        *heads(exact[0]), exact[1], scale, kept_weights(B, H, T, K, block, dropout).double()
    )
    expected = torch.autograd.grad(expected_BHTK, exact, grad_BHTK.double())
    return {
        "values": far_off(found_BHTK, expected_BHTK),
        "gradients of q, k, v": far_off(found[0], expected[0]),
        "gradients of the table": far_off(found[1], expected[1]),
    }


if __name__ == "__main__":
    relative_attention_triton.SLOPES_BYTES = 2**14  # so that long rows go in several parts
    shapes = [torch.randn(1, 2, 17, 16, requires_grad=True) for _ in range(3)]
    # What `torch.compile` takes for shapes and dtypes of both passes is what they give.
    torch.library.opcheck(
        relative_attention, (*shapes, torch.randn(5, 16, requires_grad=True), 0.3, 16, 0.1, SEED),
        test_utils=("test_faketensor", "test_aot_dispatch_static"),
    )  # fmt: skip
    json.dump({str(case): run(*case) for case in CASES}, sys.stdout)
