"""The text encoding of Optimus VIRTUOSO: a line for each note or onset, a character for each value.

A note is time since the note before, duration and pitch, then velocity and channel where they are wanted.
Source: Optimus VIRTUOSO (2021), the encoding TXT; its characters and lines, but every note is written once, is timed
from the note before, and values that are not Unicode characters are skipped.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tasks.errors import ConfigError
from tasks.music.arrays import IntArray, offsets_of
from tasks.music.midi.writer import DRUM_CHANNEL
from tasks.music.notes import NoteBatch
from tasks.music.score import Score
from tasks.music.tokenizers.base import BLOCK_NOTES, TokenArray, TokenBatch, Tokenizer, require_ids, until_end
from tasks.music.tokenizers.grammar import Grammar
from tasks.music.tokenizers.optimus.characters import (
    END,
    PAD,
    SPECIAL,
    START,
    UNKNOWN,
    OptimusTxtConfig,
    arrange,
    from_code_points,
    song_name,
)
from tasks.music.tokenizers.optimus.lines import (
    ANY_NAME,
    HEADER,
    HEADER_AFTER_COUNT,
    HEADER_BEFORE_COUNT,
    NEWLINE,
    body,
    find_groups,
    id_alphabet,
    read_lines,
    text_alphabet,
    write_lines,
)
from tasks.music.tokenizers.optimus.rows import OFFSET, programs_of_channels
from tasks.music.tokenizers.optimus.value_states import ValueStates, looked_up

_NAME_TAIL = f"_with_0{HEADER_AFTER_COUNT}"  # 0 is one digit or more
_LINE_ENDS = -2
_REASONS = ("drums", "program_changed", "channels_shared", "long_notes_clamped", "long_gaps_clamped")


class OptimusTxtTokenizer(Tokenizer):
    """Turns notes into lines of characters, and characters into ids and back; a value is chr(value + 33).

    Ids have their characters as names, or `U+000A` and the like where these cannot be seen.

    Attributes:
        value_states: where ids are pitches and programs.
        together_id: says that a note begins with the one before, and nothing else but a pitch of 0; None: no id does.
    """

    name = "optimus_txt"
    pad_id = PAD
    start_id = START
    end_id = END

    def __init__(self, config: OptimusTxtConfig = OptimusTxtConfig()) -> None:  # noqa: B008  it is frozen
        self.config = config
        visible = (symbol if symbol.isprintable() else f"U+{ord(symbol):04X}" for symbol in config.vocabulary)
        self.names = (*SPECIAL, *visible)
        self.vocab_size = len(self.names)
        self.knows_drums = config.channels
        self.units_per_second = 1000 / config.unit_milliseconds
        codes = [ord(symbol) for symbol in config.vocabulary]
        self._code_of_id = np.array([-1] * len(SPECIAL) + codes, np.int64)
        self._id_of_code = {code: token for token, code in enumerate(codes, len(SPECIAL))}
        self.grammar, self.value_states = _build_grammar(config, self._code_of_id, self._id_of_code)
        self.together_id = None if config.channels else self._id_of_code.get(OFFSET)
        self._alphabet = id_alphabet(config, self._id_of_code)

    def to_json(self) -> dict[str, Any]:
        """Return everything that decides what the ids mean, ready for JSON."""
        return super().to_json() | {"units_per_second": self.units_per_second}

    def encode(self, batch: NoteBatch) -> TokenBatch:
        """Encode whole pieces, each from <start> to <end>.

        Onsets and ends are rounded to units one by one, so no error adds up. Notes are in order of onset, and in one
        onset from the highest pitch down, drums last. A value without a character in the vocabulary becomes
        <unknown>; its note is counted.

        Raises:
            ConfigError: the vocabulary has not been learned.
        """
        if not self.config.vocabulary:
            raise ConfigError("optimus_txt has no vocabulary yet: learn one from data, see OptimusTxtConfig.symbols")
        return super().encode(batch)

    def encode_block(self, batch: NoteBatch) -> TokenBatch:
        """Encode a few whole pieces; see `encode`."""
        rows = arrange(batch, self.config)
        offsets, ids, n_unknown = write_lines(rows, self.config, self._alphabet)
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
        return read_lines(codes[body(codes)], self.config)

    def ids_of_text(self, text: str) -> TokenArray:
        """Return the ids of characters, without <start>.

        Raises:
            ConfigError: the vocabulary lacks a character; the message names those that it lacks.
        """
        if unknown := sorted({symbol for symbol in text if ord(symbol) not in self._id_of_code}):
            named = ", ".join(f"{symbol!r} (U+{ord(symbol):04X})" for symbol in unknown[:8])
            raise ConfigError(f"the vocabulary lacks {named}" + (", ..." if len(unknown) > 8 else ""))
        return np.array([self._id_of_code[ord(symbol)] for symbol in text], np.uint16)

    @property
    def header_ids(self) -> list[int]:
        """A piece's ids up to its music, under any name and with a number of notes that means nothing."""
        return [START, *self.ids_of_text(f"{HEADER_BEFORE_COUNT}100{HEADER_AFTER_COUNT}").tolist()]

    def name_songs(self, tokens: TokenBatch, names: Sequence[str]) -> TokenBatch:
        """Return encoded pieces with their own names in their headers, which `encode` calls Song.

        Raises:
            ConfigError: the vocabulary lacks a character of a name.
        """
        begin = 1 + len(HEADER)
        parts, lengths = list[Any](), list[int]()
        for piece, name in enumerate(names):
            ids = tokens.ids[tokens.offsets[piece] : tokens.offsets[piece + 1]]
            own = self.ids_of_text(song_name(name) or ANY_NAME)
            parts += [ids[:begin], own, ids[begin + len(ANY_NAME) :]]
            lengths.append(len(ids) - len(ANY_NAME) + len(own))
        return replace(tokens, offsets=offsets_of(lengths), ids=np.concatenate([*parts, tokens.ids[:0]]))

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
        song = body(codes)
        groups, _ = find_groups(codes[song], self.config)
        places = written[song][groups]
        if self.config.channels:
            places = places[self._code_of_id[tokens[places[:, -1]]] != DRUM_CHANNEL + OFFSET]
        pitch = from_code_points(self._code_of_id[tokens[places[:, 2]]])
        low, high = max(0, -semitones), 127 - max(0, semitones)
        if len(pitch) and not low <= pitch.min() <= pitch.max() <= high:
            return None
        tokens[places[:, 2]] = self._alphabet.values[pitch + semitones]
        return tokens.astype(np.uint16)

    def to_text(self, batch: NoteBatch, names: Sequence[str]) -> str:
        """Return pieces as the text of their songs, end to end; see `songs`."""
        return "".join(self.songs(batch, names))

    def songs(self, batch: NoteBatch, names: Sequence[str]) -> list[str]:
        """Return each piece as text, with its real name in the header; needs no vocabulary.

        A name is cut at its first dot, and what would break a header is replaced in it.

        Raises:
            ValueError: not one name for each piece.
        """
        if len(names) != batch.n_pieces:
            raise ValueError(f"{len(names)} names for {batch.n_pieces} pieces")
        songs = list[str]()
        for block in batch.blocks(BLOCK_NOTES):
            rows = arrange(block, self.config)
            offsets, codes, _ = write_lines(rows, self.config, text_alphabet(self.config))
            for piece, n_notes in enumerate(rows.n_notes.tolist()):
                lines = codes[offsets[piece] : offsets[piece + 1]].tobytes().decode("utf-32-le")
                songs.append(f"{HEADER}{song_name(names[len(songs)])}_with_{n_notes}{HEADER_AFTER_COUNT}{lines}")
        return songs

    def from_text(self, text: str) -> list[tuple[str, Score]]:
        """Return the name and the music of each song; the inverse of `to_text`, and of `dataset_text`.

        Forgiving like `decode`; text before the first header is left out.
        """
        text = re.sub(r"(?m)^TOTAL_SONGS_IN_DATASET=\d+\n?\Z", "", text)
        heads = list(re.finditer(r"(?m)^SONG=(.*)\n?", text))
        stops = [*(head.start() for head in heads), len(text)][1:]
        songs = list[tuple[str, Score]]()
        for head, stop in zip(heads, stops, strict=True):
            stated = re.fullmatch(r"(.*)_with_\d+_notes", head[1])
            lines = text[head.end() : stop].encode("utf-32-le", "surrogatepass")
            score = read_lines(np.frombuffer(lines, np.uint32).astype(np.int64), self.config)
            songs.append((stated[1] if stated else head[1], score))
        return songs

    def dataset_text(
        self, songs: Sequence[str], *, dataset: str, created_on: str,
        median_pitch: int = 0, transpositions: Sequence[int] = (), has_flipped: bool = False,
    ) -> str:  # fmt: skip
        """Return songs after ten lines that say how to read them, and the number of songs after them.

        Args:
            median_pitch: that of every song, or 0.
            transpositions: of the transposed copies among the songs.
            has_flipped: some of the songs are flipped copies.
        """
        config = self.config
        head = {
            "DATASET": " ".join(dataset.split()),
            "CREATED_ON": " ".join(created_on.split()),
            "CHARS_ENCODING_OFFSET": OFFSET,
            "TIME_DENOMINATOR": config.unit_milliseconds,
            "TRANSFORM": median_pitch,
            "PERFECT_TIMINGS": True,
            "MUSENET_ENCODING": True,
            "TRANSPOSED_BY": ",".join(map(str, transpositions)) or 0,
            "TRANSPOSED_AND_FLIPPED": has_flipped,
            "LEGEND": "STA-DUR-PTC" + "-VEL" * config.velocities + "-CHA" * config.channels,
        }
        lines = "".join(f"{name}={value}\n" for name, value in head.items())
        return f"{lines}{''.join(songs)}TOTAL_SONGS_IN_DATASET={len(songs)}"


def notes_in_header(text: str) -> int:
    """Return the number of notes that the header of a text states, 0 where it states none."""
    stated = re.match(rf"{HEADER}.*_with_(\d+){HEADER_AFTER_COUNT}", text)
    return int(stated[1]) if stated else 0


def _name_states(symbols: Sequence[str]) -> list[list[int]]:
    """Return what follows each state after `SONG=` by symbol: a state, -1 where it is forbidden, or `_LINE_ENDS`.

    A state is a set of places in the expression `.+_with_[0-9]+_notes`, because a name may hold parts of what follows
    it: place 0 is before the name, 1 within it, and 1 + n after n symbols of `_NAME_TAIL`.
    """
    kinds = [_kind_in_header(symbol) for symbol in symbols]
    last, a_digit = 1 + len(_NAME_TAIL), 2 + _NAME_TAIL.index("0")
    states, followers = [frozenset([0])], list[list[int]]()
    for places in states:  # it grows
        following = dict[str, int]()
        for kind in dict.fromkeys(kinds):
            found = {place + 1 for place in places if place and _NAME_TAIL[place - 1] == kind}
            found |= places & {a_digit} if kind == "0" else set()
            found |= {1} if kind not in ("\n", "") else set()
            if found and last not in found and found not in states:
                states.append(frozenset(found))
            following[kind] = _LINE_ENDS if last in found else states.index(frozenset(found)) if found else -1
        followers.append([following[kind] for kind in kinds])
    return followers


def _kind_in_header(symbol: str) -> str:
    """Return a symbol of `_NAME_TAIL`, `x` for any other one that a name may hold, or nothing."""
    sign = "0" if symbol in "0123456789" else symbol
    return sign if sign in _NAME_TAIL else "x" if song_name(symbol) == symbol else ""


def _build_grammar(
    config: OptimusTxtConfig, code_of_id: IntArray, id_of_code: dict[int, int]
) -> tuple[Grammar, tuple[ValueStates, ...]]:
    """States: before <start>, after <end>, before the first line, before another, inside a note, then in the header."""
    before, after, first_line, line, inside = range(5)
    value = from_code_points(code_of_id)

    def ids_of(low: int, high: int) -> IntArray:
        return np.flatnonzero((value >= low) & (value <= high))

    ranges = [(1, config.max_units), (0, 127), *[(1, 127)] * config.velocities, *[(0, 15)] * config.channels]
    closed = inside + len(ranges)
    naming, counting = closed + 1, closed + 1 + len(HEADER_BEFORE_COUNT)
    named = _name_states([chr(code) for code in code_of_id[len(SPECIAL) :]]) if config.header == "name" else []
    n_states = naming + len(HEADER) + len(named) if named else counting + 1 + len(HEADER_AFTER_COUNT)
    next_state = np.full((n_states, len(code_of_id)), -1, np.int16)
    grammar = Grammar.without_slots(next_state)
    value_states = [ValueStates("pitch", (inside + 1,), looked_up(value, np.arange(128)))]
    if config.channels:
        programs = looked_up(value, programs_of_channels(config.melody_conditioned))
        value_states.append(ValueStates("program", (closed - 1,), programs))
    if not config.vocabulary:
        return grammar, tuple(value_states)
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
        for place, symbol in enumerate(HEADER_BEFORE_COUNT + "0" + HEADER_AFTER_COUNT):
            next_state[naming + place, id_of_code[ord(symbol)]] = naming + place + 1
        digits = [id_of_code[ord(symbol)] for symbol in "0123456789"]
        next_state[counting : counting + 2, digits] = counting + 1
        next_state[-1, id_of_code[NEWLINE]] = first_line
    elif config.header == "name":
        next_state[before, START] = naming
        for place, symbol in enumerate(HEADER):
            next_state[naming + place, id_of_code[ord(symbol)]] = naming + place + 1
        begin = naming + len(HEADER)
        for place, followers in enumerate(named, begin):
            next_state[place, len(SPECIAL) :] = [
                first_line if follower == _LINE_ENDS else follower + begin if follower >= 0 else -1
                for follower in followers
            ]
    return grammar, tuple(value_states)
