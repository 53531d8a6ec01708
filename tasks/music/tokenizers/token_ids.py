"""Ids without music: the encoding of a table of token ids, which no rebuild makes and which decodes to nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NoReturn

import numpy as np
from numpy.typing import ArrayLike

from tasks.errors import ConfigError
from tasks.music.notes import NoteBatch
from tasks.music.score import Score
from tasks.music.tokenizers.base import MAX_VOCABULARY, TokenBatch, Tokenizer
from tasks.music.tokenizers.grammar import Grammar

NAME: Literal["tokens"] = "tokens"
NO_ID = -1


@dataclass(frozen=True, slots=True)
class TokenIdsConfig:
    """The ids of a table.

    Args:
        n_ids: ids run from 0 to `n_ids` - 1.
        pad: the id that fills rows up; None: one more id is added for it.
        end: the id that ends a row, if there is one.
    """

    n_ids: int
    pad: int | None = None
    end: int | None = None
    name: Literal["tokens"] = NAME

    def __post_init__(self) -> None:
        most = MAX_VOCABULARY - (self.pad is None)
        if not 2 <= self.n_ids <= most:
            without = " without a pad id" if self.pad is None else ""
            raise ValueError(f"vocabulary size {self.n_ids} is outside 2-{most}, the sizes of a table{without}")
        for what, token in (("pad", self.pad), ("end", self.end)):
            if token is not None and not 0 <= token < self.n_ids:
                raise ValueError(f"{what} id {token} is outside 0-{self.n_ids - 1}")
        if self.pad is not None and self.pad == self.end:
            raise ValueError(f"id {self.pad} is both pad and end; give two ids")


class TokenIdsTokenizer(Tokenizer):
    """Names for the ids of a table; there is no id that starts a row."""

    name = NAME
    units_per_second = 0.0
    knows_drums = False
    start_id = NO_ID

    def __init__(self, config: TokenIdsConfig) -> None:
        self.config = config
        self.vocab_size = config.n_ids + (config.pad is None)
        self.pad_id = config.n_ids if config.pad is None else config.pad
        self.end_id = NO_ID if config.end is None else config.end
        self.names: Sequence[str] = [str(token) for token in range(self.vocab_size)]

    @cached_property
    def grammar(self) -> Grammar:  # type: ignore[override]
        """Every id but the pad may follow every other."""
        next_state = np.zeros((1, self.vocab_size), np.int16)
        next_state[:, self.pad_id] = -1
        return Grammar.without_slots(next_state)

    def encode_block(self, batch: NoteBatch) -> TokenBatch:
        """Refuse: notes have no such ids."""
        refuse_music()

    def decode(self, ids: ArrayLike) -> Score:
        """Refuse: the ids represent no notes."""
        refuse_music()


def refuse_music() -> NoReturn:
    """Raise ConfigError where music is asked for."""
    raise ConfigError(
        "the ids of a token table represent no notes; a model of them can be trained, but writes no music"
    )
