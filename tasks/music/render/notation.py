"""Scores as MusicXML for notation programs, by music21 (the extra `notation`).

    check_notation()                          # once, before anything is composed
    page = write_musicxml(score, "Prelude")
    page.packed                               # a .mxl file; the same score gives the same bytes
    page.losses                               # what the page changes, by reason

In each beat (quarter) of each part, notes go to sixteenths or to triplets of them, whichever is nearer. Velocities and
pedals are left out; a change of meter inside a bar waits for the next bar line.
"""

import io
import itertools
import math
import re
import zipfile
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from threading import Lock
from typing import Any

import numpy as np

from tasks.errors import ConfigError
from tasks.music.arrays import BoolArray
from tasks.music.bars import bar_lines
from tasks.music.render.pianoroll import part_labels
from tasks.music.score import Score

MAX_BARS = 20_000
LOWEST_PITCH, MIDDLE_C = 12, 60
N_KEYBOARDS = 24  # General MIDI programs below are pianos, tuned percussion and organs: two staves
TRIPLET_BIAS = 0.6  # triplets have more places in a beat: they must be nearer by this factor to be believed
TEMPO_CHANGE_SHOWN = 0.08  # smaller ones are left out
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
CONTAINER = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<container><rootfiles><rootfile full-path="score.musicxml" '
    'media-type="application/vnd.recordare.musicxml+xml"/></rootfiles></container>\n'
)
_ONE_AT_A_TIME = Lock()  # music21 keeps much in module variables


@dataclass(frozen=True, slots=True)
class Page:
    """A score as MusicXML: the file, the same packed as .mxl, and how many notes differ, by reason."""

    text: bytes
    packed: bytes
    losses: dict[str, int]


class NoNotation(Exception):
    """A score cannot be written as MusicXML; the message says why."""


def check_notation() -> None:
    """Raise ConfigError if music21 is not installed."""
    if find_spec("music21") is None:
        raise ConfigError("musicxml=true needs the extra `notation`: pip install 'orchestrion[notation]'")


def write_musicxml(score: Score, title: str = "") -> Page:
    """Write `score` as MusicXML 4.0.

    Raises:
        NoNotation: more than 20,000 bars, or something that music21 cannot write.
    """
    lines = bar_lines(score.time_signatures, score.ticks_per_quarter)
    last = int((score.notes.onset + score.notes.duration).max(initial=0))
    n_bars = int(lines.place(np.array([max(last, 1) * lines.units_per_tick - 1]))[0][0]) + 1
    if n_bars > MAX_BARS:
        raise NoNotation(f"{n_bars} bars, limit {MAX_BARS}")
    try:
        with _ONE_AT_A_TIME:
            page, losses = _build(score, title)
            text = _export(page)
    except Exception as error:  # music21 raises classes of its own and many others
        raise NoNotation(f"music21 fails: {type(error).__name__}: {error}") from error
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (("META-INF/container.xml", CONTAINER.encode()), ("score.musicxml", text)):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return Page(text, buffer.getvalue(), losses)


def _build(score: Score, title: str) -> tuple[Any, dict[str, int]]:
    from music21 import layout, metadata, note, stream

    page = stream.Score()
    page.metadata = metadata.Metadata(title=NOT_XML.sub("\ufffd", title or "Untitled"))
    counts = {"notes_moved": 0, "notes_doubled": 0, "notes_raised": 0}
    all_staves = []
    for track, name in enumerate(part_labels(score) or ["no notes"]):
        own = score.notes.track == track
        is_keyboard = own.any() and not score.notes.is_drum[own][0] and score.notes.program[own][0] < N_KEYBOARDS
        staves = [stream.PartStaff(id=f"P{track + 1}-{hand}") for hand in (1, 2)] if is_keyboard else [stream.Part()]
        for staff in staves:
            staff.partName = NOT_XML.sub("\ufffd", name)
            _add_signs(staff, score, with_tempos=track == 0 and staff is staves[0])
        _add_notes(staves, score, own, counts)
        all_staves += staves
        for staff in staves:
            page.insert(0, staff)
        if is_keyboard:
            page.insert(0, layout.StaffGroup(staves, name=staves[0].partName, symbol="brace"))
    # On the grid a note may end in a later bar than before, so the end of the music is known here only.
    n_quarters = _bar_end(score, max(Fraction(staff.highestTime) for staff in all_staves))
    for staff in all_staves:
        if staff.highestTime < n_quarters:
            staff.insert(staff.highestTime, note.Rest(quarterLength=n_quarters - staff.highestTime))
    return page, {reason: n for reason, n in counts.items() if n}


def _bar_end(score: Score, quarters: Fraction) -> Fraction:
    """Return the end, in quarters, of the bar in which the music ends."""
    lines = bar_lines(score.time_signatures, score.ticks_per_quarter)
    per_quarter = score.ticks_per_quarter * lines.units_per_tick
    last = max(math.ceil(quarters.limit_denominator(12) * per_quarter), 1) - 1
    bar, _ = lines.place(np.array([last]))
    return Fraction(int(lines.begin(bar + 1)[0]), per_quarter)


def _add_signs(part: Any, score: Score, with_tempos: bool) -> None:
    from music21 import key, meter, tempo

    meters, keys, tempos = score.time_signatures, score.key_signatures, score.tempos
    lines = bar_lines(meters, score.ticks_per_quarter)
    quarter = score.ticks_per_quarter * lines.units_per_tick
    run_of = np.searchsorted(lines.start, meters.tick * lines.units_per_tick).tolist()  # the next bar line
    ratios = [f"{over}/{under}" for over, under in zip(meters.numerator, meters.denominator, strict=True)]
    for run, ratio in ({0: "4/4"} | dict(zip(run_of, ratios, strict=True))).items():
        part.insert(int(lines.start[run]) / quarter, meter.TimeSignature(ratio))
    for tick, fifths, is_minor in zip(keys.tick.tolist(), keys.key.tolist(), keys.is_minor.tolist(), strict=True):
        signature = key.KeySignature(fifths).asKey("minor" if is_minor else "major")
        part.insert(round(4 * tick / score.ticks_per_quarter) / 4, signature)
    shown = 0.0
    for tick, microseconds in zip(tempos.tick.tolist(), tempos.microseconds_per_quarter.tolist(), strict=True):
        per_minute = 60e6 / microseconds
        if with_tempos and abs(per_minute - shown) > TEMPO_CHANGE_SHOWN * shown:
            shown = per_minute
            part.insert(round(4 * tick / score.ticks_per_quarter) / 4, tempo.MetronomeMark(number=round(per_minute, 2)))


def _add_notes(staves: list[Any], score: Score, own: BoolArray, counts: dict[str, int]) -> None:
    from music21 import chord, instrument, note, percussion, tie

    notes, lines = score.notes, bar_lines(score.time_signatures, score.ticks_per_quarter)
    twelfth = score.ticks_per_quarter * lines.units_per_tick // 12  # near enough to tell in which bar a note ends
    onset, end = (ticks[own] / score.ticks_per_quarter for ticks in (notes.onset, notes.onset + notes.duration))
    start, stop = _on_grid(onset, end)
    counts["notes_moved"] += int(((abs(start / 12 - onset) > 1e-9) | (abs(stop / 12 - end) > 1e-9)).sum())
    is_drum = bool(notes.is_drum[own].any())
    pitch = notes.pitch[own].astype(int)
    if not is_drum:  # MusicXML has no octave below C0
        counts["notes_raised"] += int((pitch < LOWEST_PITCH).sum())
        pitch[pitch < LOWEST_PITCH] += 12
    staff_of = (pitch < MIDDLE_C).astype(int) * (len(staves) - 1)
    together: dict[tuple[int, int, int], set[int]] = {}
    for *place, sounding in zip(start.tolist(), stop.tolist(), staff_of.tolist(), pitch.tolist(), strict=True):
        together.setdefault(tuple(place), set()).add(sounding)
    counts["notes_doubled"] += len(pitch) - sum(map(len, together.values()))
    sounds = {drum: instrument.UnpitchedPercussion() for drum in np.unique(pitch).tolist()} if is_drum else {}
    for drum, sound in sounds.items():
        sound.percMapPitch, sound.instrumentName = drum, f"percussion {drum}"
    program = int(notes.program[own][0]) if own.any() else 0
    for sound in sounds.values() or [instrument.instrumentFromMidiProgram(program)]:
        staves[0].insert(0, sound)
    for (first, last, staff), pitches in sorted(together.items()):
        cuts = _cuts(first, last)
        for place, (begin, stop) in enumerate(itertools.pairwise(cuts)):
            if is_drum:
                elements = [note.Unpitched("B4") for _ in pitches]
                for member, drum in zip(elements, sorted(pitches), strict=True):
                    member.storedInstrument = sounds[drum]
                bar = lines.place(np.array([begin, stop - 1]) * twelfth)[0]
                if len(pitches) > 1 and len(cuts) == 2 and bar[0] == bar[1]:  # music21 ties no chord of drums
                    elements = [percussion.PercussionChord(elements)]
            else:
                elements = [chord.Chord(sorted(pitches)) if len(pitches) > 1 else note.Note(*pitches)]
            for element in elements:
                if len(cuts) > 2:
                    element.tie = tie.Tie("start" if place == 0 else "stop" if stop == last else "continue")
                element.quarterLength = Fraction(stop - begin, 12)
                staves[staff].insert(Fraction(begin, 12), element)


def _cuts(first: int, last: int) -> list[int]:
    """Return where a note of twelfths of a quarter is cut into lengths that one note can have in a beat of triplets."""
    cuts = {first, last}
    if first % 3:
        cuts.add(min(first - first % -12, last))
    if last % 3:
        cuts.add(max(last - last % 12, first))
    tens = [
        begin + (6 if begin % 12 == 0 else 4) for begin, stop in itertools.pairwise(sorted(cuts)) if stop - begin == 10
    ]
    return sorted({*cuts, *tens})


def _on_grid(onset: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return onsets and ends in twelfths of a quarter, on the sixteenths (3) or triplets of them (2) of their beat."""
    beat = np.floor(onset).astype(np.int64)
    n_beats = int(max(beat.max(initial=0), np.ceil(end).max(initial=0))) + 2
    distance = [
        np.bincount(beat, np.abs(np.rint(onset * 12 / step) * step / 12 - onset), minlength=n_beats) for step in (3, 2)
    ]
    step_of = np.where(distance[1] < TRIPLET_BIAS * distance[0] - 1e-9, 2, 3)
    start = (np.rint(onset * 12 / step_of[beat]) * step_of[beat]).astype(np.int64)
    last = np.maximum(np.ceil(end).astype(np.int64) - 1, 0)
    stop = (np.rint(end * 12 / step_of[last]) * step_of[last]).astype(np.int64)
    return start, np.where(stop > start, stop, start + step_of[start // 12])


def _export(page: Any) -> bytes:
    """Return the file without what differs from call to call: names made of addresses in memory, and the date."""
    from music21.musicxml.m21ToXml import GeneralObjectExporter

    text = GeneralObjectExporter(page).parse()
    text = re.sub(rb"\s*<encoding-date>[^<]*</encoding-date>", b"", text)
    numbers: dict[bytes, bytes] = {}
    return re.sub(
        rb'(?<=id=")[IP][0-9a-f]{32}',
        lambda found: numbers.setdefault(found[0], b"%c%d" % (found[0][0], len(numbers) + 1)),
        text,
    )
