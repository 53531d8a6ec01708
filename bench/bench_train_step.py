"""How many tokens a second does one training step learn from, for each preset's model?

    PYTHONPATH=. python bench/bench_train_step.py

Needs torch, numpy and safetensors alone; on a machine with a GPU it runs there. The ratio is two threads over one on
a CPU, bfloat16 over float32 on a GPU. The ids are random: a step's cost does not depend on them.
"""

import argparse
import os
from functools import partial
from typing import Any

import report
import torch

from models.config import DecoderConfig, OptimizerConfig
from models.registry import build_model
from models.training import build_optimizer, train_step

PACKAGES = ("torch", "numpy")
VOCAB_SIZE = 416
# Preset -> model, windows in a batch, tokens in a window. Written out, for tasks/presets.py needs more than torch; a
# test compares the two.
PRESETS = {
    "music_transformer_tiny": (
        DecoderConfig(d_model=128, n_heads=4, n_layers=2, d_ff=256, dropout=0.0, max_relative_distance=256), 8, 256,
    ),
    "music_transformer": (DecoderConfig(), 32, 1024),
    "music_transformer_large": (DecoderConfig(d_model=256, n_layers=6, d_ff=1024), 32, 1024),
}  # fmt: skip


def main() -> None:
    options = report.parser(__doc__.splitlines()[0], rounds=5, with_source=False)
    options.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    options.add_argument("--batch", type=int, help="windows in a batch; by default the preset's, at most 2 on a CPU")
    given = options.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for preset in given.presets:
        report.save("train_step", f"{preset} on {device.type}", run(preset, device, given), given.results, PACKAGES)


def run(preset: str, device: torch.device, given: argparse.Namespace) -> dict[str, Any]:
    """Time one preset's step in both ways."""
    config, batch_size, window_tokens = PRESETS[preset]
    batch_size = given.batch or (min(batch_size, 2) if device.type == "cpu" else batch_size)
    torch.manual_seed(0)
    model = build_model(config, VOCAB_SIZE).to(device)
    optimizer = build_optimizer(OptimizerConfig(), model)
    tokens = torch.randint(1, VOCAB_SIZE, (batch_size, window_tokens + 1), device=device)
    step = partial(
        train_step, model, optimizer, tokens, learning_rate=1e-4, max_grad_norm=1.0, n_targets=tokens[:, 1:].numel()
    )
    if device.type == "cpu":
        n_threads = len(os.sched_getaffinity(0))
        fast, slow = f"{n_threads} threads", "1 thread"
        sides = {fast: partial(on_threads, n_threads, step), slow: partial(on_threads, 1, step)}
    else:
        fast, slow = "bfloat16", "float32"
        sides = {fast: partial(on_gpu, step, True), slow: partial(on_gpu, step, False)}
    timings = report.measure(sides, given.rounds)
    return {
        "ratio": round(timings[slow].seconds / timings[fast].seconds, 2),
        "ratio_means": f"tokens/s with {fast} over {slow}",
        "parameters": model.n_parameters,
        "batch_size": batch_size,
        "window_tokens": window_tokens,
        **{
            side: {"tokens_per_second": round(batch_size * window_tokens / timing.seconds), **timing.as_json()}
            for side, timing in timings.items()
        },
    }


def on_threads(n_threads: int, step: Any) -> None:
    torch.set_num_threads(n_threads)
    step()


def on_gpu(step: Any, bf16: bool) -> None:
    step(bf16=bf16)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
