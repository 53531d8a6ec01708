"""Continuations of held-out pieces compared with the originals: entropies, times and similarity.

A model with latents cannot be asked that: its latent represents a whole window. It writes the first window of each
piece again from that window's latent, whose figures have names of their own: `from_latents`.
"""

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from models.config import SamplingConfig
from models.registry import has_latents
from tasks.checkpoints import LoadedModel
from tasks.config.evaluation import EvaluateConfig
from tasks.config.generation import GenerateConfig
from tasks.dataset.ledger import paths_of
from tasks.dataset.versions import DatasetVersion
from tasks.evaluation.divergence import (
    Divergences,
    Features,
    divergences,
    draw_histograms,
    features_of,
    mean_divergences,
)
from tasks.evaluation.held_out import pieces_of_rows, spread_pieces
from tasks.music.arrays import FloatArray, IntArray
from tasks.music.metrics.distances import Estimate, estimate, resample
from tasks.music.metrics.harmony import roman_numerals, train_vectors
from tasks.music.midi.writer import write_midi
from tasks.music.score import Score
from tasks.sampling.latents import FROM_PRIOR, LatentPlan, LatentSource
from tasks.sampling.sample_ids import WrittenIds, write_ids
from tasks.sampling.timing import Continued, result_row, results_of
from tasks.storage.parquet import read_table
from tasks.training.token_dataset import TokenDataset

Kind = Literal["continuation", "from_latents"]
DURATION_EDGES = 2.0 ** np.arange(-6, 4.5, 0.5)  # seconds: half an octave to a bin, from 16 ms to 16 s
FEATURES = ("pitch_class", "duration")


@dataclass(frozen=True, slots=True)
class Opening:
    """A held-out piece and how much of it a model is given.

    Args:
        name: split and row, as prompts from a split are called.
        file: where the sources have it.
        ids: all of it.
        n_given: ids at its beginning that are given as they are; where a latent is given too, those of `opening_ids`.
        n_compared: ids at its beginning up to which what is written is set beside it.
    """

    name: str
    file: str
    ids: IntArray = field(repr=False)
    n_given: int
    n_compared: int


@dataclass(frozen=True, slots=True, eq=False)
class Continuation:
    """A model's continuation of an opening, and the original one."""

    opening: Opening
    row: dict[str, Any]  # of the results file
    given: Score
    written: Score  # with what was given
    original: Score  # as far as it is compared, with what was given
    whole: Score  # the original to its end
    features: dict[str, Features]  # of prompt, generated and original, the latter two without the prompt

    def notes_of(self, score: Score) -> list[tuple[float, float, int, bool]]:
        """Return start and end in seconds and pitch of each note, and whether it was given."""
        return [(*span, is_given) for span, is_given in zip(_spans(score), are_given(score, self.given), strict=True)]


def are_given(score: Score, given: Score) -> list[bool]:
    """Return for each note of a piece whether it was given; a given note may sound on in the piece."""
    left = Counter((start, pitch) for start, _, pitch in _spans(given))
    found = list[bool]()
    for start, _, pitch in _spans(score):
        found.append(left[start, pitch] > 0)
        left[start, pitch] -= found[-1]
    return found


def _spans(score: Score) -> list[tuple[float, float, int]]:
    notes = score.notes
    times = (np.round(seconds, 4).tolist() for seconds in (notes.onset_seconds, notes.end_seconds))
    return list(zip(*times, notes.pitch.tolist(), strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class ContinuationTest:
    """The openings that a model was asked to continue.

    Args:
        n_too_short: pieces of the split that are too short to be asked about.
        likeness: of each of `FEATURES`: see `likeness_of`.
        tokens_per_second: drawn, of all pieces together.
    """

    kind: Kind
    pieces: tuple[Continuation, ...]
    n_too_short: int
    likeness: dict[str, dict[str, Estimate]]
    tokens_per_second: float

    @property
    def divergences(self) -> Divergences:
        """Means over the pieces; see `mean_divergences`."""
        return mean_divergences([piece.row["divergences"] for piece in self.pieces])

    @property
    def metrics(self) -> dict[str, float]:
        """Figures that are the same in every run, by `<kind>/<name>`; none without pieces."""
        rows = [piece.row for piece in self.pieces]
        if not rows:
            return {}
        figures: dict[str, float | None] = {
            "n_pieces": len(rows),
            "mean_entropy": results_of(rows)["mean_entropy"],
            "mean_length": float(np.mean([row["generated_length"] for row in rows])),
            "ended_share": float(np.mean([row["ended_with_eos"] for row in rows])),
        }
        for feature, found in self.likeness.items():
            figures[f"{feature}_distance"] = found["to_own"].value
            figures[f"{feature}_distance_of_others"] = found["of_others"].value
        for measure, values in self.divergences.items():
            figures |= {f"{measure}/{comparison}": value for comparison, value in values.items()}
        return {f"{self.kind}/{name}": float(value) for name, value in figures.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """Return the results file: `results_of`, and the similarity of each piece to its original."""
        rows = [piece.row for piece in self.pieces]
        likeness = {
            feature: {name: figure.to_json() for name, figure in found.items()}
            for feature, found in self.likeness.items()
        }
        facts = {
            "kind": self.kind, "n_too_short": self.n_too_short, "likeness": likeness, "divergences": self.divergences,
        }  # fmt: skip
        measured = results_of(rows) if rows else {"mean_entropy": None, "mean_generation_time": None, "pieces": []}
        return facts | measured | {"tokens_per_second": self.tokens_per_second}

    def write_files(self, folder: Path) -> None:
        """Write histograms, and the `continuation_files` of each piece below `<piece>/`; no prompt where none was."""
        rows = [piece.row["divergences"] for piece in self.pieces]
        for name, data in draw_histograms([piece.features for piece in self.pieces], rows).items():
            (folder / name).write_bytes(data)
        for piece in self.pieces:
            target = folder / piece.row["piece"]
            target.mkdir(parents=True)
            given = piece.given if piece.opening.n_given > 1 else None
            files = continuation_files(piece.opening.name, given, piece.whole, piece.original)
            files["generated.mid"] = write_midi(piece.written, f"{piece.opening.name} generated")
            for name, data in files.items():
                (target / name).write_bytes(data)


def continuation_files(name: str, given: Score | None, whole: Score, continued: Score) -> dict[str, bytes]:
    """Return the MIDI files beside `generated.mid` of a continued piece.

    Returns:
        `prompt.mid`: the part that was given; `original.mid`: the whole piece that it was taken of;
        `continued_original.mid`: the beginning of that piece, as long as `generated.mid` may be, with the prompt.
    """
    parts = {"prompt": given, "original": whole, "continued_original": continued}
    return {f"{part}.mid": write_midi(score, f"{name} {part}") for part, score in parts.items() if score is not None}


def continue_pieces(
    loaded: LoadedModel,
    dataset: DatasetVersion,
    store: TokenDataset,
    config: EvaluateConfig,
    on_tokens: Callable[[int], None] | None = None,
) -> ContinuationTest:
    """Continue the first `prompt_tokens` of some pieces of the split, as batches do.

    Up to `sample_tokens` are drawn after them, under the grammar and at temperature 1, and set beside as many of the
    piece itself. The random stream of a piece depends on the seed and its place among those chosen, which is the same
    however many are.

    Args:
        on_tokens: see `write_ids`.
    """
    is_vae = has_latents(loaded.model)
    openings, n_too_short = choose_openings(loaded, dataset, store, config)
    started = time.perf_counter()
    written = _write(loaded, openings, config, on_tokens) if openings else []
    seconds = time.perf_counter() - started
    vectors = _numeral_vectors(loaded, dataset) if openings else {}
    pieces, counts = list[Continuation](), list[dict[str, tuple[FloatArray, FloatArray]]]()
    for place, (opening, piece) in enumerate(zip(openings, written, strict=True)):
        scored = time.perf_counter()
        ends = (opening.n_given, len(piece.ids), opening.n_compared)
        sources = (opening.ids, piece.ids, opening.ids)
        given, music, original = (loaded.tokenizer.decode(ids[:n]) for ids, n in zip(sources, ends, strict=True))
        whole = loaded.tokenizer.decode(opening.ids)
        features = {"prompt": features_of(given)}
        features |= {"generated": features_of(without(music, given)), "original": features_of(without(original, given))}
        counts.append({name: (added(music, given, name), added(original, given, name)) for name in FEATURES})
        continued = Continued(
            prompt=opening.name, path=opening.file, prompt_length=opening.n_given, original_length=len(opening.ids),
            n_compared=opening.n_compared, folder=f"continuations/{place:04d}",
        )  # fmt: skip
        measured = result_row(piece, continued, loaded.tokenizer.end_id, time.perf_counter() - scored)
        more = {
            "piece": f"{place:04d}",
            "file": opening.file,
            **{f"{name}_distance": round(distance(*pair), 4) for name, pair in counts[-1].items()},
            "divergences": divergences(features, vectors),
        }
        pieces.append(Continuation(opening, measured | more, given, music, original, whole, features))
    n_drawn = sum(piece.row["generated_length"] for piece in pieces)
    return ContinuationTest(
        kind="from_latents" if is_vae else "continuation",
        pieces=tuple(pieces),
        n_too_short=n_too_short,
        likeness={name: likeness_of([count[name] for count in counts]) for name in FEATURES} if counts else {},
        tokens_per_second=round(n_drawn / seconds, 1),
    )


def _numeral_vectors(loaded: LoadedModel, dataset: DatasetVersion) -> dict[str, FloatArray]:
    """Return vectors of Roman numerals, learnt from the pieces of `spread_pieces` of the training split."""
    return train_vectors([roman_numerals(score) for score in spread_pieces(loaded.tokenizer, dataset, ["train"])])


def without(score: Score, given: Score) -> Score:
    """Return a piece without the notes that it was given; the others keep their places."""
    return replace(score, notes=score.notes.where(~np.array(are_given(score, given), np.bool_)))


def choose_openings(
    loaded: LoadedModel, dataset: DatasetVersion, store: TokenDataset, config: EvaluateConfig
) -> tuple[list[Opening], int]:
    """Return the beginnings of some pieces, and how many pieces are too short to be among them.

    A piece is long enough if something but its end comes after `prompt_tokens`. Of those, the ones are taken of which
    a hash of the seed and the given tokens is lowest: more pieces asked for are the same ones and more. Of a piece that
    is cut into windows it is the first one.
    """
    lengths = np.diff(store.offsets)
    names = pieces_of_rows(dataset, config.split)
    first_rows = np.unique(names, return_index=True)[1]
    latent_ids = loaded.model.max_length if has_latents(loaded.model) else 0
    n_given = loaded.model.config.n_given if latent_ids else config.prompt_tokens
    rows = np.sort(first_rows[lengths[first_rows] >= n_given + 2])
    looked_at = latent_ids or config.prompt_tokens
    hashes = [_hash(config.seed, store.tokens[at : at + looked_at]) for at in store.offsets[rows]]
    chosen = [int(rows[place]) for place in sorted(range(len(rows)), key=lambda k: (hashes[k], k))]
    chosen = chosen[: config.n_continuations]
    path_of = paths_of(read_table(dataset.ledger, ["piece", "path", "status"]), [names[row] for row in chosen])
    n_compared = min(latent_ids or math.inf, config.prompt_tokens + config.sample_tokens)
    openings = [
        Opening(
            name=f"{config.split}/{row:04d}",
            file=path_of.get(names[row], names[row]),
            ids=store.tokens[store.offsets[row] : store.offsets[row + 1]].astype(np.int64),
            n_given=n_given,
            n_compared=int(min(n_compared, lengths[row])),
        )
        for row in chosen
    ]
    return openings, len(first_rows) - len(rows)


def _hash(seed: int, ids: np.ndarray) -> bytes:
    return hashlib.blake2b(ids.astype("<u2").tobytes(), key=str(seed).encode(), digest_size=16).digest()


def _write(
    loaded: LoadedModel,
    openings: Sequence[Opening],
    config: EvaluateConfig,
    on_tokens: Callable[[int], None] | None,
) -> list[WrittenIds]:
    """Return a model's continuation of each opening, or its piece from the latent of the first window."""
    latents = FROM_PRIOR
    if has_latents(loaded.model):
        sources = tuple(
            LatentSource(opening.name, "", tuple(opening.ids[: loaded.model.max_length].tolist()), 0)
            for opening in openings
        )
        latents = LatentPlan("prompt", sources, len(openings))
    settings = GenerateConfig(
        n_pieces=len(openings),
        seed=config.seed,
        sampling=SamplingConfig(max_tokens=config.prompt_tokens + config.sample_tokens),
        batch_size=config.batch_size,
    )
    written = dict[int, WrittenIds]()
    write_ids(
        loaded,
        [opening.ids[: opening.n_given].tolist() for opening in openings],
        range(len(openings)),
        [0] * len(openings),
        latents,
        settings,
        lambda piece: written.update({piece.place: piece}),
        on_tokens=on_tokens,
    )
    return [written[place] for place in range(len(openings))]


def added(score: Score, given: Score, feature: str) -> FloatArray:
    """Count the notes of a piece beyond those that it was given, by pitch class (drums apart) or by duration.

    Durations are in seconds, in half octaves from 16 ms to 16 s; shorter and longer ones are in the outermost bins.
    """
    notes, is_new = score.notes, ~np.array(are_given(score, given), np.bool_)
    if feature == "pitch_class":
        return np.bincount(notes.pitch[is_new & ~notes.is_drum] % 12, minlength=12).astype(np.float64)
    seconds = (notes.end_seconds - notes.onset_seconds)[is_new]
    seconds = np.clip(seconds, DURATION_EDGES[0], DURATION_EDGES[-1])
    return np.histogram(seconds, DURATION_EDGES)[0].astype(np.float64)


def distance(counts: FloatArray, other: FloatArray) -> float:
    """Return the total variation distance of two distributions given by counts: ½ Σ |p - q|, 0-1.

    It is the share of notes that would have to be others for the two to be alike. If one alone has no notes it is 1,
    if both have none 0.
    """
    return float(0.5 * np.abs(_shares(counts) - _shares(other)).sum())


def _shares(counts: FloatArray) -> FloatArray:
    """Return counts as shares, and last 1 where nothing is counted."""
    n = counts.sum()
    return np.append(counts, not n) / max(n, 1)


def likeness_of(counts: Sequence[tuple[FloatArray, FloatArray]]) -> dict[str, Estimate]:
    """Return the distances of written notes to the originals, with 95 % intervals over pieces.

    Returns:
        to_own: mean distance from each piece's written notes to the original ones.
        of_others: mean distance between originals of different pieces, for comparison.
        gain: of_others - to_own; above 0, a piece is closer to its own original than by chance.
    """
    n = len(counts)
    own = np.array([distance(*pair) for pair in counts])
    if n < 2:
        nothing = Estimate(None, reason="there is no other piece")
        return {"to_own": Estimate(float(own[0])), "of_others": nothing, "gain": nothing}
    originals = np.stack([_shares(original) for _, original in counts])
    others = 0.5 * np.abs(originals[:, None] - originals).sum(axis=(1, 2)) / (n - 1)
    drawn = resample(n, 0, "continuations") / n
    return {
        "to_own": estimate(drawn @ own, 0.0, 1.0),
        "of_others": estimate(drawn @ others, 0.0, 1.0),
        "gain": estimate(drawn @ (others - own), -1.0, 1.0),
    }
