"""A checkpoint is a folder: weights and optimizer as safetensors, everything else as JSON. No pickle anywhere."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from models.registry import Model, build_model
from tasks.config import TrainConfig, from_json
from tasks.errors import CheckpointError, NotFound
from tasks.home import json_bytes, publish_folder, read_json, write_atomically
from tasks.music.tokenizers.registry import tokenizer_from_json

logger = logging.getLogger(__name__)

FORMAT = 1
STATE_KEYS = ("step", "best_loss", "metrics", "config", "dataset", "tokenizer", "n_parameters")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its tokenizer and the state it was saved with."""

    model: Model
    tokenizer: Any
    state: dict[str, Any]
    folder: Path


class CheckpointFolder:
    """The checkpoints of one run: `step-000500/`, and which of them is `last` and which `best`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        is_best: bool,
        keep_periodic: int,
    ) -> Path:
        """Write one checkpoint whole, point `last` (and `best`) to it, then drop what is not kept."""
        final = self.root / f"step-{state['step']:06d}"
        temporary = self.root / f".{final.name}-{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(
            {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, temporary / "model.safetensors"
        )
        save_file(_optimizer_tensors(model, optimizer), temporary / "optimizer.safetensors")
        write_atomically(temporary / "state.json", json_bytes({"format": FORMAT} | state))
        shutil.rmtree(final, ignore_errors=True)  # of an earlier attempt that was killed before it moved `last`
        publish_folder(temporary, final)
        if is_best:
            write_atomically(self.root / "best.json", json_bytes({"checkpoint": final.name}))
        write_atomically(self.root / "last.json", json_bytes({"checkpoint": final.name}))
        self._drop_old(keep_periodic)
        return final

    def find(self, which: str = "last") -> Path | None:
        """Return the folder of the `last` or `best` checkpoint, or None where there is none yet.

        Raises:
            CheckpointError: the file that names it is damaged.
        """
        pointer = self.root / f"{which}.json"
        if not pointer.exists():
            return None
        try:
            return self.root / read_json(pointer)["checkpoint"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{pointer} is damaged: {error}") from None

    def _drop_old(self, keep_periodic: int) -> None:
        kept = {self.find("last"), self.find("best")}
        others = (path for path in self.root.glob("step-*") if path not in kept)
        oldest_first = sorted(others, key=lambda path: (len(path.name), path.name))  # step-1000000 after step-999999
        for path in oldest_first[: max(0, len(oldest_first) - keep_periodic)]:
            shutil.rmtree(path)
        for leftover in self.root.glob(".step-*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load weights and optimizer into objects of the same shape; return the saved state.

    Raises:
        CheckpointError: a file is missing or damaged, or belongs to another model.
    """
    state = read_state(folder)
    load_weights(folder, model)
    tensors = _load_tensors(folder / "optimizer.safetensors")
    if not tensors:  # saved before any step was applied
        return state
    wanted = {f"{name}.step": (1,) for name, _ in model.named_parameters()}
    for kind in ("exp_avg", "exp_avg_sq"):
        wanted |= {f"{name}.{kind}": tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != wanted:
        difference = _first_difference(set(found.items()), set(wanted.items()))
        raise CheckpointError(f"{folder}: optimizer state does not fit this model ({difference})")
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {
            "step": tensors[f"{name}.step"].reshape(()).to(parameter.device),  # there the fused optimizer wants it
            "exp_avg": tensors[f"{name}.exp_avg"].to(parameter.device),
            "exp_avg_sq": tensors[f"{name}.exp_avg_sq"].to(parameter.device),
        }
    return state


def load_model(folder: Path) -> LoadedModel:
    """Build the model that a checkpoint describes and load its weights, ready to evaluate.

    Raises:
        NotFound: no such folder.
        CheckpointError: a file is missing or damaged, or the weights do not fit the config.
    """
    if not folder.exists():
        raise NotFound(f"checkpoint {folder} does not exist")
    state = read_state(folder)
    config = from_json(TrainConfig, state["config"], str(folder / "state.json"))
    tokenizer = tokenizer_from_json(state["tokenizer"])
    model = build_model(config.model, tokenizer.vocab_size, tokenizer.pad_id)
    load_weights(folder, model)
    return LoadedModel(model.eval(), tokenizer, state, folder)


@contextmanager
def exported(folder: Path, facts: Mapping[str, str]) -> Iterator[Path]:
    """Yield a folder with what using the model needs: weights, state and a card; no optimizer. Gone on leaving."""
    with tempfile.TemporaryDirectory(prefix="orchestrion-export-") as temporary:
        target = Path(temporary)
        for name in ("model.safetensors", "state.json"):
            shutil.copyfile(folder / name, target / name)
        state = read_state(folder)
        (target / "README.md").write_text(_model_card(state, facts))
        yield target


def _model_card(state: dict[str, Any], facts: Mapping[str, str]) -> str:
    rows = {
        **facts,
        "step": state["step"],
        "parameters": f"{state['n_parameters']:,}",
        "encoding": state["tokenizer"]["name"],
    }
    rows |= {key: f"{value:.4f}" for key, value in sorted(state["metrics"].items())}
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return (
        f"# {facts['preset']}\n\nA transformer trained on symbolic music; it continues a list of token ids.\n\n"
        f"| fact | value |\n|---|---|\n{table}\n\n"
        "Files: `model.safetensors` (weights), `state.json` (settings, tokenizer, dataset version).\n"
        "The licence of the training data is in the dataset's ledger.\n"
    )


def load_weights(folder: Path, model: nn.Module) -> None:
    """Load a checkpoint's weights, every one of them, into a model of the same shape.

    Raises:
        CheckpointError: names or shapes differ; the message names the first that does.
    """
    tensors = _load_tensors(folder / "model.safetensors")
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != wanted:
        raise CheckpointError(
            f"{folder}: weights are of another model ({_first_difference(set(found.items()), set(wanted.items()))})"
        )
    model.load_state_dict(tensors)


def read_state(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's `state.json`.

    Raises:
        CheckpointError: there is none, it does not parse, or it is of another format.
    """
    try:
        state = read_json(folder / "state.json")
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a checkpoint: it has no state.json") from None
    except ValueError as error:
        raise CheckpointError(f"{folder / 'state.json'} is damaged: {error}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{folder / 'state.json'} is not of checkpoint format {FORMAT}")
    missing = [key for key in STATE_KEYS if key not in state]
    if missing:
        raise CheckpointError(f"{folder / 'state.json'} is damaged: it has no {missing[0]!r}")
    return state


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, parameter in model.named_parameters():
        for kind, value in optimizer.state[parameter].items():
            tensors[f"{name}.{kind}"] = value.detach().reshape(value.shape or (1,)).contiguous()
    return tensors


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is not a whole checkpoint: it has no {path.name}") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def _first_difference(found: set[Any], wanted: set[Any]) -> str:
    missing, extra = sorted(wanted - found, key=str), sorted(found - wanted, key=str)
    said = [f"missing {missing[0]}"] if missing else []
    return ", ".join(said + ([f"unknown {extra[0]}"] if extra else []))
