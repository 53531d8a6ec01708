"""How many tokens a second does one training step learn from, for each preset's model?

    PYTHONPATH=. python bench/bench_train_step.py
    PYTHONPATH=. python bench/bench_train_step.py --reference
    PYTHONPATH=. python bench/bench_train_step.py --hourglass

Needs torch, numpy and safetensors alone; on a machine with a GPU it runs there. The ratio is two threads over one on
a CPU, bfloat16 over float32 on a GPU. The ids are random: a step's cost does not depend on them.

`--reference` asks another question: what does our form of S000's model gain over the published one, written plainly
(see `WholeMatrixBlock`) and in float32, and what does its relative term cost against a GPT without it? All of them have
the same weights; the script stops if the first two disagree.

`--hourglass` sets S003's published model, depths [2, 1, 2] with the middle at half length, beside five layers of the
same width at full length.
"""

import argparse
import copy
import math
import os
import sys
from functools import partial
from typing import Any

import report
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from models.compiling import compile_model
from models.config import DecoderConfig, HourglassConfig, OptimizerConfig
from models.decoder.model import Decoder
from models.registry import build_model
from models.training import build_optimizer, train_step

PACKAGES = ("torch", "numpy")
VOCAB_SIZE = 416
# Preset -> model, windows in a batch, tokens in a window. Written out, because tasks/config/presets.py needs more
# than torch; a test compares the two.
PRESETS = {
    "music_transformer_tiny": (
        DecoderConfig(d_model=128, n_heads=4, n_layers=2, d_ff=256, dropout=0.0, max_relative_distance=256), 8, 256,
    ),
    "music_transformer": (DecoderConfig(), 32, 1024),
    "music_transformer_large": (DecoderConfig(d_model=256, n_layers=6, d_ff=1024), 32, 1024),
}  # fmt: skip
HOURGLASSES = {
    "depths [2, 1, 2], the middle at half length": HourglassConfig(),
    "5 layers at full length": HourglassConfig(depths=(5,)),
}
HOURGLASS_VOCAB_SIZE, HOURGLASS_LENGTH = 348, 512
RGA_VOCAB_SIZE = 390
RGA = DecoderConfig(
    d_model=512,
    n_heads=8,
    n_layers=6,
    d_ff=512,
    attention_dropout=0.1,
    activation="gelu",
    norm_eps=1e-5,
    relative_positions="shared",
    absolute_positions="learned",
    embedding_scale=False,
    head="unbiased",
    initialisation="rga",
)


def main() -> None:
    options = report.parser(__doc__.splitlines()[0], rounds=5, with_source=False)
    options.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    options.add_argument("--batch", type=int, help="windows in a batch; by default the preset's, at most 2 on a CPU")
    options.add_argument("--reference", action="store_true", help="S000's model against its published form instead")
    options.add_argument("--hourglass", action="store_true", help="S003's model against flat layers instead")
    given = options.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if given.reference:
        report.save(
            "train_step", f"rga and its reference on {device.type}", compare(device, given), given.results, PACKAGES
        )
        return
    if given.hourglass:
        report.save(
            "train_step", f"hourglass and flat layers on {device.type}", compare_scales(device, given), given.results,
            PACKAGES,
        )  # fmt: skip
        return
    for preset in given.presets:
        report.save("train_step", f"{preset} on {device.type}", run(preset, device, given), given.results, PACKAGES)


def run(preset: str, device: torch.device, given: argparse.Namespace) -> dict[str, Any]:
    """Time one preset's step in both ways."""
    config, batch_size, seq_len = PRESETS[preset]
    batch_size = given.batch or (min(batch_size, 2) if device.type == "cpu" else batch_size)
    torch.manual_seed(0)
    model = build_model(config, VOCAB_SIZE).to(device)
    optimizer = build_optimizer(OptimizerConfig(), model)
    tokens = torch.randint(1, VOCAB_SIZE, (batch_size, seq_len + 1), device=device)
    step = partial(
        train_step, model, optimizer, tokens,
        step=1, learning_rate=1e-4, max_grad_norm=1.0, n_targets=tokens[:, 1:].numel(),
    )  # fmt: skip
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
        "seq_len": seq_len,
        **{
            side: {"tokens_per_second": round(batch_size * seq_len / timing.seconds), **timing.as_json()}
            for side, timing in timings.items()
        },
    }


def compare(device: torch.device, given: argparse.Namespace) -> dict[str, Any]:
    """Time a step of S000's model, of its reference and of a plain GPT of the same size."""
    batch_size, seq_len = given.batch or (2 if device.type == "cpu" else 4), RGA.max_positions
    torch.manual_seed(0)
    ours = Decoder(RGA, RGA_VOCAB_SIZE).to(device)
    tokens = torch.randint(1, RGA_VOCAB_SIZE, (batch_size, seq_len + 1), device=device)
    reference = rewritten(ours, WholeMatrixBlock)
    check_same(ours, reference, tokens[:1, :-1])
    plain, plain_kept = rewritten(ours, PlainBlock), rewritten(ours, PlainBlock, attention_dropout=0.0)
    n_targets = tokens[:, 1:].numel()
    steps = {
        name: partial(
            train_step, model, build_optimizer(OptimizerConfig(), model), tokens,
            step=1, learning_rate=1e-4, max_grad_norm=None, n_targets=n_targets, bf16=bf16,
        )
        for name, model, bf16 in (
            ("ours, bfloat16 and compiled", compile_model(copy.deepcopy(ours)), True),
            ("ours, bfloat16", ours, True),
            ("reference, float32", reference, False),
            ("plain GPT, bfloat16", plain, True),
            ("plain GPT without dropout of attention, bfloat16", plain_kept, True),
        )
    }  # fmt: skip
    sides = {name: step if device.type == "cpu" else partial(synchronised, step) for name, step in steps.items()}
    timings = report.measure(sides, given.rounds)
    compiled_seconds, ours_seconds, *seconds = (timing.seconds for timing in timings.values())
    over_reference, *over_plain = (round(other / ours_seconds, 2) for other in seconds)
    return {
        "ratio": over_reference,
        "ratio_means": "tokens/s of ours in bfloat16 over the reference in float32",
        "compiled_over_reference": round(seconds[0] / compiled_seconds, 2),
        "ours_over_plain_gpt": over_plain[0],
        "ours_over_plain_gpt_without_dropout_of_attention": over_plain[1],
        "parameters": ours.n_parameters,
        "batch_size": batch_size,
        "seq_len": seq_len,
        "torch_threads": torch.get_num_threads(),
        **{
            side: {"tokens_per_second": round(n_targets / timing.seconds), **timing.as_json()}
            for side, timing in timings.items()
        },
    }


def compare_scales(device: torch.device, given: argparse.Namespace) -> dict[str, Any]:
    """Time a step of S003's model and of flat layers, and count the operations of their forward passes."""
    batch_size = given.batch or (1 if device.type == "cpu" else 30)
    torch.manual_seed(0)
    models = {name: build_model(config, HOURGLASS_VOCAB_SIZE).to(device) for name, config in HOURGLASSES.items()}
    tokens = torch.randint(1, HOURGLASS_VOCAB_SIZE, (batch_size, HOURGLASS_LENGTH + 1), device=device)
    n_targets = tokens[:, 1:].numel()
    steps = {
        name: partial(
            train_step, model, build_optimizer(OptimizerConfig(), model), tokens,
            step=1, learning_rate=1e-4, max_grad_norm=0.5, n_targets=n_targets,
        )
        for name, model in models.items()
    }  # fmt: skip
    sides = {name: step if device.type == "cpu" else partial(synchronised, step) for name, step in steps.items()}
    timings = report.measure(sides, given.rounds)
    hourglass, flat = (timing.seconds for timing in timings.values())
    return {
        "ratio": round(flat / hourglass, 2),
        "ratio_means": "tokens/s of the hourglass over flat layers",
        "batch_size": batch_size,
        "seq_len": HOURGLASS_LENGTH,
        "torch_threads": torch.get_num_threads(),
        **{
            name: {
                "parameters": models[name].n_parameters,
                "forward_mflop_per_token": round(_forward_flops(models[name], tokens[:1, :-1]) / 1e6, 2),
                "tokens_per_second": round(n_targets / timing.seconds, 1),
                **timing.as_json(),
            }
            for name, timing in timings.items()
        },
    }


@torch.no_grad()
def _forward_flops(model: nn.Module, tokens: torch.Tensor) -> float:
    """Return the operations of a forward pass per token; a product counts as 2."""
    with FlopCounterMode(display=False) as counter:
        model.eval()(tokens)
    return counter.get_total_flops() / tokens.numel()


class PlainBlock(nn.Module):
    """A layer of a GPT with the weights of one of ours: PyTorch's attention and dropout, without the relative term."""

    norms_of_input = 1

    def __init__(self, block: nn.Module, attention_dropout: float) -> None:
        super().__init__()
        self.block = block
        self.attention_dropout = attention_dropout
        self.drop_attention, self.drop_feed_forward = nn.Dropout(RGA.dropout), nn.Dropout(RGA.dropout)

    def forward(self, x_BTD: torch.Tensor, *_: Any) -> torch.Tensor:
        block: Any = self.block
        inputs_BTD = [block.attention_norm(x_BTD) for _ in range(self.norms_of_input)]
        qkv_BTD = block.attention.to_qkv(inputs_BTD[0])
        q, k, v = (x.unflatten(-1, (RGA.n_heads, RGA.d_head)).transpose(1, 2) for x in qkv_BTD.chunk(3, dim=-1))
        y_BTD = block.attention.to_out(self.attend(q, k, v).transpose(1, 2).flatten(2))
        x_BTD = x_BTD + self.drop_attention(y_BTD)
        return x_BTD + self.drop_feed_forward(block.feed_forward(block.feed_forward_norm(x_BTD)))

    def attend(self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, v_BHTK: torch.Tensor) -> torch.Tensor:
        dropout = self.attention_dropout if self.training else 0.0
        return functional.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, dropout_p=dropout, is_causal=True)


class WholeMatrixBlock(PlainBlock):
    """A layer of S000 as published: whole T x T matrices, the skew by padding, and three norms of the same input."""

    norms_of_input = 3

    def attend(self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, v_BHTK: torch.Tensor) -> torch.Tensor:
        B, H, T, K = q_BHTK.shape
        q_BHTK = q_BHTK * K**-0.5
        mask_TT = torch.full((T, T), -math.inf, device=q_BHTK.device).triu(1)
        table_RK: Any = self.block.get_parameter("attention.relative_MD")[-T:]
        relative_BHTT = functional.pad(q_BHTK @ table_RK.T, (1, 0)).reshape(B, H, T + 1, T)[:, :, 1:]
        weights_BHTT = (q_BHTK @ k_BHTK.transpose(-1, -2) + relative_BHTT + mask_TT).softmax(-1)
        return functional.dropout(weights_BHTT, self.attention_dropout, self.training) @ v_BHTK


def rewritten(model: Decoder, layer: type[PlainBlock], attention_dropout: float = RGA.attention_dropout) -> Decoder:
    """Return a copy of the model, of the same weights, whose layers compute in another way."""
    model = copy.deepcopy(model)
    model.blocks = nn.ModuleList(layer(block, attention_dropout) for block in model.blocks)
    model.dropout = nn.Dropout(RGA.dropout)  # type: ignore[assignment]
    return model


@torch.no_grad()
def check_same(ours: Decoder, reference: Decoder, tokens: torch.Tensor) -> None:
    difference = float((ours.eval()(tokens) - reference.eval()(tokens)).abs().max())
    if difference > 1e-4:
        sys.exit(f"the reference gives other logits, by up to {difference}: nothing was measured")


def synchronised(step: Any) -> None:
    step()
    torch.cuda.synchronize()


def on_threads(n_threads: int, step: Any) -> None:
    torch.set_num_threads(n_threads)
    step()


def on_gpu(step: Any, bf16: bool) -> None:
    step(bf16=bf16)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
