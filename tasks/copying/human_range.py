"""The human range: the runs that human pieces share with the training split.

A longer piece shares longer runs by chance, so the range is measured at several lengths. At length L, a power of two,
it has one excerpt of at most L notes from the middle of each held-out piece with more than L / 2 notes.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

SHARE = 0.95  # of human pieces that the human range holds
ALPHA = 0.05  # chance of a human batch to be judged beyond the range
SHORTEST, LONGEST = 32, 1 << 16  # notes of the excerpts; pieces of half the shortest are not judged
FOUND_BY_CHANCE = 13  # notes of the longest run that the search may miss; `SURE_NOTES` in `shared_runs` is one more
_FEWEST = 19  # human pieces for a 95 % limit: ceil(0.95 * 20) of them


@dataclass(frozen=True, slots=True)
class HumanRange:
    """The lengths of the longest runs that held-out human pieces share with train."""

    n_held_out: int  # pieces of validation and test
    n_measured: int  # those of them that were compared
    runs: Mapping[int, Mapping[int, int]]  # length of the excerpts -> longest run in notes, 0 for none -> excerpts

    def length_for(self, n_notes: int) -> int | None:
        """Return the length of the excerpts for a piece of `n_notes` pitched notes.

        It is the shortest that is at least as long as the piece, or the longest of all, which makes the comparison
        strict. It is None for a piece of 16 notes or fewer, and without 19 excerpts of any length.
        """
        if n_notes <= SHORTEST // 2:
            return None
        lengths = sorted(length for length, runs in self.runs.items() if sum(runs.values()) >= _FEWEST)
        longer = [length for length in lengths if length >= n_notes]
        return longer[0] if longer else lengths[-1] if lengths else None

    def limit(self, n_notes: int) -> int | None:
        """Return the longest run within the human 95 % range for a piece of `n_notes`, or None.

        Of n excerpts it is the ceil(0.95 (n + 1))-th smallest run, an order statistic as a prediction bound: another
        human piece exceeds it with a chance of at most 5 % for any distribution. It is at least 13 notes, because
        shorter runs are found by chance.
        """
        length = self.length_for(n_notes)
        if length is None:
            return None
        return max(FOUND_BY_CHANCE, self._sorted(length)[_rank(self.n_excerpts(length)) - 1])

    def n_excerpts(self, length: int) -> int:
        return sum(self.runs[length].values())

    def quantiles(self, length: int) -> dict[str, float]:
        """Return median, 95 % quantile and maximum of the longest runs at a length."""
        runs = self._sorted(length)
        return {"median": float(np.median(runs)), "p95": float(np.quantile(runs, SHARE)), "max": float(runs[-1])}

    def _sorted(self, length: int) -> list[int]:
        return [run for run, count in sorted(self.runs[length].items()) for _ in range(count)]

    def as_json(self) -> dict[str, Any]:
        """Return plain dicts and numbers, quantiles included."""
        return {
            "n_held_out": self.n_held_out,
            "n_measured": self.n_measured,
            "runs": {str(length): {str(run): n for run, n in runs.items()} for length, runs in self.runs.items()},
            "quantiles": {str(length): self.quantiles(length) for length in self.runs},
        }

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> "HumanRange":
        """Return the range of `as_json`; KeyError, TypeError or ValueError for any other form."""
        runs = {int(length): {int(run): int(n) for run, n in runs.items()} for length, runs in form["runs"].items()}
        return cls(int(form["n_held_out"]), int(form["n_measured"]), dict(sorted(runs.items())))


def _rank(n: int) -> int:
    return math.ceil(SHARE * (n + 1))


def human_range(n_held_out: int, pieces: Iterable[tuple[int, np.ndarray, np.ndarray]]) -> HumanRange:
    """Return the human range of measured pieces.

    Args:
        n_held_out: pieces of validation and test; `pieces` may be a sample of them.
        pieces: number of pitched notes of each piece, and first note and length of each shared run.
    """
    runs = defaultdict[int, Counter[int]](Counter)
    n_measured = 0
    for n_notes, first, run_notes in pieces:
        n_measured += 1
        length = SHORTEST
        while length < 2 * n_notes and length <= LONGEST:
            begin = max(0, (n_notes - length) // 2)
            end = min(n_notes, begin + length)
            inside = np.minimum(first + run_notes, end) - np.maximum(first, begin)
            runs[length][int(inside.max(initial=0))] += 1
            length *= 2
    ordered = {length: dict(sorted(counts.items())) for length, counts in sorted(runs.items())}
    return HumanRange(n_held_out, n_measured, ordered)


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchVerdict:
    """The result of `judge_batch`; `p_value` and `is_beyond` are None if no piece could be judged."""

    n_pieces: int
    n_judged: int  # pieces for which there is a human limit
    n_beyond: int
    share_beyond: float  # of the judged pieces
    p_value: float | None
    is_beyond: bool | None

    def as_json(self) -> dict[str, Any]:
        """Return a plain dict."""
        return asdict(self)


def judge_batch(human: HumanRange, pieces: Sequence[tuple[int, int]]) -> BatchVerdict:
    """Return whether more pieces of a batch copy than pieces by people do.

    A piece is beyond the human range if its longest shared run is longer than `HumanRange.limit`. A batch is beyond if
    human pieces reach its number of such pieces with a chance of at most 5 %. For m pieces and n excerpts whose r-th
    run is the limit, the number has a beta-binomial distribution with parameters m, n + 1 - r and r. That is exact for
    any distribution of runs; equal runs or a limit of 13 only make it milder. Numbers for different lengths are added
    as if their excerpts were independent.

    Args:
        pieces: number of pitched notes and longest shared run of each piece, 0 for no run.
    """
    from scipy.stats import betabinom

    by_length = Counter[int]()
    n_beyond = 0
    for n_notes, n_run in pieces:
        length, limit = human.length_for(n_notes), human.limit(n_notes)
        if length is None or limit is None:
            continue
        by_length[length] += 1
        n_beyond += n_run > limit
    n_judged = by_length.total()
    if not n_judged:
        nothing = {"n_judged": 0, "n_beyond": 0, "share_beyond": 0.0, "p_value": None, "is_beyond": None}
        return BatchVerdict(n_pieces=len(pieces), **nothing)
    chances = np.ones(1)  # of 0, 1, 2 ... pieces beyond
    for length, m in by_length.items():
        n = human.n_excerpts(length)
        chances = np.convolve(chances, betabinom.pmf(np.arange(m + 1), m, n + 1 - _rank(n), _rank(n)))
    p_value = min(1.0, float(chances[n_beyond:].sum()))
    return BatchVerdict(
        n_pieces=len(pieces),
        n_judged=n_judged,
        n_beyond=n_beyond,
        share_beyond=round(n_beyond / n_judged, 6),
        p_value=round(p_value, 6),
        is_beyond=p_value <= ALPHA,
    )
