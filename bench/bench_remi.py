"""How fast are notes turned into `remi` ids? Ours against MidiTok's REMI, the same ids from the same files.

    python bench/bench_remi.py --source some/folder

MidiTok is needed for tests alone. To have it beside ours without installing it:

    pip install --target /tmp/bench-site miditok==3.1.0
    PYTHONPATH=/tmp/bench-site python bench/bench_remi.py

Without it the script reports ours alone. Both sides have the settings of the Hourglass model. `ours` starts from flat
arrays of all pieces and `miditok` from symusic scores, both in memory; `ours_from_bytes` reads the files too. Before
anything is timed, the ids of both sides are compared, and files whose ids differ, because the two readers disagree
about the file, are left out and counted.
"""

from typing import Any

import numpy as np
import report
import symusic

from tasks.errors import BadScore
from tasks.music.midi.read_midi import read_midi
from tasks.music.notes import NoteBatch
from tasks.music.tokenizers.remi.tokenizer import RemiTokenizer

try:
    import miditok
except ImportError:
    miditok = None

PACKAGES = ("numpy", "numba", "symusic", "miditok")


def main() -> None:
    options = report.parser((__doc__ or "").splitlines()[0], rounds=5)
    options.add_argument("--files", type=int, default=100, help="files to encode, evenly spaced over the source")
    given = options.parse_args()
    with report.source_folder(given.source) as folder:
        contents = [path.read_bytes() for path in report.spread(report.midi_files(folder), given.files)]
        name = folder.name
    ours, peer = RemiTokenizer(), hourglass_peer()
    if peer is None:
        print("MidiTok is not installed: ours alone. See the head of this script for the two commands.")
    kept = [data for data in contents if is_same(data, ours, peer)]
    if not kept:
        raise SystemExit(f"none of {len(contents)} files has the same ids on both sides")
    batch = NoteBatch.joined([read_midi(data).notes for data in kept])
    sides: dict[str, Any] = {
        "ours": lambda: ours.encode(batch),
        "ours_from_bytes": lambda: ours.encode(NoteBatch.joined([read_midi(data).notes for data in kept])),
    }
    if peer is not None:
        scores = [symusic.Score.from_midi(data) for data in kept]
        sides["miditok"] = lambda: [peer(score) for score in scores]
    timings = report.measure(sides, given.rounds)
    n_tokens = len(ours.encode(batch).ids) - 2 * len(kept)  # without start and end, which MidiTok does not write
    record: dict[str, Any] = {
        "files": len(kept),
        "files_read_otherwise": len(contents) - len(kept),
        "notes": batch.n_notes,
        "tokens": n_tokens,
    }
    for side, timing in timings.items():
        record[side] = {
            "tokens_per_second": round(n_tokens / timing.seconds),
            "notes_per_second": round(batch.n_notes / timing.seconds),
            "files_per_second": round(len(kept) / timing.seconds, 1),
            **timing.as_json(),
        }
    if peer is not None:
        ratio = timings["miditok"].seconds / timings["ours"].seconds
        from_bytes = timings["miditok"].seconds / timings["ours_from_bytes"].seconds
        record = {
            "ratio": round(ratio, 1),
            "ratio_means": "tokens/s of ours over MidiTok's REMI, both from notes in memory",
            "ratio_of_ours_from_bytes": round(from_bytes, 1),
            **record,
        }
    report.save("remi", name, record, given.results, PACKAGES)


def hourglass_peer() -> Any:
    """Return MidiTok's REMI with the settings that ours has by default, None without MidiTok."""
    if miditok is None:
        return None
    return miditok.REMI(
        miditok.TokenizerConfig(
            num_velocities=16,
            use_chords=True,
            use_programs=True,
            remove_duplicated_notes=True,
            delete_equal_successive_tempo_changes=True,
            delete_equal_successive_time_sig_changes=True,
        )
    )


def is_same(data: bytes, ours: RemiTokenizer, peer: Any) -> bool:
    """Return whether both sides can read a file and give it the same ids; without MidiTok, whether ours can."""
    try:
        score, other = read_midi(data), symusic.Score.from_midi(data)
    except (BadScore, RuntimeError):
        return False
    ids = ours.encode(score.notes).ids[1:-1]
    return peer is None or np.array_equal(ids, peer(other).ids)


if __name__ == "__main__":
    main()
