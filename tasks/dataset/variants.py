"""Token rows of pieces in all variants; rows that follow from other tokens are derived, not encoded."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.config.dataset import AugmentConfig
from tasks.dataset.augment import ITSELF, Variant, change_notes, group_variants, plan_variants
from tasks.music.arrays import BoolArray, IntArray, offsets_of
from tasks.music.compiled import njit
from tasks.music.notes import NoteBatch
from tasks.music.tokenizers.base import TokenArray, TokenBatch, Tokenizer
from tasks.music.tokenizers.optimus.text_tokenizer import OptimusTxtTokenizer
from tasks.music.transforms import transpose_within
from tasks.storage.parquet import IS_FLIPPED, TOKEN_SCHEMA, list_column

TOKENS_PER_CHUNK = 1 << 28  # Arrow counts the items of a column of lists with 32 bits


@dataclass(slots=True)
class TokenShardCounts:
    """Counts of a token shard, stored in its metadata."""

    n_pieces: int = 0
    n_rows: int = 0
    n_tokens: int = 0
    n_notes: int = 0
    seconds: float = 0.0
    max_tokens: int = 0
    pieces_without_notes: int = 0  # left out, because the encoding keeps none of their notes
    variants_out_of_range: int = 0  # left out, because a note would leave 0-127, or by its flip the encoding
    variants_unchanged: int = 0  # left out, because another variant has the same tokens
    notes_out_of_range: int = 0  # left out of variants that stay
    velocities_clipped: int = 0  # notes of variants whose velocity would leave 1-127
    notes_cut_by_windows: int = 0  # notes that the end of a window cuts
    notes_dropped: dict[str, int] = field(default_factory=dict)  # by reason, over the unaugmented pieces


@dataclass(slots=True)
class TokenRows:
    """Rows of tokens, gathered variant by variant."""

    schema: pa.Schema = TOKEN_SCHEMA
    counts: TokenShardCounts = field(default_factory=TokenShardCounts)
    parts: list[tuple[Variant, IntArray, TokenBatch]] = field(default_factory=list)  # variant, its pieces, their tokens

    def add(self, variant: Variant, pieces: IntArray, tokens: TokenBatch) -> None:
        self.parts.append((variant, pieces, tokens))
        self.counts.n_rows += len(pieces)
        self.counts.n_tokens += len(tokens.ids)
        self.counts.n_notes += int(tokens.n_notes.sum())
        self.counts.seconds = round(self.counts.seconds + float(tokens.seconds.sum()), 3)
        self.counts.max_tokens = max(self.counts.max_tokens, int(np.diff(tokens.offsets).max(initial=0)))

    def table(self, names: list[str], windows: IntArray | None = None) -> pa.Table:
        """Return the rows by the schema, ordered by piece and variant.

        Args:
            names: the ids of the pieces; those of a piece's windows are the same.
            windows: int64, the number of each window within its piece; by default 0.
        """
        variants = [variant for variant, _, _ in self.parts]
        n_rows = [len(pieces) for _, pieces, _ in self.parts]
        piece = np.concatenate([pieces for _, pieces, _ in self.parts])
        ranks = {variant: rank for rank, variant in enumerate(sorted(variants))}
        order = np.lexsort([np.repeat([ranks[variant] for variant in variants], n_rows), piece])
        lengths = np.concatenate([np.diff(tokens.offsets) for _, _, tokens in self.parts])
        offsets = offsets_of(lengths[order])
        starts = np.empty(len(order), np.int64)
        starts[order] = offsets[:-1]
        ids, row = np.empty(int(offsets[-1]), np.uint16), 0
        for _, pieces, tokens in self.parts:
            _place_rows(tokens.ids, tokens.offsets, starts[row : row + len(pieces)], ids)
            row += len(pieces)
        columns = {
            name: np.repeat([getattr(variant, name) for variant in variants], n_rows)[order]
            for name in ("transposition", "stretch", "velocity_shift", "redraws_parts", "is_flipped")
        } | {
            "piece": pa.array(names, pa.string()).take(pa.array(piece[order])),
            "window": (np.zeros(len(names), np.int64) if windows is None else windows)[piece[order]],
            "n_tokens": lengths[order],
            "n_notes": np.concatenate([tokens.n_notes for _, _, tokens in self.parts])[order],
            "seconds": np.concatenate([tokens.seconds for _, _, tokens in self.parts])[order],
        }
        return _in_chunks(self.schema, columns, ids, offsets)


def encode_variants(
    tokenizer: Tokenizer, augment: AugmentConfig, batch: NoteBatch, pieces: list[str], names: Sequence[str] = ()
) -> TokenRows:
    """Encode pieces in all their variants, under their names if there are any.

    Variants that differ only in transposition are derived from the tokens of one of them where that is exact. A variant
    with the tokens of another one, such as a stretch below the encoding's resolution, is left out.
    """
    rows = TokenRows(TOKEN_SCHEMA.append(IS_FLIPPED) if augment.flip else TOKEN_SCHEMA)
    seen = np.zeros((len(pieces), 0), np.uint64)
    groups = list(group_variants(plan_variants(augment, pieces)))
    for shared, members in sorted(groups, key=lambda group: group[0] != ITSELF):  # the piece itself comes first
        wanted = np.flatnonzero(np.any(list(members.values()), axis=0))
        changed, n_clipped = change_notes(augment, batch.take(wanted), [pieces[place] for place in wanted], shared)
        plain = tokenizer.encode(changed)
        if not rows.parts:
            rows.counts.n_pieces, rows.counts.pieces_without_notes = len(pieces), int((plain.n_notes == 0).sum())
            rows.counts.notes_dropped = {reason: int(n.sum()) for reason, n in sorted(plain.dropped.items())}
        prints = np.zeros((len(pieces), 1), np.uint64)
        prints[wanted, 0] = _fingerprints(plain.ids, plain.offsets)
        has_notes, is_new = plain.n_notes > 0, ~np.any(seen[wanted] == prints[wanted], axis=1)
        seen = np.hstack([seen, prints])
        transposed = _Transposer(tokenizer, augment, changed, plain)
        n_lost = _count_lost(changed, *tokenizer.pitch_range) * shared.is_flipped
        leaves = (n_lost > 0) & (augment.out_of_range == "leave_variant_out")
        for variant, mask in members.items():
            chosen = mask[wanted] & has_notes
            rows.counts.variants_unchanged += int(np.sum(chosen & ~is_new))
            rows.counts.variants_out_of_range += int(np.sum(chosen & is_new & leaves))
            places, tokens = transposed(chosen & is_new & ~leaves, variant.transposition, rows.counts)
            rows.counts.notes_out_of_range += int(n_lost[places].sum())
            rows.counts.velocities_clipped += int(n_clipped[places].sum())
            if names:
                assert isinstance(tokenizer, OptimusTxtTokenizer)
                tokens = tokenizer.name_songs(tokens, [names[int(place)] for place in wanted[places]])
            rows.add(variant, wanted[places], tokens)
    return rows


def _count_lost(batch: NoteBatch, low: int, high: int) -> IntArray:
    """Return int64[P], the flipped notes of each piece outside of a range that held them before."""
    pitch, mirrored = batch.pitch, 127 - batch.pitch
    is_lost = ((pitch < low) | (pitch > high)) & (mirrored >= low) & (mirrored <= high) & ~batch.is_drum
    return np.bincount(batch.piece_of_note[is_lost], minlength=batch.n_pieces)


class _Transposer:
    """Transposes encoded pieces in their tokens where that is exact, otherwise in their notes."""

    def __init__(self, tokenizer: Tokenizer, augment: AugmentConfig, batch: NoteBatch, plain: TokenBatch) -> None:
        self.tokenizer, self.augment, self.batch, self.plain = tokenizer, augment, batch, plain
        self.lowest, self.highest, self.has_drums = _pitch_ranges(batch.offsets, batch.pitch, batch.is_drum)

    def __call__(self, chosen: BoolArray, semitones: int, counts: TokenShardCounts) -> tuple[IntArray, TokenBatch]:
        """Return the indices of the chosen pieces that have this transposition, and their tokens."""
        if not semitones:
            return np.flatnonzero(chosen), _take(self.plain, np.flatnonzero(chosen))
        is_pitched = self.highest >= 0
        counts.variants_unchanged += int(np.sum(chosen & ~is_pitched))
        chosen = chosen & is_pitched
        fits = (self.lowest + semitones >= 0) & (self.highest + semitones <= 127)
        if self.augment.out_of_range == "leave_variant_out":
            counts.variants_out_of_range += int(np.sum(chosen & ~fits))
            chosen = chosen & fits
        low, high = self.tokenizer.pitch_range  # the tokens lack notes outside of it
        is_held = (self.lowest + min(semitones, 0) >= low) & (self.highest + max(semitones, 0) <= high)
        derivable = np.flatnonzero(chosen & is_held & (self.tokenizer.knows_drums | ~self.has_drums))
        derived = _take(self.plain, derivable)
        ids = self.tokenizer.transpose_ids(derived.ids, semitones)
        if ids is None:
            derivable, derived = derivable[:0], _take(self.plain, derivable[:0])
        else:
            derived = replace(derived, ids=ids)
        rest = np.setdiff1d(np.flatnonzero(chosen), derivable)
        if not len(rest):
            return derivable, derived
        moved, n_left_out = transpose_within(self.batch.take(rest), semitones)
        counts.notes_out_of_range += int(n_left_out.sum())
        encoded = self.tokenizer.encode(moved)
        has_notes = np.flatnonzero(encoded.n_notes)
        return np.concatenate([derivable, rest[has_notes]]), TokenBatch.joined([derived, _take(encoded, has_notes)])


def _take(tokens: TokenBatch, pieces: IntArray) -> TokenBatch:
    """Return some pieces, by their indices in rising order."""
    if len(pieces) == len(tokens.n_notes):
        return tokens
    offsets = offsets_of(np.diff(tokens.offsets)[pieces])
    ids = np.empty(int(offsets[-1]), np.uint16)
    _copy_rows(tokens.ids, tokens.offsets, pieces, ids)
    dropped = {reason: counts[pieces] for reason, counts in tokens.dropped.items()}
    return TokenBatch(offsets, ids, tokens.n_notes[pieces], tokens.seconds[pieces], dropped)


def _in_chunks(schema: pa.Schema, columns: dict[str, Any], ids: TokenArray, offsets: IntArray) -> pa.Table:
    """Return a table with the lists of tokens in chunks of at most `TOKENS_PER_CHUNK`."""
    borders = [0]
    while borders[-1] < len(offsets) - 1:
        limit = offsets[borders[-1]] + TOKENS_PER_CHUNK
        borders.append(max(int(np.searchsorted(offsets, limit, side="right")) - 1, borders[-1] + 1))
    kind = schema.field("tokens").type
    chunks = [
        list_column(offsets[first : last + 1] - offsets[first], ids[offsets[first] : offsets[last]], kind)
        for first, last in pairwise(borders)
    ]
    arrays = {f.name: pa.array(columns[f.name], f.type) for f in schema if f.name in columns}
    return pa.table(arrays | {"tokens": pa.chunked_array(chunks, kind)}, schema=schema)


@njit(cache=True, nogil=True)
def _pitch_ranges(offsets, pitch, is_drum):
    """Return the lowest and highest pitch of each piece without drums (128, -1: none), and whether it has drums."""
    lowest, highest = np.full(len(offsets) - 1, 128), np.full(len(offsets) - 1, -1)
    has_drums = np.zeros(len(offsets) - 1, np.bool_)
    for piece in range(len(lowest)):
        for note in range(offsets[piece], offsets[piece + 1]):
            if is_drum[note]:
                has_drums[piece] = True
            else:
                lowest[piece], highest[piece] = min(lowest[piece], pitch[note]), max(highest[piece], pitch[note])
    return lowest, highest, has_drums


@njit(cache=True, nogil=True)
def _place_rows(ids, offsets, starts, out):
    for row in range(len(starts)):
        length = offsets[row + 1] - offsets[row]
        out[starts[row] : starts[row] + length] = ids[offsets[row] : offsets[row + 1]]


@njit(cache=True, nogil=True)
def _copy_rows(ids, offsets, rows, out):
    at = 0
    for row in rows:
        length = offsets[row + 1] - offsets[row]
        out[at : at + length] = ids[offsets[row] : offsets[row + 1]]
        at += length


@njit(cache=True, nogil=True)
def _fingerprints(ids, offsets):
    """Return uint64[P]: a hash of the tokens of each piece (FNV-1a), never 0."""
    prints = np.empty(len(offsets) - 1, np.uint64)
    for row in range(len(prints)):
        value = np.uint64(0xCBF29CE484222325)
        for place in range(offsets[row], offsets[row + 1]):
            value = (value ^ np.uint64(ids[place])) * np.uint64(0x100000001B3)
        prints[row] = value | np.uint64(1)
    return prints
