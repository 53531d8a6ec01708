"""Share of a GPU's peak: known cards, and the operations of a step."""

import pytest

from models.config import DecoderConfig, HourglassConfig
from models.utilisation import bf16_peak, flops_per_token


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA L40S", 362e12),
        ("Tesla T4", None),
    ],
)
def test_peaks_go_by_the_name_of_the_card(name: str, peak: float | None) -> None:
    assert bf16_peak(name) == peak


def test_operations_are_those_of_palm_and_known_for_flat_decoders_alone() -> None:
    # 6 operations a parameter, and 12 a layer for each pair of positions and width.
    config = DecoderConfig(n_layers=2, d_model=8)
    assert flops_per_token(config, n_parameters=1000, seq_len=16) == 6 * 1000 + 12 * 2 * 16 * 8
    assert flops_per_token(HourglassConfig(), 1000, 16) is None
