"""How much human pieces share with the training split, as the range for what a batch may share.

The longer a piece is, the longer is the run that it shares by chance. So people are measured at several lengths: at
length L, a power of two, by one excerpt of at most L notes from the middle of each held-out piece with more than L / 2.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

SHARE = 0.95  # of human pieces that the human range holds
ALPHA = 0.05  # chance at which a batch of human music would be called beyond the range
SHORTEST, LONGEST = 32, 1 << 16  # notes of the excerpts; pieces of half the shortest are too short to be judged
FOUND_BY_CHANCE = 13  # notes of the longest run that the search may miss; `SURE_NOTES` in `shared_runs` is one more
_FEWEST = 19  # human pieces from which a 95 % limit is known: one in twenty of them and the next


@dataclass(frozen=True, slots=True)
class HumanRange:
    """How long the longest runs are that held-out human pieces share with train.

    Args:
        n_held_out: pieces of validation and test.
        n_measured: of them, those that were compared.
        runs: length of the excerpts -> longest run in notes -> number of excerpts; 0 where none was found.
    """

    n_held_out: int
    n_measured: int
    runs: Mapping[int, Mapping[int, int]]

    def length_for(self, n_notes: int) -> int | None:
        """Return the length of the excerpts that a piece of `n_notes` pitched notes is compared with.

        It is the shortest one that is no shorter than the piece; failing that, the longest there is, which makes the
        comparison a strict one. None: the piece has 16 notes or fewer, or there are not 19 excerpts of any length, too
        few to tell 95 % of anything.
        """
        if n_notes <= SHORTEST // 2:
            return None
        lengths = sorted(length for length, runs in self.runs.items() if sum(runs.values()) >= _FEWEST)
        longer = [length for length in lengths if length >= n_notes]
        return longer[0] if longer else lengths[-1] if lengths else None

    def limit(self, n_notes: int) -> int | None:
        """Return the longest run that a piece of `n_notes` may share and be within the human 95 % range, or None.

        Of n excerpts it is the ceil(0.95 (n + 1))-th smallest run: one more piece by people, drawn as they were, goes
        beyond it with a chance of at most 5 %, whatever the distribution (an order statistic as a prediction bound).
        It is never below 13 notes, since whether shorter runs are found is chance.
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
        """Return what `as_json` was made of; KeyError, TypeError or ValueError where the form is another."""
        runs = {int(length): {int(run): int(n) for run, n in runs.items()} for length, runs in form["runs"].items()}
        return cls(int(form["n_held_out"]), int(form["n_measured"]), dict(sorted(runs.items())))


def _rank(n: int) -> int:
    return math.ceil(SHARE * (n + 1))


def human_range(n_held_out: int, pieces: Iterable[tuple[int, np.ndarray, np.ndarray]]) -> HumanRange:
    """Return the human range of measured pieces.

    Args:
        n_held_out: of which `pieces` may be a sample.
        pieces: for each, its number of pitched notes, and the first note and the length of each run it shares.
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
    """What `judge_batch` found; `p_value` and `is_beyond` are None where nothing could be judged."""

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
    """Return whether more pieces of a batch copy than would if people had written them.

    The rule: a piece is beyond the human range if its longest shared run is longer than `HumanRange.limit` for its
    length. The batch is beyond if so many pieces would be with a chance of at most 5 %, were they drawn as the held-out
    ones. Of m pieces compared with n excerpts whose r-th run is the limit, that number has a beta-binomial distribution
    with parameters m, n + 1 - r and r: exact for any distribution of runs, and equal runs or a limit of
    13 only make it milder. Numbers for pieces of different lengths are added as if the excerpts of each length were
    other people's.

    Args:
        pieces: for each, its number of pitched notes and its longest shared run, 0 where there is none.
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
