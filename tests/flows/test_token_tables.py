"""A table of token ids through the real command line: trained, stored and extended as any dataset, but no music."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from models.training import row_losses
from tasks.checkpoints import load_model
from tests.flows.conftest import last_json, orchestrion, run_flow

pytestmark = pytest.mark.slow

N_IDS, HALF = 16, 8
COPYING = [
    "--vocab-size", str(N_IDS), "--set", "train.seq_len=15", "--set", "train.n_steps=400",
    "--set", "train.eval_interval=100", "--set", "train.schedule.warmup_steps=50", "--json",
]  # fmt: skip


def copies(n_rows: int, seed: int) -> np.ndarray:
    """Return rows of random ids, each followed by the same ids again."""
    half = np.random.default_rng(seed).integers(0, N_IDS, (n_rows, HALF))
    return np.hstack([half, half])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, object]]:
    folder = tmp_path_factory.mktemp("tokens")
    path, home = folder / "copy.npy", folder / "home"
    np.save(path, copies(4000, seed=0))
    return home, path, last_json(run_flow(home, "train", "--home", str(home), "--tokens", str(path), *COPYING))


def test_copying_is_learned_to_a_cross_entropy_below_a_twentieth(
    trained: tuple[Path, Path, dict[str, object]],
) -> None:
    """The measure is the mean loss of the copied half, on rows that the command never saw."""
    loaded = load_model(Path(str(trained[2]["checkpoint"])))
    tokens = torch.from_numpy(copies(256, seed=1))
    is_copied = torch.zeros_like(tokens, dtype=torch.bool)
    is_copied[:, HALF:] = True
    nats, n_targets, n_correct = row_losses(loaded.model, tokens, pad_id=loaded.tokenizer.pad_id, mask_BT=is_copied)
    assert float(nats.sum()) / n_targets < 0.05
    assert n_correct / n_targets > 0.99


def test_the_same_table_in_another_file_is_the_same_run(trained: tuple[Path, Path, dict[str, object]]) -> None:
    home, path, before = trained
    other = path.with_name("copy.pt")
    torch.save(torch.from_numpy(np.lib.format.open_memmap(path).copy()), other)
    again = last_json(run_flow(home, "train", "--home", str(home), "--tokens", str(other), *COPYING))
    assert (again["reused"], again["run_dir"]) == (True, before["run_dir"])
    command = ["train", "--home", str(home), "--resume", str(before["run_dir"]), "--set", "train.n_steps=410"]
    planned = last_json(orchestrion(home, *command, "--dry-run", "--json"))
    assert (planned["status"], planned["step"], planned["n_steps"]) == ("extended", 400, 410)


def test_its_dataset_is_one_among_others(trained: tuple[Path, Path, dict[str, object]]) -> None:
    home, _, facts = trained
    shown = last_json(orchestrion(home, "datasets", "show", "copy-tokens", "--home", str(home), "--json"))
    assert (shown["dataset_version"], shown["n_files"], shown["n_tokens"]) == (facts["dataset_version"], 4000, 64_000)
    assert orchestrion(home, "datasets", "show", "copy-tokens", "--home", str(home)).returncode == 0
    assert orchestrion(home, "datasets", "verify", "--all", "--home", str(home)).returncode == 0
    kept = last_json(orchestrion(home, "datasets", "prune", "--dry-run", "--home", str(home), "--json"))
    assert kept["n_files"] == 0
    assert orchestrion(home, "lineage", str(facts["model_version"]), "--home", str(home)).returncode == 0


def test_its_likelihood_on_held_out_rows_is_computed(trained: tuple[Path, Path, dict[str, object]]) -> None:
    home, _, _ = trained
    done = last_json(run_flow(home, "evaluate", "--home", str(home), "--json"))
    random_half = (HALF - 1) * math.log(N_IDS) / (2 * HALF - 1)  # nats per token that no model can save
    assert random_half - 0.02 < done["metrics"]["nll_per_token"] < random_half + 0.05
    assert "bits_per_note" not in done["metrics"]
    assert not done["promoted"]
    assert "ids without music" in Path(done["report"]).read_text()


def test_music_is_refused_in_one_line(trained: tuple[Path, Path, dict[str, object]]) -> None:
    home, _, _ = trained
    for command in (["generate"], ["compose", "start", "tune"]):
        done = (
            orchestrion(home, *command, "--home", str(home))
            if command[0] == "compose"
            else run_flow(home, *command, "--home", str(home))
        )
        assert done.returncode == 2, done.stderr
        assert "the ids of a token table represent no notes" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vocab-size", "15"], "holds 15, outside 0-14, the ids of --vocab-size 15"),
        ([], "say how many ids there are"),
        (["--vocab-size", "16", "--dataset", "mine"], "--tokens and --dataset both say what is trained on"),
        (["--vocab-size", "16", "--resume", "none"], "no run of the home"),
        (["--vocab-size", "16", "--pad-id", "16"], "pad id 16 is outside 0-15"),
    ],
)
def test_mistakes_end_with_one_line(
    trained: tuple[Path, Path, dict[str, object]], arguments: list[str], message: str
) -> None:
    home, path, _ = trained
    done = orchestrion(home, "train", "--home", str(home), "--tokens", str(path), *arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert "\n" not in done.stdout
