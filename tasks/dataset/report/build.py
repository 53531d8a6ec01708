"""Building the page of a dataset version from manifest, ledger, sample pieces and the slowest files."""

# pyarrow.compute makes its functions when it is imported, so the type checker does not see them.
# pyright: reportAttributeAccessIssue=false

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.dataset.analyse import Analysis
from tasks.dataset.ledger import Ledger
from tasks.dataset.report.collect import facts_of_version, write_report
from tasks.dataset.report.facts import SampleFacts
from tasks.dataset.split import SPLITS
from tasks.dataset.versions import DatasetVersion
from tasks.ingest.sources.read import read_members
from tasks.runtime.isolation import Death, Host, WorkError, WorkLimits
from tasks.storage.parquet import read_table

logger = logging.getLogger(__name__)

N_TIMED = 24  # of the largest files; reading is timed on these
SAMPLES_PER_SPLIT = 2
_TIMING_SECONDS = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class ReportInputs:
    """What a report needs beside the version's own files; small, so that it may be sent to another process."""

    dataset: DatasetVersion
    analysis: Analysis
    samples: tuple[tuple[str, str, str], ...]  # split, piece and song shard of the pieces to draw
    largest: pa.Table  # scan rows of the largest accepted files


def report_inputs(dataset: DatasetVersion, files: pa.Table, ledger: Ledger, analysis: Analysis) -> ReportInputs:
    """Choose what a report shows of single pieces.

    Args:
        files: the scan rows that the ledger was made of.
    """
    splits, pieces = ledger.pieces.column("split").to_numpy(), ledger.pieces.column("piece")
    samples = [
        (split, pieces[place].as_py(), dataset.manifest["songs"][ledger.shard[place]])
        for split in SPLITS
        for place in np.flatnonzero(splits == split)[:SAMPLES_PER_SPLIT].tolist()  # by piece id: as good as by lot
    ]
    accepted = np.flatnonzero(pc.equal(ledger.table.column("status"), "accepted").to_numpy())
    order = np.lexsort([accepted, -files.column("n_bytes").to_numpy()[accepted]])[:N_TIMED]
    largest = files.take(pa.array(accepted[order])).unify_dictionaries().combine_chunks()
    without_rows = Analysis(analysis.table.slice(0, 0), analysis.shards, analysis.offsets)
    return ReportInputs(dataset, without_rows, tuple(samples), largest)


def write_dataset_report(inputs: ReportInputs) -> Path:
    """Write the page about a version that was just published."""
    dataset = inputs.dataset
    ledger = read_table(dataset.ledger)
    facts = facts_of_version(
        dataset.manifest,
        ledger,
        histograms={name: counts.tolist() for name, counts in inputs.analysis.histograms().items()},
        slowest=_slowest(inputs.largest),
        samples=[_sample(dataset, ledger, *sample) for sample in inputs.samples],
    )
    return write_report(facts, dataset.report.parent)


def _sample(dataset: DatasetVersion, ledger: pa.Table, split: str, piece: str, songs_path: str) -> SampleFacts:
    of_piece = pc.and_(pc.equal(ledger.column("piece"), piece), pc.equal(ledger.column("status"), "accepted"))
    songs = read_table(dataset.folder / songs_path)
    (song,) = songs.filter(pc.equal(songs.column("piece"), piece)).to_pylist()
    return SampleFacts.from_song(song, split, ledger.filter(of_piece).column("path")[0].as_py())


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
    """Read each file of some scan rows alone and return the microseconds as JSON; runs in a child process."""
    from tasks.music.midi.reader import read_files

    microseconds: list[int] = []
    for content in read_members(pa.ipc.open_stream(payload).read_all()):
        started = time.perf_counter()
        read_files([content if isinstance(content, bytes) else b""])
        microseconds.append(round(1e6 * (time.perf_counter() - started)))
    return json.dumps(microseconds).encode()


def prepare() -> None:
    """Have the reader compiled before anything is timed."""
    from tasks.music.midi.reader import read_files

    read_files([b""])
