"""How fast are files read? Our `read_midi` against symusic alone, and against mido on a sample of the files.

    python bench/bench_ingest.py --source some/folder

All sides get the files' bytes from memory, so no disk is timed. symusic alone is the floor: `read_midi` calls it, and
checks the bytes before and every number after.
"""

import io
from collections.abc import Callable
from typing import Any

import mido
import report
import symusic

from tasks.errors import BadScore
from tasks.music.score import read_midi

PACKAGES = ("symusic", "mido", "numpy")


def main() -> None:
    options = report.parser(__doc__.splitlines()[0], rounds=5)
    options.add_argument("--mido-files", type=int, default=40, help="size of the sample that mido reads")
    given = options.parse_args()
    with report.source_folder(given.source) as folder:
        contents = [path.read_bytes() for path in report.midi_files(folder)]
        name = folder.name
    sample = report.spread(contents, given.mido_files)
    all_files = report.measure(
        {"ours": lambda: read_all(read_with_us, contents), "symusic": lambda: read_all(read_with_symusic, contents)},
        given.rounds,
    )
    sampled = report.measure(
        {"ours": lambda: read_all(read_with_us, sample), "mido": lambda: read_all(read_with_mido, sample)},
        max(1, given.rounds // 2),
    )
    counts = {
        side: read_all(read, contents) for side, read in {"ours": read_with_us, "symusic": read_with_symusic}.items()
    }
    record = {
        "ratio": round(sampled["mido"].seconds / sampled["ours"].seconds, 2),
        "ratio_means": "files/s of ours over mido, on the sample",
        "share_of_symusic": round(all_files["symusic"].seconds / all_files["ours"].seconds, 3),
        "files": len(contents),
        "bytes": sum(map(len, contents)),
        "sample_files": len(sample),
        **{
            side: rates(len(contents), counts[side], all_files[side]) | {"refused": counts[side][1]}
            for side in ("ours", "symusic")
        },
        "mido": rates(len(sample), read_all(read_with_mido, sample), sampled["mido"]),
        "ours_on_sample": rates(len(sample), read_all(read_with_us, sample), sampled["ours"]),
    }
    report.save("ingest", name, record, given.results, PACKAGES)


def rates(n_files: int, counts: tuple[int, int], timing: Any) -> dict[str, Any]:
    """Return what one side did in a second."""
    return {
        "files_per_second": round(n_files / timing.seconds),
        "notes_per_second": round(counts[0] / timing.seconds),
        "notes": counts[0],
        **timing.as_json(),
    }


def read_all(read: Callable[[bytes], int], contents: list[bytes]) -> tuple[int, int]:
    """Read every file; return (notes, files refused)."""
    n_notes = n_refused = 0
    for data in contents:
        try:
            n_notes += read(data)
        except (BadScore, RuntimeError, ValueError, OSError, EOFError, KeyError):  # what symusic and mido raise
            n_refused += 1
    return n_notes, n_refused


def read_with_us(data: bytes) -> int:
    return len(read_midi(data).notes.pitch)


def read_with_symusic(data: bytes) -> int:
    return symusic.Score.from_midi(data).note_num()


def read_with_mido(data: bytes) -> int:
    file = mido.MidiFile(file=io.BytesIO(data))
    return sum(m.type == "note_on" and m.velocity > 0 for track in file.tracks for m in track)


if __name__ == "__main__":
    main()
