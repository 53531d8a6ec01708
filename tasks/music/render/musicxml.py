"""Scores as MusicXML 4.0 (score-partwise), for notation programs; the same score always gives the same bytes.

    engraving = write_musicxml(score, "Prelude")
    engraving.text      # a .musicxml file
    engraving.packed    # the same as .mxl, about twenty times smaller
    engraving.losses    # what the grid changed, by reason

Keyboards get two staves, split at middle C; drums are unpitched on a percussion clef. Velocities and pedals are left
out. Source: MusicXML 4.0, W3C Community Group Final Report.
"""

import io
import itertools
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import numpy as np

from tasks.music.arrays import IntArray
from tasks.music.render.notation import MIDDLE_C, Bars, Chord, Part, bars_of, divisions_of, engrave
from tasks.music.render.pianoroll import part_labels

if TYPE_CHECKING:
    from tasks.music.score import Score

HEAD = """<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<!DOCTYPE score-partwise PUBLIC "-//Recordare//DTD MusicXML 4.0 Partwise//EN" \
"http://www.musicxml.org/dtds/partwise.dtd">
"""
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
KINDS = ("breve", "whole", "half", "quarter", "eighth", "16th", "32nd", "64th", "128th", "256th", "512th", "1024th")
TEMPO_CHANGE_SHOWN = 0.08  # as a metronome mark; players hear every change
# Place on a five-line staff and notehead of percussion keys: the usual drum set; the others stand on the middle line.
DRUM_PLACES = {
    35: ("F", 4, ""), 36: ("F", 4, ""), 38: ("C", 5, ""), 40: ("C", 5, ""), 37: ("C", 5, "x"), 39: ("C", 5, "x"),
    41: ("A", 4, ""), 43: ("A", 4, ""), 45: ("D", 5, ""), 47: ("D", 5, ""), 48: ("E", 5, ""), 50: ("E", 5, ""),
    42: ("G", 5, "x"), 44: ("D", 4, "x"), 46: ("G", 5, "circle-x"), 49: ("A", 5, "x"), 57: ("A", 5, "x"),
    51: ("F", 5, "x"), 59: ("F", 5, "x"), 53: ("F", 5, "diamond"),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Engraving:
    """A score as MusicXML.

    Args:
        text: the file, UTF-8.
        divisions: steps of a quarter.
        notes: int64 [N, 4], the notes on the page in order: part, onset and duration in divisions, pitch.
        n_bars: of each part.
        losses: notes that differ from the score: `notes_moved` by the grid, `notes_lengthened` to one step of it,
            `notes_doubled` left out beside one of the same onset, pitch and part, `notes_shortened` or changed in
            length because a staff has four voices, `notes_raised` by an octave because the lowest is C0.
    """

    text: bytes
    divisions: int
    notes: IntArray
    n_bars: int
    losses: dict[str, int] = field(default_factory=dict)

    @cached_property
    def packed(self) -> bytes:
        """The compressed form, a .mxl file; the same text gives the same bytes."""
        container = (
            '<?xml version="1.0" encoding="UTF-8"?>\n<container><rootfiles><rootfile full-path="score.musicxml" '
            'media-type="application/vnd.recordare.musicxml+xml"/></rootfiles></container>\n'
        )
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in (("META-INF/container.xml", container.encode()), ("score.musicxml", self.text)):
                entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                entry.create_system, entry.compress_type = 3, zipfile.ZIP_DEFLATED
                archive.writestr(entry, data)
        return buffer.getvalue()


def write_musicxml(score: "Score", title: str = "") -> Engraving:
    """Write `score` on a grid of sixteenths and, where they are nearer, triplets of sixteenths.

    Bars follow the time signatures (4/4 without), keys and tempos the score's own; a key that changes inside a bar
    stands at the next bar.

    Raises:
        ValueError: more than 20,000 bars.
    """
    bars = bars_of(score, divisions_of(score))
    parts, losses = engrave(score, bars)
    ends = [chord.end for part in parts for staff in part.voices for voice in staff for chord in voice]
    n_bars = int(np.searchsorted(bars.start[1:], max(ends, default=0))) + 1
    names = part_labels(score) or ["1 no notes"]
    lines = [
        HEAD + '<score-partwise version="4.0">',
        f"<work><work-title>{_text(title or 'Untitled')}</work-title></work>",
        "<identification><encoding><software>Orchestrion</software></encoding></identification>",
        "<part-list>",
        *(_part_head(part, names[part.track]) for part in parts),
        "</part-list>",
    ]
    keys, tempos = _keys_by_bar(score, bars), _tempos_by_bar(score, bars)
    for part in parts:
        lines.append(f'<part id="P{part.track + 1}">')
        writer = _PartWriter(part, bars, keys, tempos if part is parts[0] else {})
        for bar in range(n_bars):
            lines += writer.measure(bar)
        lines.append("</part>")
    lines.append("</score-partwise>\n")
    rows = [
        (part.track, chord.onset, chord.end - chord.onset, pitch)
        for part in parts for staff in part.voices for voice in staff for chord in voice for pitch in chord.pitches
    ]  # fmt: skip
    notes = np.array(sorted(rows), dtype=np.int64).reshape(-1, 4)
    return Engraving("\n".join(lines).encode(), bars.divisions, notes, n_bars, losses)


def _text(value: str) -> str:
    return escape(NOT_XML.sub("\ufffd", value))


def _drum_keys(part: Part) -> list[int]:
    return sorted({pitch for staff in part.voices for voice in staff for chord in voice for pitch in chord.pitches})


def _part_head(part: Part, name: str) -> str:
    label = f"P{part.track + 1}"
    head = f'<score-part id="{label}"><part-name>{_text(name)}</part-name>'
    if part.is_drum:
        keys = _drum_keys(part)
        instruments = "".join(
            f'<score-instrument id="{label}-K{key}"><instrument-name>percussion {key}</instrument-name>'
            "</score-instrument>"
            for key in keys
        )
        sounds = "".join(
            f'<midi-instrument id="{label}-K{key}"><midi-channel>10</midi-channel>'
            f"<midi-unpitched>{key + 1}</midi-unpitched></midi-instrument>"
            for key in keys
        )
        return f"{head}{instruments}{sounds}</score-part>"
    channel = [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16][part.track % 15]
    return (
        f'{head}<score-instrument id="{label}-I"><instrument-name>{_text(name)}</instrument-name></score-instrument>'
        f'<midi-instrument id="{label}-I"><midi-channel>{channel}</midi-channel>'
        f"<midi-program>{part.program + 1}</midi-program></midi-instrument></score-part>"
    )


def _keys_by_bar(score: "Score", bars: Bars) -> dict[int, tuple[int, bool]]:
    signatures = score.key_signatures
    place = np.round(signatures.tick * bars.divisions / score.ticks_per_quarter)
    bar = np.searchsorted(bars.start[:-1], place)
    keys = zip(bar.tolist(), signatures.key.tolist(), signatures.is_minor.tolist(), strict=True)
    return {0: (0, False)} | {bar: (key, is_minor) for bar, key, is_minor in keys}


def _tempos_by_bar(score: "Score", bars: Bars) -> dict[int, list[str]]:
    """Return the directions of each bar; an offset says where in the bar a tempo begins."""
    place = np.round(score.tempos.tick * bars.divisions / score.ticks_per_quarter).astype(np.int64)
    bar = np.searchsorted(bars.start, place, side="right") - 1  # one behind the last bar is never asked for
    directions: dict[int, list[str]] = {}
    shown = 0.0
    for own, at, tempo in zip(
        bar.tolist(), place.tolist(), score.tempos.microseconds_per_quarter.tolist(), strict=True
    ):
        per_minute = 60e6 / tempo
        sound = f'<sound tempo="{per_minute:.6g}"/>'
        offset = at - int(bars.start[own])
        if abs(per_minute - shown) > TEMPO_CHANGE_SHOWN * shown:
            shown = per_minute
            mark = f"<metronome><beat-unit>quarter</beat-unit><per-minute>{per_minute:.4g}</per-minute></metronome>"
            where = f'<offset sound="yes">{offset}</offset>' if offset else ""
            text = (
                f'<direction placement="above"><direction-type>{mark}</direction-type>{where}<staff>1</staff>'
                f"{sound}</direction>"
            )
        else:
            text = f'<sound tempo="{per_minute:.6g}"><offset>{offset}</offset></sound>' if offset else sound
        directions.setdefault(own, []).append(text)
    return directions


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of one voice in one bar: part of a chord or, without one, a rest."""

    start: int
    end: int
    chord: Chord | None


class _PartWriter:
    """Writes the measures of one part, which must be asked for in order."""

    def __init__(
        self, part: Part, bars: Bars, keys: dict[int, tuple[int, bool]], directions: dict[int, list[str]]
    ) -> None:
        self.part, self.bars, self.keys, self.directions = part, bars, keys, directions
        self.fifths = 0
        self.has_two_staves = len(part.voices) == 2
        self.next_chord = [[0] * len(staff) for staff in part.voices]

    def measure(self, bar: int) -> Iterator[str]:
        start, end = int(self.bars.start[bar]), int(self.bars.start[bar + 1])
        implicit = ' implicit="yes"' if self.bars.is_cut[bar] else ""
        yield f'<measure number="{bar + 1}"{implicit}>'
        yield from self._attributes(bar)
        yield from self.directions.get(bar, ())
        is_first = True
        for staff, voices in enumerate(self.part.voices):
            for voice in range(len(voices)):
                chords = self._chords_until(staff, voice, end)
                if not chords and voice:
                    continue
                if not is_first:
                    yield f"<backup><duration>{end - start}</duration></backup>"
                is_first = False
                yield from self._voice(bar, chords, staff, 4 * staff + voice + 1)
        yield "</measure>"

    def _chords_until(self, staff: int, voice: int, end: int) -> list[Chord]:
        """Return the chords of a voice that sound in the bar up to `end`; the last may sound on."""
        chords = self.part.voices[staff][voice]
        first = last = self.next_chord[staff][voice]
        while last < len(chords) and chords[last].onset < end:
            last += 1
        sounds_on = last > first and chords[last - 1].end > end
        self.next_chord[staff][voice] = last - sounds_on
        return chords[first:last]

    def _attributes(self, bar: int) -> Iterator[str]:
        meters = self.bars.meter
        inside = f"<divisions>{self.bars.divisions}</divisions>" if bar == 0 else ""
        if bar in self.keys:
            self.fifths, is_minor = self.keys[bar]
            mode = "minor" if is_minor else "major"
            if not self.part.is_drum:
                inside += f"<key><fifths>{self.fifths}</fifths><mode>{mode}</mode></key>"
        if bar == 0 or meters[bar] != meters[bar - 1]:
            numerator, denominator = meters[bar]
            inside += f"<time><beats>{numerator}</beats><beat-type>{denominator}</beat-type></time>"
        if bar == 0:
            inside += ("<staves>2</staves>" if self.has_two_staves else "") + self._clefs()
        if inside:
            yield f"<attributes>{inside}</attributes>"

    def _clefs(self) -> str:
        if self.part.is_drum:
            return "<clef><sign>percussion</sign></clef>"
        treble, bass = "<sign>G</sign><line>2</line>", "<sign>F</sign><line>4</line>"
        if self.has_two_staves:
            return f'<clef number="1">{treble}</clef><clef number="2">{bass}</clef>'
        pitches = [pitch for voice in self.part.voices[0] for chord in voice for pitch in chord.pitches]
        return f"<clef>{treble if not pitches or np.mean(pitches) >= MIDDLE_C else bass}</clef>"

    def _voice(self, bar: int, chords: list[Chord], staff: int, voice: int) -> Iterator[str]:
        start, end = int(self.bars.start[bar]), int(self.bars.start[bar + 1])
        place = f"<staff>{staff + 1}</staff>" if self.has_two_staves else ""
        if not chords:
            yield (f'<note><rest measure="yes"/><duration>{end - start}</duration><voice>{voice}</voice>{place}</note>')
            return
        for piece, in_triplet in self._cut_at_triplets(bar, _fill(chords, start, end)):
            values = _triplet_values if in_triplet else _plain_values
            lengths = values(piece.start - start, piece.end - piece.start, self.bars.divisions)
            at = piece.start
            for length, kind, n_dots in lengths:
                bracket = self._bracket(bar, at, at + length) if in_triplet else ""
                shape = f"<type>{kind}</type>{'<dot/>' * n_dots}"
                if in_triplet:
                    shape += (
                        "<time-modification><actual-notes>3</actual-notes><normal-notes>2</normal-notes>"
                        "</time-modification>"
                    )
                yield from self._notes(_Piece(at, at + length, piece.chord), voice, shape, place, bracket)
                at += length

    def _cut_at_triplets(self, bar: int, pieces: list[_Piece]) -> Iterator[tuple[_Piece, bool]]:
        """Cut what crosses the edge of a beat in triplets; a piece that fills such a beat is a plain quarter."""
        triplets = [beat for beat in self.bars.beats(bar) if beat[0] in self.part.triplet_beats]
        for piece in pieces:
            entered = [
                (begin, stop)
                for begin, stop in triplets
                if (begin < piece.end and piece.start < stop) and not (piece.start <= begin and stop <= piece.end)
            ]
            edges = {edge for beat in entered for edge in beat if piece.start < edge < piece.end}
            for at, edge in itertools.pairwise([piece.start, *sorted(edges), piece.end]):
                in_triplet = any(begin <= at and edge <= stop for begin, stop in entered)
                yield _Piece(at, edge, piece.chord), in_triplet

    def _bracket(self, bar: int, start: int, end: int) -> str:
        begin, stop = next(beat for beat in self.bars.beats(bar) if beat[0] <= start < beat[1])
        first = '<tuplet type="start" number="1" bracket="yes"/>' if start == begin else ""
        return first + ('<tuplet type="stop" number="1"/>' if end == stop else "")

    def _notes(self, piece: _Piece, voice: int, shape: str, place: str, bracket: str) -> Iterator[str]:
        length, chord = f"<duration>{piece.end - piece.start}</duration>", piece.chord
        if chord is None:
            notations = f"<notations>{bracket}</notations>" if bracket else ""
            yield f"<note><rest/>{length}<voice>{voice}</voice>{shape}{place}{notations}</note>"
            return
        ties = ["stop"] * (piece.start > chord.onset) + ["start"] * (piece.end < chord.end)
        tied = "".join(f'<tied type="{kind}"/>' for kind in ties)
        tie = "".join(f'<tie type="{kind}"/>' for kind in ties)
        for i, pitch in enumerate(chord.pitches):
            notations = tied + (bracket if i == 0 else "")
            head, instrument, notehead = self._pitch(pitch)
            yield (
                f"<note>{'<chord/>' if i else ''}{head}{length}{tie}{instrument}<voice>{voice}</voice>{shape}{notehead}"
                f"{place}{f'<notations>{notations}</notations>' if notations else ''}</note>"
            )

    def _pitch(self, pitch: int) -> tuple[str, str, str]:
        if not self.part.is_drum:
            return spell(pitch, self.fifths), "", ""
        step, octave, notehead = DRUM_PLACES.get(pitch, ("B", 4, ""))
        head = f"<unpitched><display-step>{step}</display-step><display-octave>{octave}</display-octave></unpitched>"
        instrument = f'<instrument id="P{self.part.track + 1}-K{pitch}"/>'
        return head, instrument, f"<notehead>{notehead}</notehead>" if notehead else ""


def spell(pitch: int, fifths: int) -> str:
    """Return a MIDI pitch as a pitch element, with the name that lies nearest to the key on the line of fifths."""
    lowest = fifths - 3  # in C major from E flat to G sharp
    place = lowest + (7 * pitch - lowest) % 12
    step, alter = "FCGDAEB"[(place + 1) % 7], (place + 1) // 7
    octave = (pitch - alter) // 12 - 1
    if octave < 0:  # B sharp below the lowest octave there is
        step, alter, octave = "C", 0, 0
    sign = f"<alter>{alter}</alter>" if alter else ""
    return f"<pitch><step>{step}</step>{sign}<octave>{octave}</octave></pitch>"


def _fill(chords: list[Chord], start: int, end: int) -> list[_Piece]:
    """Return the chords cut to the bar, with rests between them: they fill it."""
    pieces, at = list[_Piece](), start
    for chord in chords:
        begin, stop = max(chord.onset, start), min(chord.end, end)
        if begin > at:
            pieces.append(_Piece(at, begin, None))
        pieces.append(_Piece(begin, stop, chord))
        at = stop
    if at < end:
        pieces.append(_Piece(at, end, None))
    return pieces


def _plain_values(offset: int, length: int, divisions: int) -> Iterator[tuple[int, str, int]]:
    """Cut a length into (length, type, dots) that one note can have; up to the next beat first where it is off it."""
    while length:
        to_beat = -offset % divisions
        here = to_beat if 0 < to_beat < length else length
        value = next(value for value in _values(divisions) if value[0] <= here)
        yield value
        offset, length = offset + value[0], length - value[0]


def _triplet_values(offset: int, length: int, divisions: int) -> Iterator[tuple[int, str, int]]:
    """Cut a length inside a beat of triplets: written values last two thirds of what they say."""
    for value, kind, n_dots in _plain_values(0, length * 3 // 2, divisions):
        yield value * 2 // 3, kind, n_dots


def _values(divisions: int) -> Iterator[tuple[int, str, int]]:
    """All lengths that one note can have with at most one dot, longest first."""
    length, place = 8 * divisions, 0
    while length >= 1 and place < len(KINDS):
        if length % 2 == 0 and place > 0:
            yield length * 3 // 2, KINDS[place], 1
        yield length, KINDS[place], 0
        if length % 2:
            return
        length, place = length // 2, place + 1
