"""How fast do songs become token shards in all their variants? Song shards in, Parquet with fsync out, on one core.

    python bench/bench_augment.py --source some/folder

Fifty files, five transpositions with five stretches, `oore`: the whole preprocessing of the Music Transformer by
spectraldoy (S004). Its own scripts took 23 s for 50 pieces of POP909 on a machine like the one of `bench/results`,
measured once apart from this bench. Beside ours runs the same rule as a plain Python loop over lists of notes and
events, which writes nothing, on a few of the files; its time is scaled to all of them.

The first call compiles what numba has not compiled before, or loads it from the cache; it is told apart.
"""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import report

from tasks.config.dataset import AugmentConfig, ParseConfig
from tasks.config.source_limits import SourceLimits
from tasks.dataset.encode import TokenShard, encode_songs, plan_token_shards, read_counts
from tasks.ingest import song_shards
from tasks.ingest.sources.scan import scan_sources
from tasks.music.midi.read_midi import read_midi
from tasks.music.notes import NoteBatch
from tasks.music.tokenizers.oore import OoreConfig
from tasks.storage.parquet import read_table

PACKAGES = ("numpy", "numba", "pyarrow")
ORIGINAL_SECONDS = 23.0  # S004's preprocessing of 50 pieces of POP909 into 25 variants each, stored
PLAIN_FILES = 4


def main() -> None:
    options = report.parser(__doc__.splitlines()[0], rounds=7)
    options.add_argument("--files", type=int, default=50, help="files to augment, evenly spaced over the source")
    given = options.parse_args()
    with (
        report.source_folder(given.source) as folder,
        tempfile.TemporaryDirectory(prefix="orchestrion-bench-") as temporary,
    ):
        paths, name = report.spread(report.midi_files(folder), given.files), folder.name
        shards = ingest_files(paths, Path(temporary))
        started = time.perf_counter()
        encode_all(shards, Path(temporary))
        first_call = time.perf_counter() - started
        scores = [read_midi(path) for path in report.spread(paths, PLAIN_FILES)]
        sides = {
            "ours": lambda: encode_all(shards, Path(temporary)),
            "plain_python": lambda: [plain_variants(score.notes) for score in scores],
        }
        timings = report.measure(sides, given.rounds)
        counts = [read_counts(shard.path) for shard in shards]
        n_bytes = sum(shard.path.stat().st_size for shard in shards)
    n_tokens, seconds = sum(c.n_tokens for c in counts), timings["ours"].seconds
    plain_seconds = timings["plain_python"].seconds * len(paths) / len(scores)
    record: dict[str, Any] = {
        "ratio": round(plain_seconds / seconds, 1),
        "ratio_means": "seconds of the plain Python loop, scaled to all files, over ours",
        "over_the_original": round(ORIGINAL_SECONDS / seconds, 1),
        "files": len(paths),
        "rows": sum(c.n_rows for c in counts),
        "tokens": n_tokens,
        "tokens_per_second": round(n_tokens / seconds),
        "bytes_per_token": round(n_bytes / n_tokens, 3),
        "first_call_seconds": round(first_call, 3),
        "ours": timings["ours"].as_json(),
        "plain_python": {"files": len(scores), **timings["plain_python"].as_json()},
    }
    report.save("augment", name, record, given.results, PACKAGES)


def ingest_files(paths: list[Path], scratch: Path) -> list[TokenShard]:
    """Read the files into song shards; return the token shards to be made of them, all of the training split."""
    folder = scratch / "midi"
    folder.mkdir()
    for index, path in enumerate(paths):
        shutil.copy(path, folder / f"{index:04d}{path.suffix}")
    files = scan_sources([str(folder)], scratch / "cache", SourceLimits(), n_threads=1).files
    songs = song_shards.plan_song_shards(ParseConfig(), song_shards.distinct_contents(files), scratch / "songs")
    for job in song_shards.jobs(songs):
        song_shards.parse_isolated(job)
    wanted = []
    for shard in songs:
        table = read_table(shard.path, ["piece", "status"])
        wanted.append((shard.path, "train", table.filter(pc.equal(table["status"], "accepted"))["piece"]))
    pieces = [(path, split, column.combine_chunks()) for path, split, column in wanted]
    return plan_token_shards(pieces, OoreConfig(), AugmentConfig(), scratch / "tokens")


def encode_all(shards: list[TokenShard], scratch: Path) -> None:
    shutil.rmtree(scratch / "tokens", ignore_errors=True)
    for shard in shards:
        encode_songs([shard])


def plain_variants(batch: NoteBatch) -> list[list[int]]:
    """Return the tokens of all variants of one piece, worked out note by note; pedals are left out."""
    config, rows = AugmentConfig(), []
    notes = list(
        zip(
            batch.onset_seconds.tolist(), batch.end_seconds.tolist(), batch.pitch.tolist(), batch.velocity.tolist(),
            strict=True,
        )
    )  # fmt: skip
    for stretch in config.stretches:
        for semitones in config.transpositions:
            events, sounding = [], dict[int, tuple[int, int]]()
            for onset, end, pitch, velocity in notes:
                begins, ends = int(onset * stretch * 125 + 0.5), int(end * stretch * 125 + 0.5)
                events.append([begins, 1, pitch + semitones, velocity // 4])
                events.append([ends, 0, pitch + semitones, 0])
                if pitch in sounding and sounding[pitch][0] > begins:
                    events[sounding[pitch][1]][0] = begins
                sounding[pitch] = ends, len(events) - 1
            ids, now = [414], 0
            for unit, is_on, pitch, bin_ in sorted(events):
                while unit - now > 125:
                    ids.append(381)
                    now += 125
                if unit > now:
                    ids.append(256 + unit - now)
                    now = unit
                ids += [382 + bin_, 1 + pitch] if is_on else [129 + pitch]
            rows.append([*ids, 415])
    return rows


if __name__ == "__main__":
    main()
