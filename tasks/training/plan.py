"""What a training run would do: model size, steps, disk and time, with nothing written."""

import time
from typing import Any

import torch

from models.registry import build_model
from models.training import build_optimizer, count_batch, train_step
from tasks.checkpoints import WHICH, CheckpointFolder, read_state
from tasks.config.training import TrainConfig, uses_bf16
from tasks.dataset.versions import DatasetVersion
from tasks.music.tokenizers.registry import tokenizer_from_json
from tasks.storage.home import Home
from tasks.storage.integrity import DamagedFile, read_sealed
from tasks.training.job import check_model, run_dir_of, settled
from tasks.training.resume import Parent, identity
from tasks.training.runs import RUN

TIMED_WINDOWS = 4  # of a batch, at most
FLOATS_PER_PARAMETER = 3  # weight and two averages of Adam, 4 bytes each


def plan_training(
    home: Home, config: TrainConfig, dataset: DatasetVersion, fresh: bool = False, parent: Parent | None = None
) -> dict[str, Any]:
    """Return what `train` would do; the time is that of steps on this machine's CPU. ConfigError as `check_model`."""
    check_model(config, dataset)
    config = settled(config)
    folder = run_dir_of(home, config, dataset, identity(parent, config))
    status, done = ("new", 0) if fresh else _progress(folder)
    if parent and status == "new":
        status, done = "extended", parent.step
    tokenizer = tokenizer_from_json(dataset.manifest["encoder"]["settings"])
    with torch.device("meta"):
        n_parameters = build_model(config.model, tokenizer.vocab_size, tokenizer.pad_id).n_parameters
    n_train = dataset.manifest["splits"]["train"]["n_tokens"]
    n_left = 0 if status == "finished" else config.n_steps - done
    n_tokens = n_left * config.batch_size * config.seq_len
    seconds = n_left * config.batch_size * _seconds_per_window(config, tokenizer) if n_left else 0.0
    return {
        "dry_run": True,
        "dataset_version": dataset.reference,
        "run_dir": str(folder),
        "status": status,  # new, extended, stopped or finished
        "step": done,
        "n_steps": config.n_steps,
        "n_parameters": n_parameters,
        "n_tokens": n_tokens,
        "epochs": round(n_tokens / n_train, 2) if n_train else None,
        "disk_bytes": n_parameters * 4 * FLOATS_PER_PARAMETER * (len(WHICH) + config.keep_last_n) if n_left else 0,
        "cpu_seconds": float(f"{seconds:.2g}"),
    }


def _progress(folder: Any) -> tuple[str, int]:
    last = CheckpointFolder(folder / "checkpoints").find() if folder.exists() else None
    try:
        status = read_sealed(folder / "run.json", RUN)["status"]
    except (FileNotFoundError, DamagedFile):
        status = ""
    step = int(read_state(last)["step"]) if last else 0
    return ("finished" if status == "finished" else "stopped" if step else "new"), step


def _seconds_per_window(config: TrainConfig, tokenizer: Any) -> float:
    model = build_model(config.model, tokenizer.vocab_size, tokenizer.pad_id)
    optimizer = build_optimizer(config.optimizer, model)
    size = min(config.batch_size, TIMED_WINDOWS), config.seq_len + 1
    tokens = torch.randint(1, tokenizer.vocab_size, size, generator=torch.Generator().manual_seed(0))
    tokens[tokens == tokenizer.pad_id] = tokenizer.vocab_size - 1
    n_targets, seconds = count_batch(model, tokens, tokenizer.pad_id).n_targets, []
    for step in range(1, 4):
        started = time.perf_counter()
        train_step(
            model, optimizer, tokens, step=step, learning_rate=0.0, max_grad_norm=config.optimizer.max_grad_norm,
            n_targets=n_targets, pad_id=tokenizer.pad_id, bf16=uses_bf16(config, "cpu"),
        )  # fmt: skip
        seconds.append(time.perf_counter() - started)
    return min(seconds) / len(tokens)
