"""Selection of the attempts of a batch, and their writing and rendering by the workers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

from tasks.checkpoints import LoadedModel, load_model
from tasks.config.generation import GenerateConfig
from tasks.copying.index import CopyIndex
from tasks.generation import candidates as work
from tasks.generation.candidates import Candidate, WritePlan, is_written, pieces_folder, read_candidate
from tasks.generation.judge import Judge, flags_of, is_copy
from tasks.music.render.soundfont import Player
from tasks.music.score import Score
from tasks.runtime import cluster
from tasks.runtime.devices import DeviceKind, device_of, explained_memory
from tasks.runtime.progress import Progress
from tasks.sampling.token_count import TokenProgress, write_sums

LESS_MEMORY = "lower generate.batch_size or generate.sampling.max_tokens"
MORE_ATTEMPTS = 8  # at most, at a piece that is rejected as a copy


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


def units_of(candidates: Sequence[Candidate], size: int) -> list[tuple[Candidate, ...]]:
    """Return candidates, given in the order of the request, in units of work: up to `size` of the same attempt."""
    attempts = [list(some) for _, some in groupby(candidates, lambda candidate: candidate.attempt)]
    return [tuple(some[first : first + size]) for some in attempts for first in range(0, len(some), size)]


def n_workers_of(config: GenerateConfig) -> int:
    """Return how many processes write and render: no more than a batch has units."""
    n_workers = config.n_workers or max(cluster.n_cluster_cpus() // config.sampling.threads, 1)
    return min(n_workers, len(units_of(first_candidates(config), config.unit_size)))


def first_candidates(config: GenerateConfig) -> list[Candidate]:
    """Return the attempts that every batch makes, in the order of writing."""
    n_attempts = config.best_of // config.n_tries
    return [Candidate(index, attempt) for attempt in range(n_attempts) for index in range(config.n_pieces)]


def choose_pieces(plan: WritePlan, judge: Judge, progress: Progress) -> list[Choice]:
    """Write attempts at each piece, more where all are rejected copies, and choose.

    Args:
        progress: counts tokens; its total is what the first candidates are expected to need.
    """
    config, tokens = plan.config, TokenProgress(progress)
    attempts = {index: list(range(config.best_of // config.n_tries)) for index in range(config.n_pieces)}
    _write_all(plan, judge, first_candidates(config), tokens)
    choices = _choose(plan, judge, attempts)
    for _ in range(MORE_ATTEMPTS if config.reject_copies else 0):
        copies = [choice.candidate.index for choice in choices if is_copy(choice.facts)]
        if not copies:
            break
        for index in copies:
            attempts[index].append(len(attempts[index]))
        more = [Candidate(index, attempts[index][-1]) for index in copies]
        progress.total += sum(map(plan.expected_tokens, more))
        _write_all(plan, judge, more, tokens)
        choices = _choose(plan, judge, attempts)
    return choices


def _choose(plan: WritePlan, judge: Judge, attempts: Mapping[int, Sequence[int]]) -> list[Choice]:
    """Return the best attempt at each piece, of equals the first; rejected copies come last."""
    candidates = [Candidate(index, attempt) for index, some in attempts.items() for attempt in some]
    facts = {c: read_candidate(c, plan.folder)["facts"] for c in candidates}
    scores = dict(zip(candidates, judge.scores(list(facts.values())), strict=True))
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


def _write_all(plan: WritePlan, judge: Judge, candidates: Sequence[Candidate], tokens: TokenProgress) -> None:
    """Write all candidates that are not written yet."""
    waiting = {candidate for candidate in candidates if not is_written(candidate, plan.folder)}
    units = [unit for unit in units_of(candidates, plan.config.unit_size) if not waiting.isdisjoint(unit)]
    n_expected = sum(plan.expected_tokens(candidate) for unit in units for candidate in unit)
    tokens.progress.total -= sum(map(plan.expected_tokens, candidates)) - n_expected

    def note(written: set[Candidate]) -> None:
        waiting.difference_update(written)
        tokens.progress.note = f"{len(candidates) - len(waiting)} of {len(candidates)} pieces are written"

    note(set())
    n_workers, placement = min(plan.config.n_workers, len(units)), plan.placement
    if n_workers <= 1 and placement.own_device == placement.device:  # that of `judge.loaded`
        for unit in units:
            report = partial(tokens.report, object())  # a count of its own
            with explained_memory(LESS_MEMORY):
                work.write_unit(plan, unit, judge.loaded, judge.index, report, lambda candidate: note({candidate}))
        return
    tallies = {plan.folder / f"tally-{number}": unit for number, unit in enumerate(units)}
    for tally in tallies:
        tally.unlink(missing_ok=True)

    def look() -> None:
        note({candidate for candidate in waiting if candidate.path(plan.folder, "json").exists()})
        for tally in tallies:
            tokens.read(tally)

    def settle(tally: Path) -> None:
        tokens.read(tally)
        del tallies[tally]

    queue = list(tallies.items())
    options = placement.ray_options
    cluster.run_over(_write_unit, queue, settle, max_in_flight=n_workers, on_wait=look, options=options, shared=plan)
    look()


def _write_unit(part: tuple[Path, tuple[Candidate, ...]], plan: WritePlan) -> Path:
    tally, unit = part
    with explained_memory(LESS_MEMORY):
        loaded, copies = _opened(plan.checkpoint, plan.placement.device, plan.dataset_folder, plan.folder)
        work.write_unit(plan, unit, loaded, copies, partial(write_sums, tally))
    return tally


@lru_cache(maxsize=1)
def _opened(
    checkpoint: Path, device: DeviceKind, dataset_folder: Path | None, _batch: Path
) -> tuple[LoadedModel, CopyIndex | None]:
    """Return what a worker reads once for all units of a batch, whose folder is named by the digest of the weights."""
    return load_model(checkpoint, device_of(device)), CopyIndex.open(dataset_folder) if dataset_folder else None


def render_all(
    plan: WritePlan,
    choices: Sequence[Choice],
    continuations: Mapping[Candidate, dict[str, str]],
    player: Player,
    progress: Progress,
) -> dict[str, Score]:
    """Make the missing files of all chosen pieces, and return the music of these by name."""
    n_workers, seconds = plan.config.n_workers, {choice.candidate: choice.seconds for choice in choices}
    n_threads = max(cluster.n_cpus() // n_workers, 1)

    def sidecar(choice: Choice) -> dict[str, Any]:
        return choice.sidecar(plan.config) | {"continuation": continuations.get(choice.candidate)}

    shares = [
        (plan, {choice.candidate: plan.lineage | sidecar(choice) for choice in share}, player, n_threads)
        for share in deal(choices, n_workers)
    ]

    def look() -> None:
        for candidate in list(seconds):
            if (pieces_folder(plan.folder) / f"{candidate.name}.json").exists():
                progress.advance(seconds.pop(candidate))

    if n_workers == 1:
        rendered = [
            work.render_pieces(*share, lambda candidate: progress.advance(seconds[candidate])) for share in shares
        ]
    else:
        rendered = cluster.run_over(_render_share, shares, max_in_flight=len(shares), on_wait=look)
    return {name: score for scores in rendered for name, score in scores.items()}


def _render_share(share: tuple[Any, ...]) -> dict[str, Score]:
    return work.render_pieces(*share)
