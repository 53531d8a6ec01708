"""The whole way through the real command line, Prefect, Ray and MLflow included."""

import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import mido
import pyarrow.parquet as pq
import pytest

from tests import command_line
from tests.conftest import shared_ray
from tests.flows.conftest import (
    SETTINGS,
    clean_environment,
    last_json,
    orchestrion,
    pipeline_command,
    run_flow,
)

pytestmark = pytest.mark.slow

Finished = tuple[Path, Path, dict[str, Any]]


def test_the_summary_names_what_was_made(finished: Finished) -> None:
    home, source, summary = finished
    n_midi = sum(path.suffix == ".mid" for path in source.rglob("*"))
    assert summary["n_files"] == n_midi == summary["n_accepted"] + summary["n_duplicate"] + summary["n_rejected"]
    assert (summary["n_accepted"], summary["n_duplicate"], summary["n_rejected"]) == (10, 1, 4)
    for key in ("dataset_dir", "ledger", "checkpoint", "batch_dir", "gallery"):
        assert Path(summary[key]).exists()
        assert Path(summary[key]).is_relative_to(home)
    assert summary["n_notes"] > 0
    assert summary["metrics"]["bits_per_note"] > 0
    assert summary["promoted"]
    assert pq.read_table(summary["ledger"]).num_rows == summary["n_files"]


def test_every_composition_is_valid_midi_with_its_lineage(finished: Finished) -> None:
    _, _, summary = finished
    manifest = json.loads((Path(summary["batch_dir"]) / "manifest.json").read_text())
    assert len(manifest["pieces"]) == 3
    for piece in manifest["pieces"]:
        path = Path(summary["batch_dir"]) / "pieces" / f"{piece['name']}.mid"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == piece["midi_sha256"]
        mido.MidiFile(path)
        sidecar = json.loads(path.with_suffix(".json").read_text())
        assert sidecar["model_version"] == summary["model_version"]
        assert sidecar["dataset_version"].endswith(summary["dataset_version"])
        assert sidecar["model_run_id"] == summary["run_id"]
        for suffix in (".png", ".ogg"):
            assert path.with_suffix(suffix).stat().st_size > 500


def test_the_same_command_again_builds_trains_and_composes_nothing(finished: Finished) -> None:
    home, source, summary = finished
    before = {path: path.stat().st_mtime_ns for kind in ("parquet", "safetensors") for path in home.rglob(f"*.{kind}")}
    again = last_json(run_flow(home, *pipeline_command(home, source)))
    assert again["reused"] == {"dataset": True, "model": True, "batch": True}
    for key in ("dataset_version", "model_version", "batch", "run_id"):
        assert again[key] == summary[key]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_dry_run_of_a_rebuild_says_what_the_rebuild_does(finished: Finished, tmp_path: Path) -> None:
    home, source, summary = finished
    asked = ("rebuild", "--dry-run", "--source", str(source), "--name", "small", "--json", *SETTINGS)
    here = last_json(orchestrion(home, *asked, "--home", str(home)))
    assert here["status"] == "exists"
    assert (here["n_to_parse"], here["disk_bytes"], here["seconds"]) == (0, 0, 0)
    elsewhere = last_json(orchestrion(home, *asked, "--home", str(tmp_path / "none")))
    assert elsewhere["status"] == "new"
    assert elsewhere["n_to_parse"] == elsewhere["n_distinct"] == summary["n_files"] - summary["n_duplicate"]
    assert not (tmp_path / "none").exists()
    for plan in (here, elsewhere):
        assert plan["dataset_version"] == summary["dataset_version"]
        assert plan["n_files"] == summary["n_files"]
    folders = [home / "datasets" / "small" / kind for kind in ("songs", "tokens")]
    n_bytes = sum(path.stat().st_size for folder in folders for path in folder.rglob("*.parquet"))
    assert n_bytes / 2 < elsewhere["disk_bytes"] < 2 * n_bytes
    assert elsewhere["seconds"] > 0


def test_a_batch_composed_anew_has_the_same_bytes(finished: Finished) -> None:
    home, _, summary = finished
    folder = Path(summary["batch_dir"])

    def digests() -> dict[str, str]:
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}

    before = digests()
    done = run_flow(
        home, "generate", "--home", str(home), "--fresh", "--json", *SETTINGS, "--set", "generate.n_workers=2"
    )
    assert last_json(done)["batch"] == summary["batch"]
    assert digests() == before


def test_each_flow_is_a_tracked_run_with_its_tags(finished: Finished) -> None:
    home, _, summary = finished
    runs = last_json(orchestrion(home, "runs", "--home", str(home), "--json"))["runs"]
    experiments = {run["experiment"] for run in runs}
    assert experiments == {f"orchestrion/{name}" for name in ("datasets", "training", "evaluation", "generation")}
    assert {run["status"] for run in runs} == {"FINISHED"}
    for run in runs:
        assert run["tags"]["orchestrion.dataset_version"] == summary["dataset_version"]
        assert run["tags"]["orchestrion.git_commit"]
        assert run["tags"]["prefect.flow_run_id"]
    training = next(run for run in runs if run["run_id"] == summary["run_id"])
    assert training["tags"]["orchestrion.model_version"] == summary["model_version"]
    assert training["metrics"]["val/loss"] > 0


def test_lists_show_what_there_is(finished: Finished) -> None:
    home, _, summary = finished
    datasets = last_json(orchestrion(home, "datasets", "--home", str(home), "--json"))["datasets"]
    assert [entry["dataset_version"] for entry in datasets] == [summary["dataset_version"]]
    models = last_json(orchestrion(home, "models", "--home", str(home), "--json"))["models"]
    assert models[0]["model_version"] == summary["model_version"]
    assert models[0]["aliases"] == ["champion"]
    report = last_json(orchestrion(home, "doctor", "--home", str(home), "--json"))
    assert report["ok"], report


def test_a_prompt_is_continued(finished: Finished, tmp_path: Path) -> None:
    home, source, summary = finished
    prompt = next(source.glob("chorale-*.mid"))
    done = run_flow(
        home, "generate", "--home", str(home), "--json", "-n", "2", "--prompt", str(prompt), "--prompt-length", "32",
        "--continue-length", "20", "--set", "generate.audio=none", "-o", str(tmp_path / "out"),
    )  # fmt: skip
    batch = Path(last_json(done)["batch_dir"])
    assert last_json(done)["out"] == str(tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {(row["prompt_length"], row["continued_original_length"]) for row in results["pieces"]} == {(32, 20)}
    assert (tmp_path / "out" / "continuations" / "0001" / "continued_original.mid").is_file()
    sidecar = json.loads((batch / "pieces" / "0000.json").read_text())
    assert sidecar["prompt"]["sha256"] == hashlib.sha256(prompt.read_bytes()).hexdigest()
    assert sidecar["prompt"]["n_tokens"] == 32
    assert batch.name != summary["batch"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train", "--dataset", "nothing"], 2, "no dataset 'nothing'"),
        (["train", "--dataset", "small@ffff"], 2, "has 0 versions like 'ffff'"),
        (["evaluate", "--model", "nothing"], 2, "no model 'nothing'"),
        (["generate", "--model", "small-music_transformer_tiny@9"], 2, "has no version or alias '9'"),
        (["train", "--set", "train.n_workers=64", "--set", "train.batch_size=64"], 2, "train.n_workers=64"),
        (["train", "--fresh", "--set", "train.device=cuda"], 2, "train.device=cuda, but the Ray cluster"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line_and_an_exit_code(finished: Finished, arguments: list[str], code: int, said: str) -> None:
    home, _, _ = finished
    done = run_flow(home, *arguments, "--home", str(home))
    assert done.returncode == code, done.stderr
    complaints = [line for line in done.stderr.splitlines() if line.startswith("orchestrion:")]
    assert len(complaints) == 1
    assert said in complaints[0]
    assert "Traceback" not in done.stderr


def test_lineage_leads_from_a_piece_and_from_its_runs_to_the_ledger(finished: Finished) -> None:
    home, _, summary = finished
    piece = Path(summary["batch_dir"]) / "pieces" / "0000.mid"
    for target in (str(piece), summary["batch"], summary["model_version"], summary["run_id"][:8]):
        facts = last_json(orchestrion(home, "lineage", target, "--home", str(home), "--json"))
        assert facts["model"]["model_version"] == summary["model_version"]
        assert facts["dataset"]["ledger"] == summary["ledger"]
        assert facts["dataset"]["n_training_files"] > 0


def test_a_job_of_a_request_that_fails_keeps_no_other_from_being_composed(finished: Finished, tmp_path: Path) -> None:
    home, source, summary = finished
    prompt = next(source.glob("chorale-*.mid"))
    (tmp_path / "themes").mkdir()
    shutil.copy(prompt, tmp_path / "themes" / "a.mid")
    (tmp_path / "r.toml").write_text(
        f"""
        model = "{summary["model_version"]}"
        [defaults]
        n_pieces = 1
        audio = "none"
        sampling.max_tokens = 40
        [[jobs]]
        name = "hopeless"
        prompt = "themes/a.mid"
        infill_bars = [900, 901]
        [[jobs]]
        name = "answers"
        prompt = "themes"
        prompt_tokens = 20
        """
    )
    done = run_flow(home, "generate", "--home", str(home), "--request", str(tmp_path / "r.toml"), "--json")
    assert done.returncode == 2, done.stderr
    (complaint,) = (line for line in done.stderr.splitlines() if line.startswith("orchestrion:"))
    assert "r.toml: hopeless: prompt a.mid: infill_bars=[900, 901], but it has" in complaint
    (job,) = json.loads(done.stdout.splitlines()[-1])["jobs"]
    assert (job["name"], job["n_pieces"]) == ("answers", 1)
    assert Path(job["gallery"]).exists()


def begin_a_long_batch(home: Path) -> tuple[command_line.Process, list[Path]]:
    """Start a command with a Prefect server of its own; return it with the candidates it has written, at least one."""
    command = ["generate", "--home", str(home), "--seed", "77", "-n", "400"]
    for setting in ("generate.audio=none", "generate.batch_size=1", "generate.sampling.max_tokens=64"):
        command += ["--set", setting]
    written = {*home.glob("generations/.*/candidates/*.json")}
    environment = clean_environment(home) | shared_ray()
    process = command_line.Process(command, environment, Path(os.devnull), home / "said")
    for _ in range(6000):
        now = {*home.glob("generations/.*.unfinished/candidates/*.json")}
        if now - written or process.poll() is not None:
            return process, sorted(now)
        time.sleep(0.1)
    pytest.fail("nothing was written within ten minutes")


def interrupt(process: command_line.Process, home: Path) -> str:
    """Press Ctrl-C as a terminal does, for Prefect's server and all others of the group too; return the last line."""
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=40) == 130
    return (home / "said").read_text().splitlines()[-1]


def test_ctrl_c_is_answered_soon_and_the_same_command_goes_on_though_prefects_server_hangs(finished: Finished) -> None:
    home, _, _ = finished
    process, written = begin_a_long_batch(home)
    said, hung = interrupt(process, home), home / "logs" / "hung.txt"
    assert not hung.exists(), hung.read_text()
    assert said == "orchestrion: interrupted; what is finished is kept, and the same command goes on"
    partial = list((home / "generations").glob(".*.unfinished/partial/*.mid"))
    assert partial  # the pieces at work, as far as they are
    assert all(mido.MidiFile(path).tracks for path in partial)  # whole files, if without a note yet
    before = {path: path.stat().st_mtime_ns for path in written}
    process, _ = begin_a_long_batch(home)
    assert {path: path.stat().st_mtime_ns for path in written} == before  # gone on with, not begun anew
    (server,) = [pid for pid, command in children_of(process.pid) if "flows.services.server prefect" in command]
    os.kill(server, signal.SIGSTOP)
    assert interrupt(process, home).endswith(f"(it hung for 25 s; where: {hung})")
    assert "prefect/client" in hung.read_text()
    deadline, state = time.monotonic() + 30, Path(f"/proc/{server}/stat")
    while state.exists() and state.read_text().split()[2] != "Z":  # ended, if perhaps not waited for
        assert time.monotonic() < deadline
        time.sleep(0.05)
    hung.unlink()
    shutil.rmtree(written[0].parents[1])


def children_of(pid: int) -> list[tuple[int, str]]:
    """Return the number and the command line of each child of a process."""
    numbers = [
        int(number) for task in Path(f"/proc/{pid}/task").glob("*/children") for number in task.read_text().split()
    ]
    return [(number, Path(f"/proc/{number}/cmdline").read_text().replace("\0", " ")) for number in numbers]
