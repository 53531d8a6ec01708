"""What does a GPU make of the models: are results those of the CPU, and how fast are training, attention and sampling?

    python bench/bench_gpu.py
    python bench/bench_gpu.py --minutes 20 --eager
    python bench/bench_gpu.py --device cpu --tiny

Needs torch, triton, numpy, safetensors and this repository, and nothing else. One command checks every form of
attention and every model family against its CPU result, then times training, attention and sampling. It takes ten
minutes at most: each part has a share of them, what a part leaves goes to those after it, and what no time was left for
is listed in the result. An error or a lack of memory costs the item that it happens in. A failed check makes the exit
code 1; the figures are there nevertheless.

The ratio is the rate of relative attention, in its fastest form, over PyTorch's attention without the relative term,
forward and backward, at the longest length that both ran.

`--device cpu --tiny` runs all of it at small sizes, the kernels in Triton's interpreter, as a test of this script. Its
figures mean nothing.
"""

import argparse
import copy
import io
import os
import statistics
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import report  # noqa: E402  # before torch
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from models.compiling import compile_model  # noqa: E402
from models.config import DecoderConfig, HourglassConfig, OptimizerConfig, SamplingConfig, VaeConfig  # noqa: E402
from models.cuda_attention import FORMS, far_off, results_of, seconds_of  # noqa: E402
from models.registry import build_model  # noqa: E402
from models.sampling.sample import sample  # noqa: E402
from models.training import build_optimizer, loss_parts, train_step  # noqa: E402
from models.utilisation import bf16_peak, flops_per_token  # noqa: E402

PACKAGES = ("torch", "triton", "numpy", "safetensors")
SHARES = {"checks": 0.2, "training": 0.37, "attention": 0.25, "sampling": 0.18}
VOCAB_SIZE, FIRST, NEVER = 416, 10, -1  # NEVER: an id that is not drawn
RELATIVE = {"blocks", "fused 64", "fused 32", "bias", "flex"}
LARGEST_MATRIX = 2**33  # bytes of the scores of all pairs, above which forms that hold them are left out
SMALL = {"d_model": 64, "n_heads": 4, "dropout": 0.0}
FAMILIES = {
    "decoder, no positions": DecoderConfig(**SMALL, n_layers=2, d_ff=128, relative_positions="none"),
    "decoder, table per head": DecoderConfig(**SMALL, n_layers=2, d_ff=128, max_relative_distance=100),
    "decoder, shared table": DecoderConfig(
        **SMALL, n_layers=2, d_ff=128, relative_positions="shared", absolute_positions="learned", head="tied"
    ),
    "decoder, rotary": DecoderConfig(
        **SMALL, n_layers=2, d_ff=128, relative_positions="rotary", norm="rms", qk_norm=True, feed_forward="gated",
        activation="silu", bias=False, initialisation="scaled",
    ),
    "hourglass": HourglassConfig(**SMALL, d_ff=128, max_relative_distance=100),
    "hourglass, linear": HourglassConfig(**SMALL, d_ff=128, depths=(1, 1, 1, 1, 1), resampling="linear"),
    "vae": VaeConfig(**SMALL, n_layers=2, block=96, channels=(32, 16)),
    "vae, encoders": VaeConfig(**SMALL, n_layers=2, block=96, channels=(32, 16), family="encoder"),
}  # fmt: skip
# Layers, width, rows of 1,024 tokens in a batch; a batch that does not fit is halved.
# The most telling one comes first.
SIZES = {"110 M": (16, 768, 64), "350 M": (28, 1024, 32), "25 M": (8, 512, 64)}
SAMPLED = ("rga", "orchestrion_small")


@dataclass
class Run:
    """What all parts share: the options, the clock, and what becomes the result."""

    device: torch.device
    tiny: bool
    compiles: bool
    seconds: float
    began: float = field(default_factory=time.monotonic)
    until: float = 0.0
    failed: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @contextmanager
    def item(self, name: str, is_check: bool = False) -> Iterator[None]:
        """Note an error, such as a lack of memory, under the name of the item that it happens in."""
        try:
            yield
        except Exception as error:
            notes = self.failed if is_check else self.left_out
            notes.append(f"{name}: {type(error).__name__}: {str(error).partition(chr(10))[0][:200]}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def has_time(self, name: str) -> bool:
        """Return whether the part at work has time left; otherwise note that an item was left out."""
        is_left = time.monotonic() < self.until
        self.left_out += [] if is_left else [f"{name}: no time was left"]
        return is_left

    def check(self, name: str, error: float, limit: float) -> dict[str, float]:
        """Return a figure beside its limit, and note a check that failed."""
        if not error <= limit:
            self.failed.append(f"{name}: {error:.1e} is above {limit:.0e}")
        return {"error": float(f"{error:.2e}"), "limit": limit}


def main() -> None:
    options = report.parser(__doc__.splitlines()[0], rounds=5, with_source=False)
    options.add_argument("--device", choices=("cuda", "cpu"), help="by default cuda, and nothing without it")
    options.add_argument("--tiny", action="store_true", help="small sizes, as a test of this script")
    options.add_argument("--minutes", type=float, default=9.0, help="for all parts together; 9 by default")
    options.add_argument("--eager", action="store_true", help="train without torch.compile")
    given = options.parse_args()
    if given.device != "cpu" and not torch.cuda.is_available():
        print("torch sees no CUDA device here; --device cpu --tiny tests this script without one", file=sys.stderr)
        sys.exit(2 if given.device else 0)  # `make bench` goes on to the next script
    if given.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
    run = Run(torch.device(given.device or "cuda"), given.tiny, not given.eager and not given.tiny, 60 * given.minutes)
    parts = {"checks": check, "training": train, "attention": attend, "sampling": write}
    results: dict[str, Any] = {}
    share = 0.0
    for name, part in parts.items():
        share += SHARES[name]
        run.until = run.began + share * run.seconds
        results[name] = {}
        part(run, results[name], given)
        record = {
            "ratio": headline(results.get("attention", {})),
            "ratio_means": "rate of relative attention over attention without the term, forward and backward",
            "failed_checks": run.failed,
            "left_out": run.left_out,
            "seconds": round(time.monotonic() - run.began),
            **results,
        }
        # After each part, so that a run that is cut off leaves something.
        with nullcontext() if name == list(parts)[-1] else redirect_stdout(io.StringIO()):
            report.save("gpu", card_of(run) + ", tiny" * run.tiny, record, given.results, PACKAGES)
        print(f"{name}: done after {record['seconds']} s", file=sys.stderr)
    if run.failed:
        sys.exit("checks failed:\n" + "\n".join(run.failed))


def card_of(run: Run) -> str:
    return torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "cpu"


# checks


def check(run: Run, results: dict[str, Any], given: argparse.Namespace) -> None:
    """Compare every family and every form of attention with its result on the CPU."""
    on_cpu = run.device.type == "cpu"
    for name, config in FAMILIES.items():
        if run.has_time(name):
            with run.item(name, is_check=True):
                results[name] = check_family(run, name, config)
    for form in ("blocks", "plain", "fused 64", "fused 32", "bias", "flex"):
        if on_cpu and form in ("flex", "fused 64"):
            continue  # FlexAttention has no gradients on a CPU, and the interpreter takes its time
        for dtype in (torch.float32,) if on_cpu else (torch.bfloat16, torch.float32):
            for T in (40,) if run.tiny else (1, 17, 65, 130, 1000):
                name = f"{form}, {str(dtype).removeprefix('torch.')}, {T} tokens"
                if form == "flex" and (dtype, T) != (torch.bfloat16, 130):
                    continue  # each shape compiles anew, for half a minute
                if form == "fused 64" and dtype == torch.float32:
                    continue  # compiles for a minute, and is never chosen
                if run.has_time(name):
                    with run.item(name, is_check=True):
                        results[name] = check_form(run, name, form, T, dtype)


def check_form(run: Run, name: str, form: str, T: int, dtype: torch.dtype) -> dict[str, Any]:
    """Compare values and gradients with blocks in float64, with a table per head and one that heads share."""
    errors, is_repeated = [], True
    shapes = ((2, 30, 32), (30, 32)) if form in RELATIVE else (None,)
    for shape in shapes[-1:] if form == "flex" else shapes:
        generator = torch.Generator().manual_seed(T)
        drawn = [torch.randn(2, 2, T, 32, generator=generator) for _ in range(3)]
        table = None if shape is None else torch.randn(shape, generator=generator)[..., -T:, :]
        exact = [None if x is None else x.to(dtype).double().requires_grad_() for x in (*drawn, table)]
        used = [None if x is None else x.detach().to(run.device, dtype).requires_grad_() for x in exact]
        expected = results_of("blocks" if form in RELATIVE else "plain", exact, 32**-0.5, trains=True)
        found, again = (results_of(form, used, 32**-0.5, trains=True) for _ in range(2))
        errors += [far_off(one.cpu(), other) for one, other in zip(found, expected, strict=True) if other.norm() > 1e-3]
        is_repeated &= all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    if form.startswith("fused") and not is_repeated:
        run.failed.append(f"{name}: two runs gave different bits")
    limit = 1e-4 if dtype == torch.float32 else 3e-2
    return {**run.check(name, max(errors), limit), "two runs gave the same bits": is_repeated}


def check_family(run: Run, name: str, config: Any) -> dict[str, Any]:
    """Compare loss and gradients in float32 with those on the CPU, and take a step in bfloat16."""
    torch.manual_seed(0)
    on_cpu = build_model(config, VOCAB_SIZE).eval()
    tokens = torch.randint(1, VOCAB_SIZE, (2, 97))  # too short for attention to be timed
    there = copy.deepcopy(on_cpu).to(run.device)
    losses = [loss_parts(model, tokens.to(device), step=1).nll_sum for model, device in
              ((on_cpu, "cpu"), (there, run.device))]  # fmt: skip
    for loss in losses:
        (loss / tokens.numel()).backward()
    norms = [nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item()
             for model in (on_cpu, there)]  # fmt: skip
    error = max(abs(losses[1].item() / losses[0].item() - 1), abs(norms[1] / norms[0] - 1))
    step = trainer(there, tokens.to(run.device))
    step()
    weights_are_finite = all(bool(p.isfinite().all()) for p in there.parameters())
    return run.check(name, error if weights_are_finite else float("nan"), 1e-3)


# training


def train(run: Run, results: dict[str, Any], given: argparse.Namespace) -> None:
    """Time training steps of decoders in bfloat16; rotary positions, and a relative table for the first."""
    sizes = {"tiny": (2, 64, 2)} if run.tiny else SIZES
    plans = [(size, "rotary", run.compiles) for size in sizes] + [(next(iter(sizes)), "shared", run.compiles)]
    plans += [(size, "rotary", False) for size in sizes if run.compiles]
    for size, positions, compiles in plans:
        name = f"{size}, {positions}" + ", compiled" * compiles
        if run.has_time(name):
            with run.item(name):
                results[name] = train_one(run, sizes[size], positions, compiles, given.rounds)


def train_one(
    run: Run, size: tuple[int, int, int], positions: Any, compiles: bool, rounds: int
) -> dict[str, float | int | None]:
    """Time one model's step, with half the batch as often as it does not fit into memory."""
    n_layers, d_model, batch_size = size
    seq_len = 128 if run.tiny else 1024
    config = DecoderConfig(
        d_model=d_model, n_layers=n_layers, n_heads=max(d_model // 64, 1), d_ff=4 * d_model, dropout=0.0, bias=False,
        norm="rms", activation="gelu", relative_positions=positions, head="tied", initialisation="scaled",
    )  # fmt: skip
    while True:
        torch.manual_seed(0)
        model: Any = build_model(config, VOCAB_SIZE).to(run.device)
        n_parameters = model.n_parameters
        model = compile_model(model) if compiles else model
        step = trainer(model, torch.randint(1, VOCAB_SIZE, (batch_size, seq_len + 1), device=run.device))
        try:
            rounds_seconds = seconds_of(step, rounds, n_untimed=1 if run.tiny else 3)
            break
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size //= 2
        del model, step
        torch.cuda.empty_cache()
    seconds = statistics.median(rounds_seconds)
    rate = batch_size * seq_len / seconds
    peak, flops = bf16_peak(card_of(run)), flops_per_token(config, n_parameters, seq_len)
    return {
        "parameters": n_parameters,
        "batch_size": batch_size,
        "seq_len": seq_len,
        "tokens_per_second": round(rate),
        "share_of_peak": round(rate * flops / peak, 3) if peak and flops else None,
        "median_seconds": round(seconds, 5),
    }


def trainer(model: nn.Module, tokens: Tensor) -> Callable[[], Any]:
    """Return a training step in bfloat16 on always the same tokens."""
    return partial(
        train_step, model, build_optimizer(OptimizerConfig(name="adamw"), model), tokens,
        step=1, learning_rate=1e-4, max_grad_norm=1.0, n_targets=tokens[:, 1:].numel(), bf16=True, trust_rows=True,
    )  # fmt: skip


# attention


def attend(run: Run, results: dict[str, Any], given: argparse.Namespace) -> None:
    """Time all forms of attention with heads of 64, without a table and with one that the heads share."""
    lengths = (64,) if run.tiny else (1024, 2048, 4096, 8192, 16384)
    H, n_tokens = (1, 64) if run.tiny else (8, 16384)
    dtype = torch.float32 if run.device.type == "cpu" else torch.bfloat16
    forms: dict[str, Any] = {**FORMS, "skew": by_skew}
    order = ["plain", "fused 64", "fused 32", "blocks", "flex", "skew", "bias"]
    for T in lengths:
        generator = torch.Generator(run.device).manual_seed(0)
        B = n_tokens // T
        drawn = [torch.empty(B, T, H, 64, device=run.device, dtype=dtype).normal_(generator=generator) for _ in "qkv"]
        heads = [x.transpose(1, 2).requires_grad_() for x in drawn]
        table = torch.empty(T, 64, device=run.device, dtype=dtype).normal_(generator=generator).requires_grad_()
        results[str(T)] = found = {}
        for form in order:
            name = f"{form}, {T} tokens"
            holds_matrix = form not in ("plain", "fused 64", "fused 32")
            if run.device.type == "cpu" and form in ("flex", "fused 64"):
                continue
            if holds_matrix and B * H * T * T * dtype.itemsize > LARGEST_MATRIX:
                run.left_out.append(f"{name}: its matrices of all pairs are above {LARGEST_MATRIX >> 30} GiB")
            elif run.has_time(name):
                with run.item(name):
                    inputs = [*heads, None if form == "plain" else table]
                    found[form] = time_form(forms[form], inputs, given.rounds)
        for facts in found.values() if "plain" in found else ():
            of_plain = found["plain"]["forward_backward_seconds"] / facts["forward_backward_seconds"]
            facts["rate_over_plain"] = round(of_plain, 4)


def time_form(form: Any, inputs: list[Tensor | None], rounds: int) -> dict[str, float]:
    """Return the median seconds of a forward pass, and of a forward and a backward pass."""
    leaves = [x for x in inputs if x is not None]
    grad = torch.randn_like(leaves[0])

    def both() -> None:
        torch.autograd.grad(form(*inputs, 64**-0.5, 0.0), leaves, grad)

    @torch.no_grad()
    def forward() -> None:
        form(*inputs, 64**-0.5, 0.0)

    seconds = {"forward": seconds_of(forward, rounds, 1), "forward_backward": seconds_of(both, rounds, 1)}
    return {f"{name}_seconds": round(statistics.median(of_rounds), 7) for name, of_rounds in seconds.items()}


def by_skew(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, table: Tensor, scale: float, dropout: float) -> Tensor:
    """Attend as published by Huang et al. 2019: matrices of all pairs, and the skew by padding."""
    B, H, T, _ = q_BHTK.shape
    by_distance_BHTT = functional.pad(q_BHTK @ table.mT, (1, 0))
    added_BHTT = by_distance_BHTT.reshape(B, H, T + 1, T)[:, :, 1:]
    later_TT = torch.ones(T, T, dtype=torch.bool, device=q_BHTK.device).triu(1)
    scores_BHTT = ((q_BHTK @ k_BHTK.mT + added_BHTT) * scale).masked_fill(later_TT, -torch.inf)
    return functional.dropout(scores_BHTT.softmax(-1), dropout) @ v_BHTK


def headline(attention: dict[str, dict[str, Any]]) -> float | None:
    """Return the best rate of a form with a table over that without, at the greatest length."""
    rates = [
        max((facts["rate_over_plain"] for form, facts in forms.items() if form in RELATIVE), default=None)
        for forms in attention.values()
        if "plain" in forms
    ]
    return next((rate for rate in reversed(rates) if rate is not None), None)


# sampling


def write(run: Run, results: dict[str, Any], given: argparse.Namespace) -> None:
    """Time sampling of two presets' models with random weights, one piece and many at once."""
    sizes, length = ((1, 3), 12) if run.tiny else ((1, 64, 256), 1024)
    items = [(preset, n) for preset in SAMPLED for n in sizes]
    for i, (preset, n) in enumerate(items):
        name = f"{preset}, {n} at once"
        if run.has_time(name):
            with run.item(name):
                share = (run.until - time.monotonic()) / (len(items) - i)
                results[name] = write_pieces(run, preset, n, length, share)


def write_pieces(run: Run, preset: str, n: int, length: int, seconds: float) -> dict[str, float | int]:
    """Sample for some seconds at most, after a first call that compiles and captures what is to be."""
    torch.manual_seed(0)
    config, vocab_size = preset_model(preset)
    if run.tiny:
        config = DecoderConfig(**SMALL, n_layers=2, d_ff=128, relative_positions=config.relative_positions)
    model = build_model(config, vocab_size).to(run.device).eval()
    prompts = [torch.tensor([FIRST])] * n

    def call(max_tokens: int, until: float) -> tuple[int, float]:
        drawn, began = 0, time.perf_counter()

        def on_step(n_drawn: int) -> bool:
            nonlocal drawn
            drawn = n_drawn
            return time.perf_counter() > until

        chosen = SamplingConfig(max_tokens=max_tokens)
        sample(model, prompts, range(n), 0, chosen, end_id=NEVER, batch_size=n, on_step=on_step)
        return drawn, time.perf_counter() - began

    deadline = time.perf_counter() + seconds
    _, first_seconds = call(min(length, 32), deadline)
    drawn, taken = call(length, deadline)
    return {
        "parameters": model.n_parameters,
        "tokens_per_second": round(drawn / taken, 1),
        "tokens": drawn,
        "wanted": n * (length - 1),
        "seconds": round(taken, 2),
        "first_call_seconds": round(first_seconds, 2),
    }


def preset_model(name: str) -> tuple[DecoderConfig, int]:
    """Return a preset's decoder and the size of its vocabulary, from the file itself: tasks/config needs pydantic."""
    tables = tomllib.loads((ROOT / "tasks" / "config" / "presets.toml").read_text(encoding="utf-8"))

    def settings(table: dict[str, Any]) -> dict[str, Any]:
        bases = table.get("base", [])
        known: dict[str, Any] = {}
        for base in [bases] if isinstance(bases, str) else bases:
            known |= settings(tables[base])
        return known | table.get("train", {}).get("model", {})

    model = {key: None if value == "null" else value for key, value in settings(tables[name]).items()}
    return DecoderConfig(**model), tables[name]["size"][0]


if __name__ == "__main__":
    main()
