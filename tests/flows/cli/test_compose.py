"""The composer from the command line: each command is one step, and a script takes several."""

import hashlib
import json
import re
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from flows.services.interrupts import INTERRUPTED
from tasks.checkpoints import exported
from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.writer import write_midi
from tasks.music.tokenizers.oore import OoreConfig
from tasks.storage.home import Home
from tasks.tracking.mlflow_tracker import Tracker
from tests import command_line
from tests.builders import make_score, note_rows
from tests.flows.conftest import clean_environment, last_json, orchestrion
from tests.tasks.composer.test_composer import random_checkpoint

THEME = [(0, 480, 60, 64), (480, 480, 64, 72), (960, 480, 67, 80)]  # C4 E4 G4, on the encoding's grid


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, quiet_environment: Path) -> Path:
    """A home with one registered model that has learned nothing."""
    where = Home.at(tmp_path_factory.mktemp("compose") / "home")
    where.prepare()
    checkpoint = random_checkpoint(where.root, OoreConfig())
    path = str(checkpoint.relative_to(where.root))
    facts = {"preset": "small", "dataset": "small@0123456789abcdef", "checkpoint": path}
    with Tracker(where).open_run("orchestrion/training", "r") as run, exported(checkpoint, facts) as folder:
        run.register_model("small", folder, facts)
    return where.root


def theme(folder: Path) -> str:
    path = folder / "theme.mid"
    path.write_bytes(write_midi(make_score(THEME)))
    return str(path)


@pytest.mark.slow
def test_one_command_is_one_step(home: Path, tmp_path: Path) -> None:
    def step(*arguments: str) -> dict:
        return last_json(orchestrion(tmp_path, "compose", *arguments, "--home", str(home), "--json"))

    begun = step("start", "tune", "--seed", "7", "--prompt", theme(tmp_path), "--block-notes", "8")
    assert (begun["model_version"], begun["n_notes"], begun["blocks"], begun["pending"]) == ("small@1", 3, [], None)
    first, second = step("propose", "tune")["pending"], step("propose", "tune", "--temperature", "0.8")["pending"]
    assert (first["proposal"], second["proposal"]) == (0, 1)
    assert second["config"]["temperature"] == 0.8
    assert min(first["n_notes"], second["n_notes"]) >= 8
    heard = read_midi(Path(second["midi"]))
    accepted = step("accept", "tune")
    assert accepted["n_notes"] == len(heard.notes.pitch) == 3 + second["n_notes"]
    out = tmp_path / "tune.mid"
    saved = step("save", "tune", "-o", str(out))
    assert saved["midi_sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    written = note_rows(read_midi(out))
    assert Counter(note_rows(heard)) == Counter(written)
    assert Counter(THEME) <= Counter(written)
    assert step("undo", "tune")["n_tokens"] == begun["n_tokens"]
    assert step("show", "tune")["n_steps"] == 5
    listed = step("list")["sessions"]
    assert [row["session"] for row in listed if not row["problem"]] == ["tune"]
    shown = orchestrion(tmp_path, "compose", "show", "tune", "--home", str(home)).stdout
    assert "midi theme.mid: 3 notes" in shown


@pytest.mark.slow
def test_a_script_is_many_steps_and_gives_the_same_bytes_again(home: Path, tmp_path: Path) -> None:
    written = []
    for name in ("one", "one-again"):
        where, out = tmp_path / name, tmp_path / name / "x.mid"
        where.mkdir()
        saved = last_json(
            orchestrion(
                tmp_path, "compose", "run", name, "seed propose propose accept accept undo save", "--seed", "3",
                "--block-tokens", "32", "-o", str(out), "--home", str(home), "--json",
            )
        )  # fmt: skip
        assert [(block["number"], block["proposal"]) for block in saved["blocks"]] == [(0, 1)]
        written.append(note_rows(read_midi(out)))
    assert written[0] == written[1] != []


@pytest.mark.slow
def test_growing_counts_tokens_and_notes_of_each_block(home: Path, tmp_path: Path) -> None:
    begin = ("compose", "start", "grown", "--prompt", theme(tmp_path), "--block-tokens", "24", "--home", str(home))
    assert orchestrion(tmp_path, *begin).returncode == 0
    done = orchestrion(tmp_path, "compose", "grow", "grown", "--blocks", "3", "--home", str(home), "--json")
    lines = re.findall(r"^block (\d+): ([\d,]+) tokens, ([\d,]+) notes$", done.stderr, re.M)
    assert [int(number) for number, _, _ in lines] == [0, 1, 2]
    grown = last_json(done)
    assert (int(lines[-1][1]), int(lines[-1][2])) == (grown["n_tokens"], grown["n_notes"])
    assert int(lines[0][1]) > 24


BLOCKS = ["generate", "--preset", "music_transformer_tiny", "--block-tokens", "40", "--prime-tokens", "16", "--blocks"]


@pytest.mark.slow
def test_a_long_piece_is_interrupted_and_goes_on_by_the_same_command(home: Path, tmp_path: Path) -> None:
    """Interrupted it has the whole blocks as MIDI; continued it is the piece of a command that was not interrupted."""
    out, err = tmp_path / "out", tmp_path / "err"
    command = [*BLOCKS, "300", "--seed", "3", "--home", str(home), "-o", str(tmp_path / "long.mid")]
    process = command_line.Process(command, clean_environment(home), out, err)
    lines: list[str] = []
    until = time.monotonic() + 300
    while len(lines) < 3 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
        lines = re.findall(r"^block \d+: .*$", out.read_text(), re.M)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == INTERRUPTED, err.read_text()
    saved = json.loads((tmp_path / "long.json").read_text())
    written = re.findall(r"^block \d+: ([\d,]+) tokens, ([\d,]+) notes$", out.read_text(), re.M)
    n_blocks = len(saved["blocks"])
    assert 3 <= n_blocks < 300
    assert written[-1] == (f"{saved['n_tokens']:,}", f"{saved['n_notes']:,}")
    assert saved["n_tokens"] >= 1 + 24 * n_blocks
    assert len(read_midi(tmp_path / "long.mid").notes.pitch) == saved["n_notes"]
    shorter = orchestrion(tmp_path, *BLOCKS, str(n_blocks - 1), "--seed", "3", "--home", str(home))
    assert (shorter.returncode, shorter.stderr.count("\n")) == (2, 1)
    assert f"has {n_blocks} already" in shorter.stderr
    more = [*BLOCKS, str(n_blocks + 2), "--home", str(home), "--json"]
    again = last_json(orchestrion(tmp_path, *more, "--seed", "3"))
    shutil.rmtree(home / "sessions" / again["session"])
    assert last_json(orchestrion(tmp_path, *more, "--seed", "3"))["midi_sha256"] == again["midi_sha256"]
    assert len(again["blocks"]) == n_blocks + 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--block-tokens", "9"], "say how many by --blocks"),
        (["--blocks", "2", "-n", "3"], "-n is of a batch of pieces"),
        (["--blocks", "2", "--continue-length", "3"], "--continue-length is of a batch of pieces"),
        (["--prompt-length", "9"], "--prompt-length 9 is of a prompt; name one with --prompt"),
        (["--blocks", "2", "--best-of", "3"], "--blocks has no use for generate.best_of; it takes generate.seed"),
        (["--blocks", "2", "--prime-tokens", "1024"], "--prime-tokens 1024 is not below --block-tokens 1024"),
        (["--blocks", "2", "--prompt", "split:test"], "--blocks continues a MIDI file"),
        (["--blocks", "2", "-o", "x.wav"], "x.wav is not named as one of"),
        (["--blocks", "2", "--model", "huge"], "no model 'huge'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_about_blocks_end_with_one_line(
    home: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = orchestrion(tmp_path, "generate", "--preset", "music_transformer_tiny", *arguments, "--home", str(home))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert message in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["accept", "nobody"], "no session 'nobody'"),
        (["show", "nobody"], "no session 'nobody'"),
        (["start", "a/b"], "session name 'a/b' is not"),
        (["start", "x", "--model", "huge"], "no model 'huge'"),
        (["start", "x", "--prompt", "/nowhere.mid"], "prompt /nowhere.mid does not exist"),
        (["start", "x", "--prime", "noise"], "known are start, dataset, random"),
        (["start", "x", "--block-tokens", "0"], "block_tokens=0 is below 1"),
        (["start", "x", "--temperature", "0"], "temperature=0"),
        (["run", "x", "seed dance"], "unknown step 'dance'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_end_with_one_line_and_leave_no_session(
    home: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = orchestrion(tmp_path, "compose", *arguments, "--home", str(home))
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (home / "sessions" / "x").exists()


@pytest.mark.slow
def test_a_damaged_session_is_listed_with_what_is_wrong(home: Path, tmp_path: Path) -> None:
    broken = home / "sessions" / "broken"
    broken.mkdir(parents=True)
    (broken / "session.json").write_text('{"format": 1')
    rows = last_json(orchestrion(tmp_path, "compose", "list", "--home", str(home), "--json"))["sessions"]
    assert "is damaged" in {row["session"]: row["problem"] for row in rows}["broken"]
    done = orchestrion(tmp_path, "compose", "propose", "broken", "--home", str(home))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_checkpoint_that_is_gone_comes_from_the_registry(home: Path, tmp_path: Path) -> None:
    script = ["compose", "run", "lone", "--home", str(home), "--block-tokens", "16", "--json"]
    last_json(orchestrion(tmp_path, *script, "seed"))
    (home / "runs").rename(tmp_path / "runs")
    try:
        assert last_json(orchestrion(tmp_path, *script, "propose"))["pending"]["n_tokens"] >= 16
    finally:
        (tmp_path / "runs").rename(home / "runs")
