"""Pieces whose gaps are filled from left to right, each with the best of several tries."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from tasks.checkpoints import LoadedModel
from tasks.config.generation import GenerateConfig
from tasks.generation.infill import Canvas, Gap, Span, join_nats
from tasks.music.score import Score
from tasks.sampling.latents import FROM_PRIOR
from tasks.sampling.sample_ids import WrittenIds, write_ids

TRY_BIT, GAP_BIT = 10, 20  # of the number of an attempt: attempts and tries are below 1,024, gaps below 2,048


@dataclass(slots=True, eq=False)
class Rewritten:
    """A piece in progress, complete when each of its spans is filled.

    Args:
        place: among the requested pieces.
        index, attempt: of the piece in its batch.
        score: the piece with all that is filled so far.
        gaps: entry of each filled gap in a sidecar. `n_tokens` is 0 where there was no room, and the bars are as they
            were; `ended_by` is the `limit` of the gap, `itself` or the most `tokens` of a piece; `join_nats_per_token`
            is what the music after the gap costs.
        ids: of all before the first gap, then those of the try that was kept for each gap.
        n_given: of these ids, those before the first gap.
        seconds: that all of its tries took.
        n_drawn: ids of all of its tries.
    """

    place: int
    index: int
    attempt: int
    spans: tuple[Span, ...]
    score: Score
    gaps: list[dict[str, Any]] = field(default_factory=list)
    ids: list[np.ndarray] = field(default_factory=list)
    entropies: list[np.ndarray] = field(default_factory=lambda: [np.empty(0, np.float32)])
    n_given: int = 0
    seconds: float = 0.0
    n_drawn: int = 0

    @property
    def next_gap(self) -> Gap:
        return Gap(self.score, self.spans[len(self.gaps)])

    @property
    def is_complete(self) -> bool:
        return len(self.gaps) == len(self.spans)

    @property
    def written(self) -> WrittenIds:
        """The piece's ids, for counts; the music is `score`."""
        return WrittenIds(self.place, np.concatenate(self.ids), np.concatenate(self.entropies), self.seconds)

    @property
    def ended_by(self) -> str:
        """How its fillings ended: the first of `tokens`, `limit` and `itself` that is true of any."""
        return min((gap["ended_by"] for gap in self.gaps), key=("tokens", "limit", "itself").index)

    @property
    def new_spans(self) -> tuple[Span, ...]:
        """The bars that are not as they were."""
        return tuple(span for span, gap in zip(self.spans, self.gaps, strict=False) if gap["n_tokens"])

    @property
    def warnings(self) -> list[str]:
        """Warnings about gaps that were cut short or left."""
        return [
            f"bars {gap['bars'][0]}-{gap['bars'][1]}: "
            + ("cut at the most tokens" if gap["n_tokens"] else "left as they were, for the piece has too many tokens")
            for gap in self.gaps
            if gap["ended_by"] == "tokens"
        ]

    def stream(self, attempt: int) -> int:
        """Return the number of the random stream of a try at the next gap; the first one at the first is its own."""
        return self.attempt + (attempt << TRY_BIT) + (len(self.gaps) << GAP_BIT)

    def fill(self, loaded: LoadedModel, gap: Gap, prompt: Sequence[int], tries: Sequence[WrittenIds]) -> None:
        """Fill the next gap with the try after which the model finds the following music likeliest.

        `tries` is empty where the piece has no room for one.
        """
        if not self.ids:
            self.ids, self.n_given = [np.array(prompt)], len(prompt)
        if not tries:
            nats = round(join_nats(loaded, gap, self.score), 4)
            self._note(gap.span, nats, [nats], 0, "tokens")
            return
        attempts = [loaded.tokenizer.decode(found.ids) for found in tries]
        filled = [gap.filled(attempt) for attempt in attempts]
        nats_of_tries = [round(join_nats(loaded, gap, score), 4) for score in filled]
        best = int(np.argmin(nats_of_tries))  # the first of equals
        drawn = tries[best].ids[len(prompt) :]
        is_cut, is_ended = gap.extent.is_passed_by(attempts[best]), drawn[-1] == loaded.tokenizer.end_id
        ended_by = "limit" if is_cut else "itself" if is_ended else "tokens"
        self._note(gap.span, nats_of_tries[best], nats_of_tries, len(drawn), ended_by)
        self.ids.append(drawn)
        self.entropies.append(tries[best].entropies)
        self.seconds += sum(found.seconds for found in tries)
        self.n_drawn += sum(len(found.ids) - len(prompt) for found in tries)
        self.score = filled[best]

    def _note(self, span: Span, nats: float, of_tries: list[float], n_tokens: int, ended_by: str) -> None:
        self.gaps.append(
            {
                "bars": [span.first_bar, span.last_bar],
                "start_seconds": round(span.start_seconds, 3),
                "end_seconds": round(span.end_seconds, 3),
                "join_nats_per_token": nats,
                "of_tries": of_tries,
                "n_tokens": n_tokens,
                "ended_by": ended_by,
            }
        )

    def to_json(self, share: float) -> dict[str, Any]:
        """Return the entry of a sidecar about the new bars; `share` is the requested share of bars, or 0."""
        return {
            "share": share or None,
            "bars": [[span.first_bar, span.last_bar] for span in self.new_spans],
            "join_nats_per_token": round(float(np.mean([gap["join_nats_per_token"] for gap in self.gaps])), 4),
            "gaps": self.gaps,
        }


def rewrite(
    loaded: LoadedModel,
    canvases: Sequence[Canvas],
    indices: Sequence[int],
    attempts: Sequence[int],
    config: GenerateConfig,
    on_piece: Callable[[Rewritten], None],
    on_tokens: Callable[[int], None] | None = None,
) -> None:
    """Write bars of a unit of pieces again, side by side, gap after gap; pass on each piece as soon as it is complete.

    The tries at the next gap of all pieces are sampled in one call, `batch_size` at once.

    Args:
        on_tokens: see `write_ids`.
    """
    pieces = [
        Rewritten(place, index, attempt, canvas.spans(config, index), canvas.whole)
        for place, canvas, index, attempt in zip(count(), canvases, indices, attempts, strict=False)
    ]
    while left := [piece for piece in pieces if not piece.is_complete]:
        _fill_next_gaps(loaded, left, config, on_piece, on_tokens)


def _fill_next_gaps(
    loaded: LoadedModel,
    pieces: Sequence[Rewritten],
    config: GenerateConfig,
    on_piece: Callable[[Rewritten], None],
    on_tokens: Callable[[int], None] | None,
) -> None:
    gaps = [piece.next_gap for piece in pieces]
    prompts = [gap.prompt_ids(loaded.tokenizer) for gap in gaps]
    max_tokens = config.sampling.max_tokens
    rows = [
        (place, attempt)
        for place, prompt in enumerate(prompts)
        for attempt in range(config.n_tries)
        if len(prompt) < max_tokens
    ]
    written = dict[int, WrittenIds]()  # by row; one that comes a second time takes the place of its first

    def keep(found: WrittenIds) -> None:
        written[found.place] = found

    write_ids(
        loaded,
        [prompts[place] for place, _ in rows],
        [pieces[place].index for place, _ in rows],
        [pieces[place].stream(attempt) for place, attempt in rows],
        FROM_PRIOR,
        config,
        keep,
        lambda row, ids: gaps[rows[row][0]].extent.is_passed_by(loaded.tokenizer.decode(ids.numpy())),
        on_tokens=on_tokens,
    )
    for place, piece in enumerate(pieces):
        tries = [written[row] for row, (of_place, _) in enumerate(rows) if of_place == place]
        piece.fill(loaded, gaps[place], prompts[place], tries)
        if piece.is_complete:
            on_piece(piece)
