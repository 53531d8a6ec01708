"""The space of a sweep: its settings, its points, its name and its table of results."""

import csv
import dataclasses
import hashlib
import io
import itertools
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.config.old_names import current_names, current_path, first_path
from tasks.config.overrides import apply_overrides, parse_value
from tasks.config.pipeline import PipelineConfig
from tasks.config.serialization import digest, shortened, to_json
from tasks.config.training import TRAIN_WITHOUT_EFFECT
from tasks.dataset.versions import DatasetVersion
from tasks.errors import ConfigError, DamagedFile
from tasks.storage.files import write_atomically
from tasks.storage.home import Home
from tasks.storage.integrity import read_sealed, sealed_bytes
from tasks.storage.strict_json import Shape

logger = logging.getLogger(__name__)

Row = dict[str, Any]

MAX_POINTS = 1000
WAITING, INTERRUPTED, TRAINED = "waiting", "interrupted", "trained"  # before one of the next
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
_ORDER = (FINISHED, TRAINED, STOPPED, INTERRUPTED, WAITING, FAILED)
_FIGURES = ("bits_per_note", "nll_per_token", "accuracy")
ROW: dict[str, Any] = {
    "point": int, "settings": str, "values": dict, "status": str, "reason": str, "step": int, "n_steps": int,
    "val_loss": (float, None), "model_version": str, "run_id": str, "run_dir": str, "n_parameters": (int, None),
} | dict.fromkeys(_FIGURES, (float, None))  # fmt: skip
_DRAWS = ("uniform", "loguniform", "randint", "choice")
_NO_EFFECT = {
    "dataset": "a sweep trains on one dataset version: rebuild with the other settings, then give --dataset",
    "generate": "a sweep composes nothing",
    "train.preset": "it is a label",
    **{f"train.{name}": "it does not change the numbers" for name in TRAIN_WITHOUT_EFFECT},
    "evaluate.split": "figures on two splits cannot be compared",
    "evaluate.promote": "it does not change the numbers",
    "evaluate.batch_size": "it does not change the numbers",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """The settings that a sweep varies, and how their values are chosen.

    Args:
        grid: settings with their values, such as `train.model.n_layers=2,4`; all combinations are trained. Values that
            hold commas are written as JSON with `;` between them: `train.optimizer.betas=[0.9,0.95];[0.9,0.99]`.
        search: settings that are drawn: `train.schedule.max_lr=loguniform(1e-4,1e-2)`, `uniform(a,b)`, `randint(a,b)`
            (both ends included) or `choice(a;b)`.
        samples: draws; each is combined with every point of the grid.
        seed: of the draws. A draw depends on seed, its number and the setting's name alone.
        early_stopping: stop points whose validation loss is behind the others' at the same step (ASHA).
        concurrent: points trained at the same time; they share the cores.
    """

    grid: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    samples: int = 0
    seed: int = 0
    early_stopping: bool = False
    concurrent: int = 1

    def __post_init__(self) -> None:
        for name, least in (("samples", 0), ("seed", 0), ("concurrent", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)} is below {least}")


@dataclass(frozen=True, slots=True)
class Point:
    """One combination of values, and the whole settings they make."""

    number: int  # from 1, in the order of the grid
    overrides: tuple[str, ...]
    values: dict[str, Any]  # setting -> value
    config: PipelineConfig

    @property
    def settings(self) -> str:
        return ", ".join(self.overrides)


@dataclass(frozen=True, slots=True)
class _Axis:
    """One setting and its values as texts, or how they are drawn."""

    key: str
    texts: tuple[str, ...] = ()  # of a grid or a choice
    draw: str = ""
    low: float = 0.0
    high: float = 0.0

    def text(self, seed: int, sample: int) -> str:
        """Return the value of draw number `sample`."""
        name = int.from_bytes(hashlib.sha256(first_path(self.key).encode()).digest()[:8], "little")
        rng = np.random.default_rng(np.random.SeedSequence([seed, sample, name]))
        if self.draw == "choice":
            return self.texts[int(rng.integers(len(self.texts)))]
        if self.draw == "randint":
            return str(int(rng.integers(int(self.low), int(self.high), endpoint=True)))
        if self.draw == "uniform":
            value = rng.uniform(self.low, self.high)
        else:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        rounded = float(f"{value:.6g}")  # short enough to be typed again
        return repr(min(max(rounded, self.low), self.high))


def plan_points(config: PipelineConfig, plan: SweepConfig) -> list[Point]:
    """Return every point of a sweep with its settings checked; equal draws are one point.

    Raises ConfigError where the space cannot be read, has no effect or too many points, or has impossible points.
    """
    axes = [_parse_grid(text) for text in plan.grid]
    draws = [_parse_search(text) for text in plan.search]
    _check_space(config, plan, axes, draws)
    points: dict[str, Point] = {}
    impossible = []
    n_samples = plan.samples if draws else 1
    for texts in itertools.product(*(axis.texts for axis in axes)):
        for sample in range(n_samples):
            drawn = [axis.text(plan.seed, sample) for axis in draws]
            pairs = list(zip([axis.key for axis in axes + draws], [*texts, *drawn], strict=True))
            try:
                point = _make_point(config, pairs, len(points) + 1)
            except ConfigError as error:
                impossible.append(str(error))
                continue
            identity = {"train": _training_of(point.config), "evaluate": to_json(point.config.evaluate)}
            points.setdefault(digest(identity), point)
    n_points = math.prod(len(axis.texts) for axis in axes) * n_samples
    if impossible:
        count = f"{len(impossible)} of {n_points} points are impossible; the first is " if len(impossible) > 1 else ""
        raise ConfigError(f"{count}{impossible[0]}")
    if len(points) < n_points:
        logger.info("%d of %d points are the same as another", n_points - len(points), n_points)
    return list(points.values())


def _make_point(config: PipelineConfig, pairs: Sequence[tuple[str, str]], number: int) -> Point:
    overrides = tuple(f"{key}={text}" for key, text in pairs)
    names_first = sorted(overrides, key=lambda text: not text.partition("=")[0].endswith(".name"))
    try:
        made = apply_overrides(config, names_first)  # another kind of model or schedule has other settings below it
    except ConfigError as error:
        message = str(error)
        for override in overrides:
            message = message.removeprefix(f"--set {shortened(override)}: ")
        raise ConfigError(f"{', '.join(map(shortened, overrides))}: {message}") from None
    return Point(number, overrides, {key: parse_value(text) for key, text in pairs}, made)


def _check_space(config: PipelineConfig, plan: SweepConfig, axes: list[_Axis], draws: list[_Axis]) -> None:
    keys = [axis.key for axis in axes + draws]
    if not keys:
        raise ConfigError("nothing to sweep: give --grid train.model.n_layers=2,4, or --search with --samples")
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"{key} is swept twice; give all its values in one --grid or --search")
        section = key.partition(".")[0]
        if reason := _NO_EFFECT.get(key) or _NO_EFFECT.get(section):
            raise ConfigError(f"{key} cannot be swept: {reason}")
        if section in ("train", "evaluate") and key == section:
            raise ConfigError(f"{key} cannot be swept whole; name a setting below it, such as train.n_steps")
    if draws and not plan.samples:
        raise ConfigError(f"--search {draws[0].key}: say with --samples how many points to draw")
    if plan.samples and not draws:
        raise ConfigError(f"--samples {plan.samples} needs a --search to draw from")
    n_points = math.prod(len(axis.texts) for axis in axes) * max(plan.samples, 1)
    if n_points > MAX_POINTS:
        raise ConfigError(f"{n_points} points are more than the {MAX_POINTS} that a sweep may have")
    if config.train.max_workers > 1:
        raise ConfigError(
            f"train.n_workers={config.train.n_workers}: a sweep trains each point with one worker; leave it at 1 and"
            " give --concurrent to use more cores"
        )


LARGEST_END = 2.0**62  # of a range that whole numbers can be drawn from


def _parse_grid(text: str) -> _Axis:
    key, values = _split(text, "--grid", "key=a,b,c, for example train.schedule.max_lr=0.001,0.003")
    return _Axis(key, _parse_values(values, f"--grid {shortened(text)}"))


def _parse_search(text: str) -> _Axis:
    example = "key=loguniform(a,b), for example train.schedule.max_lr=loguniform(1e-4,1e-2)"
    key, drawn = _split(text, "--search", example)
    place = f"--search {shortened(text)}"
    call = re.fullmatch(r"(\w+)\((.*)\)", drawn)
    if not call or call[1] not in _DRAWS:
        raise ConfigError(f"{place}: write it as {example}; known: {', '.join(_DRAWS)}")
    if call[1] == "choice":
        return _Axis(key, _parse_values(call[2], place), "choice")
    try:
        low, high = (float(number) for number in call[2].split(","))
    except ValueError:
        raise ConfigError(f"{place}: {call[1]} takes two numbers, such as {call[1]}(1,4)") from None
    if not -LARGEST_END <= low < high <= LARGEST_END:
        raise ConfigError(
            f"{place}: {low:g} to {high:g} is no range; the first must be below the second, and both within"
            f" ±{LARGEST_END:g}"
        )
    if call[1] == "loguniform" and low <= 0:
        raise ConfigError(f"{place}: loguniform needs numbers above 0, not {low:g}")
    if call[1] == "randint" and (low % 1 or high % 1):
        raise ConfigError(f"{place}: randint takes whole numbers")
    return _Axis(key, (), call[1], low, high)


def _split(text: str, option: str, example: str) -> tuple[str, str]:
    key, equals, values = (part.strip() for part in text.partition("="))
    if not key or not equals or not values:
        raise ConfigError(f"{option} {shortened(text)}: write it as {example}")
    return current_path(key), values


def _parse_values(text: str, place: str) -> tuple[str, ...]:
    separator = ";" if set(text) & set(';[{"') else ","
    values = tuple(value.strip() for value in text.split(separator))
    for value in values:
        if not value:
            raise ConfigError(f"{place}: there is an empty value")
        if values.count(value) > 1:
            raise ConfigError(f"{place}: names {value} twice")
        if value.count("[") != value.count("]") or value.count("{") != value.count("}"):
            raise ConfigError(f"{place}: {value} is not whole; put `;` between values that hold commas")
    return values


def _training_of(config: PipelineConfig) -> dict[str, Any]:
    return {key: value for key, value in to_json(config.train).items() if key not in TRAIN_WITHOUT_EFFECT}


def sweep_name(config: PipelineConfig, plan: SweepConfig, dataset: DatasetVersion) -> str:
    """Return the name that settings, space and dataset version determine; the same sweep resumes under it."""
    grid = {axis.key: [parse_value(text) for text in axis.texts] for axis in map(_parse_grid, plan.grid)}
    draws = [_parse_search(text) for text in plan.search]
    identity = {
        "train": _training_of(config),
        "evaluate": to_json(config.evaluate),
        "grid": grid,
        "search": {axis.key: (first_path(axis.key), *dataclasses.astuple(axis)[1:]) for axis in draws},
        "samples": plan.samples,
        "seed": plan.seed if plan.search else 0,
        "early_stopping": plan.early_stopping,
        "dataset": dataset.name,
        "dataset_version": dataset.version,
    }
    return f"{config.train.preset}-{digest(identity)[:12]}"


class SweepFolder:
    """The files of a sweep: `sweep.json` (its settings), `results.json`, `results.csv` and `results.png`."""

    def __init__(self, root: Path) -> None:
        self.root, self.facts = root, root / "sweep.json"
        self.results, self.table, self.picture = (root / f"results.{suffix}" for suffix in ("json", "csv", "png"))

    @classmethod
    def of(cls, home: Home, config: PipelineConfig, plan: SweepConfig, dataset: DatasetVersion) -> "SweepFolder":
        return cls(home.sweeps / sweep_name(config, plan, dataset))

    def run_id(self) -> str:
        """Return the MLflow run of an earlier attempt, or nothing."""
        facts = _read_or_warn(self.facts, {"run_id": str}, "the sweep goes on under a new run of the tracker")
        return facts["run_id"] if facts else ""

    def start(self, run_id: str, config: PipelineConfig, plan: SweepConfig, dataset: DatasetVersion) -> None:
        """Write down what the sweep is."""
        facts = {
            "run_id": run_id,
            "dataset": dataset.reference,
            "train": to_json(config.train),
            "evaluate": to_json(config.evaluate),
            "sweep": to_json(plan),
        }
        write_atomically(self.facts, sealed_bytes(facts))

    def read_rows(self, points: Sequence[Point]) -> list[Row]:
        """Return one row for each point, in their order: that of an earlier attempt, otherwise a new one."""
        results = _read_or_warn(self.results, {"rows": [ROW]}, "the results of its points are read from their runs")
        rows = [_renamed(row) for row in results.get("rows", ()) if _is_usable(row)]
        known = {row["settings"]: row for row in rows}
        return [known.get(point.settings) or new_row(point) for point in points]

    def write_rows(self, rows: Sequence[Row]) -> list[Row]:
        """Write both tables, and return the rows best first."""
        ranked = rank(rows)
        write_atomically(self.results, sealed_bytes({"sweep": self.root.name, "rows": ranked}))
        write_atomically(self.table, csv_bytes(ranked))
        return ranked


def _is_usable(row: Row) -> bool:
    return row["status"] in _ORDER and row["run_dir"] == Path(row["run_dir"]).name


def _renamed(row: Row) -> Row:
    settings = re.sub(r"(^|, )([\w.]+)(?==)", lambda found: found[1] + current_path(found[2]), row["settings"])
    return row | {"settings": settings, "values": current_names(row["values"])}


def _read_or_warn(path: Path, shape: Shape, way_out: str) -> dict[str, Any]:
    try:
        return read_sealed(path, shape)
    except FileNotFoundError:
        return {}
    except DamagedFile as error:
        logger.warning("%s; %s", error, way_out)
        return {}


def new_row(point: Point) -> Row:
    """Return the row of a point that nothing is known of yet."""
    figures = dict.fromkeys(("val_loss", *_FIGURES))
    facts = {"model_version": "", "run_id": "", "run_dir": "", "n_parameters": None}
    return {
        "point": point.number, "settings": point.settings, "values": point.values, "status": WAITING, "reason": "",
        "step": 0, "n_steps": point.config.train.n_steps, **figures, **facts,
    }  # fmt: skip


def set_figures(row: Row, metrics: Mapping[str, float]) -> None:
    """Put a model's held-out figures into its row; figures that are no numbers make it a failed one."""
    bits_per_note = metrics.get("bits_per_note", math.nan)  # ids without music have none
    if not math.isfinite(bits_per_note):
        set_failed(row, f"bits_per_note is {bits_per_note}")
        return
    row |= {name: metrics[name] for name in _FIGURES} | {"status": FINISHED, "reason": ""}


def set_failed(row: Row, reason: str) -> None:
    """Mark a row as failed for a reason of one line."""
    row |= {"status": FAILED, "reason": " ".join(reason.split())[:300]}


def rank(rows: Sequence[Row]) -> list[Row]:
    """Return rows with the lowest bits per note first, then those without, by validation loss, the failed last."""

    def place(row: Row) -> tuple[Any, ...]:
        figures = (math.inf if row[name] is None else row[name] for name in ("bits_per_note", "val_loss"))
        return (_ORDER.index(row["status"]), *figures, row["point"])

    return sorted(rows, key=place)


def csv_bytes(rows: Sequence[Row]) -> bytes:
    """Return rows as CSV, a column for each swept setting after the point's number."""
    swept = list(rows[0]["values"]) if rows else []
    names = [name for name in (rows[0] if rows else ()) if name not in ("point", "settings", "values")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["point", *swept, *names])
    for row in rows:
        values = (row["values"][key] for key in swept)
        shown = (value if isinstance(value, str) else json.dumps(value) for value in values)
        writer.writerow([row["point"], *shown, *("" if row[name] is None else row[name] for name in names)])
    return text.getvalue().encode()
