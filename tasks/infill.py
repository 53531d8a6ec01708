"""Bars in the middle of a piece written anew: what stands before is the prompt, what stands behind is put back.

A decoder sees only what comes before. So an attempt knows nothing of its ending, and how well the music behind the gap
follows from it is measured afterwards, by the model itself; of several attempts the one that leads there best is kept.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from models.training import row_losses
from models.vae import Vae
from tasks.checkpoints import LoadedModel
from tasks.config import GenerateConfig
from tasks.errors import ConfigError
from tasks.evaluate import window_of
from tasks.music.excerpt import Extent, beginning
from tasks.music.notes import NoteBatch
from tasks.music.score import Score, Tempos, build_score, seconds_at
from tasks.music.tokenizers.mmm import MmmTokenizer

_COLUMNS = ("pitch", "velocity", "program", "is_drum", "track")
_MILLISECOND = Tempos(np.zeros(1, np.int64), np.array([500_000]))  # at 500 ticks a quarter
CONTEXT_TOKENS = 1024  # before and behind the join, at most


@dataclass(frozen=True, slots=True, eq=False)
class Gap:
    """The part of a piece to be written anew.

    Args:
        whole: the piece, as the encoding holds it.
        start_seconds, end_seconds: where the bars begin and end, by the piece's own meters and tempos.
    """

    whole: Score
    start_seconds: float
    end_seconds: float

    @property
    def extent(self) -> Extent:
        """How far an attempt goes."""
        return Extent(seconds=self.end_seconds)

    def filled(self, attempt: Score) -> Score:
        """Return the piece with the gap as an attempt fills it, cut where the gap ends.

        A tick of the result is a millisecond: the beats of the parts need not meet.
        """
        cut, own = beginning(attempt, self.extent, cut=True), self.whole.notes.onset_seconds
        is_new = cut.notes.onset_seconds >= self.start_seconds
        return _joined([(self.whole, own < self.start_seconds), (cut, is_new), (self.whole, own >= self.end_seconds)])


def _joined(parts: list[tuple[Score, Any]]) -> Score:
    columns = {name: np.concatenate([getattr(score.notes, name)[is_in] for score, is_in in parts]) for name in _COLUMNS}
    onset = np.concatenate([np.rint(1000 * score.notes.onset_seconds[is_in]) for score, is_in in parts])
    end = np.concatenate([np.rint(1000 * score.notes.end_seconds[is_in]) for score, is_in in parts])
    times = {"onset": onset.astype(np.int64), "duration": np.maximum(end - onset, 1).astype(np.int64)}
    n_tracks = max(score.n_tracks for score, _ in parts)
    return build_score(500, columns | times, tempos=_MILLISECOND, n_tracks=n_tracks)


def find_gap(loaded: LoadedModel, config: GenerateConfig, name: str, score: Score) -> tuple[Gap, Score]:
    """Return the gap that `infill_bars` names in a prompt, and the music before it.

    Raises:
        ConfigError: the model or encoding cannot do it, or the piece has no notes behind these bars.
    """
    assert config.infill_bars is not None
    first, last = config.infill_bars
    if isinstance(loaded.tokenizer, MmmTokenizer) or isinstance(loaded.model, Vae) or config.sampling.beams:
        raise ConfigError(
            f"infill_bars=[{first}, {last}]: bars are filled by decoders on encodings that follow time, and by drawing"
        )
    tokenizer = loaded.tokenizer
    whole = tokenizer.decode(tokenizer.encode(NoteBatch.from_scores([score])).ids)
    ticks = [Extent(n_bars=n).end_tick(score) if n else 0 for n in (first - 1, last)]
    bounds = seconds_at(score.tempos, score.ticks_per_quarter, np.array(ticks))
    # Encodings may leave out silence before the first note.
    moved = whole.notes.onset_seconds.min(initial=np.inf) - score.notes.onset_seconds.min(initial=np.inf)
    start, end = (bounds + np.nan_to_num(moved)).tolist()
    if not np.any(whole.notes.onset_seconds >= end):
        raise ConfigError(f"prompt {name}: nothing stands behind bar {last}; prompt_bars={first - 1} goes on freely")
    return Gap(whole, start, end), beginning(whole, Extent(seconds=max(start, 1e-9)))


def join_nats(loaded: LoadedModel, gap: Gap, filled: Score) -> float:
    """Return the nats per token that the music behind a gap costs after what fills it."""
    tokenizer = loaded.tokenizer
    before = beginning(filled, gap.extent)
    n_before = len(tokenizer.encode(NoteBatch.from_scores([before])).ids) - 1  # without its <end>
    ids = tokenizer.encode(NoteBatch.from_scores([filled])).ids.astype(np.int64)
    half = window_of(loaded.model, CONTEXT_TOKENS) // 2
    begin, end = max(n_before - half, 0), min(n_before + half, len(ids))
    mask = np.arange(begin, end) >= n_before
    nats, n_targets, _ = row_losses(
        loaded.model,
        torch.from_numpy(ids[begin:end])[None],
        pad_id=tokenizer.pad_id,
        mask_BT=torch.from_numpy(mask)[None],
    )
    return float(nats[0]) / max(n_targets, 1)
