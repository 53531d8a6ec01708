"""Arrays for the compiled code of `remi`: the vocabulary, the columns of a batch, and work space."""

from collections import namedtuple
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.music.arrays import FloatArray, IntArray
from tasks.music.compiled import njit
from tasks.music.notes import ALL_COLUMNS, NoteBatch, kind_of, owner_of
from tasks.music.tokenizers.remi.vocabulary import (
    CHORDS,
    DENOMINATOR_MAX,
    N_PROGRAMS,
    Kind,
    RemiVocabulary,
    grid_points,
    levels_of,
    parse_grid,
    ticks_of,
)

TICK_MAX = 2**31 - 1  # of the grid; a sort key has room for 31 bits of it
DRUM_SLOT = N_PROGRAMS - 1

# A note as one integer, from its highest bits down: tick, rank of its program, pitch, duration, velocity. Sorted, the
# integers are in the order of their tokens.
TICK_BIT, RANK_BIT, PITCH_BIT, DURATION_BIT = 32, 24, 17, 7
RANK_MASK, PITCH_MASK, DURATION_MASK, VELOCITY_MASK = 255, 127, 1023, 127

# For functions that compiled code alone calls: what Python would need to call them takes half of the compiler's time.
_INNER: dict[str, Any] = {"cache": True, "nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
inner_njit = njit(**_INNER)

N_CLOCK = 9  # numbers that say how far the tokens of a piece have come, see `writer`


# Numba's caches of other files name this class: under another name they would fail to load.
class EncodeTables(NamedTuple):
    """A vocabulary as the compiled code needs it; L sizes of a beat, see `levels_of`."""

    kind_V: NDArray[np.uint8]  # noqa: N815  shape letter
    value_V: NDArray[np.int32]  # noqa: N815
    steps: int
    chord_steps: int  # steps of the first beat of the grid
    first: IntArray  # first id of each Kind
    pitch_base: int  # id of a pitch, less the pitch
    drum_base: int
    ranges: IntArray  # pitch_min, pitch_max, and the same of drums
    has_velocities: bool
    writes_meters: bool
    has_rests: bool
    chords: int  # 0: none; otherwise how many ids each kind of chord has
    has_tempos: bool
    repeats_tempos: bool
    keeps_longest: bool
    velocity_bin: IntArray  # [128]
    meter_of: IntArray  # [7, 256]: by logarithm of the denominator and numerator; -1 where a meter has no id
    common_time: int
    numerator: IntArray
    denominator_log: IntArray
    level: IntArray  # of each meter: halvings of the beat from the shortest one of all meters
    duration_of: IntArray  # [L, ticks + 1]: nearest duration
    duration_ticks: IntArray  # [L, durations]
    rest_ticks: IntArray  # [L, rests]
    tempo_microseconds: FloatArray  # rising: the slowest tempo last
    chord_key: IntArray


NoteColumns = namedtuple(
    "NoteColumns", [name for name in ALL_COLUMNS if owner_of(name) not in ("pedal_", "key_signature_")]
)


class Work(NamedTuple):
    """Space for the largest piece of a batch."""

    keys: IntArray
    ends: IntArray  # tick at which each note ends
    chord_of: IntArray  # id of the chord that comes before a note, or -1
    members: IntArray  # notes of one program
    first_track: IntArray  # [N_PROGRAMS]
    rank_of: IntArray  # [N_PROGRAMS]: the order of programs at one tick
    slot_of: IntArray  # [N_PROGRAMS]: the program of each rank, 128 for drums
    section_tick: IntArray  # where each time signature begins
    section_meter: IntArray
    section_level: IntArray
    grid_start: IntArray  # ticks of a section are rounded to steps from here on
    tempo_tick: IntArray
    tempo_level: IntArray
    clock: IntArray


def build_tables(vocabulary: RemiVocabulary) -> EncodeTables:
    """Return the tables of a vocabulary."""
    config, steps, n_levels = vocabulary.config, vocabulary.steps, levels_of(vocabulary)
    first = np.array([vocabulary.first[kind] for kind in Kind], np.int64)
    duration_ticks = ticks_of(vocabulary.durations, steps, n_levels)
    rest_points = grid_points(parse_grid("rest_grid", config.rest_grid))
    lengths = np.arange(duration_ticks.max() + 1)
    meter_of = np.full((DENOMINATOR_MAX.bit_length(), 256), -1, np.int64)
    numerator, denominator = np.array(vocabulary.meters, np.int64).T
    denominator_log = np.array([int(value).bit_length() - 1 for value in denominator], np.int64)
    meter_of[denominator_log, numerator] = np.arange(len(numerator))
    pitches = config.pitch_min, config.pitch_max
    drums = (config.drum_pitch_min, config.drum_pitch_max) if config.drum_pitches else pitches
    pitch_base = vocabulary.first[Kind.PITCH] - config.pitch_min
    drum_base = vocabulary.first[Kind.DRUM_PITCH] - config.drum_pitch_min
    return EncodeTables(
        kind_V=vocabulary.kind_V,
        value_V=vocabulary.value_V,
        steps=steps,
        chord_steps=parse_grid("grid", config.grid)[0][2],
        first=first,
        pitch_base=pitch_base,
        drum_base=drum_base if config.drum_pitches else pitch_base,
        ranges=np.array([*pitches, *drums], np.int64),
        has_velocities=config.n_velocities > 0,
        writes_meters=config.time_signatures,
        has_rests=config.rests,
        chords={"none": 0, "kind": 1, "root": 12}[config.chords],
        has_tempos=config.tempos,
        repeats_tempos=config.repeat_tempos,
        keeps_longest=config.duplicates == "longest",
        velocity_bin=nearest(vocabulary.velocities, np.arange(128)) if config.n_velocities else np.zeros(128, np.int64),
        meter_of=meter_of,
        common_time=vocabulary.common_time,
        numerator=numerator.copy(),
        denominator_log=denominator_log,
        level=denominator_log.max() - denominator_log,
        duration_of=np.stack([nearest(ticks, lengths) for ticks in duration_ticks]),
        duration_ticks=duration_ticks,
        rest_ticks=ticks_of(rest_points, steps, n_levels),
        tempo_microseconds=60_000_000 / vocabulary.tempos[::-1],
        chord_key=np.array([chord_key(np.array(intervals)) for intervals in CHORDS.values()], np.int64),
    )


def nearest(levels: NDArray[np.integer], values: NDArray[np.integer]) -> IntArray:
    """Return the place of the nearest level to each value; of two as near, the higher one."""
    above = np.minimum(np.searchsorted(levels, values), len(levels) - 1)
    below = np.maximum(above - 1, 0)
    is_below = np.abs(values - levels[below]) < np.abs(values - levels[above])
    return np.where(is_below, below, above).astype(np.int64)


def note_columns(batch: NoteBatch) -> Any:
    """Return the columns of a batch with one type each, so that the code is compiled once for all batches."""
    # A read-only column, such as one from a shard, is another type.
    return NoteColumns(*(np.require(getattr(batch, name), kind_of(name), ["C", "W"]) for name in NoteColumns._fields))


def work_space(columns: Any) -> Work:
    """Return space for the largest piece of a batch."""
    n_notes, n_tempos, n_meters = (
        int(np.diff(offsets).max(initial=0))
        for offsets in (columns.offsets, columns.tempo_offsets, columns.time_signature_offsets)
    )
    sizes = [n_notes] * 4 + [N_PROGRAMS] * 3 + [n_meters + 1] * 4 + [n_tempos + 1] * 2 + [N_CLOCK]
    return Work(*(np.empty(size, np.int64) for size in sizes))


def chord_key(intervals: IntArray) -> int:
    """Return the intervals of a chord above its first note as one integer; each is within -127 to 127."""
    key = 1
    for interval in intervals:
        key = key << 8 | (interval + 64) & 255
    return int(key)
