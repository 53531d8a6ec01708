"""Revamped MIDI events: bars, positions, programs, pitches, velocities and durations, all programs in one stream.

Sources: Huang and Yang 2020, "Pop Music Transformer"; von Rütte et al. 2022, FIGARO. The ids are those of MidiTok 3.1.0
for the same settings; by default the settings of the Hourglass model.
"""

from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from tasks.music.notes import NoteBatch
from tasks.music.score import Score
from tasks.music.tokenizers.base import TokenArray, TokenBatch, Tokenizer, require_ids, until_end
from tasks.music.tokenizers.remi import encode as encoder
from tasks.music.tokenizers.remi.decode import decode_ids
from tasks.music.tokenizers.remi.grammar import build_grammar
from tasks.music.tokenizers.remi.tables import EncodeTables, build_tables
from tasks.music.tokenizers.remi.vocabulary import DRUMS, Kind, RemiConfig, RemiVocabulary

_HOURGLASS = RemiConfig()


class RemiTokenizer(Tokenizer):
    """Turns notes into ids and back on a grid of the beat; between start and end is what MidiTok would write.

    Ids have names such as `Pitch_60`, `Duration_1.4.8` (beats, steps, steps a beat) and `TimeSig_3/4`.

    Where MidiTok is followed although another choice could be made:
    - the finest beat of a piece is that of the highest denominator in it, even of a time signature that is left out;
      then positions of the others are rounded down, and encoding again what was decoded may give other ids;
    - a duration is rounded on its own, not from end to end;
    - of duplicates the shortest is kept, unless `duplicates` says otherwise;
    - a time signature takes effect at the next bar, and one without an id is left out (counted as `other_meter`).

    Where MidiTok is not followed, because it loses music: it raises KeyError where a beat has a size that none of its
    denominators gives (16ths and quarters without eighths), and decodes no drum outside of the range of the other
    pitches. Not offered: several streams (`use_programs=False` writes one for each track), and unsorted notes
    (`remove_duplicated_notes=False`), which MidiTok writes in the order of the file's bytes.
    """

    name = "remi"
    knows_drums = True

    def __init__(self, config: RemiConfig = _HOURGLASS) -> None:
        self.config = config
        self.vocabulary = RemiVocabulary(config)
        self.names, self.vocab_size = self.vocabulary.names, len(self.vocabulary)
        self.pad_id, self.start_id, self.end_id = (
            self.vocabulary.ids[name] for name in ("PAD_None", "BOS_None", "EOS_None")
        )
        self.pitch_range = (config.pitch_min, config.pitch_max)
        self.units_per_second = 2.0 * self.vocabulary.steps  # positions, at 120 quarters a minute
        self.grammar = build_grammar(self.vocabulary)

    @cached_property
    def _tables(self) -> EncodeTables:
        return build_tables(self.vocabulary)

    def encode_block(self, batch: NoteBatch) -> TokenBatch:
        """Encode whole pieces, each from start to end.

        Counted as dropped: `out_of_range`, notes outside of the range of pitches; `duplicate`, notes that share
        program, pitch and tick with one that is kept. Counted as changed, among all notes: `duration_clamped`, longer
        than the longest duration; `other_meter`, under a time signature without an id, so that their bars are those of
        the one before. Programs are in the order of the tracks that have them first; kits of drums are one program.

        Raises:
            ValueError: a piece goes on after 2**31 - 1 ticks of the grid.
        """
        ids, offsets, counts, seconds = encoder.encode_notes(batch, self._tables)
        dropped = {
            "out_of_range": counts[:, encoder.OUT_OF_RANGE],
            "duplicate": counts[:, encoder.DUPLICATES],
            "duration_clamped": counts[:, encoder.CLAMPED],
            "other_meter": counts[:, encoder.OTHER_METER],
        }
        return TokenBatch(offsets, ids, counts[:, encoder.N_NOTES], seconds, dropped)

    def decode(self, ids: ArrayLike) -> Score:
        """Return the music of one piece of tokens, up to the first end.

        A part for each program, in an order in which encoding it again gives the same ids. Forgiving with what a model
        may write: a pitch counts where velocity and duration follow, notes before any program are of program 0, a
        position may go back, and a time signature takes effect at its place.

        Raises:
            ValueError: an id outside of the vocabulary.
        """
        return decode_ids(until_end(ids, self.vocab_size, self.end_id), self.vocabulary, self._tables)

    def transpose_ids(self, ids: ArrayLike, semitones: int) -> TokenArray | None:
        """Move every pitch but the drums' by `semitones`, and the roots of chords; None where one leaves its range.

        Equal to encoding the transposed notes of a piece that lost none to the range of pitches: notes that are not in
        the ids cannot come back.

        Raises:
            ValueError: an id outside of the vocabulary.
        """
        tokens = require_ids(ids, self.vocab_size)
        kind, value = self.vocabulary.kind_V[tokens], self.vocabulary.value_V[tokens].astype(np.int64)
        moves = kind == Kind.PITCH
        if not self.config.drum_pitches:
            is_drums = (kind == Kind.PROGRAM) & (value == DRUMS)
            moves[1:] &= ~is_drums[:-1]
        moved = value[moves] + semitones
        if len(moved) and not self.config.pitch_min <= moved.min() <= moved.max() <= self.config.pitch_max:
            return None
        tokens[moves] += semitones
        if self.config.chords == "root":
            root = value % 12
            tokens += np.where(kind == Kind.CHORD, (root + semitones) % 12 - root, 0)
        return tokens.astype(np.uint16)
