"""The readable text of Optimus VIRTUOSO: a line for each note or onset, a character for each value, a header a song.

A note is time since the note before, duration and pitch, then velocity and channel where they are wanted.
Source: Optimus VIRTUOSO (2021), the encoding TXT; its characters and lines, but every note stands once, is timed from
the note before, and values that are no Unicode characters are skipped.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from tasks.errors import ConfigError
from tasks.music.grammar import Grammar
from tasks.music.midi_writer import DRUM_CHANNEL
from tasks.music.notes import IntArray, NoteBatch, offsets_of
from tasks.music.score import Score
from tasks.music.tokenizers.base import (
    BLOCK_NOTES,
    MAX_VOCABULARY,
    TokenArray,
    TokenBatch,
    digest_of,
    require_ids,
    until_end,
)
from tasks.music.tokenizers.optimus_rows import (
    OFFSET,
    RowRules,
    Rows,
    arrange_rows,
    build_rows_score,
    check_settings,
    duration_of,
    fields_of,
)

PAD, START, END, UNKNOWN = range(4)
SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")
NEWLINE = ord("\n")
SURROGATES = 0xD800  # the first code point that is no character; the next one that is lies 0x800 behind it
MAX_VALUE = 0x10FFFF - 0x800 - OFFSET  # stands as the last of all characters

_HEADER = "SONG="
_HEADER_BEFORE_COUNT, _HEADER_AFTER_COUNT = "SONG=Song_with_", "_notes\n"
# Whatever the music holds: the header's, and all values of pitch, velocity and channel, so that transposing adds none.
_ALWAYS = frozenset("\n") | {chr(value + OFFSET) for value in range(128)}
_REASONS = ("drums", "program_changed", "channels_shared", "long_notes_clamped", "long_gaps_clamped")


def to_code_points(values: ArrayLike) -> IntArray:
    """Return the code point of the character of each value, 0-1,112,030: value + 33, surrogates left out."""
    codes = np.asarray(values, dtype=np.int64) + OFFSET
    return codes + np.where(codes >= SURROGATES, 0x800, 0)


def from_code_points(codes: ArrayLike) -> IntArray:
    """Return the value of each character, below 0 where it stands for none; the inverse of `to_code_points`."""
    points = np.asarray(codes, dtype=np.int64)
    beyond = points - SURROGATES
    return np.where((beyond >= 0) & (beyond < 0x800), -1, points - np.where(beyond >= 0x800, 0x800, 0) - OFFSET)


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimusTxtConfig:
    """Settings of the tokenizer; the characters that have ids are part of them.

    Args:
        velocities, channels: write them: 4 or 5 characters a note in place of 3.
        chordify: the notes of one onset stand on one line.
        melody_conditioned: with `channels`: channel 0 for the highest note of an onset where it is C4 or higher, and
            for nothing else, whatever plays it; the other pitched notes stand one channel higher.
        header: begin a piece with a line that says how many notes it has.
        unit_milliseconds: 1-1000, of times and durations.
        max_milliseconds: longer gaps and durations are shortened to it.
        sustain, drums, channels_by: see `OptimusIntConfig`.
        velocity: 1-127, of decoded notes without `velocities`.
        vocabulary: characters in rising order; empty until it has been learned from data.
    """

    name: Literal["optimus_txt"] = "optimus_txt"
    velocities: bool = False
    channels: bool = False
    chordify: bool = False
    melody_conditioned: bool = False
    header: Literal["count", "none"] = "count"
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
            rows = _arrange(block, self)
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


class OptimusTxtTokenizer:
    """Turns notes into lines of characters, and characters into ids and back; a value stands as chr(value + 33)."""

    name = "optimus_txt"
    pad_id = PAD
    start_id = START
    end_id = END
    pitch_range = (0, 127)

    def __init__(self, config: OptimusTxtConfig = OptimusTxtConfig()) -> None:
        self.config = config
        self.vocab_size = len(SPECIAL) + len(config.vocabulary)
        self.knows_drums = config.channels
        self.units_per_second = 1000 / config.unit_milliseconds
        codes = [ord(symbol) for symbol in config.vocabulary]
        self._code_of_id = np.array([-1] * len(SPECIAL) + codes, np.int64)
        self._id_of_code = {code: token for token, code in enumerate(codes, len(SPECIAL))}
        self.grammar = _build_grammar(config, self._code_of_id, self._id_of_code)
        self._alphabet = _id_alphabet(config, self._id_of_code)
        self.digest = digest_of(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return everything that decides what the ids mean, ready for JSON."""
        form = asdict(self.config) | {"vocabulary": list(self.config.vocabulary)}
        return form | {"vocab_size": self.vocab_size, "units_per_second": self.units_per_second, "revision": 1}

    def token_name(self, token: int) -> str:
        """Return the name of an id: the character, or `U+000A` and the like where it cannot be seen."""
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token {token} outside 0-{self.vocab_size - 1}")
        if token < len(SPECIAL):
            return SPECIAL[token]
        symbol = self.config.vocabulary[token - len(SPECIAL)]
        return symbol if symbol.isprintable() else f"U+{ord(symbol):04X}"

    def token_id(self, name: str) -> int:
        """Return the id of a name."""
        if name in SPECIAL:
            return SPECIAL.index(name)
        code = int(name[2:], 16) if re.fullmatch(r"U\+[0-9A-F]{4,6}", name) else ord(name) if len(name) == 1 else -1
        token = self._id_of_code.get(code)
        if token is None or self.token_name(token) != name:
            raise ValueError(f"no token is named {name!r}")
        return token

    def encode(self, batch: NoteBatch) -> TokenBatch:
        """Encode whole pieces, each from <start> to <end>.

        Onsets and ends are rounded to units one by one, so no error adds up. Notes stand by onset, and in one onset
        from the highest pitch down, drums last. A value without a character in the vocabulary becomes <unknown>; its
        note is counted.

        Raises:
            ConfigError: the vocabulary has not been learned.
        """
        if not self.config.vocabulary:
            raise ConfigError("optimus_txt has no vocabulary yet: learn one from data, see OptimusTxtConfig.symbols")
        return TokenBatch.joined(self._encode_block(block) for block in batch.blocks(BLOCK_NOTES))

    def _encode_block(self, batch: NoteBatch) -> TokenBatch:
        rows = _arrange(batch, self.config)
        offsets, ids, n_unknown = _write_lines(rows, self.config, self._alphabet)
        dropped = {reason: rows.counts[reason] for reason in _REASONS} | {"unknown_characters": n_unknown}
        return TokenBatch(offsets, ids, rows.n_notes, rows.seconds, dropped)

    def decode(self, ids: ArrayLike) -> Score:
        """Return the music of one piece of tokens, up to the first <end> or the next song's header; a tick is 1 ms.

        Forgiving with what a model may write: lines of another length are left out with their time, notes with an
        <unknown> or with a pitch or channel that does not exist leave only their time; the score counts both in
        `dropped`.

        Raises:
            ValueError: an id outside of the vocabulary.
        """
        tokens = until_end(ids, self.vocab_size, END)
        codes = self._code_of_id[tokens[tokens >= UNKNOWN]]
        return _read_lines(codes[_body(codes)], self.config)

    def transpose_ids(self, ids: ArrayLike, semitones: int) -> TokenArray | None:
        """Move the pitch of every note but the drums on their channel; None where one would leave 0-127.

        None too with `melody_conditioned`: whether a note is the melody depends on its pitch. Without `channels`, drums
        that were kept look like all others: a piece with some should not be given to it.
        """
        if self.config.melody_conditioned:
            return None
        tokens = require_ids(ids, self.vocab_size)
        begins = np.flatnonzero(tokens == START)[1:]
        moved = [self._transpose_piece(piece, semitones) for piece in np.split(tokens, begins)]
        fitting = [piece for piece in moved if piece is not None]
        return np.concatenate(fitting) if len(fitting) == len(moved) else None

    def _transpose_piece(self, tokens: IntArray, semitones: int) -> TokenArray | None:
        written = np.flatnonzero(tokens >= UNKNOWN)
        codes = self._code_of_id[tokens[written]]
        body = _body(codes)
        groups, _ = _find_groups(codes[body], self.config)
        places = written[body][groups]
        if self.config.channels:
            places = places[self._code_of_id[tokens[places[:, -1]]] != DRUM_CHANNEL + OFFSET]
        pitch = from_code_points(self._code_of_id[tokens[places[:, 2]]])
        low, high = max(0, -semitones), 127 - max(0, semitones)
        if len(pitch) and not low <= pitch.min() <= pitch.max() <= high:
            return None
        tokens[places[:, 2]] = self._alphabet.values[pitch + semitones]
        return tokens.astype(np.uint16)

    def to_text(self, batch: NoteBatch, names: Sequence[str]) -> str:
        """Return pieces as songs with real names in their headers; needs no vocabulary.

        A name is cut at its first dot, and what would break a header is replaced in it.

        Raises:
            ValueError: not one name for each piece.
        """
        if len(names) != batch.n_pieces:
            raise ValueError(f"{len(names)} names for {batch.n_pieces} pieces")
        songs = list[str]()
        for block in batch.blocks(BLOCK_NOTES):
            rows = _arrange(block, self.config)
            offsets, codes, _ = _write_lines(rows, self.config, _text_alphabet(self.config))
            for piece, n_notes in enumerate(rows.n_notes.tolist()):
                lines = codes[offsets[piece] : offsets[piece + 1]].tobytes().decode("utf-32-le")
                songs.append(f"SONG={_song_name(names[len(songs)])}_with_{n_notes}_notes\n{lines}")
        return "".join(songs)

    def from_text(self, text: str) -> list[tuple[str, Score]]:
        """Return the name and the music of each song; the inverse of `to_text`, and of `dataset_text`.

        Forgiving like `decode`; what stands before the first header is no song.
        """
        text = re.sub(r"(?m)^TOTAL_SONGS_IN_DATASET=\d+\n?\Z", "", text)
        heads = list(re.finditer(r"(?m)^SONG=(.*)\n?", text))
        stops = [*(head.start() for head in heads), len(text)][1:]
        songs = list[tuple[str, Score]]()
        for head, stop in zip(heads, stops, strict=True):
            stated = re.fullmatch(r"(.*)_with_\d+_notes", head[1])
            lines = text[head.end() : stop].encode("utf-32-le", "surrogatepass")
            score = _read_lines(np.frombuffer(lines, np.uint32).astype(np.int64), self.config)
            songs.append((stated[1] if stated else head[1], score))
        return songs

    def dataset_text(self, batch: NoteBatch, names: Sequence[str], *, dataset: str, created_on: str) -> str:
        """Return all songs behind ten lines that say how to read them, and the number of songs behind them."""
        config = self.config
        head = {
            "DATASET": " ".join(dataset.split()),
            "CREATED_ON": " ".join(created_on.split()),
            "CHARS_ENCODING_OFFSET": OFFSET,
            "TIME_DENOMINATOR": config.unit_milliseconds,
            "TRANSFORM": 0,
            "PERFECT_TIMINGS": True,
            "MUSENET_ENCODING": True,
            "TRANSPOSED_BY": 0,
            "TRANSPOSED_AND_FLIPPED": False,
            "LEGEND": "STA-DUR-PTC" + "-VEL" * config.velocities + "-CHA" * config.channels,
        }
        lines = "".join(f"{name}={value}\n" for name, value in head.items())
        return f"{lines}{self.to_text(batch, names)}TOTAL_SONGS_IN_DATASET={batch.n_pieces}"


def _song_name(name: str) -> str:
    """Return a name that fits into a header, and into UTF-8."""
    return re.sub(r"[\s=\x00-\x1f\ud800-\udfff]", "_", name.partition(".")[0].replace("'", "-"))


def _arrange(batch: NoteBatch, config: OptimusTxtConfig) -> Rows:
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


@dataclass(frozen=True, slots=True, eq=False)
class _Alphabet:
    """What is written, ids or code points: for each value, for a line's end, and around the lines of a piece.

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


def _text_alphabet(config: OptimusTxtConfig) -> _Alphabet:
    """Return the alphabet of lines without a header."""
    nothing = np.zeros(0, np.uint32)
    return _Alphabet(_codes_of_values(config).astype(np.uint32), NEWLINE, nothing, nothing, nothing, nothing)


def _codes_of_values(config: OptimusTxtConfig) -> IntArray:
    return to_code_points(np.arange(max(config.max_units, 127) + 1))


def _id_alphabet(config: OptimusTxtConfig, id_of_code: dict[int, int]) -> _Alphabet:
    """Return the alphabet of ids, from <start> to <end>; all is <unknown> as long as there is no vocabulary."""

    def ids_of(text: str) -> list[int]:
        return [id_of_code.get(ord(symbol), UNKNOWN) for symbol in text]

    is_counted = config.header == "count"
    return _Alphabet(
        values=np.array([id_of_code.get(code, UNKNOWN) for code in _codes_of_values(config).tolist()], np.uint16),
        newline=id_of_code.get(NEWLINE, UNKNOWN),
        before_count=np.array([START, *ids_of(_HEADER_BEFORE_COUNT if is_counted else "")], np.uint16),
        digits=np.array(ids_of("0123456789" if is_counted else ""), np.uint16),
        after_count=np.array(ids_of(_HEADER_AFTER_COUNT if is_counted else ""), np.uint16),
        last=np.array([END], np.uint16),
    )


def _write_lines(rows: Rows, config: OptimusTxtConfig, alphabet: _Alphabet) -> tuple[IntArray, NDArray[Any], IntArray]:
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


def _body(codes: IntArray) -> slice:
    """Return where the lines of the first song stand: behind its header, if it has one, up to the next header."""
    header = np.array([ord(symbol) for symbol in _HEADER])
    starts = np.append(0, np.flatnonzero(codes == NEWLINE) + 1)
    candidates = starts[starts + len(header) <= len(codes)]
    heads = candidates[(codes[candidates[:, None] + np.arange(len(header))] == header).all(axis=1)]
    if not len(heads) or heads[0]:
        return slice(0, int(heads[0]) if len(heads) else len(codes))
    begin = int(starts[1]) if len(starts) > 1 else len(codes)
    return slice(begin, int(heads[1]) if len(heads) > 1 else len(codes))


def _find_groups(codes: IntArray, config: OptimusTxtConfig) -> tuple[IntArray, int]:
    """Return the places of the characters of each note, int64[N, width], and how many lines have another length."""
    is_newline = codes == NEWLINE
    line = np.cumsum(is_newline)
    places = np.flatnonzero(~is_newline)
    lengths = np.bincount(line[places])
    fits = (lengths % config.width == 0) if config.chordify else (lengths == config.width) | (lengths == 0)
    return places[fits[line[places]]].reshape(-1, config.width), int(np.count_nonzero(~fits))


def _read_lines(codes: IntArray, config: OptimusTxtConfig) -> Score:
    groups, n_malformed = _find_groups(codes, config)
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


def _build_grammar(config: OptimusTxtConfig, code_of_id: IntArray, id_of_code: dict[int, int]) -> Grammar:
    """States: before <start>, after <end>, before the first line, before another, inside a note, then in the header."""
    before, after, first_line, line, inside = range(5)
    value = from_code_points(code_of_id)

    def ids_of(low: int, high: int) -> IntArray:
        return np.flatnonzero((value >= low) & (value <= high))

    ranges = [(1, config.max_units), (0, 127), *[(1, 127)] * config.velocities, *[(0, 15)] * config.channels]
    closed = inside + len(ranges)
    naming, counting = closed + 1, closed + 1 + len(_HEADER_BEFORE_COUNT)
    next_state = np.full((counting + 1 + len(_HEADER_AFTER_COUNT), len(code_of_id)), -1, np.int16)
    no_slot, nothing = np.full(len(code_of_id), -1, np.int16), np.zeros(len(code_of_id), np.int16)
    grammar = Grammar(next_state, no_slot, no_slot, nothing.astype(np.bool_), nothing, n_slots=0)
    if not config.vocabulary:
        return grammar
    next_state[first_line, ids_of(0, config.max_units)] = inside
    next_state[line, ids_of(1 if config.chordify else 0, config.max_units)] = inside
    for place, (low, high) in enumerate(ranges):
        next_state[inside + place, ids_of(low, high)] = inside + place + 1
    next_state[[first_line, line, inside], UNKNOWN] = inside, inside, inside + 1
    next_state[closed, id_of_code[NEWLINE]] = line
    if config.chordify:
        next_state[closed, ids_of(0, 0)] = inside
    next_state[[first_line, line], END] = next_state[after, PAD] = after
    next_state[before, START] = first_line
    if config.header == "count":
        next_state[before, START] = naming
        for place, symbol in enumerate(_HEADER_BEFORE_COUNT + "0" + _HEADER_AFTER_COUNT):
            next_state[naming + place, id_of_code[ord(symbol)]] = naming + place + 1
        digits = [id_of_code[ord(symbol)] for symbol in "0123456789"]
        next_state[counting : counting + 2, digits] = counting + 1
        next_state[-1, id_of_code[NEWLINE]] = first_line
    return grammar
