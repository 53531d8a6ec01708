"""How fast does the loader give training windows, against what a training step eats and a plain PyTorch loader?

    PYTHONPATH=. python bench/bench_loader.py --source some/folder

Every kind of window comes from one memory-mapped store of real pieces, repeated until there are enough tokens; batches
are 32 windows of 1,024 tokens. The peer is a `torch.utils.data.Dataset` of random windows of the same mapped tokens
with a `DataLoader`, in this process and with two workers. The step is that of `bench_train_step.py`. The ratio is the
slowest kind's tokens a second over the fastest step's.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import report
import torch
from bench_shards import SCALARS, read_rows
from bench_train_step import PRESETS, VOCAB_SIZE, on_gpu, on_threads
from torch.utils.data import DataLoader, Dataset

from models.config import OptimizerConfig
from models.registry import build_model
from models.training import build_optimizer, train_step
from tasks.music.arrays import offsets_of
from tasks.storage.parquet import TOKEN_SCHEMA, list_column, write_table
from tasks.training.token_dataset import TokenDataset, WindowKind

PACKAGES = ("torch", "numpy", "pyarrow")
BATCH_SIZE, SEQ_LEN = 32, 1024
BATCHES_A_ROUND = 200
MEMORY_BATCHES = 2000
KINDS: tuple[WindowKind, ...] = get_args(WindowKind)
MAKE = """
import json, sys, time
from pathlib import Path
from tasks.training.token_dataset import TokenDataset
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
before, started = peak(), time.perf_counter()
TokenDataset([Path(name) for name in sys.argv[2:]], Path(sys.argv[1]))
print(json.dumps({"seconds": round(time.perf_counter() - started, 3), "peak_mib": round(peak() - before, 1)}))
"""


class RandomWindows(Dataset):
    """What one writes first: a window from anywhere, one at a time."""

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> torch.Tensor:
        start = int(torch.randint(len(self.tokens) - SEQ_LEN, ()))
        return torch.from_numpy(self.tokens[start : start + SEQ_LEN + 1].astype(np.int64))


def main() -> None:
    options = report.parser(__doc__.splitlines()[0], rounds=5)
    options.add_argument("--tokens", type=int, default=60_000_000, help="tokens in the store, at least")
    options.add_argument("--presets", nargs="+", choices=list(PRESETS), default=["music_transformer_tiny"])
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="orchestrion-bench-") as folder:
        with report.source_folder(given.source) as source:
            shards = write_shards(report.midi_files(source), given.tokens, Path(folder))
            name = source.name
        made = make_apart(shards, Path(folder) / "flat")
        started = time.perf_counter()
        store = TokenDataset(shards, Path(folder) / "flat")
        made |= {"tokens_per_second": round(store.n_tokens / made["seconds"]), "open_ms": milliseconds_since(started)}
        record = compare(store, given.presets, given.rounds)
        del store  # with its part of the file in this process's memory
        grown = {kind: growth(TokenDataset(shards, Path(folder) / "flat"), kind) for kind in KINDS}
        record |= {"flat_file": made, "memory_growth_mib": grown}
    report.save("loader", name, record, given.results, PACKAGES)


def write_shards(files: list[Path], n_tokens: int, folder: Path) -> list[Path]:
    """Write the pieces as token shards, again and again until there are `n_tokens`."""
    columns, ids, lengths = read_rows(files, n_tokens, plain=False)
    kind = TOKEN_SCHEMA.field("tokens").type
    rows = pa.table({**columns, "tokens": list_column(offsets_of(lengths), ids, kind)}).select([*SCALARS, "tokens"])
    paths = [folder / f"{number}.parquet" for number in range(-(-n_tokens // len(ids)))]
    for path in paths:
        write_table(path, rows)
    return paths


def make_apart(shards: list[Path], folder: Path) -> dict[str, Any]:
    """Make the flat file in a process of its own; return its seconds and by how much its memory grew."""
    command = [sys.executable, "-c", MAKE, str(folder), *map(str, shards)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def milliseconds_since(started: float) -> float:
    return round(1000 * (time.perf_counter() - started), 2)


def compare(store: TokenDataset, presets: list[str], rounds: int) -> dict[str, Any]:
    """Time all kinds of window, the peer and the steps, in turns."""
    batch_tokens = BATCHES_A_ROUND * BATCH_SIZE * SEQ_LEN
    sides: dict[str, tuple[Callable[[], Any], int]] = {
        kind: (partial(draw, store, kind, count(1)), batch_tokens) for kind in KINDS
    }
    for n_workers in (0, 2):
        loader = iter(DataLoader(RandomWindows(store.tokens), BATCH_SIZE, num_workers=n_workers))
        sides[f"torch DataLoader, {n_workers} workers"] = (partial(draw_from, loader), batch_tokens)
    for preset in presets:
        sides |= training_steps(preset)
    timings = report.measure({name: run for name, (run, _) in sides.items()}, rounds)
    found = {
        name: {"tokens_per_second": round(sides[name][1] / timing.seconds), **timing.as_json()}
        for name, timing in timings.items()
    }
    rates = {name: side["tokens_per_second"] for name, side in found.items()}
    steps = {name: rate for name, rate in rates.items() if name.startswith("step of ")}
    slowest = min(KINDS, key=lambda kind: rates[kind])
    peers = [rate for name, rate in rates.items() if name.startswith("torch")]
    return {
        "ratio": round(rates[slowest] / max(steps.values())),
        "ratio_means": f"tokens/s of the slowest kind, {slowest}, over {max(steps, key=lambda name: steps[name])}",
        "ratio_to_peer": round(rates["random"] / max(peers), 1),
        "batch_size": BATCH_SIZE,
        "seq_len": SEQ_LEN,
        "tokens": store.n_tokens,
        "rows": store.n_rows,
        "sides": found,
    }


def draw(store: TokenDataset, kind: WindowKind, steps: "count[int]", n_batches: int = BATCHES_A_ROUND) -> None:
    for _ in range(n_batches):
        torch.from_numpy(store.batch(0, next(steps), BATCH_SIZE, SEQ_LEN, kind=kind))


def draw_from(loader: Any) -> None:
    for _ in range(BATCHES_A_ROUND):
        next(loader)


def training_steps(preset: str) -> dict[str, tuple[Callable[[], Any], int]]:
    """Return one optimizer step of a preset's model and batch: on one thread and on all, or on a GPU in bfloat16."""
    config, batch_size, seq_len = PRESETS[preset]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(config, VOCAB_SIZE).to(device)
    tokens = torch.randint(1, VOCAB_SIZE, (batch_size, seq_len + 1), device=device)
    step = partial(
        train_step, model, build_optimizer(OptimizerConfig(), model), tokens,
        learning_rate=1e-4, max_grad_norm=1.0, n_targets=tokens[:, 1:].numel(),
    )  # fmt: skip
    if device.type == "cuda":
        return {f"step of {preset}, bfloat16": (partial(on_gpu, step, True), batch_size * seq_len)}
    return {f"step of {preset}, {n} threads": (partial(on_threads, n, step), batch_size * seq_len) for n in (1, 2)}


def growth(store: TokenDataset, kind: WindowKind) -> dict[str, float]:
    """Return by how much this process's own memory grows over many batches, and what it maps of the file's pages."""
    before = resident_mib()
    draw(store, kind, count(1), MEMORY_BATCHES)
    return {name: round(mib - before[name], 1) for name, mib in resident_mib().items()}


def resident_mib() -> dict[str, float]:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(status[key].split()[0]) / 1024 for name, key in (("own", "RssAnon"), ("mapped", "RssFile"))}


if __name__ == "__main__":
    main()
