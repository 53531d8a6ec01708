"""The index of copies: the longest run of notes that a piece shares with the training split, and its source.

The index over the training split and the human range are made at their first use, beside the version's manifest.
`tasks.music.similarity.shared_runs` defines a run.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tasks.copying.human_range import BatchVerdict, HumanRange, human_range, judge_batch
from tasks.copying.store import REVISION, IndexedLines, index_path, map_index, write_index
from tasks.dataset.versions import DatasetVersion
from tasks.errors import DamagedFile, DatasetError, HomeError, NotFound
from tasks.music.arrays import IntArray
from tasks.music.notes import NoteBatch
from tasks.storage.files import locked, storage_problem, write_atomically
from tasks.storage.integrity import read_sealed, sealed_bytes
from tasks.storage.parquet import flat_values, read_table

if TYPE_CHECKING:
    from tasks.music.score import Score
    from tasks.music.similarity.shared_runs import Lines, Runs

logger = logging.getLogger(__name__)

COVERING_NOTES = 24  # notes of a run that counts as copied; unrelated pieces rarely share as many
MOST_MEASURED = 1000  # held-out pieces in the human range


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyMatch:
    """The longest run of notes that a piece shares with one piece of the training split.

    Drums and doubled notes are left out of all counts but `first_note` and `last_note`.
    """

    n_notes: int  # of the run
    share: float  # of the piece's notes in the run, 0 to 1
    coverage: float  # share of the piece's notes in any run of 24 notes or more, of any source
    first_note: int  # lowest and highest index of the run's notes in `score.notes`, both included
    last_note: int
    start_seconds: float  # onsets of the first and the last note of the run
    end_seconds: float
    source: str  # id of the training piece
    source_file: str  # its path in the ledger
    source_first_note: int  # index of the run's first note in the source
    source_start_seconds: float  # onsets in the source
    source_end_seconds: float
    transposition: int  # semitones from the source up to the piece
    stretch: float  # length of the run in the piece over its length in the source; 2.0 is half as fast


@dataclass(frozen=True, kw_only=True, slots=True)
class PieceCheck:
    """The result of the index for one piece."""

    n_notes: int  # pitched notes; a doubled note counts once
    match: CopyMatch | None  # None without a run of 11 notes or more
    human_limit: int | None  # longest run within the human range for a piece of this length; None if unknown
    is_beyond: bool | None  # whether the match is longer; None if unknown

    @property
    def n_run_notes(self) -> int:
        """Notes of the longest shared run, 0 without one."""
        return self.match.n_notes if self.match else 0

    def as_json(self) -> dict[str, Any]:
        """Return plain dicts and numbers."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class CopyIndex:
    """The training split of one dataset version, ready to be searched."""

    folder: Path  # of the version
    lines: IndexedLines

    @classmethod
    def open(cls, folder: Path) -> "CopyIndex":
        """Open the index in a version's folder without a check of its bytes, as a worker does."""
        lines = map_index(index_path(folder), trusting=True)
        if lines is None:
            raise NotFound(f"no index of copies in {folder}; `copy_index` makes it")
        return cls(folder, lines)

    @cached_property
    def human(self) -> HumanRange:
        """The runs that held-out human pieces share with train."""
        human = _read_human(self.folder)
        if human is None:
            raise NotFound(f"no human range in {self.folder}; `copy_index` measures it")
        return human

    @cached_property
    def _files(self) -> pa.Table:
        ledger = read_table(self.folder / "pieces.parquet", ["piece", "path", "status"])
        return ledger.filter(pc.equal(ledger.column("status"), "accepted"))

    def nearest(self, score: "Score", after_seconds: float = 0.0) -> CopyMatch | None:
        """Return the longest run that a piece shares with the training split, at a tie in the first piece, or None.

        Runs of 14 notes or more are always found unless all their seeds are very common; shorter ones by chance.

        Args:
            after_seconds: earlier notes, such as those of a prompt, do not count.
        """
        return self._search(score, after_seconds)[1]

    def check(self, score: "Score", after_seconds: float = 0.0) -> PieceCheck:
        """Return the longest shared run of a piece and whether it is beyond the human range."""
        n_notes, match = self._search(score, after_seconds)
        limit = self.human.limit(n_notes)
        is_beyond = None if limit is None else (match.n_notes if match else 0) > limit
        return PieceCheck(n_notes=n_notes, match=match, human_limit=limit, is_beyond=is_beyond)

    def judge(self, checks: Sequence[PieceCheck]) -> BatchVerdict:
        """Return whether more pieces of a batch than by chance are beyond the human range; see `judge_batch`."""
        return judge_batch(self.human, [(check.n_notes, check.n_run_notes) for check in checks])

    def runs(self, lines: "Lines", piece: int) -> "Runs":
        from tasks.music.similarity.shared_runs import find_runs

        begin, end = lines.offsets[piece : piece + 2]
        train = self.lines
        return find_runs(
            lines.onset[begin:end], lines.pitch[begin:end], train.seeds, train.offsets, train.onset, train.pitch
        )

    def _search(self, score: "Score", after_seconds: float) -> tuple[int, CopyMatch | None]:
        from tasks.music.similarity.shared_runs import draw_lines

        notes = score.notes
        begin = int(np.searchsorted(notes.onset_seconds, after_seconds))
        bounds = np.array([begin, len(notes.pitch)])
        line = draw_lines(bounds, notes.onset_seconds, notes.pitch, notes.is_drum)
        runs = self.runs(line, 0)
        n_notes = len(line.pitch)
        if not len(runs.n_notes):
            return n_notes, None
        best = int(np.lexsort([runs.first, runs.source, -runs.n_notes])[0])
        return n_notes, self._match(line, runs, best)

    def _match(self, line: "Lines", runs: "Runs", best: int) -> CopyMatch:
        train = self.lines
        first, source, n_run = (int(values[best]) for values in (runs.first, runs.source, runs.n_notes))
        piece = int(np.searchsorted(train.offsets, source, side="right")) - 1
        name = f"{int(train.pieces[piece]):016x}"
        members = line.note[first : first + n_run]
        start, end = float(line.onset[first]), float(line.onset[first + n_run - 1])
        source_start, source_end = float(train.onset[source]), float(train.onset[source + n_run - 1])
        return CopyMatch(
            n_notes=n_run,
            share=round(n_run / len(line.pitch), 6),
            coverage=round(_coverage(runs, len(line.pitch)), 6),
            first_note=int(members.min()),
            last_note=int(members.max()),
            start_seconds=round(start, 4),
            end_seconds=round(end, 4),
            source=name,
            source_file=self._file_of(name),
            source_first_note=source - int(train.offsets[piece]),
            source_start_seconds=round(source_start, 4),
            source_end_seconds=round(source_end, 4),
            transposition=_interval(line.pitch[first : first + n_run], train.pitch[source : source + n_run]),
            stretch=round((end - start) / (source_end - source_start), 4) if source_end > source_start else 1.0,
        )

    def _file_of(self, piece: str) -> str:
        return self._files.column("path")[pc.index(self._files.column("piece"), piece).as_py()].as_py()


def _coverage(runs: "Runs", n_notes: int) -> float:
    """Return the share of a line's notes in runs of at least `COVERING_NOTES`."""
    counted = runs.n_notes >= COVERING_NOTES
    borders = np.zeros(n_notes + 1, np.int64)
    np.add.at(borders, runs.first[counted], 1)
    np.add.at(borders, (runs.first + runs.n_notes)[counted], -1)
    return float(np.mean(np.cumsum(borders[:-1]) > 0))


def _interval(pitch: NDArray[np.uint8], source: NDArray[np.uint8]) -> int:
    """Return the interval of a run by the sums of its pitches, because its notes may have changed places."""
    return round(float(pitch.astype(np.int64).sum() - source.astype(np.int64).sum()) / len(pitch))


def copy_index(dataset: DatasetVersion) -> CopyIndex:
    """Return the index of a version; make it and the human range if they are missing or damaged.

    One of several processes makes them, and the others wait. All bytes of an existing index are checked here; workers
    then use `CopyIndex.open`.

    Raises:
        DatasetError: a song shard or the ledger is missing or damaged.
        HomeError: the folder of the version cannot be written to.
    """
    path = index_path(dataset.version_folder)
    try:
        with locked(dataset.version_folder):
            index = CopyIndex(dataset.version_folder, map_index(path) or _make(path, dataset))
            if _read_human(index.folder) is None:
                _measure_human(index, dataset)
    except DamagedFile as error:
        raise DatasetError(f"dataset {dataset.reference} cannot be read: {error}") from None
    except FileNotFoundError as error:
        raise DatasetError(f"dataset {dataset.reference} lacks {error.filename}; rebuild it") from None
    except OSError as error:
        raise HomeError(f"cannot write {path}: {storage_problem(error) or error}") from None
    return index


def _make(path: Path, dataset: DatasetVersion) -> IndexedLines:
    started = time.perf_counter()
    train = _pieces_of(dataset, ["train"])
    write_index(path, dataset.version, ((_numbers(names), lines) for names, lines in _read_lines(dataset, train)))
    index = map_index(path)
    if index is None:
        raise OSError(f"{path} does not hold what was written to it")
    seconds = time.perf_counter() - started
    logger.info(
        "indexed %d notes of %d training pieces of %s for copies, %.1f s",
        len(index.pitch), len(index.pieces), dataset.reference, seconds,
    )  # fmt: skip
    return index


def _pieces_of(dataset: DatasetVersion, splits: list[str]) -> NDArray[np.uint64]:
    """Return the ids of the pieces of some splits as numbers, rising."""
    ledger = read_table(dataset.ledger, ["piece", "status", "split"])
    wanted = pc.and_(pc.equal(ledger.column("status"), "accepted"), pc.is_in(ledger.column("split"), pa.array(splits)))
    return np.sort(_numbers(ledger.column("piece").filter(wanted).to_pylist()))


def _numbers(pieces: list[str]) -> NDArray[np.uint64]:
    return np.array([int(piece, 16) for piece in pieces], np.uint64)


def _read_lines(dataset: DatasetVersion, pieces: NDArray[np.uint64]) -> Iterator[tuple[list[str], "Lines"]]:
    """Yield ids and lines of some pieces, a song shard at a time, in their order."""
    from tasks.music.similarity.shared_runs import draw_lines

    for relative in dataset.manifest["songs"]:
        table = read_table(dataset.folder / relative, ["piece", "onset_seconds", "pitch", "is_drum"])
        numbers = _numbers(table.column("piece").to_pylist())
        wanted = np.searchsorted(pieces, numbers, side="right") > np.searchsorted(pieces, numbers)
        table = table.filter(pa.array(wanted))
        if table.num_rows:
            offsets, onset = flat_values(table, "onset_seconds")
            pitch, is_drum = (flat_values(table, name)[1] for name in ("pitch", "is_drum"))
            yield table.column("piece").to_pylist(), draw_lines(offsets, onset, pitch, is_drum)


# --- the passage of the source ----------------------------------------------------------------------------------------


def source_notes(dataset: DatasetVersion, match: CopyMatch) -> "Score":
    """Return the passage of the training piece in a match, as a score that begins with its first note.

    It has every note that begins between the first and the last note of the run, drums and doubled notes too, with the
    length that the pedal adds. A tick is a millisecond, at 120 beats a minute.
    """
    from tasks.music.score import build_score
    from tasks.music.similarity.shared_runs import draw_lines
    from tasks.music.transforms import apply_sustain

    notes = apply_sustain(_read_piece(dataset, match.source))
    line = draw_lines(notes.offsets, notes.onset_seconds, notes.pitch, notes.is_drum)
    members = line.note[match.source_first_note : match.source_first_note + match.n_notes]
    start, stop = notes.onset_seconds[members].min(), notes.onset_seconds[members].max()
    inside = (notes.onset_seconds >= start) & (notes.onset_seconds <= stop)
    onset, end = (np.rint(1000 * (t[inside] - start)) for t in (notes.onset_seconds, notes.end_seconds))
    _, track = np.unique(notes.track[inside], return_inverse=True)
    columns = {name: getattr(notes, name)[inside] for name in ("pitch", "velocity", "program", "is_drum")}
    columns |= {"onset": onset, "duration": np.maximum(end - onset, 1), "track": track}
    return build_score(500, columns, n_tracks=int(track.max()) + 1)


def _read_piece(dataset: DatasetVersion, piece: str) -> NoteBatch:
    from tasks.dataset.encode import read_notes

    for relative in dataset.manifest["songs"]:
        songs = dataset.folder / relative
        if pc.index(read_table(songs, ["piece"]).column("piece"), piece).as_py() >= 0:
            return read_notes(songs, [piece])
    raise NotFound(f"no piece {piece} in dataset {dataset.reference}")


# --- the human range -----------------------------------------------------------------------------------------------


def human_path(folder: Path) -> Path:
    """Return the path of the human range in a version's folder."""
    return folder / f"copying-{REVISION}.json"


def _read_human(folder: Path) -> HumanRange | None:
    path = human_path(folder)
    try:
        return HumanRange.from_json(read_sealed(path))
    except FileNotFoundError:
        return None
    except (DamagedFile, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        logger.warning("%s; it is measured again", error if isinstance(error, DamagedFile) else f"{path} is damaged")
        return None


def _measure_human(index: CopyIndex, dataset: DatasetVersion) -> None:
    """Compare at most `MOST_MEASURED` held-out pieces with train; their ids are hashes, so any choice is random."""
    started = time.perf_counter()
    held_out = _pieces_of(dataset, ["validation", "test"])
    n_chosen = min(MOST_MEASURED, len(held_out))
    chosen = held_out[np.arange(n_chosen) * len(held_out) // max(1, n_chosen)]
    human = human_range(len(held_out), _shared_runs(index, dataset, chosen))
    write_atomically(human_path(index.folder), sealed_bytes(human.as_json()))
    seconds = time.perf_counter() - started
    logger.info(
        "compared %d of %d held-out pieces of %s with train, %.1f s",
        human.n_measured, human.n_held_out, dataset.reference, seconds,
    )  # fmt: skip


def _shared_runs(
    index: CopyIndex, dataset: DatasetVersion, pieces: NDArray[np.uint64]
) -> Iterator[tuple[int, IntArray, IntArray]]:
    for names, lines in _read_lines(dataset, pieces):
        for piece in range(len(names)):
            runs = index.runs(lines, piece)
            yield int(lines.offsets[piece + 1] - lines.offsets[piece]), runs.first, runs.n_notes
