"""Are copies found, and only copies? Real pieces planted as generated ones, strangers, and 100 million notes to search.

    python bench/bench_copying.py --source some/folder
    python bench/bench_copying.py --source some/folder --notes 10000000 100000000

Planted: pieces transposed by up to six semitones and stretched by half to double, through an encoding and back, whole
and as passages of 24 and 48 notes. Strangers: what held-out pieces share with the others, near-duplicates kept
together. Ratio: the time to compare 500 notes of a planted piece with every note, over that of a search. Scaling: the
lines of the pieces over and over, each time with one note in four moved, as a stand-in for so much music; the pieces
that are sought are planted ones.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import report
from numba import njit

from tasks.copying.human_range import human_range
from tasks.copying.store import IndexedLines, index_path, map_index, write_index
from tasks.dataset.near_duplicates import group_pieces
from tasks.dataset.split import split_groups
from tasks.errors import BadScore
from tasks.music.midi.read_midi import read_midi
from tasks.music.notes import NoteBatch
from tasks.music.similarity.fingerprint import sign_pieces
from tasks.music.similarity.shared_runs import Lines, Runs, draw_lines, find_runs, seeds_between
from tasks.music.tokenizers.base import Tokenizer
from tasks.music.tokenizers.oore import OoreConfig, OoreTokenizer
from tasks.music.tokenizers.optimus.int_tokenizer import OptimusIntConfig, OptimusIntTokenizer
from tasks.music.tokenizers.remi.tokenizer import RemiTokenizer
from tasks.music.tokenizers.remi.vocabulary import RemiConfig
from tasks.music.transforms import stretch_time, transpose_within

PACKAGES = ("numba", "numpy")
PASSAGES = (24, 48)
ENCODINGS: dict[str, Tokenizer | None] = {
    "none": None,
    "oore": OoreTokenizer(OoreConfig()),
    "remi": RemiTokenizer(RemiConfig()),
    "optimus_int": OptimusIntTokenizer(OptimusIntConfig()),
}


def main() -> None:
    options = report.parser(__doc__.splitlines()[0], rounds=3)
    options.add_argument("--pieces", type=int, default=400, help="pieces that are read")
    options.add_argument("--sample", type=int, default=40, help="of them, pieces that are planted with each encoding")
    options.add_argument("--notes", type=int, nargs="*", default=[10_000_000], help="sizes of the scaling runs")
    given = options.parse_args()
    with report.source_folder(given.source) as folder:
        batch = read_pieces(folder, given.pieces)
        name = folder.name
    random = np.random.default_rng(0)
    chosen = random.permutation(batch.n_pieces)[: given.sample]
    copies = [changed(batch.pieces(piece, piece + 1), random) for piece in chosen.tolist()]
    train = lines_of(batch)
    found = {encoding: planted(train, chosen, copies, encoding) for encoding in ENCODINGS}
    scaling = [scale(train, [lines_of(copy) for copy in copies], n, given.rounds) for n in given.notes]
    record = {
        **by_looking_everywhere(train, lines_of(copies[0]), given.rounds),
        "pieces": batch.n_pieces,
        "notes": batch.n_notes,
        "planted": found,
        "strangers": strangers(batch),
        "scaling": scaling,
    }
    report.save("copying", name, record, given.results, PACKAGES)


def read_pieces(folder: Path, n_pieces: int) -> NoteBatch:
    scores = []
    for path in report.spread(report.midi_files(folder), n_pieces):
        try:
            scores.append(read_midi(path))
        except BadScore:
            continue
    return NoteBatch.joined([score.notes for score in scores])


def lines_of(batch: NoteBatch) -> Lines:
    return draw_lines(batch.offsets, batch.onset_seconds, batch.pitch, batch.is_drum)


def changed(piece: NoteBatch, random: np.random.Generator) -> NoteBatch:
    moved, _ = transpose_within(piece, int(random.integers(-6, 7)))
    return stretch_time(moved, 2 ** random.uniform(-1, 1))


def planted(train: Lines, chosen: np.ndarray, copies: list[NoteBatch], encoding: str) -> dict[str, Any]:
    """Return how much of the planted copies is found, and how much of passages of them."""
    tokenizer, seeds, random = ENCODINGS[encoding], seeds_between(train.offsets, train.pitch), np.random.default_rng(0)
    shares, is_source = [], []
    recall: dict[int, list[bool]] = {n_notes: [] for n_notes in PASSAGES}
    for source, copy in zip(chosen.tolist(), copies, strict=True):
        notes = tokenizer.decode(tokenizer.encode(copy).ids).notes if tokenizer else copy
        line = lines_of(notes)
        runs = search(train, seeds, line, 0, len(line.pitch))
        is_source.append(bool(len(runs.n_notes)) and source in owners(train, runs))
        shares.append(runs.n_notes.max(initial=0) / max(1, len(line.pitch)))
        for n_notes in PASSAGES:
            for first in random.integers(0, max(1, len(line.pitch) - n_notes), 5).tolist():
                passage = search(train, seeds, line, first, first + n_notes)
                recall[n_notes].append(bool(passage.n_notes.max(initial=0) >= 0.75 * n_notes))
    return {
        "source_is_found": round(float(np.mean(is_source)), 4),
        "longest_run_over_piece_median": round(float(np.median(shares)), 4),
        "longest_run_over_piece_5_percent": round(float(np.quantile(shares, 0.05)), 4),
        **{f"passages_of_{n}_found": round(float(np.mean(hits)), 4) for n, hits in recall.items()},
    }


def owners(train: Lines, runs: Runs) -> set[int]:
    """Return the pieces that share the longest run: the same music may stand in several files."""
    longest = runs.source[runs.n_notes == runs.n_notes.max()]
    return set((np.searchsorted(train.offsets, longest, side="right") - 1).tolist())


def search(train: Lines, seeds: np.ndarray, line: Lines, first: int, last: int) -> Runs:
    return find_runs(line.onset[first:last], line.pitch[first:last], seeds, train.offsets, train.onset, train.pitch)


def strangers(batch: NoteBatch) -> dict[str, Any]:
    """Return the longest runs that a tenth of the pieces share with the others."""
    signed = sign_pieces(batch.offsets, batch.onset, batch.pitch, batch.is_drum)
    ids = np.array([f"{i:08x}" for i in range(batch.n_pieces)])
    groups = group_pieces(ids, signed.signature, signed.n_shingles)
    split = split_groups(np.arange(groups.n_groups).astype(np.uint64), 0.1, 0.1, 0)[groups.component]
    train, held = lines_of(batch.take(np.flatnonzero(split == 0))), lines_of(batch.take(np.flatnonzero(split != 0)))
    seeds = seeds_between(train.offsets, train.pitch)
    measured = []
    for first, last in zip(held.offsets[:-1], held.offsets[1:], strict=True):
        runs = search(train, seeds, held, first, last)
        measured.append((int(last - first), runs.first, runs.n_notes))
    human = human_range(len(measured), measured)
    return {
        "held_out": len(measured),
        "longest_runs": {str(length): human.quantiles(length) for length in human.runs},
        "limits": {str(length): human.limit(length) for length in human.runs},
    }


def by_looking_everywhere(train: Lines, line: Lines, rounds: int) -> dict[str, Any]:
    """Time the plain way, a table of all pairs of notes, against a search for the same notes, at most 500."""
    n_notes = min(500, len(line.pitch))
    seeds = seeds_between(train.offsets, train.pitch)
    timings = report.measure(
        {
            "all_pairs": lambda: longest_by_all_pairs(line.pitch[:n_notes], train.pitch),
            "search": lambda: search(train, seeds, line, 0, n_notes),
        },
        rounds,
    )
    return {
        "ratio": round(timings["all_pairs"].seconds / timings["search"].seconds, 1),
        "ratio_means": "time of a compiled table of all pairs of notes over that of a search, for one planted piece",
        "longest_run_by_all_pairs": int(longest_by_all_pairs(line.pitch[:n_notes], train.pitch)),
        "longest_run_by_search": int(search(train, seeds, line, 0, n_notes).n_notes.max(initial=0)),
        **{side: timing.as_json() for side, timing in timings.items()},
    }


@njit
def longest_by_all_pairs(pitch: Any, source: Any) -> Any:
    """The longest run of equal intervals, by dynamic programming; rhythm and borders of pieces are not looked at."""
    lengths, best = np.zeros(len(source), np.int64), 0
    for i in range(1, len(pitch)):
        step = np.int64(pitch[i]) - pitch[i - 1]
        for j in range(len(source) - 1, 0, -1):
            lengths[j] = lengths[j - 1] + 1 if np.int64(source[j]) - source[j - 1] == step else 0
            best = max(best, lengths[j])
    return best + 1


def scale(train: Lines, copies: list[Lines], n_notes: int, rounds: int) -> dict[str, Any]:
    """Write, open and search an index of so many notes."""
    times = -(-n_notes // len(train.pitch))
    with tempfile.TemporaryDirectory(prefix="orchestrion-bench-") as folder:
        path = index_path(Path(folder))
        made_up = 0.0

        def parts() -> Iterator[tuple[np.ndarray, Lines]]:
            nonlocal made_up
            for turn in range(times):
                started = time.process_time()
                part = more(train, turn)
                made_up += time.process_time() - started
                yield part

        started = time.process_time()
        write_index(path, Path(folder).name, parts())
        written = time.process_time() - started - made_up
        started = time.process_time()
        index = map_index(path)
        opened = time.process_time() - started
        assert index is not None
        searches = [
            report.measure({"search": lambda line=line: search_in(index, line)}, rounds)["search"] for line in copies
        ]
        seconds = [seconds for timing in searches for seconds in timing.cpu]
        return {
            "notes": len(index.pitch),
            "seeds": len(index.seeds),
            "megabytes": round(path.stat().st_size / 1e6, 1),
            "cpu_seconds_to_write": round(written, 2),
            "cpu_seconds_to_open_and_check": round(opened, 3),
            "notes_of_a_sought_piece": round(float(np.mean([len(line.pitch) for line in copies])), 1),
            "cpu_milliseconds_per_search": {
                "median": round(1e3 * float(np.median(seconds)), 3),
                "p95": round(1e3 * float(np.quantile(seconds, 0.95)), 3),
                "max": round(1e3 * max(seconds), 3),
            },
            "wall_milliseconds_per_search_median": round(
                1e3 * float(np.median([timing.seconds for timing in searches])), 3
            ),
        }


def search_in(index: IndexedLines, line: Lines) -> Runs:
    return find_runs(line.onset, line.pitch, index.seeds, index.offsets, index.onset, index.pitch)


def more(train: Lines, turn: int) -> tuple[np.ndarray, Lines]:
    """Return the pieces once more, and each time otherwise."""
    random = np.random.default_rng(turn)
    moved = random.random(len(train.pitch), np.float32) < (0.25 if turn else 0)
    pitch = train.pitch.copy()
    pitch[moved] = np.clip(pitch[moved] + random.integers(-6, 7, int(moved.sum())), 0, 127)
    ids = np.arange(len(train.offsets) - 1, dtype=np.uint64) + np.uint64(turn << 32)
    return ids, Lines(train.offsets, train.onset, pitch, train.note)


if __name__ == "__main__":
    main()
