"""How fast do files become song shards, on one core? Ours whole, from listing to Parquet, against mere reading.

    python bench/bench_ingest.py --source some/folder

Ours is everything a rebuild does for a file until its notes are on disk: list, look at size and times, hash, find
distinct contents, read in an isolated child process, arrange notes and pedals, seconds through the tempo map, write
Parquet with fsync, read the facts for the ledger. The peers do far less, and keep nothing:

    reading         our reader alone, from bytes in memory to notes, pedals and seconds in arrays
    symusic         `Score(path)`: the file is parsed
    symusic_arrays  the same, and the notes of each track as NumPy arrays
    mido            `MidiFile(path)`, on a sample of the files
    miditok         `Score(path)` and MIDILike's preprocessing, on a sample; see bench_encode.py for how to have it

All of them read from the page cache. Compiling our reader once (some seconds after an installation) is not timed.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import mido
import report
import symusic

from tasks.config.dataset import ParseConfig
from tasks.config.source_limits import SourceLimits
from tasks.dataset import ledger
from tasks.ingest import song_shards
from tasks.ingest.sources.scan import scan_sources
from tasks.music.midi.reader import read_files

try:
    import miditok
except ImportError:
    miditok = None

FILES_A_BATCH = 100
PACKAGES = ("symusic", "mido", "miditok", "numba", "numpy", "pyarrow")


def main() -> None:
    options = report.parser(__doc__.splitlines()[0], rounds=7)
    options.add_argument("--sample-files", type=int, default=40, help="size of the sample that mido and MidiTok read")
    given = options.parse_args()
    with (
        report.source_folder(given.source) as folder,
        tempfile.TemporaryDirectory(prefix="orchestrion-bench-") as temporary,
    ):
        paths, name = report.midi_files(folder), folder.name
        whole, counts = compare_whole(folder, paths, Path(temporary), given.rounds)
        sample = report.spread(paths, given.sample_files)
        on_sample = time_slow_peers(sample, given.rounds)
        n_bytes = sum(path.stat().st_size for path in paths)
    record = {
        "ratio": round(whole["symusic_arrays"].seconds / whole["ours"].seconds, 3),
        "ratio_means": "files/s of ours, whole, over symusic and its note arrays, one core each",
        "over_symusic": round(whole["symusic"].seconds / whole["ours"].seconds, 3),
        "reading_over_symusic_arrays": round(whole["symusic_arrays"].seconds / whole["reading"].seconds, 3),
        "over_slow_peers": {
            peer: round((timing.seconds / len(sample)) / (whole["ours"].seconds / len(paths)), 1)
            for peer, timing in on_sample.items()
        },
        "files": len(paths),
        "bytes": n_bytes,
        **counts,
        "sample_files": len(sample),
        **{side: rates(len(paths), timing) for side, timing in whole.items()},
        **{f"{side}_on_sample": rates(len(sample), timing) for side, timing in on_sample.items()},
    }
    report.save("ingest", name, record, given.results, PACKAGES)


def compare_whole(folder: Path, paths: list[Path], scratch: Path, rounds: int) -> tuple[dict[str, Any], dict[str, int]]:
    counts: dict[str, int] = {}
    contents = [path.read_bytes() for path in paths]
    batches = [contents[place : place + FILES_A_BATCH] for place in range(0, len(contents), FILES_A_BATCH)]
    sides = {
        "ours": lambda: counts.update(ingest_folder(folder, scratch)),
        "reading": lambda: [read_files(batch) for batch in batches],
        "symusic": lambda: read_all(paths, with_arrays=False),
        "symusic_arrays": lambda: counts.update(symusic_notes=read_all(paths, with_arrays=True)),
    }
    return report.measure(sides, rounds), counts


def time_slow_peers(sample: list[Path], rounds: int) -> dict[str, Any]:
    """Time the slow peers on a few files, evenly spaced over all."""
    sides: dict[str, Any] = {"mido": lambda: [mido.MidiFile(path, clip=True) for path in sample]}
    if miditok is None:
        print("MidiTok is not installed: without it. See the head of bench_encode.py for the two commands.")
    else:
        tokenizer = miditok.MIDILike(miditok.TokenizerConfig(num_velocities=32))
        sides["miditok"] = lambda: [tokenizer.preprocess_score(symusic.Score(path)) for path in sample]
    return report.measure(sides, max(3, rounds // 2))


def ingest_folder(folder: Path, scratch: Path) -> dict[str, int]:
    """Do what a rebuild does until the songs are on disk, into an empty folder, in one thread."""
    shutil.rmtree(scratch / "out", ignore_errors=True)
    config = ParseConfig()
    files = scan_sources([str(folder)], scratch / "out" / "cache", SourceLimits(), n_threads=1).files
    contents = song_shards.distinct_contents(files)
    shards = song_shards.plan_song_shards(config, contents, scratch / "out" / "songs")
    for job in song_shards.jobs(shards):
        song_shards.parse_isolated(job)
    facts = ledger.read_song_facts(shards)
    return {"notes": sum(facts.column("n_notes").to_pylist()), "shards": len(shards)}


def rates(n_files: int, timing: Any) -> dict[str, Any]:
    return {"files_per_second": round(n_files / timing.seconds), **timing.as_json()}


def read_all(paths: list[Path], with_arrays: bool) -> int:
    """Read every file with symusic; return the notes."""
    n_notes = 0
    for path in paths:
        try:
            score = symusic.Score(path)
        except (RuntimeError, ValueError):  # what symusic raises on a file that it refuses
            continue
        if with_arrays:
            n_notes += sum(len(track.notes.numpy()["pitch"]) for track in score.tracks)
    return n_notes


if __name__ == "__main__":
    main()
