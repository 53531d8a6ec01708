"""Are duplicates found, and nothing else? Copies of real pieces, changed in known ways, against what is grouped.

    python bench/bench_duplicates.py --source some/folder
    python bench/bench_duplicates.py --source some/folder --pieces 20000 100000 1000000

Of each kind of change, copies of up to `--sample` pieces join the originals; recall is the share of copies that land in
their original's group. Originals that land in one group are different pieces, unless they are performances of one score
(a folder with `midi_score.mid`, as in ASAP) or share many n-grams note for note, which the groups do not look at. For
the scaling runs pieces are spliced from eight passages of real ones, each in a key of its own: all are a little alike.
"""

import itertools
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import report

from tasks.config.dataset import LeakageConfig
from tasks.dataset.leakage import MIN_GRAMS, measure_leakage, thin_grams, thinning_for
from tasks.dataset.near_duplicates import Groups, group_pieces
from tasks.dataset.split import split_groups
from tasks.errors import BadScore
from tasks.music.midi.read_midi import read_midi
from tasks.music.score import Score
from tasks.music.similarity.fingerprint import SAMPLE, gram_hashes, sign_pieces

PACKAGES = ("numba", "numpy", "scipy")
CONFIRMED = 0.1  # share of the smaller piece's 13-note n-grams; unrelated pieces of one source rarely share any
SPLICED_NOTES, PASSAGES = 480, 8
COPIES = 0.05  # of the spliced pieces are transposed copies of others


@dataclass(frozen=True, slots=True, eq=False)
class Notes:
    """One piece as the fingerprint sees it, with what a change needs."""

    onset: np.ndarray
    duration: np.ndarray
    pitch: np.ndarray
    is_drum: np.ndarray
    track: np.ndarray
    ticks_per_quarter: int

    @classmethod
    def of(cls, score: Score) -> "Notes":
        notes = score.notes
        return cls(notes.onset, notes.duration, notes.pitch, notes.is_drum, notes.track, score.ticks_per_quarter)

    def changed(self, **columns: Any) -> "Notes":
        """Return the piece with some columns replaced, its notes in order again."""
        made = {name: columns.get(name, getattr(self, name)) for name in self.__slots__}
        per_quarter = made.pop("ticks_per_quarter")
        order = np.lexsort([made["track"], made["pitch"], made["onset"]])
        return Notes(**{name: values[order] for name, values in made.items()}, ticks_per_quarter=per_quarter)

    def kept(self, mask: np.ndarray) -> "Notes":
        columns = {name: getattr(self, name)[mask] for name in ("onset", "duration", "pitch", "is_drum", "track")}
        return Notes(**columns, ticks_per_quarter=self.ticks_per_quarter)


def main() -> None:
    options = report.parser(__doc__.splitlines()[0], rounds=5)
    options.add_argument("--sample", type=int, default=300, help="pieces that are copied with each change")
    options.add_argument("--pieces", type=int, nargs="*", default=[20_000, 100_000], help="sizes of the scaling runs")
    given = options.parse_args()
    with report.source_folder(given.source) as folder:
        paths, pieces = read_pieces(folder)
        name = folder.name
    names = [str(path.relative_to(folder)) for path in paths]
    offsets, *columns = flat(pieces)
    timings = report.measure(
        {"signatures": lambda: sign_pieces(offsets, *columns), "n_grams": lambda: gram_hashes(offsets, *columns)},
        given.rounds,
    )
    microseconds = {side: 1e6 * min(t.cpu) / len(pieces) for side, t in timings.items()}
    scaling = [scale(offsets, columns, n) for n in given.pieces]
    judged = originals(pieces, names)
    record = {
        "ratio": scaling[-1]["ratio"] if scaling else judged["ratio"],
        "ratio_means": "pairs of pieces over pairs compared, in the largest run",
        "pieces": len(pieces),
        "notes": int(offsets[-1]),
        "recall": {kind: recall(pieces, change, given.sample) for kind, change in CHANGES.items()},
        "originals": judged,
        "leakage": leakage(pieces, names),
        "cpu_microseconds_per_piece": {side: round(value, 1) for side, value in microseconds.items()},
        "scaling": scaling,
        **{side: timing.as_json() for side, timing in timings.items()},
    }
    report.save("duplicates", name, record, given.results, PACKAGES)


def read_pieces(folder: Path) -> tuple[list[Path], list[Notes]]:
    read = []
    for path in report.midi_files(folder):
        try:
            read.append((path, Notes.of(read_midi(path))))
        except BadScore:
            continue
    return [path for path, _ in read], [piece for _, piece in read]


def flat(pieces: list[Notes]) -> tuple[np.ndarray, ...]:
    """Return offsets, onsets, pitches and drums of all pieces as flat arrays."""
    offsets = np.concatenate([[0], np.cumsum([len(piece.pitch) for piece in pieces])])
    return offsets, *(np.concatenate([getattr(p, name) for p in pieces]) for name in ("onset", "pitch", "is_drum"))


def grouped(pieces: list[Notes]) -> Groups:
    signatures = sign_pieces(*flat(pieces))
    return group_pieces(hex_ids(len(pieces)), signatures.signature, signatures.n_shingles)


def hex_ids(n: int) -> np.ndarray:
    return np.array([f"{i:08x}" for i in range(n)])


# --- the changes ------------------------------------------------------------------------------------------------------


def transposed(piece: Notes, random: np.random.Generator) -> Notes:
    pitched = piece.pitch[~piece.is_drum].astype(int)
    if not len(pitched):
        return piece
    steps = [s for s in range(-6, 7) if s and pitched.min() + s >= 0 and pitched.max() + s <= 127]
    shift = random.choice(steps)
    return piece.changed(pitch=np.where(piece.is_drum, piece.pitch, piece.pitch + shift).astype(np.uint8))


def retempoed(piece: Notes, random: np.random.Generator) -> Notes:
    """Another resolution, and ticks stretched against the beat, as a file saved from a recording at another tempo."""
    per_quarter = int(random.choice([96, 120, 384, 480, 960]))
    factor = per_quarter / piece.ticks_per_quarter * random.uniform(0.6, 1.7)
    return piece.changed(
        onset=np.round(piece.onset * factor).astype(np.int64),
        duration=np.maximum(np.round(piece.duration * factor), 1).astype(np.int64),
        ticks_per_quarter=per_quarter,
    )


def requantized(per_beat: int) -> Callable[[Notes, np.random.Generator], Notes]:
    def change(piece: Notes, random: np.random.Generator) -> Notes:
        grid = piece.ticks_per_quarter / per_beat
        return piece.changed(onset=np.round(np.round(piece.onset / grid) * grid).astype(np.int64))

    return change


def retracked(piece: Notes, random: np.random.Generator) -> Notes:
    """Notes spread over new tracks by chance, and one in ten doubled by another track."""
    doubled = np.concatenate([np.arange(len(piece.pitch)), np.flatnonzero(random.random(len(piece.pitch)) < 0.1)])
    more = piece.kept(doubled)
    return more.changed(track=random.integers(0, 5, len(doubled)).astype(np.uint16))


def edited(share: float) -> Callable[[Notes, np.random.Generator], Notes]:
    """Of so many notes a third removed, a third moved by up to three semitones, and as many added."""

    def change(piece: Notes, random: np.random.Generator) -> Notes:
        n = len(piece.pitch)
        chance = random.random(n)
        pitch = piece.pitch.astype(int)
        moved = (chance < share / 3) & ~piece.is_drum
        pitch[moved] += random.choice([-3, -2, -1, 1, 2, 3], moved.sum())
        rest = piece.changed(pitch=np.clip(pitch, 0, 127).astype(np.uint8)).kept(
            random.permutation(n) >= round(n * share / 3)
        )
        new = rest.kept(np.flatnonzero(random.random(len(rest.pitch)) < share / 3))
        shift = np.where(new.is_drum, 0, random.integers(-12, 13, len(new.pitch)))
        late = random.integers(0, max(1, piece.ticks_per_quarter // 2), len(new.pitch))
        added = new.changed(
            pitch=np.clip(new.pitch + shift, 0, 127).astype(np.uint8),
            onset=new.onset + late,
        )
        columns = {
            name: np.concatenate([getattr(rest, name), getattr(added, name)])
            for name in ("onset", "duration", "pitch", "is_drum", "track")
        }
        return rest.changed(**columns)

    return change


def cut(first: float, last: float) -> Callable[[Notes, np.random.Generator], Notes]:
    def change(piece: Notes, random: np.random.Generator) -> Notes:
        n = len(piece.pitch)
        return piece.kept(np.arange(int(n * first), max(int(n * first) + 1, int(n * last))))

    return change


def everything(piece: Notes, random: np.random.Generator) -> Notes:
    return retracked(retempoed(transposed(edited(0.02)(piece, random), random), random), random)


CHANGES: dict[str, Callable[[Notes, np.random.Generator], Notes]] = {
    "copied": lambda piece, random: piece,
    "transposed": transposed,
    "retempoed": retempoed,
    "retracked": retracked,
    "requantized_to_32nds": requantized(8),
    "requantized_to_16ths": requantized(4),
    "edited_2_percent": edited(0.02),
    "edited_5_percent": edited(0.05),
    "first_half": cut(0, 0.5),
    "second_half": cut(0.5, 1),
    "middle_third": cut(1 / 3, 2 / 3),
    "transposed_retempoed_retracked_edited": everything,
}


# --- what is found ----------------------------------------------------------------------------------------------------


def recall(pieces: list[Notes], change: Callable[[Notes, np.random.Generator], Notes], sample: int) -> float:
    """Return the share of changed copies that are grouped with their originals, all originals being there too."""
    random = np.random.default_rng(0)
    chosen = report.spread(range(len(pieces)), sample)
    component = grouped([*pieces, *(change(pieces[i], random) for i in chosen)]).component
    found = component[len(pieces) :] == component[np.array(chosen)]
    return round(float(found.mean()), 4)


def originals(pieces: list[Notes], names: list[str]) -> dict[str, Any]:
    """Judge the groups of the originals alone."""
    groups = grouped(pieces)
    gram_offsets, grams = gram_hashes(*flat(pieces))
    of = [set(grams[a:b].tolist()) for a, b in itertools.pairwise(gram_offsets)]
    parents = [str(Path(name).parent) for name in names]
    scores = {parent for name, parent in zip(names, parents, strict=True) if Path(name).name == "midi_score.mid"}
    piece_of = [parent if parent in scores else name for name, parent in zip(names, parents, strict=True)]
    performed = found = same = confirmed = 0
    unconfirmed: list[str] = []
    groups_with_strangers: set[int] = set()
    order = np.argsort(groups.component, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(groups.component[order])) + 1):
        for a, b in itertools.combinations(members.tolist(), 2):
            if piece_of[a] == piece_of[b]:
                same += 1
            elif len(of[a] & of[b]) >= CONFIRMED * max(1, min(len(of[a]), len(of[b]))):
                confirmed += 1
            else:
                groups_with_strangers.add(int(groups.component[a]))
                unconfirmed.append(f"{names[a]} + {names[b]}")
    for parent in scores:
        members = [i for i, of_piece in enumerate(piece_of) if of_piece == parent]
        performed += len(members) * (len(members) - 1) // 2
        found += sum(groups.component[a] == groups.component[b] for a, b in itertools.combinations(members, 2))
    n_pairs, n_many = same + confirmed + len(unconfirmed), int((np.bincount(groups.component) > 1).sum())
    return {
        "ratio": round(len(names) * (len(names) - 1) / 2 / max(1, groups.n_candidates), 1),
        "performance_pairs": performed,
        "performance_recall": round(found / performed, 4) if performed else None,
        "pairs_joined": n_pairs,
        "of_one_score": same,
        "confirmed_by_n_grams": confirmed,
        "unconfirmed": len(unconfirmed),
        "pair_precision_at_least": round(1 - len(unconfirmed) / n_pairs, 4) if n_pairs else 1.0,
        "groups_of_several": n_many,
        "group_precision_at_least": round(1 - len(groups_with_strangers) / n_many, 4) if n_many else 1.0,
        "largest_group": groups.largest,
        "guarded": groups.n_guarded,
        "some_unconfirmed": report.spread(unconfirmed, 20),
    }


def leakage(pieces: list[Notes], names: list[str]) -> dict[str, Any]:
    """Return the leakage of splits by group, five seeds, and of one with a transposed copy planted across it."""
    groups = grouped(pieces)
    ids, keys = hex_ids(len(pieces)), np.arange(groups.n_groups).astype(np.uint64)
    made = gram_hashes(*flat(pieces))
    runs = []
    for seed in range(5):
        splits = split_groups(keys, 0.1, 0.1, seed)[groups.component]
        runs.append(measure_leakage(ids, *made, splits, groups.component))
    long_enough = np.flatnonzero((splits == 0) & (np.diff(made[0]) >= MIN_GRAMS))
    copy = transposed(pieces[long_enough[len(long_enough) // 2]], np.random.default_rng(0))
    planted = measure_leakage(
        hex_ids(len(pieces) + 1),
        *gram_hashes(*flat([*pieces, copy])),
        np.append(splits, 2),
        np.append(groups.component, groups.n_groups),
    )
    held = [split for run in runs for split in run.splits.values()]
    worst = max((piece for split in held for piece in split.worst), key=_nearest)
    return {
        "piece_bound": LeakageConfig().piece_bound,
        "leaked_share_by_seed": [run.leaked_share for run in runs],
        "rated_share": round(sum(s.n_rated for s in held) / max(1, sum(s.n_pieces for s in held)), 3),
        "mean_shares": [round(split.mean, 3) for split in held],
        "baseline_mean_shares": [round(run.baseline.mean, 3) for run in runs],
        "highest_share_in_one_piece": worst.share_in_nearest,
        "highest_pair": f"{names[int(worst.piece, 16)]} + {names[int(worst.nearest, 16)]}" if worst.nearest else None,
        "with_planted_copy": planted.leaked_share,
    }


def _nearest(piece: Any) -> float:
    return piece.share_in_nearest


# --- many pieces ------------------------------------------------------------------------------------------------------


def scale(offsets: np.ndarray, columns: list[np.ndarray], n_pieces: int) -> dict[str, Any]:
    """Group spliced pieces and copies of some."""
    random = np.random.default_rng(n_pieces)
    signature, n_shingles = np.empty((n_pieces, 64), np.uint32), np.empty(n_pieces, np.int32)
    n_originals = n_pieces - int(n_pieces * COPIES)
    source = random.integers(0, n_originals, n_pieces - n_originals)
    thinning = thinning_for(n_originals * SPLICED_NOTES // SAMPLE)
    sizes, grams = [np.zeros(1, np.int64)], []
    for begin in range(0, n_originals, 5000):
        end = min(begin + 5000, n_originals)
        spliced = splice(columns, end - begin, np.random.default_rng([n_pieces, begin]))
        made = sign_pieces(*spliced)
        signature[begin:end], n_shingles[begin:end] = made.signature, made.n_shingles
        gram_offsets, some = thin_grams(*gram_hashes(*spliced), thinning)
        sizes.append(np.diff(gram_offsets))
        grams.append(some)
    # A transposed copy has the signature of its original; what is measured here is whether it is found among so many.
    signature[n_originals:], n_shingles[n_originals:] = signature[source], n_shingles[source]
    ids = np.array([b"%08x" % i for i in range(n_pieces)])
    before, started = time.process_time(), time.perf_counter()
    groups = group_pieces(ids, signature, n_shingles)
    seconds, cpu = time.perf_counter() - started, time.process_time() - before
    found = groups.component[n_originals:] == groups.component[source]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    all_pairs = n_pieces * (n_pieces - 1) / 2
    del signature
    component = groups.component[:n_originals]
    splits = split_groups(np.arange(groups.n_groups).astype(np.uint64), 0.1, 0.1, 0)[component]
    gram_offsets, all_grams = np.cumsum(np.concatenate(sizes)), np.concatenate(grams)
    grams.clear()
    before = time.process_time()
    leaked = measure_leakage(ids[:n_originals], gram_offsets, all_grams, splits, component, thinning=thinning)
    leakage_cpu = time.process_time() - before
    return {
        "pieces": n_pieces,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "peak_memory_mib": round(memory / 1024),
        "pairs_compared": groups.n_candidates,
        "ratio": round(all_pairs / max(1, groups.n_candidates)),
        "copies_found": round(float(found.mean()), 4),
        "groups": groups.n_groups,
        "originals_in_groups_with_others": int(n_originals - len(np.unique(groups.component[:n_originals]))),
        "largest_group": groups.largest,
        "guarded": groups.n_guarded,
        "leakage_cpu_seconds": round(leakage_cpu, 2),
        "leakage_sampled": leaked.sampled,
        "leakage_peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "leaked_share": leaked.leaked_share,
    }


def splice(columns: list[np.ndarray], n_pieces: int, random: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Return pieces made of eight passages of sixty notes from anywhere."""
    onset, pitch, is_drum = columns
    n = SPLICED_NOTES // PASSAGES
    starts = random.integers(0, len(pitch) - n, (n_pieces, PASSAGES, 1))
    at = starts + np.arange(n)
    gaps = np.maximum(np.diff(onset[at], axis=2, prepend=onset[at[:, :, :1]] - 1), 0)
    moved = np.where(is_drum[at], pitch[at], pitch[at] + random.integers(-12, 13, starts.shape)).clip(0, 127)
    offsets = np.arange(n_pieces + 1) * SPLICED_NOTES
    return (
        offsets,
        np.cumsum(gaps.reshape(n_pieces, -1), axis=1).ravel(),
        moved.astype(np.uint8).ravel(),
        is_drum[at].ravel(),
    )


if __name__ == "__main__":
    main()
