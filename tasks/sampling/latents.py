"""Pieces from latents: random ones, those of prompts, those near them, or between two prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.registry import Model, SampledModel, has_latents
from models.vae.latents import ConditionedDecoder, interpolate, slerp
from models.vae.model import Vae
from tasks.checkpoints import LoadedModel
from tasks.config.generation import GenerateConfig
from tasks.errors import ConfigError, plural
from tasks.music.score import Score

ONSET_TOLERANCE = 0.05  # seconds, as in the usual scores of transcription


@dataclass(frozen=True, slots=True)
class LatentSource:
    """A prompt for a latent: its first window, cut like the training windows."""

    name: str
    sha256: str
    ids: tuple[int, ...]
    n_tokens_cut: int  # of the window, beyond what the model reads


@dataclass(frozen=True, slots=True)
class LatentPlan:
    """The source of a batch's latents: prompts, of which each piece uses one or all.

    `variation`, 0 to 1, is how far each piece's latent lies on the way from that of its prompt to a drawn one.
    """

    kind: str
    sources: tuple[LatentSource, ...]
    n_pieces: int
    variation: float = 0.0

    def shares_of(self, index: int, n_windows: int = 0) -> list[float]:
        """Return the position of a piece on the path between two prompts, 0 to 1; of a chain, of each window."""
        if n_windows:
            return [window / max(n_windows - 1, 1) for window in range(n_windows)]
        return [index / max(self.n_pieces - 1, 1)]

    def sources_of(self, index: int) -> tuple[LatentSource, ...]:
        """Return the prompts that a piece's latent was made of."""
        if self.kind == "path":
            return self.sources
        return (self.sources[index % len(self.sources)],) if self.kind == "prompt" else ()


FROM_PRIOR = LatentPlan("prior", (), 0)


def latents_of(model: Model, config: GenerateConfig) -> str:
    """Return `latents` as the settings mean it: a variation, by a model with latents, is of those of its prompt."""
    return "prompt" if config.variation and has_latents(model) else config.latents


def check_latents(model: Model, config: GenerateConfig, n_prompts: int) -> None:
    """Raise ConfigError where the settings need latents that the model lacks, or prompts that are not given."""
    if config.variation and config.best_by == "join" and has_latents(model):
        raise ConfigError("best_by='join' judges bars written anew, but a model with latents writes whole pieces")
    if latents_of(model, config) == "prior":
        return
    if not has_latents(model):
        raise ConfigError(f"latents={config.latents!r}, but a {model.config.name!r} model has no latents")
    if n_prompts == 0:
        raise ConfigError(f"latents={config.latents!r} are those of prompts; name some with --prompt")
    if config.latents == "path" and n_prompts != 2:
        given = plural(n_prompts, "prompt")
        raise ConfigError(f"latents='path' leads from one prompt to another; --prompt and prompt_to give {given}")


def with_latents(
    model: Model, plan: LatentPlan, seed: int, indices: Sequence[int], streams: Sequence[int]
) -> SampledModel:
    """Return what `sample` takes for some pieces of a batch: the model, with their latents if it has any.

    Args:
        indices: the pieces' places in the batch.
        streams: of each attempt at them, for what is drawn.
    """
    if not has_latents(model):
        return model
    if plan.kind == "prior":
        return ConditionedDecoder(model, model.prior_latents(seed, streams))
    with torch.no_grad():
        if plan.kind == "prompt":
            latents = torch.stack([latent_of(model, plan.sources_of(index)[0].ids) for index in indices])
            if plan.variation:
                drawn = model.prior_latents(seed, streams)
                latents = torch.stack([slerp(*ends, plan.variation) for ends in zip(latents, drawn, strict=True)])
        else:
            start, end = (latent_of(model, source.ids) for source in plan.sources)
            latents = interpolate(start, end, max(plan.n_pieces, 2))[list(indices)]
    return ConditionedDecoder(model, latents)


def latent_of(model: Vae, ids: Sequence[int]) -> Tensor:
    """Return the likeliest latent of one piece; alone, so that it is the same in every batch."""
    return model.latent(torch.tensor([ids]).to(model.embed.weight.device))[0]


def path_rows(
    loaded: LoadedModel, sources: Sequence[LatentSource], shares: Sequence[float], scores: Sequence[Score]
) -> list[dict[str, float]]:
    """Return the distances of places on the path between two prompts to both its ends.

    Args:
        scores: what was written there.
    Returns:
        of each place `latent_to_start` and `latent_to_end`, in units of the distance of the ends, and `notes_to_start`
        and `notes_to_end`, 1 minus `note_f1`.
    """
    model = loaded.model
    assert has_latents(model)
    with torch.no_grad():
        start, end = (latent_of(model, source.ids) for source in sources)
    length = float((end - start).norm()) or 1.0
    windows, rows = [loaded.tokenizer.decode(np.array(source.ids)) for source in sources], []
    for share, score in zip(shares, scores, strict=True):
        point, row = slerp(start, end, share), {"share": share}
        for name, latent, window in zip(("start", "end"), (start, end), windows, strict=True):
            row[f"latent_to_{name}"] = round(float((point - latent).norm()) / length, 4)
            row[f"notes_to_{name}"] = round(1 - note_f1(score, window), 4)
        rows.append(row)
    return rows


def steps_on_way(rows: Sequence[Mapping[str, float]], measure: str) -> tuple[int, int]:
    """Return how many steps of a path come no nearer to its start and go no further from its end, and all steps."""
    steps = list(pairwise(rows))
    n_right = sum(
        before[f"{measure}_to_start"] <= after[f"{measure}_to_start"]
        and before[f"{measure}_to_end"] >= after[f"{measure}_to_end"]
        for before, after in steps
    )
    return n_right, len(steps)


def note_f1(found: Score, reference: Score) -> float:
    """Return the F1 score of notes: equal pitch and part, onsets at most 50 ms apart, each note matched once.

    1 where both are empty. Source: onset-only note matching as in MIREX's multiple fundamental frequency tracks.
    """
    n_notes = len(found.notes.pitch) + len(reference.notes.pitch)
    if not n_notes:
        return 1.0
    one, other = _by_voice(found), _by_voice(reference)
    return 2 * sum(_n_matched(one[voice], other[voice]) for voice in one.keys() & other.keys()) / n_notes


def _by_voice(score: Score) -> dict[tuple[Any, ...], list[float]]:
    notes, voices = score.notes, dict[tuple[Any, ...], list[float]]()
    order = np.argsort(notes.onset_seconds, kind="stable")
    for pitch, program, is_drum, start in zip(
        notes.pitch[order], notes.program[order], notes.is_drum[order], notes.onset_seconds[order], strict=True
    ):
        voices.setdefault((int(pitch), int(program), bool(is_drum)), []).append(float(start))
    return voices


def _n_matched(found: list[float], reference: list[float]) -> int:
    """Return the most pairs of close onsets; both lists rise, so the earliest partner is the best."""
    n_matched = place = 0
    for start in found:
        while place < len(reference) and reference[place] < start - ONSET_TOLERANCE:
            place += 1
        if place < len(reference) and reference[place] <= start + ONSET_TOLERANCE:
            n_matched, place = n_matched + 1, place + 1
    return n_matched
