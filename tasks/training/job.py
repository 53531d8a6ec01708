"""One training run: its inputs, its folder and its result."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models.registry import build_shapes
from tasks.config.serialization import digest, to_json
from tasks.config.training import TRAIN_WITHOUT_EFFECT, TrainConfig
from tasks.dataset.versions import DatasetVersion
from tasks.errors import ConfigError
from tasks.music.tokenizers.registry import tokenizer_from_json
from tasks.runtime import cluster
from tasks.runtime.devices import ON_CPU, Placement, place
from tasks.storage.home import Home
from tasks.storage.parquet import read_table


@dataclass(frozen=True, slots=True)
class TrainJob:
    """The inputs of a training run; a worker needs nothing else."""

    config: TrainConfig
    dataset: dict[str, Any]  # name and version
    tokenizer: dict[str, Any]  # its JSON form
    train_shards: list[Path]
    validation_shards: list[Path]
    flat_tokens: Path
    run_dir: Path
    n_threads: int
    placement: Placement = ON_CPU

    @property
    def shards(self) -> list[Path]:
        return [*self.train_shards, *self.validation_shards]

    @property
    def metrics(self) -> Path:
        return self.run_dir / "metrics.jsonl"

    @property
    def stop_request(self) -> Path:
        return self.run_dir / "stop"

    @property
    def begun(self) -> Path:
        """A file that exists from just before an attempt's first step: earlier, a stop has nothing to wait for."""
        return self.run_dir / "begun"

    @property
    def divergence(self) -> Path:
        """The reason why the last attempt at the run diverged."""
        return divergence_of(self.run_dir)

    @property
    def memory_note(self) -> Path:
        """The reason why a worker of the last attempt ran out of a GPU's memory."""
        return self.run_dir / "out_of_memory.txt"

    def prepare(self) -> None:
        """Make the run's folder ready for an attempt."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        for left_over in (self.stop_request, self.begun, self.divergence, self.memory_note):
            left_over.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Where a run ended."""

    run_dir: Path
    checkpoint: Path  # the best one
    step: int
    metrics: dict[str, float]


def is_ended(config: TrainConfig, state: Mapping[str, Any]) -> bool:
    """Return whether a run has no step left: it has made them all, or validations without a gain have ended it."""
    return state["step"] >= config.n_steps or 0 < config.early_stopping_patience <= state.get("n_without_gain", 0)


def divergence_of(run_dir: Path) -> Path:
    """Return the file with the reason why a run gave up; it exists only if the run diverged."""
    return run_dir / "diverged.txt"


def run_dir_of(home: Home, config: TrainConfig, dataset: DatasetVersion, parent: str = "") -> Path:
    """Return the folder of the run that (dataset version, settings) determine; the same call resumes it.

    Args:
        parent: the run it extends, where that makes a difference to its weights.
    """
    settings = to_json(config)
    for name in TRAIN_WITHOUT_EFFECT:
        settings.pop(name)
    identity = {"dataset": dataset.name, "dataset_version": dataset.version, "train": settings}
    identity |= {"parent": parent} if parent else {}
    return home.runs / f"{config.preset}-{digest(identity)[:12]}"


def make_job(config: TrainConfig, dataset: DatasetVersion, run_dir: Path) -> TrainJob:
    """Return the inputs of the workers.

    Raises ConfigError where the workers need more cores or GPUs than there are, or as `check_model` and `check_data`.
    """
    check_model(config, dataset)
    check_data(config, dataset)
    n_cores = cluster.n_cluster_cpus()
    n_threads = config.cpus_per_worker or max(1, n_cores // config.max_workers)
    if config.min_workers * n_threads > n_cores:
        raise ConfigError(
            f"train.n_workers={config.min_workers} x {n_threads} cores each are more than the {n_cores} cores there are"
        )
    return TrainJob(
        config=config,
        dataset={
            "name": dataset.name,
            "version": dataset.version,
            "window_bars": dataset.manifest["config"]["windows"]["bars"],
        },
        tokenizer=dataset.manifest["encoder"]["settings"],
        train_shards=dataset.token_shards("train"),
        validation_shards=dataset.token_shards("validation"),
        flat_tokens=dataset.flat_tokens,
        run_dir=run_dir,
        n_threads=n_threads,
        placement=_placement(config),
    )


def settled(config: TrainConfig) -> TrainConfig:
    """Return the settings with `bf16` decided by where the run computes; its name and its records have them so."""
    return config if config.bf16 != "auto" else replace(config, bf16=_placement(config).device == "cuda")


def _placement(config: TrainConfig) -> Placement:
    return place(
        "train.", config.device, on_ray=True, gpus_per_worker=config.gpus_per_worker, n_workers=config.min_workers,
        accelerator_type=config.accelerator_type,
    )  # fmt: skip


def check_data(config: TrainConfig, dataset: DatasetVersion) -> None:
    """Raise ConfigError where a dataset holds nothing that a run can learn or be scored on."""
    tokenizer = tokenizer_from_json(dataset.manifest["encoder"]["settings"])
    if tokenizer.digest != dataset.manifest["encoder"]["digest"]:
        raise ConfigError(
            f"{dataset.reference}: the vocabulary of its tokens is not that of its manifest, encoding {tokenizer.name};"
            " rebuild the dataset"
        )
    for split in ("train", "validation"):
        if not dataset.manifest["splits"][split]["n_rows"]:
            raise ConfigError(
                f"{dataset.reference} has no piece in its split {split}; rebuild it from more pieces or with other"
                " shares (dataset.validation_share, dataset.test_share)"
            )
    if config.windows in ("whole", "packed"):  # these pad pieces, or lay them end to end
        return
    longest = 0
    for shard in dataset.token_shards("train"):
        longest = max(longest, max(read_table(shard, ["n_tokens"]).column("n_tokens").to_pylist(), default=0))
        if longest > config.seq_len:
            return
    raise ConfigError(
        f"train.seq_len={config.seq_len} is more than every piece of the split train has; the longest has {longest}"
        f" tokens, the first of which is given: set train.seq_len to {max(longest - 1, 8)} or less, or"
        " train.windows=packed"
    )


def check_model(config: TrainConfig, dataset: DatasetVersion) -> None:
    """Raise ConfigError where the model cannot be built for a dataset; on shapes alone, without memory for it."""
    tokenizer = tokenizer_from_json(dataset.manifest["encoder"]["settings"])
    word = config.model.replacement_word
    if word is not None and tokenizer.name != "mmm":
        raise ConfigError(
            f"train.model.token_dropout_by={word} is a word of mmm, but the dataset is in"
            f" {tokenizer.name}; set it to all, or train.model.token_dropout to 0"
        )
    if config.model.n_given > 1 and tokenizer.first_id is None:
        raise ConfigError(
            "train.model.row_mode='generation' needs an encoding whose pieces all begin with one word, such as mmm,"
            f" but the dataset is in {tokenizer.name}; set it to modeling"
        )
    try:
        build_shapes(config.model, tokenizer.vocab_size, tokenizer.pad_id)
    except ValueError as error:
        raise ConfigError(f"train.model: {error}") from None
