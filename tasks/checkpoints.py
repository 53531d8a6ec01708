"""Checkpoints: folders with weights and optimizer as safetensors and the rest as JSON; no pickle."""

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from models.config import HourglassConfig, ModelConfig
from models.registry import Model, build_model
from tasks.config.serialization import from_json
from tasks.config.training import TrainConfig
from tasks.errors import CheckpointError, DamagedFile, NotFound, OrchestrionError
from tasks.music.tokenizers.registry import tokenizer_from_json
from tasks.storage.files import publish_folder, write_atomically
from tasks.storage.integrity import OTHER_BYTES, examine, read_sealed, sealed_bytes, unsealed
from tasks.storage.strict_json import BadJson, read_json

logger = logging.getLogger(__name__)

FORMAT = 1
STATE: dict[str, Any] = {
    "step": int,
    "best_loss": (float, None),
    "metrics": {str: (float, None)},
    "config": dict,
    "dataset": {"name": str, "version": str},
    "tokenizer": {"name": str},
    "n_parameters": int,
    "unreported?": (None, [(float, None)]),
    "files?": {str: str},  # SHA-256 of weights and optimizer; a state from before seals lacks it
}
WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer.safetensors"

_FOLDER = re.compile(r"step-[0-9]{6,18}")


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
        keep_last_n: int,
    ) -> Path:
        """Write one checkpoint whole, point `last` (and `best`) to it, then drop what is not kept."""
        final = self.root / f"step-{state['step']:06d}"
        temporary = self.root / f".{final.name}-{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            self._write(temporary, model, optimizer, state)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)  # above all on a disk that is full
            raise
        shutil.rmtree(final, ignore_errors=True)  # of an earlier attempt that was killed before it moved `last`
        publish_folder(temporary, final)
        if is_best:
            write_atomically(self.root / "best.json", sealed_bytes({"checkpoint": final.name}))
        write_atomically(self.root / "last.json", sealed_bytes({"checkpoint": final.name}))
        self._drop_old(keep_last_n)
        return final

    @staticmethod
    def _write(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        folder.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS)
        save_file(_optimizer_tensors(model, optimizer), folder / OPTIMIZER)
        files = {name: examine(folder / name).sha256 for name in (WEIGHTS, OPTIMIZER)}
        write_atomically(folder / "state.json", sealed_bytes({"format": FORMAT} | state | {"files": files}))

    def find(self, which: str = "last") -> Path | None:
        """Return the folder of the `last` or `best` checkpoint, or None where there is none yet.

        Raises:
            CheckpointError: the file that names it is damaged, or names something else.
        """
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
        kept = {self.find("last"), self.find("best")}
        others = [path for path in self._oldest_first() if path not in kept]
        for path in others[: max(0, len(others) - keep_last_n)]:
            shutil.rmtree(path)
        for leftover in self.root.glob(".step-*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load weights and optimizer into objects of the same shape; return the saved state.

    Raises:
        CheckpointError: a file is missing or damaged, or belongs to another model.
    """
    state, files = _read_state(folder)
    load_weights(folder, model)
    tensors = _load_tensors(folder / OPTIMIZER, files)
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
        raise CheckpointError(f"{folder / 'state.json'} is damaged: {_first_line(error)}") from None


def load_model(folder: Path) -> LoadedModel:
    """Build the model that a checkpoint describes and load its weights, ready to evaluate.

    Raises:
        NotFound: no such folder.
        CheckpointError: a file is missing or damaged, or the weights do not fit the config.
    """
    state, files, config, tokenizer = _read_settings(folder)
    _require_bytes(folder / WEIGHTS, files)
    _refuse_other_shapes(folder, config.model, tokenizer)
    model = build_model(config.model, tokenizer.vocab_size, tokenizer.pad_id)
    load_weights(folder, model)
    return LoadedModel(model.eval(), tokenizer, state, folder)


def _refuse_other_shapes(folder: Path, config: ModelConfig, tokenizer: Any) -> None:
    """Compare what a config would build with what the file of weights holds, before anything takes time or memory."""
    with _opened_weights(folder) as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    n_layers = sum(config.depths) if isinstance(config, HourglassConfig) else config.n_layers
    if n_layers > len(found):
        raise CheckpointError(f"{folder}: {n_layers} layers in state.json, but {len(found)} tensors in {WEIGHTS}")
    try:
        with torch.device("meta"):
            model = build_model(config, tokenizer.vocab_size, tokenizer.pad_id)
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{folder / 'state.json'}: no such model can be built: {_first_line(error)}") from None
    _compare_shapes(folder, found, model)


@contextmanager
def _opened_weights(folder: Path) -> Iterator[Any]:
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a whole checkpoint: it has no {WEIGHTS}") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} is damaged: {_first_line(error)}") from None


def _compare_shapes(folder: Path, found: dict[str, tuple[int, ...]], model: nn.Module) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if found != wanted:
        raise CheckpointError(
            f"{folder}: weights are of another model ({_first_difference(set(found.items()), set(wanted.items()))})"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def exported(folder: Path, facts: Mapping[str, str]) -> Iterator[Path]:
    """Yield a folder with what using the model needs: weights, state and a card; no optimizer. Gone on leaving."""
    with tempfile.TemporaryDirectory(prefix="orchestrion-export-") as temporary:
        target = Path(temporary)
        for name in (WEIGHTS, "state.json"):
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
    rows |= {key: "none" if value is None else f"{value:.4f}" for key, value in sorted(state["metrics"].items())}
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
        CheckpointError: the file is damaged, or names or shapes differ; the message names the first that does.
    """
    tensors = _load_tensors(folder / WEIGHTS, _read_state(folder)[1])
    _compare_shapes(folder, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, model)
    model.load_state_dict(tensors)


def read_state(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's `state.json`, checked by its seal and its shape.

    Raises:
        CheckpointError: there is none, it is damaged, or it is of another format.
    """
    return _read_state(folder)[0]


def _read_state(folder: Path) -> tuple[dict[str, Any], dict[str, str] | None]:
    """Return the state, and the SHA-256 of each file beside it; None in a checkpoint from before there were seals."""
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
    """Check all bytes of a checkpoint's files; the optimizer may be missing, as it is in the registry.

    Raises:
        CheckpointError: one is damaged, or the weights are missing.
    """
    files = _read_state(folder)[1]
    for name in (WEIGHTS, OPTIMIZER):
        if name == WEIGHTS or (folder / name).exists():
            _require_bytes(folder / name, files)
    with _opened_weights(folder) as file:
        file.keys()


def seal_state(folder: Path) -> bool:
    """Add the digests of its files to a checkpoint from before seals; return whether it lacked them.

    Raises:
        CheckpointError: it is damaged.
    """
    state, files = _read_state(folder)
    if files is not None:
        return False
    files = {name: examine(folder / name).sha256 for name in (WEIGHTS, OPTIMIZER) if (folder / name).exists()}
    write_atomically(folder / "state.json", sealed_bytes(state | {"files": files}))
    return True


def weights_hash(folder: Path) -> str:
    """Return the SHA-256 of a checkpoint's weights.

    Raises:
        CheckpointError: there are none.
    """
    try:
        return examine(folder / WEIGHTS).sha256
    except OSError as error:
        raise CheckpointError(f"{folder} has no readable {WEIGHTS}: {error.strerror}") from None


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, parameter in model.named_parameters():
        for kind, value in optimizer.state[parameter].items():
            tensors[f"{name}.{kind}"] = value.detach().reshape(value.shape or (1,)).contiguous()
    return tensors


def _load_tensors(path: Path, files: Mapping[str, str] | None) -> dict[str, torch.Tensor]:
    _require_bytes(path, files)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {_first_line(error)}") from None


def _require_bytes(path: Path, files: Mapping[str, str] | None) -> None:
    """Check all bytes of a file, once in a process, by the digest in the state."""
    if files is not None and path.name not in files:
        raise CheckpointError(f"{path.parent / 'state.json'} is damaged: it has no digest of {path.name}")
    try:
        state = examine(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is not a whole checkpoint: it has no {path.name}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if files is not None and files[path.name] != state.sha256:
        raise CheckpointError(f"{path} is damaged: {OTHER_BYTES}")


def _first_difference(found: set[Any], wanted: set[Any]) -> str:
    missing, extra = sorted(wanted - found, key=str), sorted(found - wanted, key=str)
    said = [f"missing {missing[0]}"] if missing else []
    return ", ".join(said + ([f"unknown {extra[0]}"] if extra else []))
