"""Attention on CUDA: all forms that run without a GPU give the same, and the choice among them is safe."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models import cuda_attention
from models.cuda_attention import FORMS, Case, attend_on_cuda, candidates, fastest, flex_with_table, results_of
from models.layers import RelativeAttention, SelfAttention

T, K = 130, 8
ANY = Case(
    length=256, d_head=K, n_distances=64, is_shared=True, dtype=torch.bfloat16, trains=True, drops=False,
    device=torch.device("cpu"), is_deterministic=False,
)  # fmt: skip


def drawn(*table: int) -> list[Tensor | None]:
    torch.manual_seed(0)
    heads = [torch.randn(2, 3, T, K, requires_grad=True) for _ in range(3)]
    return [*heads, torch.randn(*table, requires_grad=True) if table else None]


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.slow  # imports the compiler
@pytest.mark.parametrize("table", [(40, K), (3, 40, K), (T, K)])
def test_forms_with_a_table_agree(table: tuple[int, ...]) -> None:
    inputs = drawn(*table)
    expected = results_of("blocks", inputs, 0.3, trains=True)
    torch.testing.assert_close(results_of("bias", inputs, 0.3, trains=True), expected, atol=2e-4, rtol=1e-4)
    fixed = [None if x is None else x.detach() for x in inputs]  # FlexAttention has no gradients on a CPU
    y_BHTK = flex_with_table(*fixed, 0.3, cuda_attention.causal_blocks(T, torch.device("cpu")))  # type: ignore[arg-type]
    torch.testing.assert_close(y_BHTK, expected[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("attention", [RelativeAttention(24, 3, 40, shared=True), SelfAttention(24, 3)])
def test_a_layer_gives_what_it_gives_on_a_cpu(attention: SelfAttention) -> None:
    q, k, v, _ = drawn()
    assert q is not None
    table = attention.relative_rows(min(T, attention.max_relative_distance))
    expected_BHTK = attention.attend(q, k, v, None)  # type: ignore[arg-type]
    found_BHTK = attend_on_cuda(q, k, v, table, attention.scale)  # type: ignore[arg-type]
    torch.testing.assert_close(found_BHTK, expected_BHTK, atol=1e-5, rtol=1e-5)


def test_forms_that_fail_or_differ_are_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> Tensor:
        raise RuntimeError("out of resources: shared memory\nand more")

    monkeypatch.setitem(FORMS, "fused 64", fail)
    monkeypatch.setitem(FORMS, "fused 32", lambda q, k, v, *_: v * 1.0)
    names = ["blocks", "fused 64", "fused 32"]
    assert fastest(names, ANY, tuple(drawn(40, K)), 0.3) == "blocks"  # type: ignore[arg-type]
    assert [record.args[0] for record in caplog.records] == ["fused 64", "fused 32"]  # type: ignore[index]
    assert "shared memory" in caplog.text
    assert "and more" not in caplog.text


def test_a_lack_of_memory_leaves_out_even_the_first_form(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(FORMS, "blocks", fail)
    assert fastest(["blocks", "bias"], ANY, tuple(drawn(40, K)), 0.3) == "bias"  # type: ignore[arg-type]
    assert fastest(["blocks"], ANY, tuple(drawn(40, K)), 0.3) == "blocks"  # type: ignore[arg-type]


def test_the_fastest_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tuple(drawn(40, K))
    monkeypatch.setattr(cuda_attention, "time_of", lambda name, *_: {"blocks": 2.0, "bias": 1.0}[name])
    assert fastest(["blocks", "bias"], ANY, inputs, 0.3) == "bias"  # type: ignore[arg-type]
    monkeypatch.setattr(cuda_attention, "time_of", lambda name, *_: {"blocks": 1.0, "bias": 2.0}[name])
    assert fastest(["blocks", "bias"], ANY, inputs, 0.3) == "blocks"  # type: ignore[arg-type]


def test_timing_leaves_the_global_random_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, table = (None if x is None else x.bfloat16() for x in drawn(40, K))
    monkeypatch.setattr(cuda_attention, "candidates", lambda *_: ["blocks", "bias"])
    before = torch.get_rng_state()
    assert cuda_attention.form_for(q, k, v, table, 0.3, 0.2) in ("blocks", "bias")  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_tried() -> None:
    assert candidates(ANY, 16) == ["blocks", "fused 64", "fused 32", "bias", "flex"]
    assert candidates(replace(ANY, drops=True), 16) == ["blocks", "fused 64", "fused 32", "bias"]
    assert candidates(replace(ANY, trains=False), 16) == ["blocks", "fused 64", "fused 32", "bias"]
    assert candidates(replace(ANY, is_deterministic=True), 16) == ["blocks", "fused 64", "fused 32"]
    assert candidates(replace(ANY, length=2**14), 64) == ["blocks", "fused 64", "fused 32"]
    assert candidates(replace(ANY, length=64), 16) == ["blocks"]
    assert candidates(replace(ANY, dtype=torch.float32), 16) == ["blocks", "bias", "flex"]
    assert candidates(replace(ANY, n_distances=0), 16) == ["plain", "flex"]
    assert candidates(replace(ANY, n_distances=0, trains=False), 16) == ["plain"]
