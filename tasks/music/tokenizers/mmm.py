"""Words for several tracks, one after the other and bar by bar, as in the Multi-Track Music Machine.

Source: Ens and Pasquier 2020, "MMM: Exploring Conditional Multi-Track Music Generation with the Transformer"; the words
are those of the js-fakes-4bars texts on which the encoder-decoder with a variational bottleneck was trained.
"""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from tasks.errors import ConfigError
from tasks.music.grammar import Grammar
from tasks.music.notes import NoteBatch
from tasks.music.score import Score
from tasks.music.tokenizers.base import BLOCK_NOTES, TokenArray, TokenBatch, digest_of, require_ids, until_end
from tasks.music.tokenizers.mmm_grammar import build_grammar, with_tracks
from tasks.music.tokenizers.mmm_reader import read_words
from tasks.music.tokenizers.mmm_words import (
    DRUMS,
    END,
    PAD,
    SPECIAL,
    START,
    UNKNOWN,
    Kind,
    Vocabulary,
    complete,
    longest_bar,
)
from tasks.music.tokenizers.mmm_writer import build_tables, write_pieces

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


@dataclass(frozen=True, kw_only=True, slots=True)
class MmmConfig:
    """Settings of the tokenizer.

    Args:
        units_per_quarter: the grid of time, 1-96; with 4 a unit is a sixteenth note.
        meters: let bars follow the time signatures and name theirs, as in BAR_START=3/4. Otherwise all bars are 4/4,
            as in the original: notes keep their times, and in other music bar lines stand where none were.
        longest_bar_quarters: with `meters`, 4-64: a meter with longer bars is passed over.
        across_bars: a note that reaches over a bar line ends there, or is named again behind it by a TIE word.
        style, genre: what STYLE and GENRE say of all pieces; nothing where empty.
        density_bins: levels of the DENSITY word of a track, 0-16; 0 for no such word. Level 0 is less than one note a
            bar, level 1 less than 2, level 2 less than 4, and so on; the last holds all above.
        piece_end: write PIECE_END before [EOS].
        permute_tracks: put tracks in an order drawn for their contents and `permutation_seed`. It depends neither on
            the order they had nor on transposition. Otherwise they stand in the order of their parts.
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
            said = f"lacks {lacking[0]!r}" if lacking else "is not sorted, or holds a word twice"
            raise ValueError(f"vocabulary: {said}; with_symbols makes it whole")

    def symbols(self, batch: NoteBatch) -> set[str]:
        """Return the words in the texts of these pieces; none where the vocabulary is not learned."""
        if self.vocabulary_from == "all":
            return set()
        tokenizer = MmmTokenizer(replace(self, vocabulary=(), vocabulary_from="all"))
        used = np.unique(tokenizer.encode(batch).ids)
        return {tokenizer.token_name(token) for token in used.tolist() if tokenizer.words.kind[token] != Kind.SPECIAL}

    def with_symbols(self, symbols: Iterable[str]) -> "MmmConfig":
        """Return the config with a vocabulary of these words and of those that every text needs.

        Raises:
            ValueError: a word that these settings never write.
        """
        if self.vocabulary_from == "all":
            return self
        return replace(self, vocabulary=complete(self, symbols))


class MmmTokenizer:
    """Turns notes into words and back: [SOS] PIECE_START, then each track with all its bars, then [EOS].

    The first five ids are [UNK], [PAD], [SOS], [EOS] and [TDR]; the words follow in order of the alphabet.
    """

    name = "mmm"
    pad_id = PAD
    start_id = START
    end_id = END
    knows_drums = True
    pitch_range = (0, 127)

    def __init__(self, config: MmmConfig = MmmConfig()) -> None:
        self.config = config
        self.words = Vocabulary.of(config)
        self.vocab_size = self.words.size
        self.units_per_second = 2.0 * config.units_per_quarter  # at 120 beats a minute, which decoding assumes
        self.grammar = build_grammar(self.words, config.units_per_quarter, longest_bar(config))
        self._tables = build_tables(config, self.words) if self.vocab_size > len(SPECIAL) else None
        self.digest = digest_of(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return everything that decides what the ids mean, ready for JSON."""
        return {**asdict(self.config), "vocab_size": self.vocab_size, "revision": 1}

    def grammar_of_tracks(self, n_tracks: int) -> Grammar:
        """Return the grammar of pieces of just `n_tracks` tracks, 1 to `max_tracks`.

        Raises:
            ValueError: another number.
        """
        if not 1 <= n_tracks <= self.config.max_tracks:
            raise ValueError(f"n_tracks={n_tracks} outside 1-{self.config.max_tracks}, max_tracks of the encoding")
        return with_tracks(self.grammar, self.words, n_tracks)

    def token_name(self, token: int) -> str:
        """Return the word of an id, such as `NOTE_ON=60`; `TIME_DELTA=4` moves by 4 units."""
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token {token} outside 0-{self.vocab_size - 1}")
        return self.words.names[token]

    def token_id(self, name: str) -> int:
        """Return the id of a word."""
        if name not in self.words.ids:
            raise ValueError(f"no token is named {name!r}")
        return self.words.ids[name]

    def encode(self, batch: NoteBatch) -> TokenBatch:
        """Encode whole pieces, each from [SOS] to [EOS].

        Every instrument of every part is a track, and all tracks of a piece have all its bars, empty ones too: from
        tick 0 to the last bar in which a note begins or, with ties, sounds. Times are rounded to units one by one,
        halves up. Velocities, tempos and pedals are not in the words. Counted in `dropped`, in notes:

        - unison_merged: left out, for it begins with another on its track and pitch, of which the later end is kept;
        - restrike_shortened: ended where its pitch is struck again on its track;
        - lengthened: held for one unit, where rounding left it none;
        - cut_at_bar_line: ended at the end of its bar, or with ties at the last bar allowed;
        - unknown_words: its pitch or its instrument is not in the vocabulary and written as [UNK];
        - beyond_max_bars, beyond_max_tracks: left out.

        A length that is not in the vocabulary is written as several that are. A meter that is not, or whose bar is no
        whole number of units, is passed over: bars go on in the one before it. A meter takes hold at a bar line.

        Raises:
            ConfigError: the vocabulary has not been learned yet.
        """
        if self._tables is None:
            raise ConfigError(
                "the vocabulary of 'mmm' is empty: learn it from the data with symbols and with_symbols, "
                "or set vocabulary_from='all'"
            )
        blocks = [write_pieces(block, self.config, self._tables) for block in batch.blocks(BLOCK_NOTES)]
        return TokenBatch.joined(blocks)

    def decode(self, ids: ArrayLike) -> Score:
        """Return the music of one piece of tokens, up to the first [EOS] or PIECE_END, at 120 beats a minute.

        Forgiving with what a model may write: each BAR_START goes to where its bar begins, whatever the bar before
        held; a NOTE_OFF of a silent pitch is ignored; a pitch struck again ends the note before; what still sounds at
        BAR_END ends with the bar; a TIE without a note that ends there begins one; a note lasts a unit at least;
        a track without an instrument is a piano; special words say nothing. Where tracks disagree about the meter of a
        bar, the first that has the bar decides.

        Raises:
            ValueError: an id outside of the vocabulary.
        """
        return read_words(until_end(ids, self.vocab_size, END), self.words, self.config)

    def transpose_ids(self, ids: ArrayLike, semitones: int) -> TokenArray | None:
        """Move the notes of all tracks but the drums; None where a note would leave the vocabulary, or holds [UNK]."""
        tokens = require_ids(ids, self.vocab_size)
        if np.any(tokens == UNKNOWN):
            return None
        kind, value = self.words.kind[tokens], self.words.value[tokens]
        instrument_at = np.maximum.accumulate(np.where(kind == Kind.INST, np.arange(len(tokens)), 0))
        moved = tokens.copy()
        for note_kind in (Kind.TIE, Kind.NOTE_ON, Kind.NOTE_OFF):
            places = np.flatnonzero((kind == note_kind) & (value[instrument_at] != DRUMS))
            pitch = value[places] + semitones
            if len(pitch) and not 0 <= pitch.min() <= pitch.max() <= 127:
                return None
            moved[places] = self.words.lookup(note_kind, 128)[pitch]
        return None if np.any(moved == UNKNOWN) else moved.astype(np.uint16)
