"""What do 16 and 8 bits cost in likelihood, as a sampler computes it?

    PYTHONPATH=. python bench/bench_precision.py CHECKPOINT

CHECKPOINT is a folder in `runs/*/checkpoints` of a decoder. Reads held-out rows of the checkpoint's dataset token by
token through the step that samples, in each precision, and compares the nats of the same tokens with float32. As the
notes are the same, the difference of nats is that of bits per note.
"""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch
from torch import Tensor

from models.decoder.model import Decoder
from models.decoder.step import DecoderStep, rounded_weights
from tasks.checkpoints import load_model
from tasks.dataset.versions import find_version
from tasks.storage.home import Home
from tasks.storage.parquet import read_table

PACKAGES = ("torch", "numpy", "numba")


def main() -> None:
    options = report.parser(__doc__.splitlines()[0], rounds=1, with_source=False)
    options.add_argument("checkpoint", type=Path, nargs="?")
    options.add_argument("--split", default="test")
    options.add_argument("--rows", type=int, default=64, help="pieces read at most")
    options.add_argument("--tokens", type=int, default=512, help="of each piece at most")
    given = options.parse_args()
    if given.checkpoint is None:
        print("no checkpoint was named: nothing was measured")
        return
    loaded = load_model(given.checkpoint)
    if not isinstance(loaded.model, Decoder):
        sys.exit(f"{given.checkpoint}: a {loaded.model.config.name} model is sampled in float32")
    # HOME/runs/RUN/checkpoints/STEP
    home = Home.at(given.checkpoint.resolve().parents[3])
    version = find_version(home, loaded.state["dataset"]["name"], loaded.state["dataset"]["version"])
    if version is None:
        sys.exit(f"{home.root}: the dataset of {given.checkpoint} is not there")
    rows = [
        torch.tensor(ids[: given.tokens])
        for shard in version.token_shards(given.split)
        for ids in read_table(shard, columns=["tokens"]).column("tokens").to_pylist()
    ][: given.rows]
    nats = {name: nats_per_token(loaded.model, name, rows) for name in ("float32", "float16", "int8")}
    differences = {name: round(100 * (value / nats["float32"] - 1), 4) for name, value in nats.items()}
    record: dict[str, Any] = {
        "ratio": round(nats["int8"] / nats["float32"], 6),
        "ratio_means": "nats per held-out token with int8 weights and 16-bit caches over float32",
        "preset": loaded.state["config"]["preset"],
        "parameters": loaded.model.n_parameters,
        "pieces": len(rows),
        "tokens": sum(len(row) - 1 for row in rows),
        "nats_per_token": {name: round(value, 6) for name, value in nats.items()},
        "difference_in_percent": differences,
    }
    report.save("precision", loaded.state["config"]["preset"], record, given.results, PACKAGES)


@torch.inference_mode()
def nats_per_token(model: Decoder, precision: Any, rows: list[Tensor]) -> float:
    """Return the mean cross entropy of each row's tokens after its first."""
    longest = max(map(len, rows))
    step = DecoderStep(rounded_weights(model, precision), precision, longest)
    cache = model.new_cache(len(rows), longest, step.cache_dtype)
    tokens_BT = torch.full((len(rows), longest), model.pad_id)
    for tokens_T, row in zip(tokens_BT, rows, strict=True):
        tokens_T[: len(row)] = row
    nats = 0.0
    for t in range(longest - 1):
        logits_BV, target_B = step(tokens_BT[:, t], cache).double(), tokens_BT[:, t + 1]
        found_B = -logits_BV.log_softmax(-1).gather(1, target_B[:, None])[:, 0]
        nats += float(found_B[target_B != model.pad_id].sum())
    assert math.isfinite(nats)
    return nats / float(np.sum([len(row) - 1 for row in rows]))


if __name__ == "__main__":
    main()
