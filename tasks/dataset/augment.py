"""Augmentation: the variants of a training piece, as batches of notes."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from tasks.config.dataset import AugmentConfig
from tasks.music.arrays import BoolArray, IntArray
from tasks.music.notes import NoteBatch
from tasks.music.transforms import flip, shift_velocity, stretch_time, transpose, transpose_within

PROGRAMS_PER_FAMILY = 8  # General MIDI


@dataclass(frozen=True, slots=True, order=True)
class Variant:
    """One way to change a piece."""

    stretch: float = 1.0
    velocity_shift: int = 0
    transposition: int = 0  # semitones
    redraws_parts: bool = False  # swap or leave out some parts as well
    is_flipped: bool = False  # upside down, before it is transposed


ITSELF = Variant()


def plan_variants(config: AugmentConfig, pieces: list[str]) -> dict[Variant, BoolArray]:
    """Return each variant, the piece itself included, with a mask bool[P] of the pieces that get it, in a fixed order.

    Args:
        pieces: ids, 16 hex digits; random draws depend on the id and the seed alone.
    """
    redraws = config.swap_probability > 0 or config.drop_probability > 0
    everyone = np.ones(len(pieces), np.bool_)
    if config.n_sampled:
        chosen = {ITSELF: everyone}
        for index, piece in enumerate(pieces):
            for change in _draw(config, piece):
                mask = chosen.setdefault(_variant(change, redraws), np.zeros(len(pieces), np.bool_))
                mask[index] = True
    else:
        flips = (False, True) if config.flip else (False,)
        changes = itertools.product(config.stretches, config.velocity_shifts, config.transpositions, flips)
        chosen = {_variant(change, redraws): everyone for change in changes}
    return dict(sorted(chosen.items()))


def group_variants(variants: dict[Variant, BoolArray]) -> Iterator[tuple[Variant, dict[Variant, BoolArray]]]:
    """Yield groups of variants that differ only in transposition: the shared variant and the members."""
    groups: dict[Variant, dict[Variant, BoolArray]] = {}
    for variant, mask in variants.items():
        shared = variant if variant.redraws_parts else replace(variant, transposition=0)
        groups.setdefault(shared, {})[variant] = mask
    yield from groups.items()


def change_notes(
    config: AugmentConfig, batch: NoteBatch, pieces: list[str], variant: Variant
) -> tuple[NoteBatch, IntArray]:
    """Return the pieces of a variant without its transposition, and int64[P], their notes with a clipped velocity."""
    n_clipped = np.zeros(batch.n_pieces, np.int64)
    if variant.redraws_parts:
        batch = _redraw_parts(config, batch, pieces, variant)
    if variant.is_flipped:
        batch = flip(batch)
    if variant.stretch != 1.0:
        batch = stretch_time(batch, variant.stretch)
    if variant.velocity_shift:
        batch, n_clipped = shift_velocity(batch, variant.velocity_shift)
    return batch, n_clipped


def vary_notes(config: AugmentConfig, batch: NoteBatch, pieces: list[str]) -> tuple[NoteBatch, IntArray]:
    """Return the notes of all variants, in order of piece and variant, and int64[V], the index of the piece of each.

    A variant that leaves 0-127 is left out, or its notes are, as the config says.
    """
    everyone = np.ones(batch.n_pieces, np.bool_)
    parts, owners, ranks = [], [], []
    for shared, members in group_variants(plan_variants(config, pieces)):
        changed, _ = change_notes(config, batch, pieces, shared)
        for variant, mask in members.items():
            moved, fits = transpose(changed, variant.transposition)
            if config.out_of_range == "leave_notes_out":
                moved, fits = transpose_within(changed, variant.transposition)[0], everyone
            owners.append(np.flatnonzero(mask & fits))
            ranks.append(np.full(len(owners[-1]), len(ranks)))
            parts.append(moved.take(owners[-1]))
    owner = np.concatenate(owners)
    order = np.lexsort([np.concatenate(ranks), owner])
    return NoteBatch.joined(parts).take(order), owner[order]


def _variant(change: tuple[float, int, int, bool], redraws_parts: bool) -> Variant:
    stretch, velocity_shift, transposition, is_flipped = change
    variant = Variant(stretch, velocity_shift, transposition, is_flipped=is_flipped)
    return replace(variant, redraws_parts=True) if redraws_parts and variant != ITSELF else variant


def _draw(config: AugmentConfig, piece: str) -> set[tuple[float, int, int, bool]]:
    random = np.random.Generator(np.random.Philox(key=[config.seed, int(piece[:16], 16)]))
    drawn = set()
    for _ in range(config.n_sampled):
        is_changed = random.random(3) < config.change_probability
        places = random.random(3)
        stretch, shift, semitones = (
            axis[int(place * len(axis))]
            for axis, place in zip(
                (config.stretches, config.velocity_shifts, config.transpositions), places, strict=True
            )
        )
        is_flipped = config.flip and random.random() < config.change_probability / 2
        drawn.add(
            (
                stretch if is_changed[0] else 1.0,
                shift if is_changed[1] else 0,
                semitones if is_changed[2] else 0,
                is_flipped,
            )
        )
    return drawn


def _redraw_parts(config: AugmentConfig, batch: NoteBatch, pieces: list[str], variant: Variant) -> NoteBatch:
    """Swap programs within their families and leave parts out, drawn for each (piece, variant, part)."""
    programs, stays = batch.program.copy(), np.ones(batch.n_notes, np.bool_)
    change = [round(variant.stretch * 1e6), variant.velocity_shift + 128, variant.transposition + 128]
    for index, piece in enumerate(pieces):
        notes = slice(int(batch.offsets[index]), int(batch.offsets[index + 1]))
        parts, part = np.unique(batch.track[notes], return_inverse=True)
        if not len(parts):
            continue
        random = np.random.default_rng([config.seed, int(piece[:16], 16), *change, *[1] * variant.is_flipped])
        step = random.integers(1, PROGRAMS_PER_FAMILY, len(parts))
        step[random.random(len(parts)) >= config.swap_probability] = 0
        is_left_out = random.random(len(parts)) < config.drop_probability
        if is_left_out.all():
            is_left_out[int(random.integers(len(parts)))] = False
        place, family = batch.program[notes] % PROGRAMS_PER_FAMILY, batch.program[notes] // PROGRAMS_PER_FAMILY
        swapped = family * PROGRAMS_PER_FAMILY + (place + step[part]) % PROGRAMS_PER_FAMILY
        programs[notes] = np.where(batch.is_drum[notes], batch.program[notes], swapped)
        stays[notes] = ~is_left_out[part]
    return replace(batch, program=programs).where(stays)
