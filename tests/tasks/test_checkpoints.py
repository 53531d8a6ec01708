"""Checkpoints come back bit for bit, survive a save that was killed, and say in one line what is wrong with them."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.config import OptimizerConfig
from models.registry import Model, build_model
from models.training import build_optimizer, train_step
from tasks import checkpoints
from tasks.checkpoints import CheckpointFolder, exported, load_model, read_state, restore
from tasks.config.serialization import to_json
from tasks.errors import CheckpointError, NotFound, OrchestrionError
from tasks.music.tokenizers.oore import OoreTokenizer
from tasks.storage.integrity import sealed_bytes
from tests.samples import SMALL_MODEL, short_training

TOKENIZER = OoreTokenizer()


def build(n_steps: int = 2, seed: int = 0, **model: Any) -> tuple[Model, torch.optim.Optimizer]:
    """Return a small model and its optimizer after some steps on random tokens."""
    torch.manual_seed(seed)
    decoder = build_model(replace(SMALL_MODEL, dropout=0.0, **model), TOKENIZER.vocab_size, TOKENIZER.pad_id)
    optimizer = build_optimizer(OptimizerConfig(name="adamw"), decoder)
    for _ in range(n_steps):
        step(decoder, optimizer)
    return decoder, optimizer


def step(model: Model, optimizer: torch.optim.Optimizer) -> None:
    tokens = torch.randint(1, 400, (2, 9), generator=torch.Generator().manual_seed(5))
    train_step(model, optimizer, tokens, step=1, learning_rate=1e-2, max_grad_norm=1.0, n_targets=16)


def state_of(step: int, **model: Any) -> dict[str, Any]:
    return {
        "step": step,
        "best_loss": 1 / 3,
        "metrics": {"train/loss": 0.1 + 0.2},
        "config": to_json(short_training(model=replace(SMALL_MODEL, **model))),
        "dataset": {"name": "small", "version": "0123456789abcdef"},
        "tokenizer": TOKENIZER.to_json(),
        "n_parameters": 1234,
    }


def save(root: Path, step: int = 1, is_best: bool = True, keep_last_n: int = 0, **model: Any) -> Path:
    return CheckpointFolder(root).save(
        *build(**model), state_of(step, **model), ["best"] if is_best else [], keep_last_n
    )


def flat(model: Model, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        tensors |= {f"{name}.{kind}": value.clone() for kind, value in optimizer.state[parameter].items()}
    return tensors


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert (tensor.dtype, tensor.shape) == (other[name].dtype, other[name].shape)
        assert torch.equal(tensor, other[name]), name


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_what_was_saved_comes_back_exactly_and_learns_on_as_before(tmp_path: Path) -> None:
    model, optimizer = build(n_steps=3)
    folder = CheckpointFolder(tmp_path).save(model, optimizer, state_of(3), ["best"], 0)
    other, other_optimizer = build(n_steps=0, seed=9)
    state = restore(folder, other, other_optimizer)
    assert state == {"format": checkpoints.FORMAT} | state_of(3)
    assert_same_bits(flat(model, optimizer), flat(other, other_optimizer))
    step(model, optimizer)
    step(other, other_optimizer)
    assert_same_bits(flat(model, optimizer), flat(other, other_optimizer))


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    folders = [save(tmp_path / name, 7) for name in ("one", "other")]
    one, other = ({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()} for folder in folders)
    assert one == other
    assert set(one) == {"model.safetensors", "optimizer.safetensors", "state.json"}


def test_a_state_saved_before_any_step_was_applied_comes_back(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path).save(*build(n_steps=0), state_of(1), ["best"], 0)
    model, optimizer = build(n_steps=0, seed=3)
    restore(folder, model, optimizer)
    step(model, optimizer)
    assert_same_bits(flat(model, optimizer), flat(*build(n_steps=1)))


def test_last_and_best_point_to_their_checkpoints_and_others_go(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    assert folder.find("last") is None
    assert folder.find("best") is None
    for number, is_best in ((4, True), (8, False), (12, True), (16, False), (20, False)):
        save(tmp_path, number, is_best)
    assert folder.find("last") == tmp_path / "step-000020"
    assert folder.find("best") == tmp_path / "step-000012"
    assert names(tmp_path) == ["best.json", "last.json", "step-000012", "step-000020"]


@pytest.mark.parametrize("keep_last_n", [0, 1, 2, 3, 5])
def test_the_newest_periodic_checkpoints_are_kept(tmp_path: Path, keep_last_n: int) -> None:
    # Only the names matter here: empty folders stand for all checkpoints but the newest.
    save(tmp_path, 1, True, 9)
    for number in range(2, 7):
        (tmp_path / f"step-{number:06d}").mkdir()
        save(tmp_path, number, False, keep_last_n)
        kept = [name for name in names(tmp_path) if name.startswith("step-")]
        periodic = [f"step-{n:06d}" for n in range(2, number)][-keep_last_n:] if keep_last_n else []
        assert kept == ["step-000001", *periodic, f"step-{number:06d}"]


def test_checkpoints_past_a_million_steps_are_newer(tmp_path: Path) -> None:
    for number in (999_998, 999_999, 1_000_000, 1_000_001):
        save(tmp_path, number, number == 999_998, keep_last_n=1)
    assert names(tmp_path)[2:] == ["step-1000000", "step-1000001", "step-999998"]


@pytest.mark.parametrize("killed_in", ["publish_folder", "write_atomically", "save_file"])
def test_a_save_that_was_killed_half_way_does_no_harm(
    tmp_path: Path, killed_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = save(tmp_path, 4)
    files = {path.name: path.read_bytes() for path in before.iterdir()}

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, killed_in, die)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 8)
    folder = CheckpointFolder(tmp_path)
    assert folder.find("last") == folder.find("best") == before
    assert {path.name: path.read_bytes() for path in before.iterdir()} == files
    model, optimizer = build(n_steps=0)
    assert restore(before, model, optimizer)["step"] == 4
    assert save(tmp_path, 8) == folder.find("last")
    assert names(tmp_path) == ["best.json", "last.json", "step-000008"]


def test_leftovers_of_another_process_are_cleared(tmp_path: Path) -> None:
    leftover = tmp_path / ".step-000004-99999.tmp"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half")
    assert CheckpointFolder(tmp_path).find("last") is None
    save(tmp_path, 4)
    assert not leftover.exists()


def test_a_checkpoint_that_no_pointer_names_is_written_again(tmp_path: Path) -> None:
    save(tmp_path, 4)
    shutil.copytree(tmp_path / "step-000004", tmp_path / "step-000008")  # published, then killed before `last` moved
    (tmp_path / "step-000008" / "state.json").write_text("old")
    assert CheckpointFolder(tmp_path).find("last") == tmp_path / "step-000004"
    assert read_state(save(tmp_path, 8))["step"] == 8


def cut(name: str, n_bytes: int | None = None) -> Callable[[Path], None]:
    """Return a fault: a file cut to a length, or to half of its own."""
    return lambda folder: os.truncate(
        folder / name, (folder / name).stat().st_size // 2 if n_bytes is None else n_bytes
    )


def change_state(**changes: Any) -> Callable[[Path], None]:
    def fault(folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text()) | changes
        kept = {key: value for key, value in state.items() if value is not None}
        (folder / "state.json").write_bytes(sealed_bytes(kept))

    return fault


def change_tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def fault(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name)
        accept(folder, name)

    return fault


def accept(folder: Path, *names: str) -> None:
    """Write down the digests of files as they are now: what follows is then not about their bytes."""
    state = json.loads((folder / "state.json").read_text())
    state["files"] |= {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "state.json").write_bytes(sealed_bytes(state))


def write(name: str, data: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return change


FAULTS = {
    "no state": (lambda folder: (folder / "state.json").unlink(), "is not a checkpoint: it has no state.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "it has no model.safetensors"),
    "no optimizer": (lambda folder: (folder / "optimizer.safetensors").unlink(), "it has no optimizer.safetensors"),
    "half the weights": (cut("model.safetensors"), "model.safetensors is damaged"),
    "empty weights": (cut("model.safetensors", 0), "model.safetensors is damaged"),
    "half the optimizer": (cut("optimizer.safetensors"), "optimizer.safetensors is damaged"),
    "weights that are none": (write("model.safetensors", b"\xff" * 64), "model.safetensors is damaged"),
    "half the state": (cut("state.json"), "state.json is damaged"),
    "a state that is no text": (write("state.json", b"\xff\xfe\x00"), "state.json is damaged"),
    "a state that is a list": (write("state.json", b"[]"), "is not of checkpoint format 1"),
    "a state of the future": (change_state(format=2), "is not of checkpoint format 1"),
    "a state without a config": (change_state(config=None), "has no 'config'"),
    "a weight too few": (
        change_tensors("model.safetensors", lambda tensors: tensors.pop("head.bias")),
        "weights are of another model (missing ('head.bias', (416,)))",
    ),
    "a weight too many": (
        change_tensors("model.safetensors", lambda tensors: tensors.update(extra=torch.zeros(2))),
        "weights are of another model (unknown ('extra', (2,)))",
    ),
    "an optimizer tensor too few": (
        change_tensors("optimizer.safetensors", lambda tensors: tensors.pop("head.bias.exp_avg")),
        "optimizer state does not fit this model (missing ('head.bias.exp_avg', (416,)))",
    ),
    "an optimizer tensor of another shape": (
        change_tensors("optimizer.safetensors", lambda tensors: tensors.update({"head.bias.exp_avg": torch.zeros(2)})),
        "optimizer state does not fit this model (missing ('head.bias.exp_avg', (416,)), unknown",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_with_a_checkpoint_is_said_in_one_line(tmp_path: Path, name: str) -> None:
    fault, message = FAULTS[name]
    folder = save(tmp_path)
    fault(folder)
    model, optimizer = build(n_steps=0)
    with pytest.raises(CheckpointError) as error:
        restore(folder, model, optimizer)
    assert message in str(error.value)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_and_optimizers_of_another_model_are_turned_down(tmp_path: Path) -> None:
    folder, other = save(tmp_path / "one"), save(tmp_path / "other", d_model=16)
    wide = build(n_steps=0)
    with pytest.raises(CheckpointError, match="weights are of another model"):
        restore(other, *wide)
    shutil.copyfile(other / "optimizer.safetensors", folder / "optimizer.safetensors")
    accept(folder, "optimizer.safetensors")
    with pytest.raises(CheckpointError, match="optimizer state does not fit this model"):
        restore(folder, *wide)
    deep = save(tmp_path / "deep", n_layers=3)
    with pytest.raises(CheckpointError, match="unknown"):
        restore(deep, *wide)


@pytest.mark.parametrize("pointer", [b"", b"{", b"[]", b"{}", b'"step-000001"', b"\xff"])
def test_a_damaged_pointer_is_named(tmp_path: Path, pointer: bytes) -> None:
    save(tmp_path)
    (tmp_path / "last.json").write_bytes(pointer)
    with pytest.raises(CheckpointError, match=r"last\.json is damaged"):
        CheckpointFolder(tmp_path).find("last")


def test_a_loaded_model_is_the_saved_one_ready_to_evaluate(tmp_path: Path) -> None:
    model, optimizer = build()
    loaded = load_model(CheckpointFolder(tmp_path).save(model, optimizer, state_of(2), ["best"], 0))
    assert not loaded.model.training
    assert loaded.tokenizer.digest == TOKENIZER.digest
    assert loaded.model.config == SMALL_MODEL
    assert_same_bits(dict(model.state_dict()), dict(loaded.model.state_dict()))
    assert loaded.weights_sha256 == hashlib.sha256((loaded.folder / "model.safetensors").read_bytes()).hexdigest()


def test_loading_names_what_is_not_there_or_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="gone does not exist"):
        load_model(tmp_path / "gone")
    folder = save(tmp_path / "a")
    change_state(config=to_json(short_training(model=replace(SMALL_MODEL, d_ff=128))))(folder)
    with pytest.raises(CheckpointError, match="another model"):
        load_model(folder)
    change_state(config={"n_stepz": 3})(folder)
    with pytest.raises(OrchestrionError, match=r"state\.json: unknown key 'n_stepz'"):
        load_model(folder)


def test_an_export_holds_what_using_the_model_needs_and_no_more(tmp_path: Path) -> None:
    folder = save(tmp_path)
    with exported(folder, {"preset": "small", "dataset": "small@0123"}) as export:
        assert names(export) == ["README.md", "model.safetensors", "state.json"]
        assert_same_bits(dict(load_model(export).model.state_dict()), dict(load_model(folder).model.state_dict()))
        card = (export / "README.md").read_text()
    assert not export.exists()
    assert "| dataset | small@0123 |" in card
    assert "| train/loss | 0.3000 |" in card
