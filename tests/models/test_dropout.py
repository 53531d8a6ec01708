"""Dropout: the right share, independent neighbours, the same bits for the same seed, nothing in evaluation."""

import pytest
import torch

from models.dropout import Dropout, keep_mask


@pytest.mark.parametrize("dropout", [0.0, 0.001, 0.1, 0.5, 0.97])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_mask_drops_the_share(dropout: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    masks = torch.stack([keep_mask(torch.empty(7, 143, dtype=dtype), dropout) for _ in range(400)])
    assert masks.dtype == dtype
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    spread = (dropout * (1 - dropout) / masks.numel()) ** 0.5 + 1 / 256 / 400**0.5
    assert float((masks == 0).double().mean()) == pytest.approx(dropout, abs=5 * spread)


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(0)
    dropped = keep_mask(torch.empty(2**20), 0.25) == 0
    for distance in range(1, 17):  # eight neighbours come from one draw
        both = (dropped[distance:] & dropped[:-distance]).double().mean()
        assert float(both) == pytest.approx(0.0625, abs=0.002)


def test_a_seed_gives_the_same_mask() -> None:
    masks = []
    for _ in range(2):
        torch.manual_seed(5)
        masks.append(keep_mask(torch.empty(1000), 0.1))
    assert torch.equal(*masks)
    assert not torch.equal(masks[0], keep_mask(torch.empty(1000), 0.1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_stays_is_divided_by_the_share_that_stays(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(10_000, dtype=dtype, requires_grad=True)
    y = Dropout(0.2)(x)
    y.sum().backward()
    assert y.dtype == dtype
    assert y.unique().tolist() == [0.0, 1.25]
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())


def test_nothing_is_dropped_in_evaluation_or_without_a_share() -> None:
    x = torch.randn(100)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
