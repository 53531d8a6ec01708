"""Small inputs that several tests share: folders of music, finished datasets, short training settings."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from models.config import DecoderConfig, WarmupCosineSchedule
from tasks.config.dataset import AugmentConfig, DatasetConfig
from tasks.config.training import TrainConfig
from tasks.dataset import analyse, encode, ledger
from tasks.dataset.publish import dataset_name, plan_tokens, publish_version, version_of
from tasks.dataset.versions import DatasetVersion
from tasks.ingest import song_shards
from tasks.ingest.sources.sample_corpus import write_sample_corpus
from tasks.ingest.sources.scan import scan_sources
from tasks.storage.home import Home

SMALL_MODEL = DecoderConfig(d_model=32, n_heads=4, n_layers=2, d_ff=64, dropout=0.1, max_relative_distance=64)


def small_corpus(folder: Path, n_pieces: int = 12, with_flaws: bool = False) -> Path:
    """Write some pieces of the sample corpus and return the folder."""
    write_sample_corpus(folder, n_pieces=n_pieces, with_flaws=with_flaws)
    return folder


def small_dataset(
    home: Home, source: Path, official: Mapping[str, str] | None = None, **settings: object
) -> DatasetVersion:
    """Build a dataset version in this process, without Ray, Prefect or MLflow.

    Args:
        official: path -> split, as a source with a split of its own would state it.
    """
    given = {
        "name": "small",
        "augment": AugmentConfig(transpositions=(0, 1), stretches=(1.0,)),
    } | settings
    config = DatasetConfig(sources=(str(source),), **given)  # type: ignore[arg-type]
    scan = scan_sources(config.sources, home.cache, config.source_limits)
    files = ledger.allow_licences(scan.files, config.licences)
    if official:
        place, field = files.schema.get_field_index("split"), files.schema.field("split")
        stated = [official.get(path) for path in files.column("path").to_pylist()]
        files = files.set_column(place, field, pa.array(stated).cast(field.type))
    folder = home.datasets / dataset_name(config)
    contents = song_shards.distinct_contents(files)
    songs = song_shards.plan_song_shards(config.parse, contents, folder / "songs")
    song_shards.parse_isolated([shard for shard in songs if not shard.path.exists()])
    planned = analyse.plan_analysis([shard.path for shard in songs], folder / "analysis")
    analyse.analyse_shards([shard for shard in planned if not shard.path.exists()])
    analysis = analyse.read_analysis(planned)
    book = ledger.build_ledger(config, files, contents, songs, analysis)
    leakage = ledger.check_leakage(config, book, analysis)
    tokens = plan_tokens(config, book, songs, folder)
    for shard in tokens:
        if not shard.path.exists():
            encode.encode_songs([shard])
    version = version_of(config, files)
    return publish_version(home, config, version, scan.n_other_files, book, leakage, songs, planned, tokens)


def short_training(**settings: object) -> TrainConfig:
    """Return settings of a run that takes seconds."""
    given = {
        "preset": "small", "model": SMALL_MODEL, "schedule": WarmupCosineSchedule(max_lr=1e-2, warmup_steps=4),
        "n_steps": 12,
        "batch_size": 4, "seq_len": 32, "validation_windows": 4, "eval_interval": 6, "checkpoint_interval": 4,
        "log_interval": 2, "cpus_per_worker": 1,
    } | settings  # fmt: skip
    return TrainConfig(**given)  # type: ignore[arg-type]


def small_model(home: Home, dataset: DatasetVersion, **settings: object) -> Path:
    """Train for some steps in this process, without Ray, and return the best checkpoint."""
    from tasks.checkpoints import CheckpointFolder
    from tasks.training.job import make_job, run_dir_of
    from tasks.training.worker import run_steps

    config = short_training(**settings)
    job = make_job(config, dataset, run_dir_of(home, config, dataset))
    run_steps(job)
    best = CheckpointFolder(job.run_dir / "checkpoints").find("best")
    assert best is not None
    return best
