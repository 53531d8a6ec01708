"""The characters of Optimus VIRTUOSO's text and the values they represent, with the settings that choose them.

Source: Optimus VIRTUOSO (2021), the encoding TXT.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from tasks.music.arrays import IntArray
from tasks.music.notes import NoteBatch
from tasks.music.tokenizers.base import BLOCK_NOTES, MAX_VOCABULARY
from tasks.music.tokenizers.optimus.rows import OFFSET, RowRules, Rows, arrange_rows, check_settings, duration_of

PAD, START, END, UNKNOWN = range(4)
SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")
SURROGATES = 0xD800  # the first code point that is not a character; the next one that is lies 0x800 after it
MAX_VALUE = 0x10FFFF - 0x800 - OFFSET  # that of the last character
# Whatever the music holds: the header's, and all values of pitch, velocity and channel, so that transposing adds none.
_ALWAYS = frozenset("\n") | {chr(value + OFFSET) for value in range(128)}


def song_name(name: str) -> str:
    """Return a file's name up to its first dot, as it fits into a header and into UTF-8."""
    return re.sub(r"[\s=\x00-\x1f\ud800-\udfff]", "_", name.partition(".")[0].replace("'", "-"))


def to_code_points(values: ArrayLike) -> IntArray:
    """Return the code point of the character of each value, 0-1,112,030: value + 33, surrogates left out."""
    codes = np.asarray(values, dtype=np.int64) + OFFSET
    return codes + np.where(codes >= SURROGATES, 0x800, 0)


def from_code_points(codes: ArrayLike) -> IntArray:
    """Return the value of each character, below 0 where it represents none; the inverse of `to_code_points`."""
    points = np.asarray(codes, dtype=np.int64)
    beyond = points - SURROGATES
    return np.where((beyond >= 0) & (beyond < 0x800), -1, points - np.where(beyond >= 0x800, 0x800, 0) - OFFSET)


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimusTxtConfig:
    """Settings of the tokenizer; the characters that have ids are part of them.

    Args:
        velocities, channels: write them: 4 or 5 characters a note in place of 3.
        chordify: write the notes of one onset on one line.
        melody_conditioned: with `channels`: channel 0 for the highest note of an onset where it is C4 or higher, and
            for nothing else, whatever plays it; the channels of the other pitched notes are one higher.
        header: begin a piece with a line that says how many notes it has ("count"), and under which name ("name").
        unit_milliseconds: 1-1000, of times and durations.
        max_milliseconds: longer gaps and durations are shortened to it.
        sustain, drums, channels_by: as for `optimus_int`.
        velocity: 1-127, of decoded notes without `velocities`.
        vocabulary: characters in rising order; empty until it has been learned from data.
    """

    name: Literal["optimus_txt"] = "optimus_txt"
    velocities: bool = False
    channels: bool = False
    chordify: bool = False
    melody_conditioned: bool = False
    header: Literal["count", "name", "none"] = "count"
    unit_milliseconds: int = 10
    max_milliseconds: int = 60_000
    sustain: bool = True
    drums: Literal["drop", "keep", "if_alone"] = "if_alone"
    channels_by: Literal["families", "order"] = "families"
    velocity: int = 90
    vocabulary: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_settings(self.unit_milliseconds, self.velocity)
        if not 1 <= self.max_units <= MAX_VALUE:
            raise ValueError(
                f"max_milliseconds={self.max_milliseconds} are {self.max_units} units of {self.unit_milliseconds} ms,"
                f" outside 1-{MAX_VALUE}"
            )
        if self.melody_conditioned and not self.channels:
            raise ValueError("melody_conditioned=True needs channels=True: the melody is a channel")
        _check_vocabulary(self.vocabulary)

    @property
    def max_units(self) -> int:
        """The highest value that is written."""
        return self.max_milliseconds // self.unit_milliseconds

    @property
    def width(self) -> int:
        """Characters in a note: 3, 4 or 5."""
        return 3 + self.velocities + self.channels

    def symbols(self, batch: NoteBatch) -> set[str]:
        """Return the characters that pieces need."""
        needed = set(_ALWAYS)
        for block in batch.blocks(BLOCK_NOTES):
            rows = arrange(block, self)
            values = np.unique(np.concatenate([rows.delta, duration_of(rows.key)]))
            needed.update(map(chr, to_code_points(values).tolist()))
        return needed

    def with_symbols(self, symbols: Iterable[str]) -> "OptimusTxtConfig":
        """Return the config with the vocabulary of these characters, and of those that every piece may need."""
        return replace(self, vocabulary=tuple(sorted(_ALWAYS | set(symbols))))


def _check_vocabulary(vocabulary: tuple[str, ...]) -> None:
    if not vocabulary:
        return
    if len(vocabulary) + len(SPECIAL) > MAX_VOCABULARY:
        raise ValueError(f"a vocabulary of {len(vocabulary)} characters is over {MAX_VOCABULARY - len(SPECIAL)}")
    values = from_code_points([ord(symbol) if len(symbol) == 1 else -1 for symbol in vocabulary])
    wrong = [symbol for symbol, value in zip(vocabulary, values, strict=True) if value < 0 and symbol != "\n"]
    if wrong:
        raise ValueError(f"vocabulary holds {wrong[0]!r}, which is not the character of a value")
    if list(vocabulary) != sorted(_ALWAYS.union(vocabulary)):
        raise ValueError("vocabulary is not in rising order, or lacks one of the characters that every piece may need")


def arrange(batch: NoteBatch, config: OptimusTxtConfig) -> Rows:
    """Return the rows that the lines of whole pieces are written from."""
    rules = RowRules(
        unit_milliseconds=config.unit_milliseconds,
        velocities=config.velocities,
        channels=config.channels,
        channels_by=config.channels_by,
        drums=config.drums,
        sustain=config.sustain,
        max_duration=config.max_units,
        max_gap=config.max_units,
        marks_melody=config.melody_conditioned,
    )
    return arrange_rows(batch, rules)
