"""Lines of the text of Optimus VIRTUOSO, as ids or characters: written from rows, found again, and read as music.

Source: Optimus VIRTUOSO (2021), the encoding TXT.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.music.arrays import IntArray, offsets_of
from tasks.music.compiled import njit
from tasks.music.score import Score
from tasks.music.tokenizers.optimus.characters import (
    END,
    START,
    UNKNOWN,
    OptimusTxtConfig,
    from_code_points,
    to_code_points,
)
from tasks.music.tokenizers.optimus.rows import Rows, build_rows_score, fields_of

NEWLINE = ord("\n")
HEADER, ANY_NAME = "SONG=", "Song"
HEADER_BEFORE_COUNT, HEADER_AFTER_COUNT = f"{HEADER}{ANY_NAME}_with_", "_notes\n"


@dataclass(frozen=True, slots=True, eq=False)
class Alphabet:
    """Symbols, ids or code points: of each value, of a line's end, and of what is around the lines of a piece.

    Args:
        before_count, digits, after_count: the header; without digits the number of notes is left out.
        last: ends a piece.
    """

    values: NDArray[Any]  # [max_units + 1], at least 128
    newline: int
    before_count: NDArray[Any]
    digits: NDArray[Any]  # [10] or [0]
    after_count: NDArray[Any]
    last: NDArray[Any]


def text_alphabet(config: OptimusTxtConfig) -> Alphabet:
    """Return the alphabet of lines without a header."""
    nothing = np.zeros(0, np.uint32)
    return Alphabet(_codes_of_values(config).astype(np.uint32), NEWLINE, nothing, nothing, nothing, nothing)


def _codes_of_values(config: OptimusTxtConfig) -> IntArray:
    return to_code_points(np.arange(max(config.max_units, 127) + 1))


def id_alphabet(config: OptimusTxtConfig, id_of_code: dict[int, int]) -> Alphabet:
    """Return the alphabet of ids, from <start> to <end>; all is <unknown> until there is a vocabulary."""

    def ids_of(text: str) -> list[int]:
        return [id_of_code.get(ord(symbol), UNKNOWN) for symbol in text]

    is_counted = config.header != "none"
    return Alphabet(
        values=np.array([id_of_code.get(code, UNKNOWN) for code in _codes_of_values(config).tolist()], np.uint16),
        newline=id_of_code.get(NEWLINE, UNKNOWN),
        before_count=np.array([START, *ids_of(HEADER_BEFORE_COUNT if is_counted else "")], np.uint16),
        digits=np.array(ids_of("0123456789" if is_counted else ""), np.uint16),
        after_count=np.array(ids_of(HEADER_AFTER_COUNT if is_counted else ""), np.uint16),
        last=np.array([END], np.uint16),
    )


def write_lines(rows: Rows, config: OptimusTxtConfig, alphabet: Alphabet) -> tuple[IntArray, NDArray[Any], IntArray]:
    """Return the borders of the pieces, their symbols, and the notes of each that have an <unknown>."""
    n_symbols = np.diff(rows.offsets) * config.width + _count_lines(rows, config.chordify)
    n_symbols += len(alphabet.before_count) + len(alphabet.after_count) + len(alphabet.last)
    n_digits = np.searchsorted(10 ** np.arange(1, 19), rows.n_notes, side="right") + 1
    if len(alphabet.digits):
        n_symbols += n_digits
    offsets, n_unknown = offsets_of(n_symbols), np.zeros(len(rows.n_notes), np.int64)
    written = np.empty(offsets[-1], alphabet.values.dtype)
    _fill_lines(
        (rows.offsets, rows.delta, rows.key),
        (config.velocities, config.channels, config.chordify),
        (alphabet.values, alphabet.newline),
        (alphabet.before_count, alphabet.digits, alphabet.after_count, alphabet.last),
        n_digits,
        offsets,
        written,
        n_unknown,
    )
    return offsets, written, n_unknown


def _count_lines(rows: Rows, chordify: bool) -> IntArray:
    if not chordify:
        return np.diff(rows.offsets)
    begins = rows.delta > 0
    begins[rows.offsets[:-1][np.diff(rows.offsets) > 0]] = True
    return np.diff(offsets_of(begins.astype(np.int64))[rows.offsets])


@njit(cache=True, nogil=True)
def _fill_lines(
    rows: Any, fields: Any, symbols: Any, head: Any, n_digits: Any, offsets: Any, written: Any, n_unknown: Any
) -> None:
    row_offsets, delta, key = rows
    velocities, channels, chordify = fields
    values, newline = symbols
    before_count, digits, after_count, last = head
    for piece in range(len(offsets) - 1):
        at = _append(written, offsets[piece], before_count)
        first, stop = row_offsets[piece], row_offsets[piece + 1]
        if len(digits):
            left = stop - first
            for place in range(at + n_digits[piece] - 1, at - 1, -1):
                written[place] = digits[left % 10]
                left //= 10
            at += n_digits[piece]
        at = _append(written, at, after_count)
        for row in range(first, stop):
            if row > first and (not chordify or delta[row] > 0):
                written[at] = newline
                at += 1
            duration, pitch, velocity, channel = fields_of(key[row])
            written[at], written[at + 1], written[at + 2] = values[delta[row]], values[duration], values[pitch]
            n_unknown[piece] += written[at] == UNKNOWN or written[at + 1] == UNKNOWN
            at += 3
            if velocities:
                written[at] = values[velocity]
                at += 1
            if channels:
                written[at] = values[channel]
                at += 1
        if stop > first:
            written[at] = newline
            at += 1
        _append(written, at, last)


@njit(cache=True, nogil=True)
def _append(written: Any, at: int, symbols: Any) -> int:
    for symbol in symbols:
        written[at] = symbol
        at += 1
    return at


def body(codes: IntArray) -> slice:
    """Return the place of the lines of the first song: after its header, if any, up to the next header."""
    header = np.array([ord(symbol) for symbol in HEADER])
    starts = np.append(0, np.flatnonzero(codes == NEWLINE) + 1)
    candidates = starts[starts + len(header) <= len(codes)]
    heads = candidates[(codes[candidates[:, None] + np.arange(len(header))] == header).all(axis=1)]
    if not len(heads) or heads[0]:
        return slice(0, int(heads[0]) if len(heads) else len(codes))
    begin = int(starts[1]) if len(starts) > 1 else len(codes)
    return slice(begin, int(heads[1]) if len(heads) > 1 else len(codes))


def find_groups(codes: IntArray, config: OptimusTxtConfig) -> tuple[IntArray, int]:
    """Return the places of the characters of each note, int64[N, width], and how many lines have another length."""
    is_newline = codes == NEWLINE
    line = np.cumsum(is_newline)
    places = np.flatnonzero(~is_newline)
    lengths = np.bincount(line[places])
    fits = (lengths % config.width == 0) if config.chordify else (lengths == config.width) | (lengths == 0)
    return places[fits[line[places]]].reshape(-1, config.width), int(np.count_nonzero(~fits))


def read_lines(codes: IntArray, config: OptimusTxtConfig) -> Score:
    """Read the code points of lines as a score; malformed lines are left out and counted."""
    groups, n_malformed = find_groups(codes, config)
    values = from_code_points(codes[groups])
    delta, duration, pitch = values[:, :3].T
    return build_rows_score(
        onset=np.cumsum(np.maximum(delta, 0)),
        duration=np.where((values < 0).any(axis=1), -1, duration),
        pitch=pitch,
        velocity=values[:, 3] if config.velocities else np.full_like(pitch, config.velocity),
        channel=values[:, -1] if config.channels else np.zeros_like(pitch),
        unit_milliseconds=config.unit_milliseconds,
        dropped={"malformed_lines": n_malformed},
        marks_melody=config.melody_conditioned,
    )
