"""The `mmm` encoding: several tracks in sequence, each bar by bar, as in the Multi-Track Music Machine.

Source: Ens and Pasquier 2020, "MMM: Exploring Conditional Multi-Track Music Generation with the Transformer"; the words
are those of the js-fakes-4bars texts on which the encoder-decoder with a variational bottleneck was trained.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from tasks.errors import ConfigError
from tasks.music.notes import NoteBatch
from tasks.music.score import Score
from tasks.music.tokenizers.base import TokenArray, TokenBatch, Tokenizer, require_ids, until_end
from tasks.music.tokenizers.grammar import Grammar
from tasks.music.tokenizers.mmm.grammar import build_grammar, with_tracks
from tasks.music.tokenizers.mmm.reader import read_words
from tasks.music.tokenizers.mmm.vocabulary import (
    DRUMS,
    END,
    PAD,
    SPECIAL,
    START,
    UNKNOWN,
    Kind,
    MmmConfig,
    Vocabulary,
    longest_bar,
)
from tasks.music.tokenizers.mmm.writer import build_tables, write_pieces


class MmmTokenizer(Tokenizer):
    """Turns notes into words and back: [SOS] PIECE_START, then each track with all its bars, then [EOS].

    The first five ids are [UNK], [PAD], [SOS], [EOS] and [TDR]; the words, such as `NOTE_ON=60`, follow in order of the
    alphabet. `TIME_DELTA=4` moves by 4 units.
    """

    name = "mmm"
    pad_id = PAD
    start_id = START
    end_id = END
    knows_drums = True

    def __init__(self, config: MmmConfig = MmmConfig()) -> None:
        self.config = config
        self.words = Vocabulary.of(config)
        self.names, self.vocab_size = self.words.names, self.words.size
        self.units_per_second = 2.0 * config.units_per_quarter  # at 120 beats a minute, which decoding assumes
        self.grammar = build_grammar(self.words, config.units_per_quarter, longest_bar(config))
        self._tables = build_tables(config, self.words) if self.vocab_size > len(SPECIAL) else None

    def grammar_of_tracks(self, n_tracks: int) -> Grammar:
        """Return the grammar of pieces of just `n_tracks` tracks, 1 to `max_tracks`.

        Raises:
            ValueError: another number.
        """
        if not 1 <= n_tracks <= self.config.max_tracks:
            raise ValueError(f"n_tracks={n_tracks} outside 1-{self.config.max_tracks}, max_tracks of the encoding")
        return with_tracks(self.grammar, self.words, n_tracks)

    def encode_block(self, batch: NoteBatch) -> TokenBatch:
        """Encode whole pieces, each from [SOS] to [EOS].

        Every instrument of every part is a track, and all tracks of a piece have all its bars, empty ones too: from
        tick 0 to the last bar in which a note begins or, with ties, sounds. Times are rounded to units one by one,
        halves up. Velocities, tempos and pedals are not in the words. Counted in `dropped`, in notes:

        - unison_merged: left out, because another on its track and pitch begins with it; the later end is kept;
        - restrike_shortened: ended where its pitch is struck again on its track;
        - lengthened: held for one unit, where rounding left it none;
        - cut_at_bar_line: ended at the end of its bar, or with ties at the last bar allowed;
        - unknown_words: its pitch or its instrument is not in the vocabulary and written as [UNK];
        - beyond_max_bars, beyond_max_tracks: left out.

        A length that is not in the vocabulary is written as several that are. A meter that is not, or whose bar is no
        whole number of units, is passed over: bars go on in the one before it. A meter takes effect at a bar line.

        Raises:
            ConfigError: the vocabulary has not been learned yet.
        """
        if self._tables is None:
            raise ConfigError(
                "the vocabulary of 'mmm' is empty: learn it from the data with symbols and with_symbols, "
                "or set vocabulary_from='all'"
            )
        return write_pieces(batch, self.config, self._tables)

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


def words_in(config: MmmConfig, batch: NoteBatch) -> set[str]:
    """Return the words in the texts of these pieces; none where the vocabulary is not learned."""
    if config.vocabulary_from == "all":
        return set()
    tokenizer = MmmTokenizer(replace(config, vocabulary=(), vocabulary_from="all"))
    used = np.unique(tokenizer.encode(batch).ids)
    return {tokenizer.token_name(token) for token in used.tolist() if tokenizer.words.kind[token] != Kind.SPECIAL}
