"""The base of all encodings: tokens of many pieces at once, and a tokenizer with its ids and names."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tasks.music.arrays import FloatArray, IntArray, offsets_of
from tasks.music.notes import NoteBatch
from tasks.music.score import Score
from tasks.music.tokenizers.grammar import Grammar

TokenArray = NDArray[np.uint16]
MAX_VOCABULARY = 1 << 16  # ids are stored as uint16
BLOCK_NOTES = 1 << 15  # pieces are encoded in blocks of about so many notes, which stay in the processor's cache


@dataclass(slots=True, eq=False)
class TokenBatch:
    """Tokens of P pieces; piece i owns `ids[offsets[i]:offsets[i + 1]]`.

    Args:
        n_notes: int64[P], notes encoded.
        seconds: float64[P], end of the last event.
        dropped: by reason, int64[P]: notes that the encoding cannot hold, or changes.
    """

    offsets: IntArray
    ids: TokenArray
    n_notes: IntArray
    seconds: FloatArray
    dropped: dict[str, IntArray]

    @classmethod
    def joined(cls, parts: "Iterable[TokenBatch]") -> "TokenBatch":
        """Lay batches end to end; all of them, at least one, count the same reasons."""
        blocks = list(parts)
        return cls(
            offsets=offsets_of(np.concatenate([np.diff(block.offsets) for block in blocks])),
            ids=np.concatenate([block.ids for block in blocks]),
            n_notes=np.concatenate([block.n_notes for block in blocks]),
            seconds=np.concatenate([block.seconds for block in blocks]),
            dropped={
                reason: np.concatenate([block.dropped[reason] for block in blocks]) for reason in blocks[0].dropped
            },
        )


class Tokenizer(ABC):
    """One encoding with its settings: the one owner of ids, their names, their grammar, and both directions.

    Ids run from 0 to `vocab_size` - 1. A piece is one sequence from `start_id` to `end_id`; `pad_id` fills rows up.
    """

    name: str
    config: Any
    names: Sequence[str]  # of all ids
    vocab_size: int
    pad_id: int
    start_id: int
    end_id: int
    units_per_second: float  # of the grammar's `time_V`
    knows_drums: bool  # `transpose_ids` can tell drums, which it leaves as they are, from other notes
    pitch_range: tuple[int, int] = (0, 127)  # lowest and highest pitch that it can hold, drums apart
    grammar: Grammar

    @cached_property
    def ids(self) -> dict[str, int]:
        """Ids by name."""
        return {name: token for token, name in enumerate(self.names)}

    @cached_property
    def first_id(self) -> int | None:
        """The id after `start_id` in every piece; None where several may follow."""
        next_state = self.grammar.next_state_SV
        followers = np.flatnonzero(next_state[next_state[self.grammar.start_state, self.start_id]] >= 0)
        return int(followers[0]) if len(followers) == 1 else None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of `to_json`."""
        return digest_of(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return everything that decides what the ids mean, ready for JSON."""
        fields = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.config).items()}
        return fields | {"vocab_size": self.vocab_size, "revision": 1}

    def token_name(self, token: int) -> str:
        """Return the readable name of an id; ValueError outside of the vocabulary."""
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token {token} outside 0-{self.vocab_size - 1}")
        return self.names[token]

    def token_id(self, name: str) -> int:
        """Return the id of a name; ValueError where no id has it."""
        if name not in self.ids:
            raise ValueError(f"no token is named {name!r}")
        return self.ids[name]

    def encode(self, batch: NoteBatch) -> TokenBatch:
        """Encode whole pieces; what cannot be held is counted in `dropped`."""
        return TokenBatch.joined(self.encode_block(block) for block in batch.blocks(BLOCK_NOTES))

    @abstractmethod
    def encode_block(self, batch: NoteBatch) -> TokenBatch:
        """Encode a few whole pieces."""

    @abstractmethod
    def decode(self, ids: ArrayLike) -> Score:
        """Return the music of one piece of tokens, up to the first `end_id`; ValueError outside of the vocabulary."""

    def transpose_ids(self, ids: ArrayLike, semitones: int) -> TokenArray | None:
        """Return the tokens of transposed pieces laid end to end, equal to encoding their transposed notes.

        None where that cannot be derived from the tokens alone, or where a note would leave the encoding's range.
        """
        return None


def digest_of(form: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a tokenizer's JSON form."""
    return hashlib.sha256(json.dumps(form, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def require_ids(ids: ArrayLike, vocab_size: int) -> IntArray:
    """Return ids as int64[T].

    Raises:
        ValueError: an id outside of the vocabulary.
    """
    tokens = np.asarray(ids).astype(np.int64).reshape(-1)
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        raise ValueError(f"token {tokens.min() if tokens.min() < 0 else tokens.max()} outside 0-{vocab_size - 1}")
    return tokens


def until_end(ids: ArrayLike, vocab_size: int, end_id: int) -> IntArray:
    """Return ids as int64[T] up to the first `end_id`, which is left out; ValueError as `require_ids`."""
    tokens = require_ids(ids, vocab_size)
    ends = np.flatnonzero(tokens == end_id)
    return tokens[: ends[0]] if len(ends) else tokens
