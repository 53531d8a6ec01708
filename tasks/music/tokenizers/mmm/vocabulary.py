"""Settings and words of `mmm`, the words that a vocabulary must have, and the meaning of each id."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal

import numpy as np

from tasks.music.arrays import IntArray

SPECIAL = ("[UNK]", "[PAD]", "[SOS]", "[EOS]", "[TDR]")
UNKNOWN, PAD, START, END = 0, 1, 2, 3
DRUMS = 128  # among the programs
DENOMINATORS = (1, 2, 4, 8, 16)
MAX_NUMERATOR = 255
FOUR_FOUR = 4 << 5 | 4
_LIMITS = {
    "units_per_quarter": (1, 96),
    "longest_bar_quarters": (4, 64),
    "density_bins": (0, 16),
    "permutation_seed": (0, 2**32 - 1),
    "max_bars": (1, 1 << 14),
    "max_tracks": (1, 1 << 10),
    "velocity": (1, 127),
}
_MAX_BAR_UNITS = 2048  # the grammar has three states for each


class Kind(IntEnum):
    """What a word does; its value is a program, a pitch, a length in units, a level, or a meter."""

    SPECIAL = 0
    PIECE_START = 1
    STYLE = 2
    GENRE = 3
    TRACK_START = 4
    INST = 5
    DENSITY = 6
    BAR_START = 7
    TIE = 8
    NOTE_ON = 9
    NOTE_OFF = 10
    TIME_DELTA = 11
    BAR_END = 12
    TRACK_END = 13
    PIECE_END = 14


Words = dict[str, tuple[Kind, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class MmmConfig:
    """Settings of the tokenizer.

    Args:
        units_per_quarter: the grid of time, 1-96; with 4 a unit is a sixteenth note.
        meters: let bars follow the time signatures and name theirs, as in BAR_START=3/4. Otherwise all bars are 4/4,
            as in the original: notes keep their times, and in other music bar lines appear where none were.
        longest_bar_quarters: with `meters`, 4-64: a meter with longer bars is passed over.
        across_bars: a note that reaches over a bar line ends there, or is named again after it by a TIE word.
        style, genre: what STYLE and GENRE say of all pieces; nothing where empty.
        density_bins: levels of the DENSITY word of a track, 0-16; 0 for no such word. Level 0 is less than one note a
            bar, level 1 less than 2, level 2 less than 4, and so on; the last holds all above.
        piece_end: write PIECE_END before [EOS].
        permute_tracks: put tracks in an order drawn for their contents and `permutation_seed`. It depends neither on
            the order they had nor on transposition. Otherwise they are in the order of their parts.
        permutation_seed: seed of that order.
        max_bars, max_tracks: of a piece; notes beyond are left out and counted.
        velocity: of all notes in decoded music, 1-127; the words know none.
        vocabulary_from: learn the words from the data, or take all that these settings can write.
        vocabulary: the words that were learned, sorted, without the five special ones; empty until then.
    """

    name: Literal["mmm"] = "mmm"
    units_per_quarter: int = 4
    meters: bool = False
    longest_bar_quarters: int = 12
    across_bars: Literal["cut", "tie"] = "cut"
    style: str = ""
    genre: str = ""
    density_bins: int = 0
    piece_end: bool = False
    permute_tracks: bool = False
    permutation_seed: int = 0
    max_bars: int = 2048
    max_tracks: int = 128
    velocity: int = 80
    vocabulary_from: Literal["data", "all"] = "data"
    vocabulary: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)} outside {low}-{high}")
        if self.across_bars not in ("cut", "tie"):
            raise ValueError(f"across_bars={self.across_bars!r} is neither 'cut' nor 'tie'")
        if self.vocabulary_from not in ("data", "all"):
            raise ValueError(f"vocabulary_from={self.vocabulary_from!r} is neither 'data' nor 'all'")
        if longest_bar(self) > _MAX_BAR_UNITS:
            raise ValueError(
                f"longest_bar_quarters={self.longest_bar_quarters} of units_per_quarter={self.units_per_quarter} "
                f"are above {_MAX_BAR_UNITS} units"
            )
        for name in ("style", "genre"):
            if not re.fullmatch(r"[!-~]{0,64}", getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)!r} is not up to 64 visible ASCII characters")
        if self.vocabulary:
            self._check_vocabulary()

    def _check_vocabulary(self) -> None:
        if self.vocabulary_from == "all":
            raise ValueError(f"vocabulary: {len(self.vocabulary)} words given, but vocabulary_from='all' needs none")
        whole = complete(self, self.vocabulary)
        if self.vocabulary != whole:
            lacking = sorted(set(whole) - set(self.vocabulary))
            message = f"lacks {lacking[0]!r}" if lacking else "is not sorted, or holds a word twice"
            raise ValueError(f"vocabulary: {message}; with_symbols makes it whole")

    def with_symbols(self, symbols: Iterable[str]) -> "MmmConfig":
        """Return the config with a vocabulary of these words and of those that every text needs.

        Raises:
            ValueError: a word that these settings never write.
        """
        if self.vocabulary_from == "all":
            return self
        return replace(self, vocabulary=complete(self, symbols))


def bar_units(meter: int, units_per_quarter: int) -> int:
    """Return the units of a bar of a meter (numerator << 5 | denominator); 0 where they are not a whole number."""
    units, rest = divmod(4 * units_per_quarter * (meter >> 5), meter & 31)
    return 0 if rest else units


def longest_bar(config: MmmConfig) -> int:
    """Return the units of the longest bar, and so of the longest TIME_DELTA."""
    return (config.longest_bar_quarters if config.meters else 4) * config.units_per_quarter


def all_words(config: MmmConfig) -> Words:
    """Return every word that these settings can write, apart from the five special ones."""
    words = _frame(config)
    words |= {f"INST={program}": (Kind.INST, program) for program in range(128)} | {"INST=DRUMS": (Kind.INST, DRUMS)}
    words |= {_meter_word(meter): (Kind.BAR_START, meter) for meter in _meters(config)} if config.meters else {}
    for kind in _note_kinds(config):
        words |= {f"{kind.name}={pitch}": (kind, pitch) for pitch in range(128)}
    return words | {f"TIME_DELTA={units}": (Kind.TIME_DELTA, units) for units in range(1, longest_bar(config) + 1)}


def complete(config: MmmConfig, words: Iterable[str]) -> tuple[str, ...]:
    """Return the vocabulary that holds `words`, sorted.

    It has what every text needs, and for each pitch all words of a note: a note can be ended wherever it can begin. It
    has TIME_DELTA=1, of which any length can be made.

    Raises:
        ValueError: a word that these settings never write.
    """
    legal, found = all_words(config), set(words)
    foreign = sorted(found - set(legal))
    if foreign:
        raise ValueError(f"vocabulary: the word {foreign[0]!r} is never written with these settings")
    found |= set(_frame(config)) | {"TIME_DELTA=1"}
    pitches = {legal[word][1] for word in found if legal[word][0] in _note_kinds(config)}
    found |= {f"{kind.name}={pitch}" for kind in _note_kinds(config) for pitch in pitches}
    return tuple(sorted(found))


def _frame(config: MmmConfig) -> Words:
    """Return the words that do not depend on the music."""
    words: Words = {kind.name: (kind, 0) for kind in (Kind.PIECE_START, Kind.TRACK_START, Kind.BAR_END, Kind.TRACK_END)}
    words["BAR_START=4/4" if config.meters else "BAR_START"] = Kind.BAR_START, FOUR_FOUR
    if config.style:
        words[f"STYLE={config.style}"] = Kind.STYLE, 0
    if config.genre:
        words[f"GENRE={config.genre}"] = Kind.GENRE, 0
    if config.piece_end:
        words["PIECE_END"] = Kind.PIECE_END, 0
    return words | {f"DENSITY={level}": (Kind.DENSITY, level) for level in range(config.density_bins)}


def _note_kinds(config: MmmConfig) -> tuple[Kind, ...]:
    return (Kind.NOTE_ON, Kind.NOTE_OFF, *([Kind.TIE] if config.across_bars == "tie" else []))


def _meters(config: MmmConfig) -> Iterator[int]:
    """Yield the meters whose bar is a whole number of units, and none longer than allowed."""
    for denominator in DENOMINATORS:
        for numerator in range(1, MAX_NUMERATOR + 1):
            meter = numerator << 5 | denominator
            if 0 < bar_units(meter, config.units_per_quarter) <= longest_bar(config):
                yield meter


def _meter_word(meter: int) -> str:
    return f"BAR_START={meter >> 5}/{meter & 31}"


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """The words of one tokenizer by id.

    Args:
        names: word of each id; V of them.
        kind: int64[V], a Kind.
        value: int64[V].
    """

    names: tuple[str, ...]
    kind: IntArray
    value: IntArray

    @classmethod
    def of(cls, config: MmmConfig) -> "Vocabulary":
        """Return the vocabulary of a config; the five special words alone where it has not been learned yet."""
        legal = all_words(config)
        names = (*SPECIAL, *(sorted(legal) if config.vocabulary_from == "all" else config.vocabulary))
        meaning = np.array([legal.get(name, (Kind.SPECIAL, 0)) for name in names], dtype=np.int64)
        return cls(names, meaning[:, 0], meaning[:, 1])

    @property
    def size(self) -> int:
        return len(self.names)

    def of_kind(self, kind: Kind) -> IntArray:
        """Return the ids of the words of one kind, in rising order."""
        return np.flatnonzero(self.kind == kind)

    def lookup(self, kind: Kind, n_values: int) -> IntArray:
        """Return int64[n_values]: the id of each value of a kind, [UNK] where there is no such word."""
        table = np.full(n_values, UNKNOWN, dtype=np.int64)
        ids = self.of_kind(kind)
        table[self.value[ids]] = ids
        return table
