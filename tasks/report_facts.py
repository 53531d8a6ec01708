"""What the page about a dataset version shows beside its manifest and ledger: sample pieces, and the slowest files."""

# pyarrow.compute makes its functions when it is imported, so the type checker does not see them.
# pyright: reportAttributeAccessIssue=false

import json
import logging
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.analyse import Analysis
from tasks.datasets import DatasetVersion
from tasks.isolation import Death, Host, WorkLimits
from tasks.ledger import Ledger
from tasks.report import ReportFacts, SampleFacts, facts_of_version
from tasks.shards import read_table
from tasks.sources.read import read_members
from tasks.split import SPLITS

logger = logging.getLogger(__name__)

N_TIMED = 24  # of the largest files; reading is timed on these
SAMPLES_PER_SPLIT = 2
_TIMING_SECONDS = 60.0


def gather(dataset: DatasetVersion, files: pa.Table, ledger: Ledger, analysis: Analysis) -> ReportFacts:
    """Return the facts of a version that was just published.

    Args:
        files: the scan rows that the ledger was made of.
    """
    return facts_of_version(
        dataset.manifest,
        ledger.table,
        histograms={name: counts.tolist() for name, counts in analysis.histograms().items()},
        slowest=_slowest(files, ledger.table),
        samples=_samples(dataset, ledger),
    )


def _samples(dataset: DatasetVersion, ledger: Ledger) -> list[SampleFacts]:
    """Return the first pieces of each split, by piece id, which is as good as drawn by lot."""
    paths = dict(zip(ledger.table.column("piece").to_pylist(), ledger.table.column("path").to_pylist(), strict=True))
    splits, pieces = ledger.pieces.column("split").to_numpy(), ledger.pieces.column("piece")
    samples = []
    for split in SPLITS:
        for place in np.flatnonzero(splits == split)[:SAMPLES_PER_SPLIT].tolist():
            piece = pieces[place].as_py()
            songs = read_table(dataset.folder / dataset.manifest["songs"][ledger.shard[place]])
            (song,) = songs.filter(pc.equal(songs.column("piece"), piece)).to_pylist()
            samples.append(SampleFacts.from_song(song, split, paths[piece]))
    return samples


def _slowest(files: pa.Table, ledger: pa.Table) -> list[tuple[str, int]]:
    """Return (path, microseconds) of the slowest among the largest accepted files, read once more and alone."""
    accepted = pa.array(np.flatnonzero(np.asarray(ledger.column("status")) == "accepted"))
    candidates = files.take(accepted).sort_by([("n_bytes", "descending"), ("path", "ascending")]).slice(0, N_TIMED)
    sink = pa.BufferOutputStream()
    rows = candidates.unify_dictionaries().combine_chunks()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    host = Host()
    try:
        result = host.run(
            "tasks.report_facts:time_readings", sink.getvalue().to_pybytes(), WorkLimits(seconds=_TIMING_SECONDS)
        )
    finally:
        host.close()
    if isinstance(result, Death):
        logger.warning("the slowest files are not known: %s", result.detail)
        return []
    timed = zip(candidates.column("path").to_pylist(), json.loads(result), strict=True)
    return sorted(timed, key=lambda entry: (-entry[1], entry[0]))


def time_readings(payload: bytes) -> bytes:
    """Read each file of some scan rows alone and return the microseconds as JSON; runs in a child process."""
    from tasks.music.midi_files import read_files

    microseconds: list[int] = []
    for content in read_members(pa.ipc.open_stream(payload).read_all()):
        started = time.perf_counter()
        read_files([content if isinstance(content, bytes) else b""])
        microseconds.append(round(1e6 * (time.perf_counter() - started)))
    return json.dumps(microseconds).encode()


def prepare() -> None:
    """Have the reader compiled before anything is timed."""
    from tasks.music.midi_files import read_files

    read_files([b""])
