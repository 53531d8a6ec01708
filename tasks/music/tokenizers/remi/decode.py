"""Decoding of `remi` ids to notes, tempos and time signatures, in compiled code; every sequence of ids decodes."""

import numpy as np

from tasks.music.arrays import IntArray
from tasks.music.compiled import njit
from tasks.music.score import DEFAULT_TEMPO, Score, Tempos, TimeSignatures, build_score
from tasks.music.tokenizers.remi.tables import DRUM_SLOT, EncodeTables
from tasks.music.tokenizers.remi.vocabulary import DEFAULT_VELOCITY, N_PROGRAMS, Kind, RemiVocabulary

# Places in the clock, the state of the reading of tokens.
TICK, BAR, BAR_TICK, METER_BAR, METER_TICK, METER, NOTE_END, N_CLOCK = range(8)


def decode_ids(ids: IntArray, vocabulary: RemiVocabulary, tables: EncodeTables) -> Score:
    """Return the music of one piece of ids, all of which the vocabulary has; see `RemiTokenizer.decode`."""
    notes, tempos, meters = (np.empty((rows, len(ids) + 1), np.int64) for rows in (5, 2, 2))
    counts = np.zeros(3, np.int64)
    _read_tokens(ids, tables, notes, tempos, meters, counts)
    onset, duration, pitch, velocity, slot = notes[:, : counts[0]]
    track_of = _track_order(onset, slot)
    tempo_tick, tempo_level = _last_of_each_tick(tempos[:, : counts[1]])
    microseconds = np.round(60_000_000 / vocabulary.tempos[tempo_level]).astype(np.int64)
    if not len(tempo_tick) or tempo_tick[0]:
        tempo_tick, microseconds = np.append(0, tempo_tick), np.append(DEFAULT_TEMPO, microseconds)
    meter_tick, meter = _last_of_each_tick(meters[:, : counts[2]])
    numerator, denominator = np.array(vocabulary.meters, np.int64)[meter].T
    return build_score(
        vocabulary.steps << int(tables.level[tables.common_time]),
        {
            "onset": onset,
            "duration": duration,
            "pitch": pitch,
            "velocity": velocity,
            "program": np.where(slot == DRUM_SLOT, 0, slot),
            "is_drum": slot == DRUM_SLOT,
            "track": track_of[slot],
        },
        tempos=Tempos(tempo_tick, microseconds),
        time_signatures=TimeSignatures(meter_tick, numerator, denominator),
        n_tracks=max(len(np.unique(slot)), 1),
    )


def _last_of_each_tick(changes: IntArray) -> IntArray:
    """Return (tick, value) rows in order of tick, the last of each."""
    changes = changes[:, np.argsort(changes[0], kind="stable")]
    return changes[:, np.append(changes[0, 1:] != changes[0, :-1], True)[: changes.shape[1]]]


def _track_order(onset: IntArray, slot: IntArray) -> IntArray:
    """Number the programs so that at no tick a later one comes before an earlier one, as encoding wrote them.

    Where tokens contradict each other, the program that came first wins. Returns int64[N_PROGRAMS].
    """
    waiting = [int(slot[place]) for place in np.sort(np.unique(slot, return_index=True)[1])]
    follows = np.flatnonzero((onset[1:] == onset[:-1]) & (slot[1:] != slot[:-1]))
    pairs = {divmod(pair, N_PROGRAMS) for pair in np.unique(slot[follows] * N_PROGRAMS + slot[follows + 1]).tolist()}
    number = np.zeros(N_PROGRAMS, np.int64)
    for track in range(len(waiting)):
        later = {after for before, after in pairs if before in waiting}
        chosen = next((program for program in waiting if program not in later), waiting[0])
        waiting.remove(chosen)
        number[chosen] = track
    return number


@njit(cache=True, nogil=True)
def _read_tokens(ids, tables, notes, tempos, meters, counts):
    """Write notes (onset, duration, pitch, velocity, program slot), tempos and meters (tick, place)."""
    clock = np.zeros(N_CLOCK, np.int64)
    clock[BAR], clock[METER] = -1, _first_meter(ids, tables)
    meters[0, 0], meters[1, 0], counts[2] = 0, clock[METER], 1
    slot = 0
    for place in range(len(ids)):
        kind, value = tables.kind_V[ids[place]], np.int64(tables.value_V[ids[place]])
        if kind == Kind.PROGRAM:
            slot = value if value >= 0 else DRUM_SLOT
        elif kind in (Kind.PITCH, Kind.DRUM_PITCH):
            _read_note(ids, place, value, slot, tables, clock, notes, counts)
        elif kind == Kind.TEMPO:
            tempos[0, counts[1]], tempos[1, counts[1]] = clock[TICK], value
            counts[1] += 1
            clock[NOTE_END] = max(clock[NOTE_END], clock[TICK])
        elif kind == Kind.METER:
            if value != clock[METER]:
                clock[METER], clock[METER_BAR], clock[METER_TICK] = value, clock[BAR], clock[BAR_TICK]
                meters[0, counts[2]], meters[1, counts[2]] = clock[TICK], value
                counts[2] += 1
        else:
            _move(kind, value, tables, clock)


@njit(cache=True, nogil=True)
def _first_meter(ids, tables):
    """Return the time signature that comes before all notes, or 4/4."""
    for token in ids:
        kind = tables.kind_V[token]
        if kind == Kind.METER:
            return np.int64(tables.value_V[token])
        if kind in (Kind.PITCH, Kind.DRUM_PITCH):
            break
    return tables.common_time


@njit(cache=True, nogil=True)
def _read_note(ids, place, pitch, slot, tables, clock, notes, counts):
    """Take a pitch as a note if its velocity and duration follow."""
    last = place + 1 + tables.has_velocities
    if last >= len(ids) or tables.kind_V[ids[last]] != Kind.DURATION:
        return
    velocity = DEFAULT_VELOCITY
    if tables.has_velocities:
        if tables.kind_V[ids[place + 1]] != Kind.VELOCITY:
            return
        velocity = np.int64(tables.value_V[ids[place + 1]])
    duration = tables.duration_ticks[tables.level[clock[METER]], tables.value_V[ids[last]]]
    note = counts[0]
    notes[0, note], notes[1, note], notes[2, note] = clock[TICK], duration, pitch
    notes[3, note], notes[4, note] = velocity, slot
    counts[0] += 1
    clock[NOTE_END] = max(clock[NOTE_END], clock[TICK] + duration)


@njit(cache=True, nogil=True)
def _move(kind, value, tables, clock):
    """Follow a bar, a position or a rest."""
    level = tables.level[clock[METER]]
    bar_ticks = (tables.steps << level) * tables.numerator[clock[METER]]
    if kind == Kind.BAR:
        clock[BAR] += 1
        if clock[BAR] > 0:
            clock[TICK] = clock[BAR_TICK] + bar_ticks
        clock[BAR_TICK] = clock[TICK]
    elif kind == Kind.POSITION:
        clock[BAR] = max(clock[BAR], 0)
        clock[TICK] = clock[BAR_TICK] + (value << level)
    elif kind == Kind.REST:
        clock[TICK] = max(clock[NOTE_END], clock[TICK]) + tables.rest_ticks[level, value]
        bar = clock[METER_BAR] + (clock[TICK] - clock[METER_TICK]) // bar_ticks
        if bar > clock[BAR]:
            clock[BAR] = max(clock[BAR], 0)
            clock[BAR_TICK] += (bar - clock[BAR]) * bar_ticks
            clock[BAR] = bar
