"""An adapter for MidiTok tokenizers that write one stream of ids, with their learned vocabulary.

Needs the extra `orchestrion[miditok]`. MidiTok goes through pieces one by one and builds an object for each token, so
this is hundreds of times slower than the encodings of this project.
"""

import hashlib
import json
import tempfile
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from tasks.errors import ConfigError
from tasks.music.arrays import offsets_of
from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.writer import write_midi
from tasks.music.notes import NOTE_COLUMNS, NoteBatch
from tasks.music.score import Score, build_score
from tasks.music.tokenizers.base import MAX_VOCABULARY, TokenArray, TokenBatch, Tokenizer, until_end
from tasks.music.tokenizers.grammar import Grammar

REASONS = ("not_held", "refused")
EMPTY_SCORE = build_score(480, dict.fromkeys(NOTE_COLUMNS, np.zeros(0, np.int64)))
_NEEDED = ("PAD_None", "BOS_None", "EOS_None")


@dataclass(frozen=True, kw_only=True, slots=True)
class MidiTokConfig:
    """A tokenizer as MidiTok's own `save` writes it.

    Args:
        tokenizer: the text of that JSON file. Without it there is nothing to encode with.
    """

    name: Literal["miditok"] = "miditok"
    tokenizer: str = ""

    def __post_init__(self) -> None:
        if not self.tokenizer:
            return
        try:
            form = json.loads(self.tokenizer)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"tokenizer: {self.tokenizer[:40]!r} is not JSON that is read: {error}") from error
        if not isinstance(form, dict) or not {"tokenization", "config"} <= set(form):
            raise ValueError("tokenizer: no object with 'tokenization' and 'config', as MidiTok's save writes it")


class MidiTokTokenizer(Tokenizer):
    """One MidiTok tokenizer with the interface of this project's own.

    A piece is written between its BOS and EOS. Only MidiTok knows which ids may follow each other, so the grammar
    allows anything but PAD and BOS in between, and sampling with it does not make music well-formed.
    """

    name = "miditok"
    units_per_second = 1.0  # the grammar knows no time
    knows_drums = False

    def __init__(self, config: MidiTokConfig) -> None:
        self.config = config
        self._peer, self._sequence = _load(config)
        self.vocab_size = len(self._peer)
        _check_form(self._peer)
        lacking = [name for name in _NEEDED if name not in self._peer.special_tokens]
        if lacking:
            raise ConfigError(f"the MidiTok tokenizer lacks {', '.join(lacking)}; make it with PAD, BOS and EOS")
        self.pad_id, self.start_id, self.end_id = (int(self._peer[name]) for name in _NEEDED)
        self.grammar = self._build_grammar()

    def to_json(self) -> dict[str, Any]:
        """Return everything that decides what the ids mean, ready for JSON.

        The same file can mean other ids to another version of MidiTok; the digest of its vocabulary tells.
        """
        vocabularies = json.dumps([self._peer.vocab, self._peer.vocab_model], sort_keys=True)
        return super().to_json() | {"vocabulary_digest": hashlib.sha256(vocabularies.encode()).hexdigest()}

    @cached_property
    def names(self) -> list[str]:
        """MidiTok's names of all ids; of a learned one, those of what it represents, joined by +."""
        special = dict(zip((self.pad_id, self.start_id, self.end_id), _NEEDED, strict=True))
        names = ["+".join(self._base_tokens([token])) for token in range(self.vocab_size)]
        return [
            special.get(token) or (name if name and name not in _NEEDED else f"learned_{token}")
            for token, name in enumerate(names)
        ]

    def encode_block(self, batch: NoteBatch) -> TokenBatch:
        """Encode whole pieces, each from BOS to EOS.

        Counted in `dropped`, in notes: not_held, what MidiTok's own preparation leaves out (pitches and programs
        outside of its vocabulary, duplicates); refused, all notes of a piece that MidiTok fails on.
        """
        counts = np.zeros((len(REASONS), batch.n_pieces), dtype=np.int64)
        n_notes, seconds = np.zeros(batch.n_pieces, dtype=np.int64), np.zeros(batch.n_pieces)
        pieces: list[TokenArray] = []
        for index in range(batch.n_pieces):
            piece = batch.pieces(index, index + 1)
            ids, n_notes[index], is_refused = self._encode_piece(piece)
            counts[int(is_refused), index] = piece.n_notes - n_notes[index]
            seconds[index] = piece.end_seconds.max(initial=0.0) if n_notes[index] else 0.0
            pieces.append(np.array([self.start_id, *ids, self.end_id], dtype=np.uint16))
        return TokenBatch(
            offsets_of([len(ids) for ids in pieces]),
            np.concatenate([np.zeros(0, dtype=np.uint16), *pieces]),
            n_notes,
            seconds,
            dict(zip(REASONS, counts, strict=True)),
        )

    def decode(self, ids: ArrayLike) -> Score:
        """Return the music of one piece of tokens, up to the first EOS, as MidiTok reads it.

        PAD and BOS are left out. Where MidiTok fails on what a model wrote, the music ends before that place.

        Raises:
            ValueError: an id outside of the vocabulary.
        """
        tokens = until_end(ids, self.vocab_size, self.end_id)
        names = self._base_tokens(tokens[~np.isin(tokens, [self.pad_id, self.start_id])].tolist())
        score = self._decode_names(names)
        if score is not None:
            return score
        readable, unreadable = 0, len(names)
        while unreadable - readable > 1:
            middle = (readable + unreadable) // 2
            is_readable = self._decode_names(names[:middle]) is not None
            readable, unreadable = (middle, unreadable) if is_readable else (readable, middle)
        return self._decode_names(names[:readable]) or EMPTY_SCORE

    def _base_tokens(self, ids: list[int]) -> list[str]:
        """Return the names of ids, those of learned ones taken apart."""
        seq = self._sequence(ids=list(ids), are_ids_encoded=self._peer.is_trained)
        if self._peer.is_trained:
            self._peer.decode_token_ids(seq)
        else:
            self._peer.complete_sequence(seq)
        return list(seq.tokens)

    def _encode_piece(self, batch: NoteBatch) -> tuple[list[int], int, bool]:
        """Return ids, notes held, and whether MidiTok failed."""
        import symusic

        try:
            prepared = self._peer.preprocess_score(symusic.Score.from_midi(write_midi(Score(batch))))
            n_notes = int(prepared.note_num())
            ids = self._peer.encode(prepared, no_preprocess_score=True).ids if n_notes else []
        except Exception:  # MidiTok does not document what it raises on odd pieces
            return [], 0, True
        return ids, n_notes, False

    def _decode_names(self, names: list[str]) -> Score | None:
        try:
            seq = self._sequence(tokens=names)
            self._peer.complete_sequence(seq)
            return read_midi(bytes(self._peer.decode(seq).dumps_midi()))
        except Exception:  # MidiTok does not document what it raises on odd sequences; BadScore: no notes
            return None

    def _build_grammar(self) -> Grammar:
        """States: 0 before BOS, 1 in the piece, 2 after EOS."""
        next_state = np.full((3, self.vocab_size), -1, dtype=np.int16)
        next_state[0, self.start_id] = 1
        next_state[1] = 1
        next_state[1, [self.pad_id, self.start_id]] = -1
        next_state[1, self.end_id] = 2
        next_state[2, self.pad_id] = 2
        return Grammar.without_slots(next_state)


def _load(config: MidiTokConfig) -> tuple[Any, Any]:
    """Return the tokenizer and MidiTok's class of token sequences."""
    if not config.tokenizer:
        raise ConfigError("no MidiTok tokenizer given: `tokenizer` is the text of the JSON file that its save writes")
    try:
        miditok = import_module("miditok")
    except ImportError as error:
        raise ConfigError(f"MidiTok is not installed ({error}): pip install 'orchestrion[miditok]'") from error
    name = json.loads(config.tokenizer)["tokenization"]
    kind = getattr(miditok, name, None) if isinstance(name, str) else None
    if not isinstance(kind, type) or not issubclass(kind, miditok.MusicTokenizer) or kind is miditok.MusicTokenizer:
        version = getattr(miditok.constants, "CURRENT_MIDITOK_VERSION", "of this version")
        raise ConfigError(f"MidiTok {version} has no tokenizer named {name!r}")
    with tempfile.TemporaryDirectory() as folder:  # MidiTok reads files only
        path = Path(folder) / "tokenizer.json"
        path.write_text(config.tokenizer)
        try:
            return kind(params=path), miditok.TokSequence
        except Exception as error:  # MidiTok does not document what it raises on odd files
            raise ConfigError(f"MidiTok cannot read its tokenizer: {type(error).__name__}: {error}") from error


def _check_form(peer: Any) -> None:
    if peer.is_multi_voc or not peer.one_token_stream:
        streams = "several ids at a time" if peer.is_multi_voc else "one sequence for each track"
        raise ConfigError(
            f"the MidiTok tokenizer {type(peer).__name__} gives {streams}; a model here reads one stream of ids: "
            "use_programs and one_token_stream_for_programs make REMI, TSD, MIDILike, Structured and PerTok give one"
        )
    if len(peer) > MAX_VOCABULARY:
        raise ConfigError(f"the MidiTok tokenizer has {len(peer)} ids, limit {MAX_VOCABULARY}")
