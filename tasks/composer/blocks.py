"""A piece made block by block: a model proposes, a person accepts, retries or undoes. Pure steps on token ids.

Source: the Compound Composer of Optimus VIRTUOSO (2021); here blocks are of any size, end on note boundaries, and
undoing restores the ids exactly.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from models.config import SamplingConfig
from models.settings import check_settings, setting
from tasks.errors import OrchestrionError
from tasks.music.tokenizers.base import Tokenizer
from tasks.music.tokenizers.grammar import Grammar
from tasks.music.tokenizers.note_boundaries import boundary_places

if TYPE_CHECKING:
    from models.sampling.sample import GrammarTables
    from tasks.checkpoints import LoadedModel

FORMAT = 1
PrimerKind = Literal["start", "midi", "dataset", "random"]
_SLACK = 16  # ids after the requested ones; they mostly reach the next note boundary
_PATIENCE = 128  # ids beyond those, after which sounding notes are made to end
_LONGEST_SECONDS = 2.0  # for which a note may sound then, and half as long with every further `_SLACK` ids
_CLOSING_CALLS = 64
MIN_NEW_TOKENS = 64  # of a block before the model may end the piece
_TOKENS_PER_NOTE_MAX = 64
_LIMIT = 1 << 32  # of the two counters that name a stream of random numbers together


@dataclass(frozen=True, kw_only=True, slots=True)
class ComposerConfig:
    """How blocks are made."""

    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "Kind of device, which the ids depend on; auto: a GPU where this machine has one."
    )
    seed: int = setting(0, "Seed of proposals, besides the numbers of block and proposal.", ge=0, lt=2**64)
    block_tokens: int = setting(512, "Least tokens of a block, which ends at a note boundary.", ge=1, lt=_LIMIT)
    block_notes: int = setting(0, "Least notes of a block, in place of `block_tokens`; 0: not set.", ge=0, lt=_LIMIT)
    context_tokens: int = setting(
        2048, "Most ids that the model looks back on, so that a block takes no longer in a long piece; 0: no limit.",
        ge=0, lt=_LIMIT,
    )  # fmt: skip
    kept_tokens: int | None = setting(None, "As in `SamplingConfig`.")
    temperature: float = setting(1.0, "As in `SamplingConfig`.")
    top_k: int | None = setting(None, "As in `SamplingConfig`.")
    top_p: float | None = setting(None, "As in `SamplingConfig`.")
    greedy: bool = setting(False, "As in `SamplingConfig`.")
    max_note_seconds: float = setting(0.0, "A note that sounds for longer ends next, as in batches; 0: any.", ge=0)
    min_new_tokens: int = setting(
        MIN_NEW_TOKENS, "Tokens of a block, and then one note, before which the model cannot end the piece; 0: none.",
        ge=0, lt=_LIMIT,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_settings(self)
        if self.context_tokens == 1:
            raise ValueError("context_tokens=1 is neither 0 nor 2 or more")
        self.sampling(1)

    def sampling(self, max_tokens: int, max_length: int | None = None, min_new_tokens: int = 0) -> SamplingConfig:
        """Return the settings for a piece of so many ids by a model that takes `max_length`; None: any number."""
        limits = [limit for limit in (self.context_tokens, max_length) if limit]
        return SamplingConfig(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            greedy=self.greedy,
            max_tokens=max_tokens,
            min_new_tokens=min_new_tokens,
            context_tokens=min(limits, default=None),
            kept_tokens=self.kept_tokens,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """The model of a session; `checkpoint` is a path within the home."""

    reference: str
    run_id: str
    dataset: str
    checkpoint: str
    weights_sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Primer:
    """The beginning of a piece before its first block: `<start>` alone, or music that the model continues.

    Args:
        name: of the MIDI file, or of the dataset's row; empty for the other kinds.
        dropped: notes of the file that the encoding left out or changed, by reason.
    """

    kind: PrimerKind = "start"
    name: str = ""
    sha256: str = ""
    n_notes: int = 0
    n_file_notes: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Ids that a model wrote, and how: the block's number in the piece, its proposal's number, and the settings."""

    number: int
    proposal: int
    n_notes: int
    config: ComposerConfig
    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One step of a session, and the ids of the piece after it."""

    step: Literal["start", "propose", "accept", "undo"]
    block: int = 0
    proposal: int = 0
    n_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A piece in the making; every step returns another one.

    Args:
        encoding: the tokenizer's JSON form.
        proposal: the block that waits for a decision.
        n_proposals: for each block number, the proposals made so far, so that none comes twice.
    """

    format: int = FORMAT
    name: str
    model: ModelFacts
    encoding: dict[str, Any]
    config: ComposerConfig
    primer: Primer
    blocks: tuple[Block, ...] = ()
    proposal: Block | None = None
    n_proposals: tuple[int, ...] = ()
    history: tuple[Event, ...] = field(default=())

    @property
    def ids(self) -> list[int]:
        """The ids that were accepted, the primer's included."""
        return [*self.primer.ids, *(token for block in self.blocks for token in block.ids)]

    def is_ended(self, end_id: int) -> bool:
        """Return whether the last accepted block ends the piece."""
        return bool(self.blocks) and self.blocks[-1].ids[-1] == end_id


def propose(
    session: Session, loaded: "LoadedModel", config: ComposerConfig | None = None, may_end: bool = True
) -> Session:
    """Return the session with a new proposal for the next block, in place of the one that waited.

    The ids depend on the model, the accepted ids, the settings, the block's number and the proposal's number.

    Args:
        config: for this proposal only; the session's by default.
        may_end: let the model end the piece with the block.
    Raises:
        OrchestrionError: the piece has ended, or the model finds no note boundary, or too few notes.
    """
    tokenizer = loaded.tokenizer
    if session.is_ended(tokenizer.end_id):
        raise OrchestrionError(f"session {session.name}: the piece has ended; undo opens it again")
    config, number = config or session.config, len(session.blocks)
    counts = [*session.n_proposals, *[0] * (number + 1 - len(session.n_proposals))]
    proposal = counts[number]
    if max(number, proposal) >= _LIMIT:
        raise OrchestrionError(f"session {session.name}: no more than {_LIMIT} blocks and proposals")
    counts[number] += 1
    writer = _BlockWriter(loaded, session.ids, config, number << 32 | proposal, may_end)
    ids = writer.write()
    n_notes = writer.n_notes(writer.begin + len(ids))
    block = Block(number=number, proposal=proposal, n_notes=n_notes, config=config, ids=tuple(ids))
    return _after(replace(session, proposal=block, n_proposals=tuple(counts)), "propose", block)


def accept(session: Session) -> Session:
    """Return the session with its proposal as the last block."""
    block = session.proposal
    if block is None:
        raise OrchestrionError(f"session {session.name}: nothing to accept; propose first")
    return _after(replace(session, blocks=(*session.blocks, block), proposal=None), "accept", block)


def undo(session: Session) -> Session:
    """Return the session without its last block, and without the proposal that would have followed it."""
    if not session.blocks:
        raise OrchestrionError(f"session {session.name}: nothing to undo; no block has been accepted")
    return _after(replace(session, blocks=session.blocks[:-1], proposal=None), "undo", session.blocks[-1])


def _after(session: Session, step: Literal["propose", "accept", "undo"], block: Block) -> Session:
    event = Event(step=step, block=block.number, proposal=block.proposal, n_tokens=len(session.ids))
    return replace(session, history=(*session.history, event))


def without_end(grammar: Grammar, end_id: int) -> Grammar:
    """Return the grammar of pieces that never end."""
    next_state = grammar.next_state_SV.copy()
    next_state[:, end_id] = -1
    return replace(grammar, next_state_SV=next_state)


def count_notes(tokenizer: Tokenizer, ids: Sequence[int]) -> int:
    """Return the notes in ids, those that still sound included."""
    return len(tokenizer.decode(np.array(ids)).notes.pitch)


class _BlockWriter:
    """Continues ids with a model until there are enough, and cuts between notes; `stream` numbers the random stream."""

    def __init__(
        self, loaded: "LoadedModel", ids: Sequence[int], config: ComposerConfig, stream: int, may_end: bool
    ) -> None:
        self.loaded, self.tokenizer, self.grammar = loaded, loaded.tokenizer, loaded.tokenizer.grammar
        self.rules = self.grammar if may_end else without_end(self.grammar, self.tokenizer.end_id)
        self.config, self.stream = config, stream
        self.ids, self.begin = list(ids), len(ids)
        self.tables = self.limited_tables(config.max_note_seconds)
        self.n_notes_before = count_notes(self.tokenizer, ids)
        self.n_least = config.min_new_tokens  # ids of the block before an end
        self.refused_at = 0  # place of an end that was removed

    @property
    def n_written(self) -> int:
        return len(self.ids) - self.begin

    def n_notes(self, place: int | None = None) -> int:
        """Return the notes of the block, or of its ids before a place among all ids."""
        return count_notes(self.tokenizer, self.ids[:place]) - self.n_notes_before

    def limited_tables(self, max_note_seconds: float) -> "GrammarTables":
        """Return the grammar's tables with a limit on the seconds that a note sounds, 0: none."""
        from models.sampling.sample import GrammarTables
        from tasks.sampling.sample_ids import longest_open

        # Blocks are written in several calls, so ages count from the block's beginning, before which no note sounds.
        clock_from = self.begin if self.config.max_note_seconds else None
        max_open = longest_open(self.tokenizer, max_note_seconds)
        return GrammarTables.from_numpy(self.rules, max_open=max_open, clock_from=clock_from)

    def write(self) -> list[int]:
        """Return the ids of the block."""
        enough_at: int | None = None
        while True:
            self.extend(self.n_missing() + _SLACK, self.tables)
            if self.is_ended_too_early():
                self.ids.pop()
                self.refused_at = len(self.ids)
                self.n_least = self.n_written + MIN_NEW_TOKENS
                continue
            place = self.first_end()
            if place is None and self.is_enough(len(self.ids)):
                enough_at = enough_at or len(self.ids)
                place = self.close() if len(self.ids) - enough_at >= _PATIENCE else None
            if place is not None:
                return self.ids[self.begin : place]
            self.check_progress()

    def is_ended_too_early(self) -> bool:
        """Return whether the model has ended the piece with a block without notes, where it may not."""
        if not self.config.min_new_tokens or self.ids[-1] != self.tokenizer.end_id:
            return False
        is_forced = len(self.ids) - 1 == self.refused_at  # the grammar allows nothing else
        too_long = self.n_written > self.config.block_tokens + _PATIENCE  # it writes nothing but time
        return not (is_forced or too_long) and not self.n_notes()

    def n_missing(self) -> int:
        """Return an estimate of the ids that the block lacks."""
        if not self.config.block_notes:
            return max(self.config.block_tokens - self.n_written, 0)
        n_notes = self.n_notes()
        n_all = self.n_notes_before + n_notes
        per_note = len(self.ids) / n_all if n_all > 4 else 8
        return round(max(self.config.block_notes - n_notes, 0) * per_note)

    def is_enough(self, place: int) -> bool:
        if not self.config.block_notes:
            return place - self.begin >= self.config.block_tokens
        return self.n_notes(place) >= self.config.block_notes

    def first_end(self) -> int | None:
        """Return the first note boundary after enough ids, or the end of the piece if it was written, or None."""
        places = boundary_places(self.grammar, self.ids, self.tokenizer.end_id)
        places = places[places > self.begin].tolist()
        first = bisect.bisect_left(places, True, key=self.is_enough)
        if first < len(places):
            return places[first]
        return len(self.ids) if self.ids[-1] == self.tokenizer.end_id else None

    def check_progress(self) -> None:
        limit = _TOKENS_PER_NOTE_MAX * self.config.block_notes + 256
        if self.config.block_notes and self.n_written > limit and not self.is_enough(len(self.ids)):
            raise OrchestrionError(
                f"the model wrote only {self.n_notes()} of {self.config.block_notes} notes in {self.n_written}"
                " tokens; propose again, or give the block a length in tokens"
            )

    def extend(self, n_ids: int, tables: "GrammarTables") -> None:
        """Let the model write `n_ids` more, or up to the end of the piece."""
        import torch

        from models.sampling.sample import sample

        (written,) = sample(
            self.loaded.model,
            [torch.tensor(self.ids)],
            [self.stream],
            self.config.seed,
            self.config.sampling(
                len(self.ids) + n_ids,
                self.loaded.model.max_length,
                min(max(self.n_least - self.n_written, 0), n_ids),
            ),
            tables,
            end_id=self.tokenizer.end_id,
            pad_id=self.tokenizer.pad_id,
            batch_size=1,
        )
        self.ids = written.tolist()

    def close(self) -> int:
        """Let the model write on with ever shorter notes, up to where none sounds; return that place."""
        seconds = min(_LONGEST_SECONDS, self.config.max_note_seconds or _LONGEST_SECONDS)
        tables = self.limited_tables(seconds)
        for _ in range(_CLOSING_CALLS):
            self.extend(_SLACK, tables)
            place = self.first_end()
            if place is not None:
                return place
            # At 1, all that sounds is ended as soon as time passes.
            tables = replace(tables, max_open=max(tables.max_open // 2, 1))
        raise OrchestrionError("the model finds no end of the notes that sound; propose again")
