"""Selection of the attempts of a batch, and their writing and rendering by the workers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks.config.generation import GenerateConfig
from tasks.generation.candidates import (
    Candidate,
    RenderJob,
    WriteJob,
    expected_tokens,
    is_rendered,
    is_written,
    read_candidate,
    render_pieces,
    write_candidates,
)
from tasks.generation.judge import Judge, flags_of, is_copy
from tasks.generation.prompts import Prompt
from tasks.music.render.soundfont import Player
from tasks.music.score import Score
from tasks.runtime import cluster
from tasks.runtime.progress import Progress
from tasks.sampling.latents import LatentPlan, LatentSource
from tasks.sampling.token_count import ReportTokens, TallySheet

MORE_ATTEMPTS = 8  # at most, at a piece that is rejected as a copy


@dataclass(frozen=True, slots=True)
class WritePlan:
    """Data shared by all work on a batch."""

    prompts: list[Prompt]
    config: GenerateConfig
    lineage: dict[str, str]
    folder: Path  # of the unfinished batch
    judge: Judge
    latents: str  # where they come from, see `latents_of`

    def expected_tokens(self, candidates: Sequence[Candidate]) -> int:
        """Return the largest number of tokens drawn for some candidates."""
        return sum(
            expected_tokens(
                self.prompts[candidate.index % len(self.prompts)], candidate.index, self.config, self.judge.max_tokens
            )
            for candidate in candidates
        )

    def jobs(self, candidates: Sequence[Candidate]) -> list[WriteJob]:
        """Return a job for each worker, with an equal share of the candidates."""
        sources = tuple(LatentSource(p.name, p.sha256, p.window, p.n_whole - len(p.window)) for p in self.prompts)
        latents = LatentPlan(self.latents, sources, self.config.n_pieces, self.config.variation)
        dataset_folder = self.judge.index.folder if self.judge.index else None
        return [
            WriteJob(
                checkpoint=self.judge.loaded.folder,
                candidates=share,
                prompts=tuple(self.prompts[candidate.index % len(self.prompts)] for candidate in share),
                latents=latents,
                config=self.config,
                lineage=self.lineage,
                folder=self.folder,
                dataset_folder=dataset_folder,
            )
            for share in deal(candidates, self.config.n_workers)
        ]


@dataclass(frozen=True, slots=True)
class Choice:
    """The attempt at a piece that is kept.

    Args:
        scores: of the attempt that is kept.
        of_attempts: the deciding score of each attempt.
        rejected: other attempts that were rejected as copies.
    """

    candidate: Candidate
    facts: Mapping[str, Any]
    scores: dict[str, float]
    of_attempts: dict[int, float]
    rejected: tuple[int, ...]

    @property
    def n_attempts(self) -> int:
        return max(len(self.of_attempts), 1)

    @property
    def seconds(self) -> int:
        """Of the music, 1 at least."""
        return max(round(self.facts["statistics"]["seconds"]), 1)

    def sidecar(self, config: GenerateConfig) -> dict[str, Any]:
        """Return the entry about the choice for the piece's sidecar."""
        chosen_from = {
            "n": self.n_attempts,
            "by": config.best_by,
            "scores": {str(attempt): score for attempt, score in self.of_attempts.items()},
            "rejected_as_copies": list(self.rejected),
        }
        return {
            "name": self.candidate.name,
            "index": self.candidate.index,
            "scores": self.scores,
            "flags": flags_of(self.facts),
            "chosen_from": chosen_from if self.n_attempts > 1 else None,
        }


def deal(items: Sequence[Any], n_workers: int) -> list[tuple[Any, ...]]:
    """Return the items in shares, one for each worker that gets any."""
    return [share for worker in range(n_workers) if (share := tuple(items[worker::n_workers]))]


def first_candidates(config: GenerateConfig) -> list[Candidate]:
    """Return the attempts that every batch makes, in the order of writing."""
    n_attempts = config.best_of // config.n_tries
    return [Candidate(index, attempt) for attempt in range(n_attempts) for index in range(config.n_pieces)]


def choose_pieces(
    plan: WritePlan, on_pieces: Callable[[int], None] | None = None, report: ReportTokens | None = None
) -> list[Choice]:
    """Write attempts at each piece, more where all are rejected copies, and choose.

    Args:
        on_pieces: called with the number of attempts written since the last call; those that were written before count.
        report: gets the tokens drawn since the last call, and by how many they will be fewer than
            `WritePlan.expected_tokens` of the first candidates.
    """
    config, first = plan.config, first_candidates(plan.config)
    attempts = {index: list(range(config.best_of // config.n_tries)) for index in range(config.n_pieces)}
    write_all(plan, first, on_pieces, report)
    choices = _choose(plan, attempts)
    for _ in range(MORE_ATTEMPTS if config.reject_copies else 0):
        copies = [choice.candidate.index for choice in choices if is_copy(choice.facts)]
        if not copies:
            break
        for index in copies:
            attempts[index].append(len(attempts[index]))
        more = [Candidate(index, attempts[index][-1]) for index in copies]
        if report:
            report(0, -plan.expected_tokens(more))
        write_all(plan, more, None, report)
        choices = _choose(plan, attempts)
    return choices


def _choose(plan: WritePlan, attempts: Mapping[int, Sequence[int]]) -> list[Choice]:
    """Return the best attempt at each piece, of equals the first; rejected copies come last."""
    candidates = [Candidate(index, attempt) for index, some in attempts.items() for attempt in some]
    facts = {c: read_candidate(c, plan.folder)["facts"] for c in candidates}
    scores = dict(zip(candidates, plan.judge.scores(list(facts.values())), strict=True))
    choices = []
    for index, some in attempts.items():
        own = [Candidate(index, attempt) for attempt in some]
        refused = [c for c in own if plan.config.reject_copies and is_copy(facts[c])]
        by = {c: scores[c].get(plan.config.best_by, 0.0) for c in own}
        best = max(own, key=lambda c: (c not in refused, by[c], -c.attempt))
        of_attempts = {c.attempt: by[c] for c in own} if len(own) > 1 else {}
        rejected = tuple(c.attempt for c in refused if c != best)
        choices.append(Choice(best, facts[best], scores[best], of_attempts, rejected))
    return choices


def write_all(
    plan: WritePlan,
    candidates: Sequence[Candidate],
    on_pieces: Callable[[int], None] | None = None,
    report: ReportTokens | None = None,
) -> None:
    """Write all candidates that are not written yet; see `choose_pieces`."""
    countdown = Countdown(plan.folder, candidates, on_pieces)
    countdown()
    if report:
        report(0, plan.expected_tokens(candidates) - plan.expected_tokens(countdown.left))
    jobs = plan.jobs(countdown.left)
    if plan.config.n_workers == 1:
        for job in jobs:
            write_candidates(job, plan.judge.loaded, plan.judge.index, countdown.count_one, report)
        return
    jobs = [replace(job, tally=plan.folder / f"tally-{place}") for place, job in enumerate(jobs)]
    sheets = [TallySheet(job.tally) for job in jobs if job.tally]
    for sheet in sheets:
        sheet.path.unlink(missing_ok=True)

    def look() -> None:
        countdown()
        for sheet in sheets:
            sheet.news(report or (lambda n_drawn, n_fewer: None))

    cluster.run_over(write_candidates, jobs, max_in_flight=len(jobs), on_wait=look)
    look()


class Countdown:
    """Counts the candidates that were written since its last call."""

    def __init__(self, folder: Path, candidates: Sequence[Candidate], on_pieces: Callable[[int], None] | None) -> None:
        self.folder, self.left, self.on_pieces = folder, list(candidates), on_pieces
        self.counted = set[Candidate]()  # one may come twice: see `models.sampling.sample.sample`

    def __call__(self) -> None:
        left = [candidate for candidate in self.left if not is_written(candidate, self.folder)]
        if self.on_pieces and len(left) < len(self.left):
            self.on_pieces(len(self.left) - len(left))
        self.left = left

    def count_one(self, candidate: Candidate) -> None:
        if self.on_pieces and candidate not in self.counted:
            self.on_pieces(1)
        self.counted.add(candidate)


def render_all(plan: WritePlan, choices: Sequence[Choice], player: Player, progress: Progress) -> dict[str, Score]:
    """Make the missing files of all chosen pieces, and return the music of these by name."""
    config = plan.config
    jobs = [
        RenderJob(
            chosen=tuple(choice.candidate for choice in share),
            facts=tuple(plan.lineage | choice.sidecar(config) for choice in share),
            config=config,
            folder=plan.folder,
            player=player,
            n_threads=max(cluster.n_cpus() // config.n_workers, 1),
        )
        for share in deal(choices, config.n_workers)
    ]
    seconds = {choice.candidate: choice.seconds for choice in choices}
    if config.n_workers == 1:
        rendered = [render_pieces(job, lambda candidate: progress.advance(seconds[candidate])) for job in jobs]
    else:

        def look() -> None:
            for candidate in [c for c in seconds if is_rendered(c, plan.folder)]:
                progress.advance(seconds.pop(candidate))

        rendered = cluster.run_over(render_pieces, jobs, max_in_flight=len(jobs), on_wait=look)
    return {name: score for scores in rendered for name, score in scores.items()}
