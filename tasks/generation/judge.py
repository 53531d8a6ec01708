"""The judge of a batch: held-out music of the model's dataset, and the copying in it from the training split."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tasks.checkpoints import LoadedModel
from tasks.config.generation import GenerateConfig
from tasks.copying.human_range import judge_batch
from tasks.copying.index import CopyIndex, CopyMatch, copy_index, source_notes
from tasks.dataset.split import SPLITS
from tasks.dataset.versions import DatasetVersion
from tasks.errors import ConfigError, DamagedFile, DatasetError, HomeError, NotFound
from tasks.evaluation.held_out import dataset_of, held_out_statistics
from tasks.music.excerpt import Extent
from tasks.music.metrics.judgement import judge_pieces, typicality
from tasks.music.score import Score
from tasks.sampling.sample_ids import longest_piece, piece_limit
from tasks.storage.home import Home

logger = logging.getLogger(__name__)

MANY_NOTES = 1 << 30
COPIED, INVALID, NOTHING_NEW, CUT_SHORT = "copy suspected", "invalid file", "nothing new", "cut short"
HEADLINES = (
    "notes_per_second", "polyphony", "pitch_entropy", "pitch_class_entropy", "scale_consistency", "groove_consistency",
    "empty_bar_rate", "duration_mean_seconds", "velocity_std",
)  # fmt: skip  # what the head of the page shows of all statistics

Facts = Mapping[str, Any]  # of a candidate, as its sidecar has them


@dataclass(frozen=True, eq=False)
class Judge:
    """Held-out music to judge by.

    Args:
        dataset: of the model; None where it is gone.
        index: over its training split, for copies.
        reason: why pieces cannot be judged; empty where they can.
    """

    loaded: LoadedModel
    max_tokens: int  # of a piece; held-out pieces are cut to it
    limit: Extent  # of a piece, in notes, bars or seconds; likewise
    dataset: DatasetVersion | None = None
    index: CopyIndex | None = None
    reason: str = ""

    @classmethod
    def of(cls, home: Home, loaded: LoadedModel, config: GenerateConfig) -> "Judge":
        """Return the judge of a model's pieces; the first call for a dataset takes seconds to make its index.

        Raises ConfigError where the settings choose or reject pieces by data that is missing.
        """
        length = (longest_piece(loaded.model, config), piece_limit(config))
        try:
            dataset = dataset_of(loaded, home)
            judge = cls(loaded, *length, dataset, copy_index(dataset))
            _ = judge.held_out  # fail before sampling, not after
        except (NotFound, DatasetError, DamagedFile, HomeError, OSError) as error:
            what = {NotFound: "is not there", HomeError: "cannot be written to"}.get(type(error), "is damaged")
            judge = cls(
                loaded, *length, reason="its dataset {name}@{version} ".format(**loaded.state["dataset"]) + what
            )
            logger.warning("pieces are not compared with real music: %s", error)
        if judge.index is None and (config.reject_copies or (config.best_of > 1 and config.best_by != "join")):
            setting = "reject_copies=true" if config.reject_copies else f"best_of={config.best_of}"
            raise ConfigError(f"{setting} needs what the model was trained on, but {judge.reason}")
        if judge.index and config.reject_copies and judge.index.human.length_for(MANY_NOTES) is None:
            raise ConfigError(
                f"reject_copies=true needs at least 19 held-out pieces to tell what people share, but"
                f" {dataset.reference} has {judge.index.human.n_held_out}"
            )
        return judge

    @cached_property
    def held_out(self) -> list[dict[str, float]]:
        """Statistics of the beginnings of held-out pieces, as the encoding holds them."""
        assert self.dataset is not None
        return held_out_statistics(self.loaded.tokenizer, self.dataset, SPLITS[1:], self.max_tokens, self.limit)

    def scores(self, facts: Sequence[Facts]) -> list[dict[str, float]]:
        """Return the scores of each candidate, 0-1: its likeness to held-out music, and its share outside a copied run.

        Of filled bars also `join`: minus the nats per token of the music after them.
        """
        joins = [{"join": -piece["infill"]["join_nats_per_token"]} if piece["infill"] else {} for piece in facts]
        if self.index is None:
            return joins
        typical = typicality([piece["statistics"] for piece in facts], self.held_out)
        return [
            {"typicality": round(float(share), 4), "originality": originality(piece)} | join
            for share, piece, join in zip(typical, facts, joins, strict=True)
        ]

    def verdict(self, sidecars: Sequence[Facts]) -> dict[str, Any]:
        """Return the judgement of a batch: statistics and copying, each compared with held-out human pieces."""
        if self.index is None:
            return {"judgement": None, "copying": None, "unjudged": self.reason}
        judgement = judge_pieces([piece["statistics"] for piece in sidecars], self.held_out)
        runs = [(piece["copying"]["n_notes"], longest_run(piece)) for piece in sidecars]
        copying = judge_batch(self.index.human, runs).as_json() | {"human": self.index.human.as_json()}
        return {"judgement": judgement, "copying": copying, "unjudged": ""}

    def source_of(self, facts: Facts) -> tuple[CopyMatch, Score] | None:
        """Return the longest run that a piece shares with a training piece, and that passage of it."""
        match = (facts["copying"] or {}).get("match")
        if match is None or self.dataset is None:
            return None
        found = CopyMatch(**match)
        try:
            return found, source_notes(self.dataset, found)
        except (NotFound, OSError, DamagedFile) as error:
            logger.warning("%s cannot be shown: %s", found.source_file, error)
            return None


def longest_run(facts: Facts) -> int:
    """Return the notes of the longest run that a piece shares with train, 0 without one."""
    match = (facts["copying"] or {}).get("match")
    return match["n_notes"] if match else 0


def originality(facts: Facts) -> float:
    """Return the share of a piece's own notes outside of the longest run that it shares with train; 0 without notes."""
    copying = facts["copying"]
    if not copying or not copying["n_notes"]:
        return 0.0
    return round(1.0 - (copying["match"]["share"] if copying["match"] else 0.0), 4)


def is_copy(facts: Facts) -> bool:
    """Return whether a piece shares a longer run with train than people's pieces do; False where it is unknown."""
    return bool((facts["copying"] or {}).get("is_beyond"))


def flags_of(facts: Facts) -> list[str]:
    """Return the flags of a piece, short warnings for a listener."""
    adds_nothing = bool(facts["prompt"]) and not facts["n_new_notes"]
    found = [COPIED] * is_copy(facts) + [INVALID] * (not facts["validity"]["ok"]) + [NOTHING_NEW] * adds_nothing
    return found + [CUT_SHORT] * (bool(facts["short_of"]) or is_cut_within_bars(facts))


def is_cut_within_bars(facts: Facts) -> bool:
    """Return whether there was no room to write the bars again."""
    return bool(facts["infill"]) and any(gap["ended_by"] == "tokens" for gap in facts["infill"]["gaps"])


def batch_flags(manifest: Facts) -> list[str]:
    """Return the flags of a batch, one sentence each."""
    lines, copying, validity = [], manifest["copying"], manifest["validity"]
    if copying and copying["is_beyond"]:
        lines.append(
            f"{copying['n_beyond']} of {copying['n_judged']} pieces share a longer run with the training split than"
            f" 95 % of held-out human pieces do (p = {copying['p_value']:.2g}): this batch copies"
        )
    if validity["n_valid"] < validity["n_files"]:
        lines.append(f"{validity['n_files'] - validity['n_valid']} of {validity['n_files']} files are not valid")
    if manifest["n_nothing_new"]:
        lines.append(
            f"{manifest['n_nothing_new']} of {manifest['n_pieces']} pieces add no note to their prompts;"
            " sampling.min_new_tokens makes them go on"
        )
    if manifest["n_cut_short"]:
        before = " and ".join(manifest["cut_before"])
        lines.append(
            f"{manifest['n_cut_short']} of {manifest['n_pieces']} pieces reached the most tokens,"
            f" {manifest['most_tokens']}, before the {before}; a larger sampling.max_tokens may let them go on"
        )
    if manifest["unjudged"]:
        lines.append(f"not compared with real music: {manifest['unjudged']}")
    return lines
