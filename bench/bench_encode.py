"""How fast are notes turned into tokens? Our `oore` against MidiTok's MIDILike, on the same files in the same process.

    python bench/bench_encode.py --source some/folder

MidiTok is no dependency. To have it beside ours:

    pip install --target /tmp/bench-site miditok==3.1.0
    PYTHONPATH=/tmp/bench-site python bench/bench_encode.py

Without it the script reports ours alone. Both sides start from files read into memory, ours as flat arrays of all
pieces, MidiTok's as symusic scores; reading is not timed. Both vocabularies are those of Oore et al. 2018: note-on,
note-off, time shift, 32 velocities; MidiTok writes one stream for each track, and quantises to a grid of beats
instead of 8 ms.
"""

from typing import Any

import report
import symusic

from tasks.errors import BadScore
from tasks.music.midi.read_midi import read_midi
from tasks.music.notes import NoteBatch
from tasks.music.tokenizers.oore import OoreTokenizer

try:
    import miditok
except ImportError:
    miditok = None

PACKAGES = ("numpy", "symusic", "miditok")


def main() -> None:
    options = report.parser(__doc__.splitlines()[0], rounds=5)
    options.add_argument("--files", type=int, default=100, help="files to encode, evenly spaced over the source")
    given = options.parse_args()
    with report.source_folder(given.source) as folder:
        contents = [path.read_bytes() for path in report.spread(report.midi_files(folder), given.files)]
        name = folder.name
    scores, peers = read_both(contents)
    batch = NoteBatch.joined([score.notes for score in scores])
    ours = OoreTokenizer()
    sides: dict[str, Any] = {"ours": lambda: len(ours.encode(batch).ids)}
    if miditok is None:
        print("MidiTok is not installed: ours alone. See the head of this script for the two commands.")
    else:
        peer = miditok.MIDILike(miditok.TokenizerConfig(num_velocities=32))
        sides["miditok"] = lambda: sum(count_ids(peer.encode(score)) for score in peers)
    timings = report.measure(sides, given.rounds)
    record: dict[str, Any] = {"files": len(scores), "notes": batch.n_notes}
    for side, timing in timings.items():
        n_tokens = sides[side]()
        record[side] = {
            "tokens_per_second": round(n_tokens / timing.seconds),
            "notes_per_second": round(batch.n_notes / timing.seconds),
            "files_per_second": round(len(scores) / timing.seconds, 1),
            "tokens": n_tokens,
            **timing.as_json(),
        }
    if "miditok" in record:
        ratio = record["ours"]["tokens_per_second"] / record["miditok"]["tokens_per_second"]
        of_notes = record["ours"]["notes_per_second"] / record["miditok"]["notes_per_second"]
        record = {
            "ratio": round(ratio, 1),
            "ratio_means": "tokens/s of ours over MidiTok's MIDILike",
            "ratio_of_notes_per_second": round(of_notes, 1),
            **record,
        }
    report.save("encode", name, record, given.results, PACKAGES)


def read_both(contents: list[bytes]) -> tuple[list[Any], list[Any]]:
    """Return the files that both readers take, as our scores and as symusic's."""
    scores, peers = [], []
    for data in contents:
        try:
            score, peer = read_midi(data), symusic.Score.from_midi(data)
        except (BadScore, RuntimeError):
            continue
        scores.append(score)
        peers.append(peer)
    return scores, peers


def count_ids(sequences: Any) -> int:
    """Return the ids in what MidiTok gives: one sequence, or one for each track."""
    return sum(len(s.ids) for s in sequences) if isinstance(sequences, list) else len(sequences.ids)


if __name__ == "__main__":
    main()
