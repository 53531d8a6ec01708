"""Infilling: bars in the middle of a piece are written again between what precedes and what follows.

A decoder sees only the music before a gap, so an attempt does not know where it must lead. Afterwards the model
measures how likely the music after the gap is; of several attempts the one with the likeliest continuation is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from models.registry import has_latents
from models.sampling.sampler import piece_uniforms
from models.training import row_losses
from tasks.checkpoints import LoadedModel
from tasks.config.generation import GenerateConfig
from tasks.errors import ConfigError
from tasks.music.arrays import BoolArray, FloatArray, IntArray
from tasks.music.bars import bar_lines
from tasks.music.excerpt import Extent, beginning
from tasks.music.score import Score, Tempos, TimeSignatures, build_score, seconds_at, ticks_at
from tasks.music.tokenizers.base import TokenBatch
from tasks.music.tokenizers.mmm.tokenizer import MmmTokenizer
from tasks.music.tokenizers.note_boundaries import without_ending
from tasks.sampling.sample_ids import window_of

CONTEXT_TOKENS = 1024  # before and after the join, at most
GAP_BARS = 4  # of a variation, where enough bars are kept to stand between
MAX_GAPS = 2000
FINE_TICKS = 480  # a quarter, at least: new notes need not lie on the grid of those around them
# Seconds by which a note may stand before the line of its bar, as encodings round times.
ON_GRID_EARLY, MOST_EARLY = 0.006, 0.02
PLACES = 1 << 63  # added to the number of a piece: the stream of the places of its gaps, apart from all those of ids

_TICKS = ("onset", "duration")
_SOUNDS = ("pitch", "velocity", "program", "is_drum")


@dataclass(frozen=True, slots=True)
class Span:
    """Some bars, counted from 1, and where they begin and end in the piece as the encoding holds it.

    A note may stand before the line of its bar by `early_seconds`.
    """

    first_bar: int
    last_bar: int
    start_seconds: float
    end_seconds: float
    early_seconds: float

    def holds(self, score: Score) -> BoolArray:
        """Return which notes begin in the bars."""
        onset = score.notes.onset_seconds + self.early_seconds
        return (onset >= self.start_seconds) & (onset < self.end_seconds)


@dataclass(frozen=True, slots=True, eq=False)
class Canvas:
    """A piece of which some bars are written again.

    Args:
        whole: the piece, as the encoding holds it.
        line_seconds: float64[n + 1], where bars 1 to n begin and the last one ends; the last note begins in bar n.
        first_bar: in which the first note begins.
        early_seconds: see `Span`.
    """

    whole: Score
    line_seconds: FloatArray
    first_bar: int
    early_seconds: float

    @property
    def n_bars(self) -> int:
        """Bars from that of the first note to that of the last one."""
        return len(self.line_seconds) - self.first_bar

    def spans(self, config: GenerateConfig, index: int) -> tuple[Span, ...]:
        """Return the bars of piece `index` that are written again, in order; others follow each of them."""
        if config.infill_bars:
            return (self._span(*config.infill_bars),)
        before = self.first_bar - 1
        gaps = draw_gaps(self.n_bars, config.variation, config.seed, index)
        return tuple(self._span(before + first, before + last) for first, last in gaps)

    def _span(self, first: int, last: int) -> Span:
        start, end = float(self.line_seconds[first - 1]), float(self.line_seconds[last])
        return Span(first, last, start, end, self.early_seconds)


def draw_gaps(n_bars: int, share: float, seed: int, index: int) -> list[tuple[int, int]]:
    """Return the first and last bar of each gap of a variation, in order, the first bar being 1.

    The share of bars is rounded, to one at least, and the last bar is always kept, for a filling is judged by what
    comes after it. Gaps are as equal as can be, of at most `GAP_BARS` bars as long as there are bars to keep between.

    Args:
        n_bars: 2 or more.
        share: of the bars, above 0 to 1.
        seed, index: each piece of each seed has places of its own.
    """
    n_new = min(max(round(share * n_bars), 1), n_bars - 1)
    n_kept = n_bars - n_new
    n_gaps = min(-(-n_new // GAP_BARS), n_kept, MAX_GAPS)
    uniforms = piece_uniforms(seed, PLACES + index, n_kept + n_gaps)
    behind = np.sort(np.argsort(uniforms[:n_kept])[:n_gaps])  # the kept bars that come after a gap
    size = np.full(n_gaps, n_new // n_gaps)
    size[np.argsort(uniforms[n_kept:])[: n_new % n_gaps]] += 1
    last = behind + np.cumsum(size)
    return list(zip((last - size + 1).tolist(), last.tolist(), strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class Gap:
    """Bars to write again, and the current piece around them."""

    whole: Score
    span: Span

    @property
    def extent(self) -> Extent:
        """How far an attempt goes."""
        return Extent(seconds=self.span.end_seconds)

    def prompt_ids(self, tokenizer: Any) -> tuple[int, ...]:
        """Return the ids of all before the gap, <start> alone where there is nothing."""
        before = self.span.start_seconds - self.span.early_seconds
        if before <= 0:
            return (tokenizer.start_id,)
        return ids_of(tokenizer, beginning(self.whole, Extent(seconds=before)))

    def filled(self, attempt: Score) -> Score:
        """Return the piece with the gap as an attempt fills it, cut where the gap ends; all other notes as they are."""
        new, kept = beginning(attempt, self.extent, cut=True), self.whole.notes
        is_new, is_kept = self.span.holds(new), ~self.span.holds(self.whole)
        factor = max(FINE_TICKS // self.whole.ticks_per_quarter, 1)
        ticks_per_quarter = self.whole.ticks_per_quarter * factor
        tempos = Tempos(self.whole.tempos.tick * factor, self.whole.tempos.microseconds_per_quarter)
        seconds = np.stack([new.notes.onset_seconds[is_new], new.notes.end_seconds[is_new]])
        onset, end = ticks_at(tempos, ticks_per_quarter, seconds)
        ticks = {"onset": onset, "duration": np.maximum(end - onset, 1)}
        track, n_tracks = _tracks_in(self.whole, new)
        columns = {name: [getattr(kept, name)[is_kept], getattr(new.notes, name)[is_new]] for name in _SOUNDS}
        columns |= {name: [getattr(kept, name)[is_kept] * factor, ticks[name]] for name in _TICKS}
        columns |= {"track": [kept.track[is_kept], track[is_new]]}
        meters = self.whole.time_signatures
        return build_score(
            ticks_per_quarter,
            {name: np.concatenate(parts) for name, parts in columns.items()},
            tempos=tempos,
            time_signatures=TimeSignatures(meters.tick * factor, meters.numerator, meters.denominator),
            n_tracks=n_tracks,
        )


def _tracks_in(whole: Score, new: Score) -> tuple[IntArray, int]:
    """Return for each new note the part of a piece with its instrument, or a further part; and the number of parts."""
    voices, first = np.unique(_voice(whole), return_index=True)
    track_of = dict(zip(voices.tolist(), whole.notes.track[first].tolist(), strict=True))
    n_tracks = whole.n_tracks
    for voice in np.unique(_voice(new)).tolist():
        if voice not in track_of:
            track_of[voice], n_tracks = n_tracks, n_tracks + 1
    return np.array([track_of[voice] for voice in _voice(new).tolist()], np.int64), n_tracks


def _voice(score: Score) -> IntArray:
    return score.notes.program.astype(np.int64) | score.notes.is_drum.astype(np.int64) << 7


def ids_of(tokenizer: Any, score: Score) -> tuple[int, ...]:
    """Return the ids of some music without those that end it; <start> alone where the encoding holds none of it."""
    part = tokenizer.encode(score.notes)
    if not int(part.n_notes[0]):
        return (tokenizer.start_id,)
    return tuple(without_ending(tokenizer.grammar, part.ids.tolist(), tokenizer.end_id, tokenizer.pad_id))


def make_canvas(loaded: LoadedModel, config: GenerateConfig, name: str, score: Score) -> Canvas:
    """Return a prompt as a canvas for the bars that `infill_bars` names, or that `variation` draws.

    Raises ConfigError where the model or encoding cannot do it, or no notes follow these bars.
    """
    tokenizer = loaded.tokenizer
    if isinstance(tokenizer, MmmTokenizer) or has_latents(loaded.model) or config.sampling.beams:
        raise ConfigError(f"{_said(config)}: bars are filled by decoders on encodings that follow time, and by drawing")
    tokens = tokenizer.encode(score.notes)
    whole = tokenizer.decode(tokens.ids)
    has_bars = len(whole.time_signatures.tick) > 0  # else the encoding knows seconds alone, and the file knows bars
    line_seconds = _line_seconds(whole if has_bars else score)
    early_seconds = ON_GRID_EARLY if has_bars else min(1 / tokenizer.units_per_second, MOST_EARLY)
    if not has_bars and (silence := _silence_left_out(score, whole, tokens)) > early_seconds:
        line_seconds -= silence
    onset = whole.notes.onset_seconds + early_seconds
    first, n_bars = (int(np.searchsorted(line_seconds, at, side="right")) for at in (onset.min(), onset.max()))
    line_seconds = line_seconds[: n_bars + 1]
    canvas = Canvas(whole, line_seconds, max(first, 1), early_seconds)
    if config.infill_bars and config.infill_bars[1] >= n_bars:
        first, last = config.infill_bars
        instead = f"; prompt_bars={first - 1} goes on freely" if 1 < first <= n_bars else ""
        raise ConfigError(
            f"prompt {name}: infill_bars={[first, last]}, but it has {n_bars} bars, and one must follow{instead}"
        )
    if config.variation and canvas.n_bars < 2:
        raise ConfigError(f"prompt {name}: {_said(config)} keeps the last bar, and there is no other")
    return canvas


def _silence_left_out(score: Score, whole: Score, tokens: TokenBatch) -> float:
    """Return the seconds before the first note that the encoding holds by which it holds it earlier than the file."""
    is_held = np.ones(len(score.notes.pitch), np.bool_)
    if tokens.dropped.get("drums", np.zeros(1)).any():
        is_held = ~score.notes.is_drum
    return float(score.notes.onset_seconds[is_held].min() - whole.notes.onset_seconds.min())


def _said(config: GenerateConfig) -> str:
    return f"infill_bars={list(config.infill_bars)}" if config.infill_bars else f"variation={config.variation:g}"


def _line_seconds(score: Score) -> FloatArray:
    """Return where each bar begins, up to one after that of the last note, and where that one ends."""
    lines = bar_lines(score.time_signatures, score.ticks_per_quarter)
    last = int(lines.place(score.notes.onset[-1:] * lines.units_per_tick)[0][0])
    bars: IntArray = np.arange(last + 3)  # rounding may put a note after the line that follows it
    return seconds_at(score.tempos, score.ticks_per_quarter, -(-lines.begin(bars) // lines.units_per_tick))


def join_nats(loaded: LoadedModel, gap: Gap, filled: Score) -> float:
    """Return the nats per token that the music after a gap costs after what fills it."""
    tokenizer = loaded.tokenizer
    before = beginning(filled, Extent(seconds=gap.span.end_seconds - gap.span.early_seconds))
    n_before = len(ids_of(tokenizer, before))  # what ends notes that sound on comes among the music after
    ids = tokenizer.encode(filled.notes).ids.astype(np.int64)
    half = window_of(loaded.model, CONTEXT_TOKENS) // 2
    begin, end = max(n_before - half, 0), min(n_before + half, len(ids))
    mask = np.arange(begin, end) >= n_before
    device = loaded.model.embed.weight.device
    nats, n_targets, _ = row_losses(
        loaded.model,
        torch.from_numpy(ids[begin:end])[None].to(device),
        pad_id=tokenizer.pad_id,
        mask_BT=torch.from_numpy(mask)[None].to(device),
    )
    return float(nats[0]) / max(n_targets, 1)


def new_notes(score: Score, spans: Sequence[Span]) -> BoolArray:
    """Return which notes begin in any of some bars."""
    is_new = np.zeros(len(score.notes.pitch), np.bool_)
    for span in spans:
        is_new |= span.holds(score)
    return is_new
