"""Checkpoints: folders with weights and optimizer as safetensors and the rest as JSON; no pickle."""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import nn

from models.parallel import placed_like, whole
from models.registry import Model, build_model, build_shapes
from tasks.config.serialization import from_json
from tasks.config.training import TrainConfig
from tasks.errors import CheckpointError, DamagedFile, NotFound, OrchestrionError, first_line
from tasks.music.tokenizers.registry import tokenizer_from_json
from tasks.reporting.markdown import table
from tasks.storage.files import publish_folder, write_atomically
from tasks.storage.integrity import OTHER_BYTES, examine, read_sealed, sealed_bytes, unsealed
from tasks.storage.strict_json import BadJson, read_json

FORMAT = 1
STATE: dict[str, Any] = {
    "step": int,
    "best_loss": (float, None),
    "best_accuracy?": (float, None),
    "n_without_gain?": int,
    "metrics": {str: (float, None)},
    "config": dict,
    "dataset": {"name": str, "version": str},
    "tokenizer": {"name": str},
    "n_parameters": int,
    "unreported?": (None, [(float, None)]),
    "files?": {str: str},  # SHA-256 of weights and optimizer; a state from before seals lacks it
}
WHICH = ("last", "best", "best_accuracy")
WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer.safetensors"

_FOLDER = re.compile(r"step-[0-9]{6,18}")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its tokenizer, the state it was saved with, and the digest of its weights."""

    model: Model
    tokenizer: Any
    state: dict[str, Any]
    folder: Path
    weights_sha256: str


class CheckpointFolder:
    """The checkpoints of one run: `step-000500/`, and which is `last`, `best` (lowest loss) and `best_accuracy`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        best: Collection[str],
        keep_last_n: int,
        rank: int = 0,
    ) -> Path:
        """Write one checkpoint whole, point `last` to it, then drop what is not kept; return its folder.

        Args:
            best: which of `best` and `best_accuracy` point to it too.
            rank: of this worker. All workers have to call it, as they may share the tensors in parts; rank 0 writes.
        """
        final = self.root / f"step-{state['step']:06d}"
        tensors = {WEIGHTS: model.state_dict(), OPTIMIZER: _optimizer_tensors(model, optimizer)}
        files = {
            file: {name: kept for name, tensor in named.items() if (kept := whole(tensor, rank == 0)) is not None}
            for file, named in tensors.items()
        }
        if rank != 0:
            return final
        temporary = self.root / f".{final.name}-{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            self._write(temporary, files, state)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)  # a full disk needs the space
            raise
        shutil.rmtree(final, ignore_errors=True)  # of an earlier attempt that was killed before it moved `last`
        publish_folder(temporary, final)
        for name in (*sorted(best), "last"):
            write_atomically(self.root / f"{name}.json", sealed_bytes({"checkpoint": final.name}))
        self._drop_old(keep_last_n)
        return final

    @staticmethod
    def _write(folder: Path, tensors: Mapping[str, dict[str, torch.Tensor]], state: dict[str, Any]) -> None:
        folder.mkdir(parents=True)
        for name, named in tensors.items():
            save_file(named, folder / name)
        files = {name: examine(folder / name).sha256 for name in tensors}
        write_atomically(folder / "state.json", sealed_bytes({"format": FORMAT} | state | {"files": files}))

    def find(self, which: str = "last") -> Path | None:
        """Return the folder of the `last`, `best` or `best_accuracy` checkpoint, or None if there is none yet."""
        pointer = self.root / f"{which}.json"
        try:
            name = read_sealed(pointer, {"checkpoint": str})["checkpoint"]
        except FileNotFoundError:
            return None
        except DamagedFile as error:
            there = [path.name for path in self._oldest_first()]
            way_out = f'; write {{"checkpoint": "{there[-1]}"}} into it to go on from there' if there else ""
            raise CheckpointError(f"{error}{way_out}") from None
        if not _FOLDER.fullmatch(name):
            raise CheckpointError(f"{pointer} is damaged: {name[:100]!r} is no checkpoint of {self.root}")
        return self.root / name

    def _oldest_first(self) -> list[Path]:
        return sorted(self.root.glob("step-*"), key=lambda path: (len(path.name), path.name))  # step-1000000 at the end

    def _drop_old(self, keep_last_n: int) -> None:
        kept = {self.find(which) for which in WHICH}
        others = [path for path in self._oldest_first() if path not in kept]
        for path in others[: max(0, len(others) - keep_last_n)]:
            shutil.rmtree(path)
        for leftover in self.root.glob(".step-*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load weights and optimizer into objects of the same shape and return the saved state.

    Workers that share the tensors of a model in parts each take theirs, however many workers wrote the checkpoint.
    """
    state, files = _read_state(folder)
    weights = _read_tensors(folder / WEIGHTS, files)[0]
    _compare_shapes(folder, weights, model)
    model.load_state_dict({name: placed_like(weights[name], like) for name, like in model.state_dict().items()})
    tensors = _read_tensors(folder / OPTIMIZER, files)[0]
    if not tensors:  # saved before any step was applied
        return state
    shapes = {f"{name}.step": (1,) for name, _ in model.named_parameters()}
    for kind in ("exp_avg", "exp_avg_sq"):
        shapes |= {f"{name}.{kind}": tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if difference := _first_difference(tensors, shapes):
        raise CheckpointError(f"{folder}: optimizer state does not fit this model ({difference})")
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {
            "step": tensors[f"{name}.step"].reshape(()).to(parameter.device),  # the fused optimizer needs it there
            "exp_avg": placed_like(tensors[f"{name}.exp_avg"], parameter),
            "exp_avg_sq": placed_like(tensors[f"{name}.exp_avg_sq"], parameter),
        }
    return state


def read_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a checkpoint, without its weights; raises as `load_model`."""
    return _read_settings(folder)[3]


def _read_settings(folder: Path) -> tuple[dict[str, Any], dict[str, str] | None, TrainConfig, Any]:
    if not folder.exists():
        raise NotFound(f"checkpoint {folder} does not exist")
    state, files = _read_state(folder)
    try:
        config = from_json(TrainConfig, state["config"], str(folder / "state.json"))
        return state, files, config, tokenizer_from_json(state["tokenizer"])
    except OrchestrionError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{folder / 'state.json'} is damaged: {first_line(error)}") from None


def load_model(folder: Path, device: torch.device | str = "cpu") -> LoadedModel:
    """Build the model of a checkpoint and load its weights onto a device, ready to evaluate.

    Raises:
        NotFound: no such folder.
        CheckpointError: a file is missing or damaged, or the weights do not fit the config.
    """
    state, files, config, tokenizer = _read_settings(folder)
    weights, sha256 = _read_tensors(folder / WEIGHTS, files)
    n_layers = config.model.n_layers
    if n_layers > len(weights):
        raise CheckpointError(f"{folder}: {n_layers} layers in state.json, but {len(weights)} tensors in {WEIGHTS}")
    try:
        # A wrong config fails here, before it takes time or memory.
        shapes = build_shapes(config.model, tokenizer.vocab_size, tokenizer.pad_id)
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{folder / 'state.json'}: no such model can be built: {first_line(error)}") from None
    _compare_shapes(folder, weights, shapes)
    model = build_model(config.model, tokenizer.vocab_size, tokenizer.pad_id)
    model.load_state_dict(weights)
    return LoadedModel(model.to(device).eval(), tokenizer, state, folder, sha256)


def _compare_shapes(folder: Path, weights: Mapping[str, torch.Tensor], model: nn.Module) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if difference := _first_difference(weights, shapes):
        raise CheckpointError(f"{folder}: weights are of another model ({difference})")


def _first_difference(tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the first missing and the first unknown name and shape, or an empty string."""
    found = {(name, tuple(tensor.shape)) for name, tensor in tensors.items()}
    missing, unknown = sorted(shapes.items() - found, key=str), sorted(found - shapes.items(), key=str)
    return ", ".join([f"missing {item}" for item in missing[:1]] + [f"unknown {item}" for item in unknown[:1]])


@contextmanager
def exported(folder: Path, facts: Mapping[str, str]) -> Iterator[Path]:
    """Yield a temporary folder with the files for using the model: weights, state and a card, but no optimizer."""
    with tempfile.TemporaryDirectory(prefix="orchestrion-export-") as temporary:
        target = Path(temporary)
        for name in (WEIGHTS, "state.json"):
            shutil.copyfile(folder / name, target / name)
        (target / "README.md").write_text(_model_card(read_state(folder), facts))
        yield target


def _model_card(state: dict[str, Any], facts: Mapping[str, str]) -> str:
    rows = {
        **facts,
        "step": state["step"],
        "parameters": f"{state['n_parameters']:,}",
        "encoding": state["tokenizer"]["name"],
    }
    rows |= {key: "none" if value is None else f"{value:.4f}" for key, value in sorted(state["metrics"].items())}
    return (
        f"# {facts['preset']}\n\nA transformer trained on symbolic music; it continues a list of token ids.\n\n"
        f"{table(list(rows.items()), ('fact', 'value'))}\n\n"
        "Files: `model.safetensors` (weights), `state.json` (settings, tokenizer, dataset version).\n"
        "The licence of the training data is in the dataset's ledger.\n"
    )


def read_state(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's `state.json`, checked by its seal and its shape, or raise CheckpointError."""
    return _read_state(folder)[0]


def _read_state(folder: Path) -> tuple[dict[str, Any], dict[str, str] | None]:
    """Return the state and the SHA-256 of each file beside it, None in a checkpoint from before seals."""
    path = folder / "state.json"
    try:
        value = read_json(path)
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise CheckpointError(f"{path} is not of checkpoint format {FORMAT}")
        state = unsealed(value, path, STATE)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a checkpoint: it has no state.json") from None
    except BadJson as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    except DamagedFile as error:
        raise CheckpointError(str(error)) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    return state, state.pop("files", None)


def check_checkpoint(folder: Path) -> None:
    """Check all bytes of a checkpoint's files; the optimizer may be missing, as it is in the registry."""
    files = _read_state(folder)[1]
    for name in (WEIGHTS, OPTIMIZER):
        if name == WEIGHTS or (folder / name).exists():
            _read_tensors(folder / name, files)


def seal_state(folder: Path) -> bool:
    """Add the digests of its files to a checkpoint from before seals; return whether it lacked them."""
    state, files = _read_state(folder)
    if files is not None:
        return False
    files = {name: examine(folder / name).sha256 for name in (WEIGHTS, OPTIMIZER) if (folder / name).exists()}
    write_atomically(folder / "state.json", sealed_bytes(state | {"files": files}))
    return True


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{kind}": value.reshape(value.shape or (1,))
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state[parameter].items()
    }


def _read_tensors(path: Path, files: Mapping[str, str] | None) -> tuple[dict[str, torch.Tensor], str]:
    """Return the tensors and the SHA-256 of a file; `files` are the digests in the state."""
    if files is not None and path.name not in files:
        raise CheckpointError(f"{path.parent / 'state.json'} is damaged: it has no digest of {path.name}")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is not a whole checkpoint: it has no {path.name}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    sha256 = hashlib.sha256(data).hexdigest()
    if files is not None and files[path.name] != sha256:
        raise CheckpointError(f"{path} is damaged: {OTHER_BYTES}")
    try:
        return load(data), sha256
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged: {first_line(error)}") from None
