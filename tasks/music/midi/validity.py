"""Validity of MIDI files: read back by two independent readers, with nothing left out, mended or ambiguous.

Each fault has a name and a count; a file without any is valid. The names, besides those of `reader.LOSSES` for what
our own reader left out or mended, and its reasons for refusing a file (such as `not_midi`, or `no_notes` for a file
without notes):

- second_reader: our reader took over what the second one understood; second_reader_refuses: that one refuses the file.
- readers_differ: notes that only one of both readers finds; equal are onset, duration, pitch and velocity, where a note
  of zero length counts as 1 tick.
- orphan_note_offs: note-offs that end no note. Note-ons without a note-off are unended_notes.
- no_end_of_track: tracks without End of Track. Both are counted where it is clear where the tracks end.
- meter_off_bar_line, bar_between_ticks: MIDI stores no bars, they follow from the time signatures. So each bar sums to
  its meter where every time signature is on a bar line of the meter before it (the others are counted), and where bars
  are whole numbers of ticks (time signatures with other bars are counted). A note across a bar line is not a fault.
- score_out_of_range: values of the score's notes outside pitch 0-127, velocity 1-127, program 0-127, duration at least
  1 tick, onset at least 0. score_differs: notes of the score that the file does not give back; a file cannot hold two
  notes of one part and pitch that begin one after the other and end the other way round.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import BadScore
from tasks.music.bars import bar_lines
from tasks.music.compiled import njit
from tasks.music.midi import events
from tasks.music.midi.chunks import track_chunks
from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.reader import read_one
from tasks.music.midi.second_reader import second_notes
from tasks.music.notes import NoteBatch
from tasks.music.score import Score

Z_95 = 1.959963984540054  # 97.5 % of a standard normal distribution lie below

_DOUBTFUL_ENDS = [events.MENDED_CHUNKS, events.BYTES_AFTER_END, events.TRAILING_BYTES]


@dataclass(frozen=True, slots=True)
class Validity:
    """What is wrong with one file.

    Args:
        problems: fault -> how often, above 0; see the names above.
        n_notes: as our reader counts them, 0 for a file that it refuses.
        detail: the sentence of a refusal.
    """

    problems: dict[str, int] = field(default_factory=dict)
    n_notes: int = 0
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Return whether the file has no fault."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return the facts for a sidecar."""
        facts = {"ok": self.ok, "problems": dict(sorted(self.problems.items())), "n_notes": self.n_notes}
        return facts | ({"detail": self.detail} if self.detail else {})


def check_validity(midi: bytes, score: Score | None = None, read: events.EventBatch | None = None) -> Validity:
    """Read a MIDI file with two readers and count its faults; bad bytes are faults, not errors.

    Args:
        midi: the file.
        score: the score that was written, to compare with the file; None: unknown.
        read: the events of the file, where they are read already.
    """
    problems: Counter[str] = Counter()
    n_notes, detail = 0, ""
    read = read or read_one(midi)
    try:
        found = read_midi(midi, read=read)
    except BadScore as refusal:
        problems[refusal.reason] += 1
        detail = refusal.detail
    else:
        n_notes = len(found.notes.pitch)
        problems.update(found.dropped)
        problems.update(_event_problems(midi, read))
        problems.update(_reader_problems(midi, found))
        lines = bar_lines(found.time_signatures, found.ticks_per_quarter)
        problems.update({"meter_off_bar_line": lines.n_off_line, "bar_between_ticks": lines.n_between_ticks})
        if score is not None:
            problems["score_differs"] = n_different(_sounding_rows(score.notes), _sounding_rows(found.notes))
    if score is not None:
        problems["score_out_of_range"] = n_out_of_range(score.notes)
    return Validity({name: n for name, n in sorted(problems.items()) if n}, n_notes, detail)


def share_valid(files: Sequence[Validity]) -> dict[str, Any]:
    """Return how many files of a batch are valid, ready for JSON.

    Keys: `n_files`, `n_valid`, `share_valid` (0-1; None without files), `low` and `high` (its 95 % interval) and
    `problems` (fault -> `files` that have it, and `count` over all of them).
    """
    n_files, n_valid = len(files), sum(validity.ok for validity in files)
    low, high = wilson_interval(n_valid, n_files)
    names = sorted({name for validity in files for name in validity.problems})
    found = {name: [validity.problems[name] for validity in files if name in validity.problems] for name in names}
    return {
        "n_files": n_files,
        "n_valid": n_valid,
        "share_valid": n_valid / n_files if n_files else None,
        "low": low,
        "high": high,
        "problems": {name: {"files": len(counts), "count": sum(counts)} for name, counts in found.items()},
    }


def wilson_interval(n_true: int, n_all: int) -> tuple[float | None, float | None]:
    """Return the 95 % interval of a share, 0-1; None for a share of nothing. Source: Wilson 1927."""
    if not n_all:
        return None, None
    share, spread = n_true / n_all, Z_95**2 / n_all
    middle = (share + spread / 2) / (1 + spread)
    reach = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(middle - reach, 0.0), min(middle + reach, 1.0)


def n_different(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    """Return how many rows are in only one of two tables, as often as they are; in the one that has more of them."""
    one, other = one[np.lexsort(one.T)], other[np.lexsort(other.T)]
    if np.array_equal(one, other):
        return 0
    counts, others = (Counter(map(tuple, rows.tolist())) for rows in (one, other))
    return max((counts - others).total(), (others - counts).total())


def n_out_of_range(notes: NoteBatch) -> int:
    """Return how many notes have a value that no MIDI file can hold."""
    is_wrong = (notes.pitch > 127) | (notes.velocity < 1) | (notes.velocity > 127) | (notes.program > 127)
    is_wrong |= (notes.duration < 1) | (notes.onset < 0)
    return int(np.count_nonzero(is_wrong))


def _sounding_rows(notes: NoteBatch) -> NDArray[np.int64]:
    columns = (notes.onset, notes.duration, notes.pitch, notes.velocity, notes.program, notes.is_drum)
    return np.stack([column.astype(np.int64) for column in columns], axis=1)


def _reader_problems(midi: bytes, read: Score) -> dict[str, int]:
    rows = second_notes(midi)
    if rows is None:
        return {"second_reader_refuses": 1}
    rows[:, 1] = np.maximum(rows[:, 1], 1)
    return {"readers_differ": n_different(_sounding_rows(read.notes)[:, :4], rows)}


def _event_problems(midi: bytes, read: events.EventBatch) -> dict[str, int]:
    """Count what the events of a file show that its notes do not."""
    facts = read.facts[0]
    if facts[events.CODE] != events.OK or facts[_DOUBTFUL_ENDS].any():
        return {}  # a broken file, whose tracks have no certain end
    data = np.frombuffer(midi, np.uint8)
    ends = [_count_track_ends(data, begin, end) for begin, end in track_chunks(data).tolist()]
    n_note_offs, n_open_tracks = sum(n for n, _ in ends), sum(not has_end for _, has_end in ends)
    n_ended = int(facts[events.N_NOTE_ONS] - facts[events.UNENDED_NOTES])
    return {"orphan_note_offs": n_note_offs - n_ended, "no_end_of_track": n_open_tracks}


@njit(cache=True, nogil=True)
def _count_track_ends(data, position, stop):
    """Return the note-offs of a track, and whether it has an End of Track."""
    n_note_offs, running, has_end = 0, 0, False
    while position < stop:
        code, _, status, kind, body, position = events.next_event(data, position, stop, running)
        if code != events.OK:
            break
        if status < 0xF0:
            running = status
        n_note_offs += status < 0x90 or (status < 0xA0 and data[body + 1] == 0)
        has_end |= kind == 0x2F
    return n_note_offs, has_end
