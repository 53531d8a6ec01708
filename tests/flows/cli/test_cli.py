"""The command line before any heavy work: help, mistakes, tokens and back."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.music.midi.event_statistics import midi_statistics
from tests.flows.conftest import fresh_orchestrion, last_json, orchestrion
from tests.homes import unpack_home
from tests.samples import small_corpus

HEAVY = ("torch", "ray", "prefect", "mlflow", "numba")
COMMANDS = [
    "rebuild", "train", "evaluate", "generate", "pipeline", "demo", "sweep", "datasets", "runs", "models", "presets",
    "encode", "decode", "stats", "text", "export-tokens", "doctor", "ui", "deploy", "compose",
]  # fmt: skip


MISTAKES = [["train", "--set", "train.n_step=1"], ["rebuild", "--nonsense"], ["sweep", "--grid", "train.n_step=1,2"]]
PROGRAM = """
import contextlib, io, json, sys
from flows.cli import main
helped = {}
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main.main(arguments)
        except SystemExit as error:
            helped[arguments[0]] = [error.code, out.getvalue()]
print(json.dumps([helped, list(sys.modules)]))
"""


@pytest.fixture(scope="module")
def helped() -> tuple[dict[str, tuple[int, str]], list[str]]:
    """The help of each command in one new interpreter, and what that has imported after some mistakes too."""
    asked = [["--help"], *MISTAKES, *([command, "--help"] for command in COMMANDS)]
    command = [sys.executable, "-c", PROGRAM, json.dumps(asked)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(helped: tuple[dict[str, tuple[int, str]], list[str]], command: str) -> None:
    code, text = helped[0][command]
    assert code == 0
    assert f"Example: orchestrion {command}" in " ".join(text.split())


@pytest.mark.parametrize("module", HEAVY)
def test_help_and_mistakes_import_nothing_heavy(
    helped: tuple[dict[str, tuple[int, str]], list[str]], module: str
) -> None:
    assert module not in helped[1]


@pytest.mark.slow
def test_commands_that_only_look_import_nothing_heavy(tmp_path: Path) -> None:
    home, _ = unpack_home("96e5a72", tmp_path)
    looks = [
        ["runs"], ["models"], ["datasets"], ["datasets", "show"], ["datasets", "verify"], ["compose", "list"],
        ["lineage", "small-music_transformer_tiny@1"], ["lineage", "small@251d8e45b1452670"],
    ]  # fmt: skip
    commands = [*([*look, "--home", str(home)] for look in looks), ["presets"], ["presets", "rga"], ["--version"]]
    assert heavy_imports_of(*commands) == []


def heavy_imports_of(*commands: list[str]) -> list[str]:
    """Run commands one after the other in a new interpreter; return which heavy modules it then has."""
    code = (
        f"import json, sys\nfrom flows.cli import main\nfor command in {commands!r}:\n"
        "    try: main.main(command)\n    except SystemExit as end: assert end.code in (0, 2), command\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr.splitlines()[-1])


def test_a_new_interpreter_ends_with_the_code_of_its_mistake(tmp_path: Path) -> None:
    done = fresh_orchestrion(tmp_path, "train", "--set", "train.n_step=1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "unknown key 'train.n_step'" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--set", "train.n_step=1"], "unknown key 'train.n_step'"),
        (["train", "--set", "train.n_steps=many"], "train.n_steps"),
        (["train", "--preset", "huge"], "unknown preset 'huge'"),
        (["sweep", "--grid", "train.n_steps"], "write it as key=a,b,c"),
        (["sweep", "--grid", "train.n_step=1,2"], "unknown key 'train.n_step'"),
        (["sweep"], "nothing to sweep: give --grid"),
        (["sweep", "--grid", "dataset.split_seed=1,2"], "dataset.split_seed cannot be swept: a sweep trains on one"),
        (["sweep", "--grid", "train.model.n_heads=4,5"], "train.model.n_heads=5: train.model: d_model=128 is not a"),
        (["sweep", "--search", "train.schedule.max_lr=uniform(0,1)"], "say with --samples how many"),
        (["sweep", "--grid", "train.seed=1,2", "--concurrent", "0"], "concurrent=0 is below 1"),
        (["sweep", "--grid", "train.seed=1,2"], "holds no dataset yet"),
        (["nonsense"], "No such command 'nonsense'"),
        (["presets", "--summary"], "--summary is of one preset: orchestrion presets NAME --summary"),
        (["generate", "-n", "0"], "n_pieces=0 is below 1"),
        (["rebuild", "--source", "/nowhere"], "source /nowhere does not exist"),
        (["pipeline", "--source", "/dev/null"], "source /dev/null is no regular file but a device"),
        (["train"], "holds no dataset yet"),
        (["evaluate"], "holds no trained model yet"),
        (["generate", "--prompt", "/nowhere.mid"], "prompt /nowhere.mid does not exist"),
        (["generate", "--continue-length", "0"], "--continue-length=0 is below 1"),
        (
            ["generate", "--continue-length", "9", "--prompt", "a.mid"],
            "counts tokens after --prompt-length; give both",
        ),
        (["generate", "--prompt-length", "1"], "prompt_tokens=1 is below 2"),
        (["generate", "-o", "/dev/null"], "cannot write to /dev/null: it is a file; name a folder"),
        (["generate", "-o", "/dev/null/below"], "cannot write to /dev/null/below: /dev/null is no folder"),
        (["generate", "-o", "/"], "folder / is not empty and holds no batch; name another folder"),
        (["encode", "/nowhere.mid"], "cannot read /nowhere.mid"),
        (["deploy", "--cron", "at night"], "is not a cron expression"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_end_with_one_line_and_code_2(tmp_path: Path, arguments: list[str], said: str) -> None:
    home = [] if arguments[0] in ("encode", "nonsense", "presets") else ["--home", str(tmp_path / "home")]
    done = orchestrion(tmp_path, *arguments, *home)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.slow
def test_presets_say_their_sizes(tmp_path: Path) -> None:
    rows = {row["name"]: row for row in last_json(orchestrion(tmp_path, "presets", "--json"))["presets"]}
    assert rows["music_transformer"] == {
        "name": "music_transformer", "system": "S004", "encoding": "oore", "vocab_size": 416, "n_parameters": 1_095_200,
    }  # fmt: skip
    assert rows["music_transformer_large"]["n_parameters"] == 6_525_344
    summary = orchestrion(tmp_path, "presets", "mmm_vae", "--summary").stdout
    for line in (
        "bottleneck_shape  256 x 128", "compression_ratio  0.5", "bottleneck       656,266 parameters",
        "total     1,747,338 parameters",
    ):  # fmt: skip
        assert line in summary
    assert last_json(orchestrion(tmp_path, "presets", "rga", "--summary", "--json"))["parameters"]["head"] == 199_680


@pytest.mark.slow
def test_encode_and_decode_are_inverse_on_the_grid(tmp_path: Path) -> None:
    song = sorted(small_corpus(tmp_path / "midi", 3).glob("*.mid"))[0]
    (first,) = last_json(orchestrion(tmp_path, "encode", str(song), "--json"))["files"]
    ids, copy = tmp_path / "ids.json", tmp_path / "copy.mid"
    ids.write_text(json.dumps(first))
    done = last_json(orchestrion(tmp_path, "decode", str(ids), "--out", str(copy), "--json"))
    assert done["n_notes"] > 0
    both = last_json(orchestrion(tmp_path, "encode", str(copy), str(song), "--json"))
    assert [file["ids"] for file in both["files"]] == [first["ids"]] * 2
    ids.write_text(json.dumps(both))
    refused = orchestrion(tmp_path, "decode", str(ids), "--out", str(copy))
    assert (refused.returncode, "holds the ids of 2 files" in refused.stderr) == (2, True)


@pytest.mark.slow
def test_stats_prints_the_statistics_of_each_file(tmp_path: Path) -> None:
    songs = sorted(small_corpus(tmp_path / "midi", 3).glob("*.mid"))[:2]
    done = last_json(orchestrion(tmp_path, "stats", *map(str, songs), "--json"))
    assert [file["path"] for file in done["files"]] == list(map(str, songs))
    for file, song in zip(done["files"], songs, strict=True):
        assert file["statistics"] == midi_statistics(song.read_bytes())
    refused = orchestrion(tmp_path, "stats", str(songs[0]), str(tmp_path / "gone.mid"))
    assert refused.returncode == 2
    assert "cannot read" in refused.stderr
    (tmp_path / "bad.mid").write_bytes(b"MThd")
    refused = orchestrion(tmp_path, "stats", str(tmp_path / "bad.mid"))
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "bad.mid" in refused.stderr


@pytest.mark.slow
def test_decode_refuses_ids_that_are_none(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("[1, 9999]")
    done = orchestrion(tmp_path, "decode", str(bad), "--encoding", "oore", "--out", str(tmp_path / "x.mid"))
    assert done.returncode == 2
    assert "id 9999 outside 0-415" in done.stderr
    assert not (tmp_path / "x.mid").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoding", "second_line"),
    [("remi", "BOS_None"), ("optimus_txt", "SONG=Song_with_"), ("mmm", "[SOS] PIECE"), ("optimus_int", "<start>")],
)
def test_every_encoding_is_shown_readably(tmp_path: Path, encoding: str, second_line: str) -> None:
    song = sorted(small_corpus(tmp_path / "midi", 3).glob("*.mid"))[0]
    done = orchestrion(tmp_path, "encode", str(song), "--encoding", encoding)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{song}: ")
    assert lines[1].startswith(second_line)
    shown, copy = tmp_path / "tokens.json", tmp_path / "copy.mid"
    shown.write_text(orchestrion(tmp_path, "encode", str(song), "--encoding", encoding, "--json").stdout)
    assert last_json(orchestrion(tmp_path, "decode", str(shown), "--out", str(copy), "--json"))["n_notes"] > 0
