"""The plan of a rebuild: files, reuse, disk and time. Only the scan cache is written."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from tasks.config.dataset import DatasetConfig
from tasks.dataset.analyse import analyse
from tasks.dataset.encode import TokenShard, encode_songs, with_symbols_of
from tasks.dataset.ledger import allow_licences
from tasks.dataset.publish import dataset_name, version_of
from tasks.dataset.versions import usable_version
from tasks.ingest.song_shards import Contents, SongShard, distinct_contents, parse_isolated, plan_song_shards
from tasks.ingest.sources.sample_corpus import write_sample_corpus
from tasks.ingest.sources.scan import scan_sources
from tasks.ingest.sources.secrets import keep_sources
from tasks.runtime import cluster
from tasks.storage.home import Home
from tasks.storage.parquet import read_table

SAMPLE = 24  # files that are read and encoded for the estimates


def plan_rebuild(home: Home, config: DatasetConfig) -> dict[str, Any]:
    """Return the work of a `rebuild`. Time is for all cores of this machine, without the start of Ray and Prefect.

    Disk and time are those of a sample times the number of files. All tokens are assumed new, and all pieces augmented.
    """
    with tempfile.TemporaryDirectory(prefix="orchestrion-plan-") as temporary:
        folder = Path(temporary)
        config = replace(config, name=dataset_name(config))
        if not config.sources:
            write_sample_corpus(folder / "sample", with_flaws=True)
            config = replace(config, sources=(str(folder / "sample"),))
        config = replace(config, sources=keep_sources(config.sources, home.address_key))
        scan = scan_sources(config.sources, home.cache, config.source_limits, config.rehash, cluster.n_cpus())
        files = allow_licences(scan.files, config.licences)
        version = version_of(config, files)
        found = usable_version(home, config.name, version)
        contents = distinct_contents(files)
        shards = plan_song_shards(config.parse, contents, home.datasets / config.name / "songs")
        n_files = len(contents.first)
        n_new = 0 if found else sum(shard.n_files for shard in shards if not shard.path.exists())
        disk, parsing, encoding = (0.0, 0.0, 0.0) if found else _estimate(config, contents, folder)
        seconds = (parsing * n_new + encoding * n_files) / cluster.n_cpus()
        return {
            "dry_run": True,
            "dataset": config.name,
            "dataset_version": version,
            "status": "exists" if found else "new",
            "n_files": files.num_rows,
            "n_other_files": scan.n_other_files,
            "n_rejected_by_scan": files.column("content_hash").null_count,
            "n_distinct": n_files,
            "n_to_parse": n_new,
            "disk_bytes": round(disk * n_files),
            "seconds": float(f"{seconds:.2g}"),
        }


def _estimate(config: DatasetConfig, contents: Contents, folder: Path) -> tuple[float, float, float]:
    """Return for one file and core the bytes on disk, the seconds of parsing and analysis, and those of encoding."""
    places = np.unique(np.linspace(0, len(contents.first) - 1, SAMPLE).astype(np.int64)) if len(contents.first) else []
    if not len(places):
        return 0.0, 0.0, 0.0
    n_files, songs, tokens = len(places), folder / "songs.parquet", folder / "tokens.parquet"
    shard = SongShard(contents.files, contents.first[places], 0, config.parse, songs).part(0, n_files)
    parsing = _seconds(lambda: parse_isolated([shard])) + _seconds(lambda: analyse(songs))
    table = read_table(songs, ["piece", "status"])
    pieces = table.filter(pc.field("status") == "accepted").column("piece").combine_chunks()
    if not len(pieces):
        return songs.stat().st_size / n_files, parsing / n_files, 0.0
    token_shard = with_symbols_of(
        TokenShard(songs, pieces, "train", config.encoding, config.windows, config.augment, tokens)
    )
    encoding = _seconds(lambda: encode_songs([token_shard]))
    return (songs.stat().st_size + tokens.stat().st_size) / n_files, parsing / n_files, encoding / n_files


def _seconds(work: Callable[[], object]) -> float:
    """Return the shorter time of two runs, because the first one also loads compiled code."""
    times = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
