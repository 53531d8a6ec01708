"""Rubbish for every option of every command, in this process and with the flows replaced: exit 0 or 2, and one line."""

import contextlib
import io
import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from flows import deployments
from flows.cli import main
from flows.services import servers
from tasks.runtime.signals import ends

pytestmark = pytest.mark.slow  # seconds a test; see `make check`

N_SEEDS = int(os.environ.get("ORCHESTRION_RUBBISH", "320"))  # argument lists of a run
LONG, DEEP = "9" * 5000, "[" * 100_000
TEXTS = [
    "", " ", ".", "..", "/", "/dev/null", "-", "--", "nan", "-1", LONG, DEEP, "\0", "a\nb",
    "é" * 200, "n" * 256, "n/" * 3000,
    os.fsdecode(b"caf\xe9"), "~no_such_user/x", "?", "x?y#z%20;'\"", "http://[::1",
    "http://x:70000/y", "http://", "://", "s3://b",
    "file://elsewhere/x", "catalog:none", "name@", "@", "name@" + LONG, "name@champion", "split:test",
    "split:none", "{}", "null",
    "C:\\x", "\udcff", "\u202e", "x" * 100_000,
]  # fmt: skip
NUMBERS = [
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "1e400",
    LONG,
    str(2**63),
    str(2**64),
    "-" + LONG,
    "1.5",
    "",
    "x",
    "٣",
    "1_0",
    "true",
]
KEYS = [
    "train.schedule.scale", "train.optimizer.eps", "train.optimizer.weight_decay", "train.optimizer.max_grad_norm",
    "train.optimizer.betas", "train.model.norm_eps", "train.model.d_model", "train.n_steps", "train.seed",
    "train.model",
    "train.model.name", "train.schedule.name", "train", "dataset.split_seed", "dataset.parse.read.max_notes",
    "dataset.parse.read.max_bytes", "dataset.parse.read.max_seconds", "dataset.parse.memory_bytes",
    "dataset.parse.seconds",
    "dataset.augment.stretches", "dataset.augment.seed", "dataset.encoding", "dataset.encoding.name",
    "dataset.sources",
    "dataset.filters.min_seconds", "dataset.source_limits.max_expansion_ratio", "dataset.groups.min_containment",
    "evaluate.seed", "evaluate.split", "generate.seed", "generate.sampling.temperature", "generate.tempo",
    "generate.density",
    "generate.prompt", "generate.soundfont", "generate.infill_bars", "generate.programs",
    "generate.max_note_seconds",
    "generate.key", "use_rests", "n_velocities", "tokenizer", "", ".", "..", "a" + ".a" * 100_000,
    "train..n_steps", "x" * 5000,
]  # fmt: skip
VALUES = [
    *NUMBERS, "[NaN]", "[1e999, 1]", "{}", "[]", "null", "true", '"text"', DEEP, "[" * 90 + "]" * 90,
    "{" + '"a":{' * 500,
    '{"name": "none"}', '{"name": [1]}', '{"name": "miditok", "tokenizer": "' + "[" * 50_000 + '"}',
    '"\\ud800"', '"\\u0000"', LONG,
    '{"a": 1, "a": 2}', os.fsdecode(b"\xff"), "[true, false]", '[["a"]]', "-0.0", "1e-400",
]  # fmt: skip
SWEPT = [
    "a",
    "",
    "1,1",
    "1,,2",
    "1;2",
    LONG,
    "[1",
    DEEP,
    "nan",
    "uniform(nan,1)",
    "uniform(-1e308,1e308)",
    "randint(0,1e30)",
]
SWEPT += [
    "loguniform(-1,1)",
    "choice()",
    f"choice({LONG};1)",
    f"uniform({LONG},{LONG})",
    "uniform(1)",
    "uniform(1,2",
    "x(1,2)",
]
FILES: dict[str, bytes] = {
    "ids.json": b"[true, false]", "deep.json": b"[" * 100_000, "long.json": b"[" + b"9" * 5000 + b"]",
    "nan.json": b"[NaN]",
    "far.json": b"[99999999]", "objects.json": b'{"ids": {"a": 1}}',
    "none.json": b'{"ids": [1], "encoder": {"name": "none"}}',
    "odd.json": b'{"ids": [1], "encoder": {"name": []}}',
    "deep_encoder.json": b'{"ids": [1], "encoder": ' + b"[" * 500,
    "miditok.json": b'{"ids": [1], "encoder": {"name": "miditok", "tokenizer": "' + b"[" * 50_000 + b'"}}',
    "binary.json": b"\xff\0",
    "empty.json": b"", "text.mid": b"no MIDI", "empty.mid": b"", "head.mid": b"MThd\0\0\0\6\0\1\xff\xff\0\0",
    "request.toml": b"jobs = 1", "long.toml": b"seed = " + b"9" * 5000, "deep.toml": b"a = " + b"[" * 100_000,
    "keys.toml": b".".join([b"a"] * 100_000) + b" = 1",
    "nan.toml": b"[[jobs]]\nname = 'a'\n[jobs.sampling]\ntemperature = nan\n",
    "nul.toml": b'[[jobs]]\nname = "a"\nprompt = "a\\u0000b"\n',
    "user.toml": b"[[jobs]]\nprompt = '~no_such_user/x'\n",
    "date.toml": b"[[jobs]]\nseed = 2026-11-30\n",
    "keys.json": b'{"jobs": [{"' + b".".join([b"a"] * 100_000) + b'": 1}]}',
    "long_job.json": b'{"jobs": [{"seed": ' + b"9" * 5000 + b"}]}", "nan_job.json": b'{"jobs": [{"tempo": NaN}]}',
    "twice.json": b'{"jobs": [], "jobs": [{"seed": 1}]}', "bom.toml": b"\xef\xbb\xbfjobs = []",
    "latin.toml": b"a = '\xe9'",
}  # fmt: skip


def commands() -> Iterator[tuple[list[str], Any]]:
    """Return every command with the words that call it."""

    def below(command: Any, words: list[str]) -> Iterator[tuple[list[str], Any]]:
        if hasattr(command, "commands"):
            for name, inner in sorted(command.commands.items()):
                yield from below(inner, [*words, name])
        else:
            yield words, command

    yield from below(typer.main.get_command(main.app), [])


def argument_lists(rng: random.Random) -> Iterator[list[str]]:
    """Return calls without end, most of them with one odd value and some with several."""
    known = list(commands())
    while True:
        words, command = rng.choice(known)
        given = [
            one
            for parameter in command.params
            if parameter.param_type_name == "argument"
            for one in _argument(rng, parameter)
        ]
        options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
        chosen = rng.sample(options, min(len(options), rng.choice((1, 1, 1, 2, 3))))
        required = [parameter for parameter in options if parameter.required and parameter not in chosen]
        yield [*words, *given, *(word for parameter in [*chosen, *required] for word in _option(rng, parameter))]


def _argument(rng: random.Random, parameter: Any) -> list[str]:
    count = rng.choice((1, 1, 2)) if parameter.nargs == -1 else 1
    return [rng.choice((*TEXTS, *FILES)) for _ in range(count)]


def _option(rng: random.Random, parameter: Any) -> list[str]:
    name = parameter.opts[-1]
    if parameter.is_flag:
        return [name]
    if name == "--set":
        return [name, f"{rng.choice(KEYS)}{rng.choice(('=', '=', '=', ''))}{rng.choice(VALUES)}"]
    if name in ("--grid", "--search"):
        return [name, f"{rng.choice(KEYS)}={rng.choice(SWEPT)}"]
    is_number = parameter.type_descriptor.annotation in (int, float)
    values = NUMBERS if is_number else [*TEXTS, *FILES] if name in ("--request", "--out", "--prompt") else TEXTS
    return [f"{name}={rng.choice(values)}"]


def _no_json(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that calls the command line in a folder of odd files; nothing is started, and what is made is here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCHESTRION_HOME", str(tmp_path / "home"))
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    for command in main.COMMANDS:
        if hasattr(command, "run_flow"):
            monkeypatch.setattr(command, "run_flow", lambda home, name, *arguments, **options: {"seconds": 0.0})
    monkeypatch.setattr(deployments, "serve_flows", lambda *arguments: None)
    monkeypatch.setattr(servers, "run_uis", lambda *arguments: None)
    monkeypatch.setattr("flows.pipeline_summary.pipeline_rows", lambda result: [])
    before = {number: signal.getsignal(number) for number in ends()}
    environment = dict(os.environ)

    def call(arguments: list[str]) -> tuple[int, str, str]:
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main.main(arguments)
        for stream in (out, err):
            stream.flush()
        return int(ended.value.code or 0), out.buffer.getvalue().decode(), err.buffer.getvalue().decode()  # type: ignore[union-attr]

    yield call
    for number, handler in before.items():
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(environment)


def shown(arguments: list[str]) -> str:
    return " ".join(repr(word if len(word) < 120 else f"{word[:40]}...{len(word)}") for word in arguments)


@pytest.mark.parametrize("part", range(4))
def test_rubbish_is_refused_in_one_line(run: Any, part: int) -> None:
    calls = argument_lists(random.Random(part))
    wrong = []
    for _ in range(N_SEEDS // 4):
        arguments = next(calls)
        code, out, err = run(arguments)
        said = [line for line in err.splitlines() if line.startswith("orchestrion: ")]
        if (
            code not in (0, 2)
            or (code == 2 and len(said) != 1)
            or "Traceback" in err
            or "failed:" in err
            or len(err) > 10_000
        ):
            wrong.append(f"{code} {shown(arguments)}: {err[-300:]}")
        if "--json" in arguments and code == 0 and out:
            json.loads(out.splitlines()[-1], parse_constant=_no_json)
    assert not wrong, "\n".join(wrong)
    assert Path("/dev/null").is_char_device()
