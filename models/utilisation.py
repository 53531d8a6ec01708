"""Share of a GPU's peak that training makes use of (model FLOPs utilisation, Chowdhery et al. 2022, appendix B)."""

from models.config import DecoderConfig, ModelConfig

# Operations a second in bfloat16 with dense matrices, by a part of the name that `torch.cuda.get_device_name` gives.
# The first part that fits counts. Source: NVIDIA's data sheets, whose figures with sparsity are twice these.
BF16_PEAKS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def bf16_peak(device_name: str) -> float | None:
    """Return the operations a second that a GPU can do in bfloat16; None where that is not known."""
    return next((peak for part, peak in BF16_PEAKS.items() if part in device_name), None)


def flops_per_token(config: ModelConfig, n_parameters: int, seq_len: int) -> float | None:
    """Return the operations of a training step per token, 6 N + 12 L T D; None for models of another form.

    N is the number of parameters, L of layers, T of tokens in a window, D the width. Operations of activation
    checkpointing do not count, those of masked attention do.
    """
    if not isinstance(config, DecoderConfig):
        return None
    return 6 * n_parameters + 12 * config.n_layers * seq_len * config.d_model
