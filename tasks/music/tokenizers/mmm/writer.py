"""Notes of many pieces to the words of `mmm`."""

import numpy as np
from numpy.typing import NDArray

from tasks.music.arrays import IntArray, offsets_of
from tasks.music.notes import NoteBatch
from tasks.music.tokenizers.base import TokenBatch
from tasks.music.tokenizers.mmm import loops
from tasks.music.tokenizers.mmm.loops import Bars, Notes, Tracks, WordTables
from tasks.music.tokenizers.mmm.vocabulary import (
    DENOMINATORS,
    DRUMS,
    END,
    MAX_NUMERATOR,
    START,
    UNKNOWN,
    Kind,
    MmmConfig,
    Vocabulary,
    bar_units,
    longest_bar,
)


def build_tables(config: MmmConfig, vocabulary: Vocabulary) -> WordTables:
    """Return a vocabulary that has been learned as the compiled loops need it."""
    kinds = (Kind.NOTE_OFF, Kind.TIE, Kind.NOTE_ON)
    meter_ids, meter_units = np.zeros((2, MAX_NUMERATOR + 1, len(DENOMINATORS)), dtype=np.int64)
    for place in vocabulary.of_kind(Kind.BAR_START):
        meter = int(vocabulary.value[place])
        at = meter >> 5, DENOMINATORS.index(meter & 31)
        meter_ids[at], meter_units[at] = place, bar_units(meter, config.units_per_quarter)
    deltas = _delta_words(vocabulary, longest_bar(config))
    header = [vocabulary.of_kind(kind) for kind in (Kind.PIECE_START, Kind.STYLE, Kind.GENRE)]
    return WordTables(
        events=np.stack([vocabulary.lookup(kind, 128) for kind in kinds]),
        instruments=vocabulary.lookup(Kind.INST, DRUMS + 1),
        densities=vocabulary.lookup(Kind.DENSITY, config.density_bins),
        meter_ids=meter_ids,
        meter_units=meter_units,
        delta_offsets=offsets_of([len(words) for words in deltas]),
        delta_ids=np.array([word for words in deltas for word in words], dtype=np.int64),
        head=np.concatenate([[START], *header]),
        foot=np.append(vocabulary.of_kind(Kind.PIECE_END), END),
        track_start=int(vocabulary.of_kind(Kind.TRACK_START)[0]),
        track_end=int(vocabulary.of_kind(Kind.TRACK_END)[0]),
        bar_end=int(vocabulary.of_kind(Kind.BAR_END)[0]),
    )


def _delta_words(vocabulary: Vocabulary, longest: int) -> list[list[int]]:
    """Return for each number of units the ids that add up to it: the longest known one first, and so on."""
    known = vocabulary.lookup(Kind.TIME_DELTA, longest + 1)
    words, best = [list[int]()], 0
    for units in range(1, longest + 1):
        best = units if known[units] != UNKNOWN else best
        words.append([int(known[best]), *words[units - best]])
    return words


def write_pieces(batch: NoteBatch, config: MmmConfig, tables: WordTables) -> TokenBatch:
    """Return the tokens of whole pieces."""
    counts = np.zeros((len(loops.REASONS), batch.n_pieces), dtype=np.int64)
    notes, tracks = _hold_notes(batch, config, counts)
    may_ring = config.across_bars == "tie"
    bars = _lay_bars(batch, config, tables, loops.last_units(notes, may_ring))
    piece_of_track = np.repeat(np.arange(batch.n_pieces), np.diff(tracks.offsets))
    n_bars = bars.n[piece_of_track]
    first_cell = offsets_of(n_bars)
    lacks = tables.events[loops.ON] == UNKNOWN, tables.instruments[tracks.instrument] == UNKNOWN
    bar_of_note, n_notes, seconds, notes_of_track, event_offsets = loops.place_notes(
        notes, bars, first_cell, may_ring, *lacks, batch.end_seconds, counts
    )
    events = loops.fill_cells(notes, bars, bar_of_note, first_cell, event_offsets)
    order = np.arange(len(n_bars))
    if config.permute_tracks:
        order = np.lexsort([_content_of_tracks(batch, notes, tracks, config.permutation_seed), piece_of_track])
    levels = _levels(notes_of_track, n_bars, config.density_bins)
    words_per_event = 1 + int(np.diff(tables.delta_offsets).max())
    room = len(events) * words_per_event + 2 * int(first_cell[-1]) + 4 * len(order)
    room += batch.n_pieces * (len(tables.head) + len(tables.foot))
    offsets, ids = loops.write_words(events, event_offsets, tracks, first_cell, order, levels, bars, tables, room)
    return TokenBatch(offsets, ids, n_notes, seconds, dict(zip(loops.REASONS, counts, strict=True)))


def _hold_notes(batch: NoteBatch, config: MmmConfig, counts: IntArray) -> tuple[Notes, Tracks]:
    track, offsets, instrument = loops.find_tracks(
        batch.offsets, batch.track, batch.program, batch.is_drum, config.max_tracks
    )
    tracks = Tracks(offsets, instrument)
    onset, end = np.empty((2, batch.n_notes), dtype=np.int64)
    notes = Notes(batch.offsets, batch.pitch, track, onset, end, np.ones(batch.n_notes, dtype=np.bool_))
    loops.hold_notes(
        notes, tracks, batch.onset, batch.duration, batch.ticks_per_quarter, config.units_per_quarter, counts
    )
    return notes, tracks


def _lay_bars(batch: NoteBatch, config: MmmConfig, tables: WordTables, last_unit: IntArray) -> Bars:
    nothing = np.zeros(0, dtype=np.int64)
    meters = np.zeros(batch.n_pieces + 1, dtype=np.int64), nothing, nothing, nothing
    if config.meters:
        columns = batch.time_signature_tick, batch.time_signature_numerator, batch.time_signature_denominator
        meters = batch.time_signature_offsets, *columns
    return Bars(
        *loops.lay_bars(meters, batch.ticks_per_quarter, config.units_per_quarter, last_unit, config.max_bars, tables)
    )


def _levels(n_notes: IntArray, n_bars: IntArray, n_levels: int) -> IntArray:
    """Return the density of tracks: level 0 below one note a bar, then one more for each doubling."""
    levels = np.zeros(len(n_notes), dtype=np.int64)
    for level in range(1, n_levels):
        levels += n_notes >= n_bars << (level - 1)
    return levels


def _content_of_tracks(batch: NoteBatch, notes: Notes, tracks: Tracks, seed: int) -> NDArray[np.uint64]:
    """Return a hash of each track that knows its rhythm, its intervals and its instrument, not how high it is."""
    kept = np.flatnonzero(notes.stays)
    is_pitched, piece = ~batch.is_drum[kept], batch.piece_of_note[kept]
    lowest = np.full(batch.n_pieces, 128)
    np.minimum.at(lowest, piece[is_pitched], batch.pitch[kept][is_pitched])
    height = batch.pitch[kept] - np.where(is_pitched, lowest[piece], 0)
    one = _mixed(notes.onset[kept].astype(np.uint64) << np.uint64(32) | notes.end[kept].astype(np.uint64))
    total = np.zeros(len(tracks.instrument), dtype=np.uint64)
    np.add.at(total, notes.track[kept], _mixed(one + height.astype(np.uint64)))
    return _mixed(_mixed(total + tracks.instrument.astype(np.uint64)) + np.uint64(seed))


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix the bits of integers: the last step of SplitMix64 (Steele et al. 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)
