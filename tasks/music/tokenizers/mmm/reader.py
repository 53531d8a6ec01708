"""Decoding of `mmm` words to music, tolerant of anything a model may write."""

from dataclasses import dataclass, field

import numpy as np

from tasks.music.arrays import IntArray
from tasks.music.score import Score, TimeSignatures, build_score
from tasks.music.tokenizers.mmm.vocabulary import DRUMS, FOUR_FOUR, Kind, MmmConfig, Vocabulary, bar_units

_FINE_TICKS_PER_QUARTER = 480


def read_words(tokens: IntArray, vocabulary: Vocabulary, config: MmmConfig) -> Score:
    """Return the music of one piece of tokens, without <end>."""
    kinds, values = vocabulary.kind[tokens], vocabulary.value[tokens]
    meters = _meters_of(kinds, values)
    lengths = [bar_units(meter, config.units_per_quarter) for meter in meters]
    reading = _Reading(np.cumsum([0, *lengths]).tolist())
    for kind, value in zip(kinds.tolist(), values.tolist(), strict=True):
        if kind == Kind.PIECE_END:
            break
        reading.read(kind, value)
    reading.end_bar()
    return _score_of(reading, meters, config)


def _meters_of(kinds: IntArray, values: IntArray) -> list[int]:
    """Return the meter of each bar, from the first track that has that many bars."""
    meters, bar = list[int](), 0
    is_word = (kinds == Kind.BAR_START) | (kinds == Kind.TRACK_START)
    for kind, value in zip(kinds[is_word].tolist(), values[is_word].tolist(), strict=True):
        if kind == Kind.TRACK_START:
            bar = 0
        else:
            meters += [value] if bar == len(meters) else []
            bar += 1
    return meters or [FOUR_FOUR]


@dataclass(slots=True)
class _Reading:
    """State of a reader of words, and the notes found so far; times in units.

    Args:
        borders: where each bar begins, and where the last one ends.
    """

    borders: list[int]
    instruments: list[int] = field(default_factory=lambda: [0])  # of each track; the first is for words before any
    bar: int = -1
    now: int = 0
    onset: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    pitch: list[int] = field(default_factory=list)
    track: list[int] = field(default_factory=list)
    latest: dict[int, int] = field(default_factory=dict)  # of this track, the last note on each pitch
    sounding: set[int] = field(default_factory=set)  # pitches

    def read(self, kind: int, value: int) -> None:
        """Take in one word."""
        if kind == Kind.TIME_DELTA:
            self.now += value
        elif kind == Kind.NOTE_OFF:
            self._end_note(value, self.now)
        elif kind == Kind.NOTE_ON:
            self._begin_note(value)
        elif kind == Kind.TIE:
            self._tie_note(value)
        elif kind == Kind.BAR_START:
            self.end_bar()
            self.bar += 1
            self.now = self.borders[self.bar]
        elif kind == Kind.BAR_END:
            self.end_bar()
        elif kind == Kind.TRACK_START:
            self._begin_track()
        elif kind == Kind.INST:
            self.instruments[-1] = value

    def end_bar(self) -> None:
        """End the sounding notes at the end of the bar, because a note does not cross it untied."""
        limit = self.borders[self.bar + 1] if self.bar + 1 < len(self.borders) else self.now
        for pitch in list(self.sounding):
            self._end_note(pitch, max(limit, self.now))

    def _begin_track(self) -> None:
        self.end_bar()
        self.instruments.append(0)
        self.bar, self.now = -1, 0
        self.latest.clear()

    def _begin_note(self, pitch: int) -> None:
        self._end_note(pitch, self.now)
        self.latest[pitch] = len(self.pitch)
        self.sounding.add(pitch)
        self.onset.append(self.now)
        self.end.append(self.now + 1)
        self.pitch.append(pitch)
        self.track.append(len(self.instruments) - 1)

    def _tie_note(self, pitch: int) -> None:
        before = self.latest.get(pitch)
        if before is not None and pitch not in self.sounding and self.end[before] == self.now:
            self.sounding.add(pitch)
        else:
            self._begin_note(pitch)

    def _end_note(self, pitch: int, at: int) -> None:
        if pitch in self.sounding:
            self.sounding.remove(pitch)
            note = self.latest[pitch]
            self.end[note] = max(at, self.onset[note] + 1)


def _score_of(reading: _Reading, meters: list[int], config: MmmConfig) -> Score:
    ticks = max(_FINE_TICKS_PER_QUARTER // config.units_per_quarter, 1)  # in a unit
    onset, end = np.array(reading.onset, dtype=np.int64), np.array(reading.end, dtype=np.int64)
    track = np.array(reading.track, dtype=np.int64)
    has_first = int(not len(track) or track.min() == 0)
    instrument = np.array(reading.instruments, dtype=np.int64)[track]
    is_drum = instrument == DRUMS
    notes = {
        "onset": onset * ticks,
        "duration": (end - onset) * ticks,
        "pitch": np.array(reading.pitch, dtype=np.int64),
        "velocity": np.full(len(onset), config.velocity),
        "program": np.where(is_drum, 0, instrument),
        "is_drum": is_drum,
        "track": track - (1 - has_first),
    }
    return build_score(
        ticks * config.units_per_quarter,
        notes,
        time_signatures=_time_signatures(reading.borders, meters, ticks) if config.meters else None,
        n_tracks=max(len(reading.instruments) - 1 + has_first, 1),
    )


def _time_signatures(borders: list[int], meters: list[int], ticks: int) -> TimeSignatures:
    numbers, starts = np.array(meters), np.array(borders[:-1]) * ticks
    is_change = np.diff(numbers, prepend=0) != 0
    return TimeSignatures(starts[is_change], numbers[is_change] >> 5, numbers[is_change] & 31)
