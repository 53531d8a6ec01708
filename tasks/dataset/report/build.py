"""The report of a dataset version: a self-contained HTML page, a picture and the list of its tokens."""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.dataset.analyse import Analysis
from tasks.dataset.encode import read_notes
from tasks.dataset.ledger import Ledger, paths_of
from tasks.dataset.report.facts import ReportFacts, facts_of_version
from tasks.dataset.report.overview import draw_overview
from tasks.dataset.report.page import build_page
from tasks.dataset.report.scatter import draw_scatter, sample_points
from tasks.dataset.split import SPLITS
from tasks.dataset.versions import DatasetVersion
from tasks.ingest.sources.read import read_members
from tasks.music.arrays import IntArray
from tasks.music.metrics.features import NOTES_EDGES, count_between
from tasks.music.notes import NoteBatch
from tasks.music.render.pianoroll import draw_piano_roll
from tasks.music.score import Score
from tasks.music.tokenizers.registry import tokenizer_from_json
from tasks.reporting.templates import data_address
from tasks.runtime.isolation import Death, Host, WorkError, WorkLimits
from tasks.storage.files import write_atomically
from tasks.storage.parquet import read_table

logger = logging.getLogger(__name__)

N_TIMED = 24  # of the largest files; reading is timed on these
SAMPLES_PER_SPLIT = 2
ROLL_SECONDS = 60.0  # of each sample
_TIMING_SECONDS = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class ReportInputs:
    """What a report needs beside the version's own files; small enough to be sent to another process."""

    dataset: DatasetVersion
    analysis: Analysis
    samples: tuple[tuple[str, str, str], ...]  # split, piece and song shard of the pieces to draw
    largest: pa.Table  # scan rows of the largest accepted files


def report_inputs(dataset: DatasetVersion, files: pa.Table, ledger: Ledger, analysis: Analysis) -> ReportInputs:
    """Choose the single pieces of a report: samples and the largest files.

    Args:
        files: the scan rows behind the ledger.
    """
    splits, pieces = ledger.pieces.column("split").to_numpy(), ledger.pieces.column("piece")
    samples = [
        (split, pieces[place].as_py(), dataset.manifest["songs"][ledger.shard[place]])
        for split in SPLITS
        for place in np.flatnonzero(splits == split)[:SAMPLES_PER_SPLIT].tolist()  # ids are hashes: a random sample
    ]
    accepted = np.flatnonzero(pc.equal(ledger.table.column("status"), "accepted").to_numpy())
    order = np.lexsort([accepted, -files.column("n_bytes").to_numpy()[accepted]])[:N_TIMED]
    largest = files.take(pa.array(accepted[order])).unify_dictionaries().combine_chunks()
    without_rows = Analysis(analysis.table.slice(0, 0), analysis.shards, analysis.offsets)
    return ReportInputs(dataset, without_rows, tuple(samples), largest)


def write_dataset_report(inputs: ReportInputs) -> Path:
    """Write the report of a version that was just published."""
    dataset = inputs.dataset
    ledger = read_table(dataset.ledger)
    path_of = paths_of(ledger, [piece for _, piece, _ in inputs.samples])
    histograms = inputs.analysis.histograms() | {"tokens": count_row_lengths(dataset)}
    pieces = ledger.filter(pc.equal(ledger["status"], "accepted"))["piece"].to_pylist()
    shards = [dataset.folder / songs for songs in dataset.manifest["songs"]]
    points = sample_points(shards, pieces, dataset.manifest["counts"]["n_notes"])
    picture = draw_scatter(dataset.reference, points)
    facts = facts_of_version(
        dataset.manifest,
        ledger,
        histograms={name: counts.tolist() for name, counts in histograms.items()},
        slowest=_slowest(inputs.largest),
        samples=[
            sample_of(read_notes(dataset.folder / songs, [piece]), split, path_of[piece])
            for split, piece, songs in inputs.samples
        ],
        scatter={"picture": data_address("image/png", picture), "words": points.words},
    )
    write_vocabulary(dataset)
    dataset.scatter.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(dataset.scatter, picture)
    return write_report(facts, dataset.report.parent)


def write_vocabulary(dataset: DatasetVersion) -> None:
    """Write the names of all ids beside the report, in order of id."""
    names = tokenizer_from_json(dataset.manifest["encoder"]["settings"]).names
    dataset.vocabulary.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(dataset.vocabulary, "".join(f"{name}\n" for name in names).encode(errors="backslashreplace"))


def count_row_lengths(dataset: DatasetVersion) -> IntArray:
    """Return how many rows, pieces or windows before augmentation, have lengths in tokens between `NOTES_EDGES`."""
    lengths, may_flip = [np.zeros(0, np.int64)], dataset.manifest["config"]["augment"].get("flip", False)
    for split in SPLITS:
        for path in dataset.token_shards(split):
            flags = ["redraws_parts", *["is_flipped"] * (may_flip and split == "train")]
            rows = read_table(path, ["n_tokens", "transposition", "stretch", "velocity_shift", *flags])
            columns = {name: rows.column(name).to_numpy() for name in rows.column_names}
            is_changed = (columns["transposition"] != 0) | (columns["velocity_shift"] != 0)
            is_changed |= np.any([columns[flag] for flag in flags], axis=0)
            lengths.append(columns["n_tokens"][~is_changed & (columns["stretch"] == 1.0)])
    return count_between(np.concatenate(lengths), NOTES_EDGES)


def sample_of(notes: NoteBatch, split: str, path: str) -> dict[str, str]:
    """Return a piece as a sample of `ReportFacts`, with its piano roll."""
    roll = draw_piano_roll(Score(notes), width=1080, height=280, max_seconds=ROLL_SECONDS)
    return {"split": split, "path": path, "roll": data_address("image/png", roll)}


def write_report(facts: ReportFacts, folder: Path) -> Path:
    """Write `report.html` and `report.png` into `folder` and return the page; the same facts give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "report.png", draw_overview(facts))
    write_atomically(folder / "report.html", build_page(facts).encode())
    return folder / "report.html"


def _slowest(rows: pa.Table) -> list[tuple[str, int]]:
    """Return (path, microseconds) of some files by how long they take to read, each once more and alone."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    host = Host()
    try:
        limits = WorkLimits(seconds=_TIMING_SECONDS)
        result = host.run("tasks.dataset.report.build:time_readings", sink.getvalue().to_pybytes(), limits)
    except WorkError as error:
        logger.warning("the slowest files are not known: %s", error)
        return []
    finally:
        host.close()
    if isinstance(result, Death):
        logger.warning("the slowest files are not known: %s", result.detail)
        return []
    timed = zip(rows.column("path").to_pylist(), json.loads(result), strict=True)
    return sorted(timed, key=lambda entry: (-entry[1], entry[0]))


def time_readings(payload: bytes) -> bytes:
    """Return the microseconds of reading each file of some scan rows, as JSON; runs in a child process."""
    from tasks.music.midi.reader import read_files

    microseconds: list[int] = []
    for content in read_members(pa.ipc.open_stream(payload).read_all()):
        started = time.perf_counter()
        read_files([content if isinstance(content, bytes) else b""])
        microseconds.append(round(1e6 * (time.perf_counter() - started)))
    return json.dumps(microseconds).encode()


def prepare() -> None:
    """Compile the reader before anything is timed."""
    from tasks.music.midi.reader import read_files

    read_files([b""])
