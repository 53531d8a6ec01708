"""How fast are notes turned into the words of `mmm`? Ours against a plain Python loop of the same rules.

    python bench/bench_mmm.py --source some/folder

Both sides start from the same notes, ours as flat arrays of all pieces, the loop as lists of plain numbers, and end in
the same ids of one closed vocabulary, which is checked before any of it is timed. Reading is not timed.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import report

from tasks.errors import BadScore
from tasks.music.midi.read_midi import read_midi
from tasks.music.notes import NoteBatch
from tasks.music.score import Score
from tasks.music.tokenizers.mmm.tokenizer import MmmTokenizer
from tasks.music.tokenizers.mmm.vocabulary import MmmConfig

PACKAGES = ("numpy", "numba")
CASES = {"": MmmConfig(vocabulary_from="all"), "-tie": MmmConfig(vocabulary_from="all", meters=True, across_bars="tie")}

KINDS = ("NOTE_OFF", "TIE", "NOTE_ON")

Note = tuple[int, int, int, int, int]  # onset and end in ticks, pitch, source part, instrument (128 for drums)
Plain = tuple[int, list[Note], list[tuple[int, int, int]]]  # ticks per quarter, notes, time signatures


def main() -> None:
    options = report.parser(__doc__.splitlines()[0], rounds=5)
    options.add_argument("--files", type=int, default=300, help="files to encode, evenly spaced over the source")
    given = options.parse_args()
    with report.source_folder(given.source) as folder:
        scores = list(read_all(report.spread(report.midi_files(folder), given.files)))
        name = folder.name
    for case, config in CASES.items():
        report.save("mmm", name + case, compare(scores, config, given.rounds), given.results, PACKAGES)


def read_all(paths: list[Any]) -> Iterator[Score]:
    for path in paths:
        try:
            yield read_midi(path)
        except BadScore:
            continue


def compare(scores: list[Score], config: MmmConfig, rounds: int) -> dict[str, Any]:
    """Return the record of one setting.

    Raises:
        AssertionError: the two sides do not give the same ids.
    """
    tokenizer, batch = MmmTokenizer(config), NoteBatch.joined([score.notes for score in scores])
    plain, ids = [as_plain(score) for score in scores], tokenizer.ids
    encoded = tokenizer.encode(batch).ids.tolist()
    assert encoded == [token for piece in plain for token in encode_piece(piece, config, ids)]
    sides = {
        "ours": lambda: tokenizer.encode(batch),
        "plain_loop": lambda: [encode_piece(piece, config, ids) for piece in plain],
    }
    timings = report.measure(sides, rounds)
    ratio = timings["plain_loop"].seconds / timings["ours"].seconds
    record: dict[str, Any] = {
        "ratio": round(ratio, 1),
        "ratio_means": "tokens/s of ours over a plain Python loop of the same rules, one core each",
        "files": len(scores),
        "notes": batch.n_notes,
        "tokens": len(encoded),
    }
    for side, timing in timings.items():
        record[side] = {"tokens_per_second": round(len(encoded) / timing.seconds), **timing.as_json()}
    return record


def as_plain(score: Score) -> Plain:
    """Return a score as plain numbers."""
    notes, meters = score.notes, score.time_signatures
    instrument = np.where(notes.is_drum, 128, notes.program).tolist()
    columns = [values.tolist() for values in (notes.onset, notes.onset + notes.duration, notes.pitch, notes.track)]
    changes = zip(meters.tick.tolist(), meters.numerator.tolist(), meters.denominator.tolist(), strict=True)
    return score.ticks_per_quarter, list(zip(*columns, instrument, strict=True)), list(changes)


def encode_piece(piece: Plain, config: MmmConfig, ids: dict[str, int]) -> list[int]:
    """Return the ids of one piece: the rules of `mmm` in plain Python, tracks in their own order."""
    ticks, rows, meters = piece
    units, may_ring = config.units_per_quarter, config.across_bars == "tie"
    tracks: dict[tuple[int, int], list[list[int]]] = {}
    latest: dict[tuple[int, int, int], list[int]] = {}
    for onset_ticks, end_ticks, pitch, part, instrument in rows:
        onset = (2 * onset_ticks * units + ticks) // (2 * ticks)
        end = max((2 * end_ticks * units + ticks) // (2 * ticks), onset + 1)
        before = latest.get((part, instrument, pitch))
        if before and before[0] == onset:
            before[1] = max(before[1], end)
            continue
        if before and before[1] > onset:
            before[1] = onset
        latest[part, instrument, pitch] = note = [onset, end, pitch]
        tracks.setdefault((part, instrument), []).append(note)
    last = max((note[1] if may_ring else note[0] + 1 for notes in tracks.values() for note in notes), default=0)
    bars = lay_bars(meters if config.meters else [], ticks, last, units)
    tokens = [ids["[SOS]"], ids["PIECE_START"]]
    for (_, instrument), notes in sorted(tracks.items()):
        tokens += [ids["TRACK_START"], ids["INST=DRUMS" if instrument == 128 else f"INST={instrument}"]]
        for (_, _, meter), events in zip(bars, events_by_bar(notes, bars, may_ring), strict=True):
            tokens.append(ids[f"BAR_START={meter}" if config.meters else "BAR_START"])
            now = 0
            for time, kind, pitch in sorted(events):
                if time > now:
                    tokens.append(ids[f"TIME_DELTA={time - now}"])
                    now = time
                tokens.append(ids[f"{KINDS[kind]}={pitch}"])
            tokens.append(ids["BAR_END"])
        tokens.append(ids["TRACK_END"])
    return [*tokens, ids["[EOS]"]]


def lay_bars(meters: list[tuple[int, int, int]], ticks: int, last: int, units: int) -> list[tuple[int, int, str]]:
    """Return beginning, end and meter of each bar up to `last`."""
    bars, now, numerator, denominator, changes = [], 0, 4, 4, list(reversed(meters))
    while now < last:
        while changes and (2 * changes[-1][0] * units + ticks) // (2 * ticks) <= now:
            _, stated, over = changes.pop()
            if 4 * units * stated % over == 0 and over <= 16 and 4 * stated <= 12 * over:
                numerator, denominator = stated, over
        length = 4 * units * numerator // denominator
        bars.append((now, now + length, f"{numerator}/{denominator}"))
        now += length
    return bars


def events_by_bar(
    notes: list[list[int]], bars: list[tuple[int, int, str]], may_ring: bool
) -> list[list[tuple[int, int, int]]]:
    """Return (units since the bar began, kind, pitch) of the events of a track, bar by bar."""
    events: list[list[tuple[int, int, int]]] = [[] for _ in bars]
    bar = 0
    for onset, sounding_end, pitch in notes:
        while bars[bar][1] <= onset:
            bar += 1
        end = sounding_end if may_ring else min(sounding_end, bars[bar][1])
        at = bar
        events[at].append((onset - bars[at][0], 2, pitch))
        while end > bars[at][1]:
            events[at].append((bars[at][1] - bars[at][0], 0, pitch))
            at += 1
            events[at].append((0, 1, pitch))
        events[at].append((end - bars[at][0], 0, pitch))
    return events


if __name__ == "__main__":
    main()
