"""Small inputs that several tests share: folders of music, finished datasets, short training settings."""

from pathlib import Path

from models.config import DecoderConfig, WarmupCosineSchedule
from tasks import datasets, encode, ingest
from tasks.config import AugmentConfig, DatasetConfig, TrainConfig
from tasks.datasets import DatasetVersion
from tasks.home import Home
from tasks.music.corpus.writer import write_corpus
from tasks.scan import hash_files, scan_source

SMALL_MODEL = DecoderConfig(d_model=32, n_heads=4, n_layers=2, d_ff=64, dropout=0.1, max_relative_distance=64)


def small_corpus(folder: Path, n_pieces: int = 12, with_flaws: bool = False) -> Path:
    """Write some pieces of the sample corpus and return the folder."""
    write_corpus(folder, n_pieces=n_pieces, with_flaws=with_flaws)
    return folder


def small_dataset(home: Home, source: Path, **settings: object) -> DatasetVersion:
    """Build a dataset version in this process, without Ray, Prefect or MLflow."""
    given = {
        "name": "small",
        "n_shards": 4,
        "augment": AugmentConfig(transpositions=(0, 1), stretches=(1.0,)),
    } | settings
    config = DatasetConfig(source=str(source), **given)  # type: ignore[arg-type]
    scan = scan_source(source)
    hashed = hash_files(scan.files)
    folder = home.datasets / datasets.dataset_name(config)
    songs = ingest.plan_song_shards(config, hashed, folder / "songs")
    for shard in songs:
        ingest.build_song_shard(shard)
    rows = datasets.read_song_rows(songs)
    ledger = datasets.build_ledger(config, hashed, rows)
    tokens = datasets.plan_tokens(config, ledger, rows, folder)
    for shard in tokens:
        encode.build_token_shard(shard)
    return datasets.publish(home, config, datasets.version_of(config, hashed), scan, ledger, rows, songs, tokens)


def short_training(**settings: object) -> TrainConfig:
    """Return settings of a run that takes seconds."""
    given = {
        "preset": "small", "model": SMALL_MODEL, "schedule": WarmupCosineSchedule(peak=1e-2, warmup_steps=4),
        "n_steps": 12,
        "batch_size": 4, "window_tokens": 32, "validation_windows": 4, "evaluate_every": 6, "checkpoint_every": 4,
        "log_every": 2, "cpus_per_worker": 1,
    } | settings  # fmt: skip
    return TrainConfig(**given)  # type: ignore[arg-type]


def small_model(home: Home, dataset: DatasetVersion, **settings: object) -> Path:
    """Train for some steps in this process, without Ray, and return the best checkpoint."""
    from tasks import train  # imports torch, which the tests of other parts need not pay for
    from tasks.checkpoints import CheckpointFolder

    config = short_training(**settings)
    job = train.make_job(config, dataset, train.run_dir_of(home, config, dataset))
    train.run_steps(job)
    best = CheckpointFolder(job.run_dir / "checkpoints").find("best")
    assert best is not None
    return best
