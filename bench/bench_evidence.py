"""How good are the presets, all on one data path, and does our own decoder beat them at equal compute?

    PYTHONPATH=. python bench/bench_evidence.py --home /tmp/evidence --source ~/midi/js-fakes [--only rga_tiny ...]
    PYTHONPATH=. python bench/bench_evidence.py --write-table

Each row is a `rebuild`, a `train` and an `evaluate` by the command line, on the held-out test split. A published
system's twin trains as its preset says; on the same tokens our own decoder, and the hourglass's flat counterpart, train
for as many steps as cost the same arithmetic. A row that is in the results already is not run again. The last form
writes docs/results.md from all rows.
"""

import argparse
import dataclasses
import json
import math
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import report
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.config import VaeConfig
from models.registry import build_model
from tasks.config.overrides import apply_overrides
from tasks.config.presets import build_preset
from tasks.config.training import TrainConfig

PACKAGES = ("torch", "ray", "mlflow", "prefect", "numpy")
OWN = "orchestrion_small_tiny"
TWINS = ("music_transformer_tiny", "rga_tiny", "char_gpt_tiny", "mmm_vae_tiny", "hourglass_tiny")
OTHERS = {
    "music_transformer_large_tiny": "music_transformer_tiny",
    "rga_multi_tiny": "rga_multi_tiny",
    "mmm_encoder_vae_tiny": "mmm_vae_tiny",
    OWN: "music_transformer_tiny",
}  # and on whose tokens
AUGMENTATION = {"dataset.augment.transpositions": [-2, -1, 0, 1, 2], "dataset.augment.stretches": [1.0]}
RATIO_MEANS = "accuracy on held-out tokens over that of always naming the most frequent one"
TABLE = report.ROOT / "docs" / "results.md"
BY_HEART = report.RESULTS / "by_heart.md"  # written by hand, the last section of the page
INTRODUCTION = """
Written by `bench/bench_evidence.py` from `bench/results/evidence.json`, which has every figure, the machine, the
versions and the commit of each row. All rows are of the small twins, on the test split, which is split by groups of
near-duplicates and never augmented. Training pieces are transposed by -2 to 2 semitones. Every row can be run again by
its command in the list below the tables, after `orchestrion rebuild --source FOLDER --preset PRESET`.

Bits per note compare models on the same tokens. Encodings do not all hold the same of the music (`optimus_int` and
`optimus_txt` for piano hold no velocities, `mmm` neither velocities nor the tempo), so between encodings they say how
much there is to know as well as how much is known. For the models with latents they are a bound, the latent included.
`baseline` is the accuracy of always naming the training split's most frequent token. Other work ran on the machine at
the same time, so `tokens/s` says little; compute is what the rows are made equal by. MFLOP are of a forward pass, TFLOP
of the whole training; both are counted, attention only where it is computed.
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """One run: a preset with other settings, on tokens of another preset's encoding, with the compute of a third."""

    preset: str
    tokens_of: str
    compute_of: str
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        changed = "".join(f" {setting.rpartition('.')[2]}" for setting in self.settings)
        return self.preset + changed + ("" if self.sets_compute else f" as {self.compute_of}")

    @property
    def sets_compute(self) -> bool:
        """Whether others are compared with this row, which trains for the steps of its preset."""
        return self.preset == self.compute_of and not self.settings

    @property
    def train(self) -> TrainConfig:
        return apply_overrides(build_preset(self.preset), list(self.settings)).train


ROWS = (
    *(Row(preset, preset, preset) for preset in TWINS),
    *(Row(preset, tokens, preset) for preset, tokens in OTHERS.items()),
    *(Row(OWN, twin, twin) for twin in TWINS),
    Row("hourglass_flat_tiny", "hourglass_tiny", "hourglass_tiny"),
    Row(
        "hourglass_tiny",
        "hourglass_tiny",
        "hourglass_tiny",
        ("train.model.depths=[2,1,2]", "train.model.shorten_factor=2"),
    ),
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--home", type=Path, default=Path(".evidence"), help="folder of all that is built")
    options.add_argument("--source", type=Path, nargs="*", default=[], help="folders of MIDI")
    options.add_argument("--only", nargs="*", default=[], help="presets; by default all")
    options.add_argument("--steps-share", type=float, default=1.0, help="of the presets' steps, for a trial")
    options.add_argument("--set", nargs="*", default=[], dest="settings", help="settings of all trainings")
    options.add_argument("--results", type=Path, default=report.RESULTS, help="folder for the JSON file")
    options.add_argument("--write-table", action="store_true", help="write docs/results.md from all rows")
    given = options.parse_args()
    for source in given.source:
        for row in ROWS:
            case = f"{source.name}: {row.name}"
            wanted = not given.only or row.preset in given.only or row.name in given.only
            if wanted and case not in known_rows(given.results):
                record = run_row(row, source, given)
                report.save("evidence", case, record, given.results, PACKAGES)
    if given.write_table:
        TABLE.write_text(table(known_rows(given.results)))


def known_rows(results: Path) -> dict[str, Any]:
    path = results / "evidence.json"
    return json.loads(path.read_text())["cases"] if path.exists() else {}


def forward_flops(config: TrainConfig, vocab_size: int) -> float:
    """Return the floating-point operations of one forward pass over a whole window, per token; a product counts as 2.

    Training costs about three times as much. Attention counts as what it computes, here about half of all pairs.
    """
    model = build_model(config.model, vocab_size).eval()
    tokens = torch.ones(1, config.seq_len + 1, dtype=torch.int64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(tokens if isinstance(config.model, VaeConfig) else tokens[:, :-1])
    return counter.get_total_flops() / config.seq_len


def run_row(row: Row, source: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Build the dataset if need be, train and evaluate; return all figures."""
    encoding = build_preset(row.tokens_of).dataset.encoding.name
    name = f"{source.name}-{row.tokens_of.removesuffix('_tiny')}".lower()
    augmentation = [f"{key}={json.dumps(value)}" for key, value in AUGMENTATION.items()]
    built = orchestrion(
        given.home, "rebuild", "--source", str(source), "--preset", row.tokens_of, "--name", name, *sets(augmentation)
    )
    vocab_size = json.loads(Path(built["manifest"]).read_text())["encoder"]["settings"]["vocab_size"]
    flops = forward_flops(row.train, vocab_size)
    n_steps = round(steps_at_equal_compute(row, vocab_size, flops) * given.steps_share)
    changes = [*given.settings, *row.settings, *([] if row.sets_compute else [f"train.n_steps={n_steps}"])]
    if given.steps_share != 1.0:
        changes.append(f"train.n_steps={n_steps}")
    arguments = ["train", "--preset", row.preset, "--dataset", name, *sets(changes)]
    started = time.perf_counter()
    trained = orchestrion(given.home, *arguments)
    seconds = time.perf_counter() - started
    scored = orchestrion(
        given.home, "evaluate", "--model", trained["model_version"], "--preset", row.preset, "--dataset", name
    )
    config = row.train
    n_tokens = n_steps * config.batch_size * config.seq_len
    metrics = {key: value for key, value in scored["metrics"].items() if not key.startswith(("held_out/", "samples/"))}
    return {
        "ratio": round(metrics["accuracy"] / metrics["baseline/accuracy"], 2),
        "ratio_means": RATIO_MEANS,
        "source": source.name,
        "preset": row.preset,
        "compute_of": row.compute_of,
        "encoding": encoding,
        "vocab_size": vocab_size,
        "n_parameters": trained["n_parameters"],
        "forward_mflop_per_token": round(flops / 1e6, 3),
        "steps": n_steps,
        "best_step": trained["step"],
        "train_tokens": n_tokens,
        "train_tflop": round(3 * flops * n_tokens / 1e12, 2),
        "train_seconds": round(seconds, 1),
        "train_tokens_per_second": round(trained["metrics"].get("train/tokens_per_second", n_tokens / seconds)),
        "metrics": metrics,
        "trained_by": "orchestrion " + shlex.join(arguments),
        "run_id": trained["run_id"],
        "dataset_version": built["dataset_version"],
    }


def steps_at_equal_compute(row: Row, vocab_size: int, flops: float) -> float:
    """Return for how many steps a row trains: those of the preset that it shall cost as much as, in other steps."""
    ours, theirs = row.train, build_preset(row.compute_of).train
    tokens = theirs.n_steps * theirs.batch_size * theirs.seq_len
    their_flops = flops if row.sets_compute else forward_flops(theirs, vocab_size)
    return tokens * their_flops / flops / (ours.batch_size * ours.seq_len)


def sets(changes: list[str]) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def orchestrion(home: Path, *arguments: str) -> dict[str, Any]:
    """Run a command and return what it printed."""
    command = [sys.executable, "-m", "flows.cli", *arguments, "--home", str(home), "--json", "-q"]
    done = subprocess.run(command, cwd=report.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{shlex.join(arguments)}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: dict[str, Any]) -> str:
    """Return all rows as a page of Markdown, a table for each source."""
    lines = ["# Results", "", *INTRODUCTION.strip().splitlines()]
    for source in sorted({row["source"] for row in rows.values()}):
        chosen = {name: row for name, row in rows.items() if row["source"] == source}
        lines += ["", f"## {source}", "", *rows_of(chosen)]
        lines += ["", *found] if (found := verdicts(chosen)) else []
    lines += ["", "## The published hourglass beside flat layers", "", *scales()]
    lines += ["", "## Commands", ""]
    lines += [f"- {name}: `{row['trained_by']}` (run `{row['run_id'][:8]}`)" for name, row in sorted(rows.items())]
    return "\n".join(lines) + "\n\n" + BY_HEART.read_text()


def scales() -> list[str]:
    """Return speed and operations of the published hourglass and of as wide flat layers, from `bench_train_step`."""
    cases = json.loads((report.RESULTS / "train_step.json").read_text())["cases"]
    lines = [
        "A training step at the published width of 768, by `PYTHONPATH=. python bench/bench_train_step.py --hourglass`;"
        " the sides take turns. The attention after each resampling costs more than the one layer at half length saves."
        " Losses of both at the width of 128 are above, in the table with `depths=[2,1,2]`.",
        "",
        "| device | model | parameters | MFLOP/token, forward | tokens/s |",
        "|---|---|---:|---:|---:|",
    ]
    for name, case in sorted(cases.items()):
        if not name.startswith("hourglass and flat layers"):
            continue
        lines += [
            f"| {name.rpartition(' ')[2]} | {side} | {row['parameters']:,} | {row['forward_mflop_per_token']:.1f} |"
            f" {row['tokens_per_second']:,.0f} |"
            for side, row in case.items()
            if isinstance(row, dict) and "parameters" in row
        ]
    return lines


def rows_of(rows: dict[str, Any]) -> list[str]:
    heads = (
        "preset", "encoding", "parameters", "MFLOP/token", "TFLOP", "tokens/s", "nats/token", "bits/note",
        "bits/s", "accuracy", "baseline",
    )  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * (len(heads) - 2)]
    for name, row in sorted(rows.items(), key=lambda item: (item[1]["encoding"], item[1]["metrics"]["bits_per_note"])):
        m = row["metrics"]
        cells = (
            f"`{name.partition(': ')[2]}`", f"`{row['encoding']}`", f"{row['n_parameters']:,}",
            f"{row['forward_mflop_per_token']:.2f}", f"{row['train_tflop']:.1f}", f"{row['train_tokens_per_second']:,}",
            f"{m['nll_per_token']:.3f}", f"{m['bits_per_note']:.2f}", f"{m['bits_per_second']:.1f}",
            f"{m['accuracy']:.3f}", f"{m['baseline/accuracy']:.3f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def verdicts(rows: dict[str, Any]) -> list[str]:
    """Say who won where two rows had the same tokens and the same compute."""
    by_name = {name.partition(": ")[2]: row for name, row in rows.items()}
    lines = []
    for row in ROWS:
        ours, theirs = by_name.get(row.name), by_name.get(row.compute_of)
        if row.sets_compute or not ours or not theirs:
            continue
        bits = [side["metrics"]["bits_per_note"] for side in (ours, theirs)]
        name = row.name.removesuffix(f" as {row.compute_of}")
        lines.append(
            f"- `{name}` against `{row.compute_of}` on the same tokens at equal compute:"
            f" {bits[0]:.2f} to {bits[1]:.2f} bits per note ({100 * (bits[0] / bits[1] - 1):+.1f} %)."
        )
    for name, row in sorted(by_name.items()):
        gain = row["metrics"].get("latent/gain")
        if gain is not None and not math.isnan(gain):
            active, of = row["metrics"]["latent/n_active"], row["metrics"]["latent/n_numbers"]
            lines.append(
                f"- `{name}`: another block's latent costs {gain:.2f} nats per token; {active:.0f} of {of:.0f} numbers"
                f" are active; the bound is {row['metrics']['reconstruction']:.3f} nats of writing and"
                f" {row['metrics']['kl']:.3f} of divergence per token."
            )
    return lines


if __name__ == "__main__":
    main()
