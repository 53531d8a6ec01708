"""What README and guides say is true: commands parse, settings and files exist, figures are those of the code."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.core

from flows.cli.main import app
from flows.cli.requests import read_request
from flows.cli.run_flow import build_config
from tasks.config.overrides import apply_overrides
from tasks.config.presets import PRESETS, build_preset, preset_rows
from tasks.music.tokenizers.registry import ENCODINGS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
GUIDES = ("rebuild", "train", "generate", "review", "compose")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "infra").glob("*.md"))]
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "decisions").glob("*.md"))]


def commands_of(page: Path) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.S)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [re.sub(r"^\S*bin/", "", line) for line in lines if re.match(r"(\S*bin/)?orchestrion ", line)]


COMMANDS = [(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in commands_of(page)]


def command_of(words: list[str]) -> tuple[Any, str, list[str]]:
    """Return the command that the words name, within groups too, its name and its arguments."""
    command: Any = typer.main.get_command(app)
    name, rest = "orchestrion", words
    while isinstance(command, typer.core.TyperGroup):  # typer brings a click of its own
        name, *rest = rest
        assert name in command.commands, f"{name} is none of {', '.join(command.commands)}"
        command = command.commands[name]
    return command, name, rest


def test_the_readme_has_one_command_for_each_job_and_a_link_to_its_guide() -> None:
    shown = [line.split()[1] for page, line in COMMANDS if page == "README.md"]
    assert shown == ["rebuild", "train", "generate", "ui"]
    assert [guide for guide in GUIDES if f"(docs/{guide}.md)" not in README] == []


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 900


def test_readme_and_guides_show_every_command() -> None:
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    pages = {"README.md", *(f"docs/{guide}.md" for guide in GUIDES)}
    shown = {line.split()[1] for page, line in COMMANDS if page in pages}
    assert len([line for page, line in COMMANDS if page in pages]) >= 30
    assert known - shown == {"demo"}  # `make demo`


def check_command(line: str) -> None:
    """Raise where the command, one of its options or one of its settings does not exist."""
    words = shlex.split(re.split(r"[|;&>]", line)[0])[1:]
    command, name, rest = command_of(words)
    context = command.make_context(name, rest)  # raises for an option that does not exist
    overrides = list(context.params.get("overrides") or ())
    preset = context.params.get("preset") or "music_transformer_tiny"
    if name != "encode":  # its --set has settings of an encoding
        assert apply_overrides(build_preset(preset), overrides)


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: value if " " in value else None)
def test_each_command_is_one(page: str, line: str) -> None:
    check_command(line)


SETTINGS = sorted(
    {
        (page.name, match)
        for page in PAGES
        for match in re.findall(r"`(?:--set )?((?:dataset|train|evaluate|generate)\.[\w.]+=[^`\s]+)`", page.read_text())
    }
)


@pytest.mark.parametrize(("page", "setting"), SETTINGS)
def test_each_setting_in_the_text_is_one(page: str, setting: str) -> None:
    overrides = [setting.replace('"', "")]
    if setting.startswith("generate.best_by=join"):
        overrides += ["generate.prompt=song.mid", "generate.infill_bars=[1,2]"]
    assert apply_overrides(build_preset("music_transformer_tiny"), overrides)


def test_the_request_file_of_the_guide_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "generate.md").read_text(), flags=re.S)
    (tmp_path / "themes").mkdir()
    (tmp_path / "tonight.toml").write_text(block)
    batches = read_request(tmp_path / "tonight.toml", lambda _: build_preset("music_transformer").generate)
    assert [(batch.name, batch.config.sampling.temperature) for batch in batches] == [
        ("preludes", 0.95),
        ("answers", 0.95),
    ]
    assert batches[0].config.n_pieces == 16


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_each_link_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_settings_file_of_the_guide_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "train.md").read_text(), flags=re.S)
    (tmp_path / "run.toml").write_text(block)
    config = build_config("music_transformer_tiny", [], tmp_path / "run.toml")
    assert (config.train.n_steps, config.train.batch_size, config.train.schedule.warmup_steps) == (5000, 16, 500)


def test_the_tree_names_folders_that_exist_and_every_package() -> None:
    block = README.split("## The tree")[1].split("```")[1]
    lines = block.strip().splitlines()
    assert len(lines) <= 15
    top, package, named = "", "", set()
    for line in lines:
        names = re.findall(r"(?<!\S)[\w/]+/(?=[\s,;]|$)", line)
        assert names, line
        top, package = (names[0], "") if line[0] != " " else (top, names[0])
        for place, name in enumerate(names):
            inside = [top + package + name] if place else []
            found = [path for path in (*inside, top + name, name) if (ROOT / path).is_dir()]
            assert found, f"{line!r} names {name}"
            named.add(found[0])
    packages = {f"tasks/{path.parent.name}/" for path in (ROOT / "tasks").glob("*/__init__.py")}
    packages |= {f"models/{path.parent.name}/" for path in (ROOT / "models").glob("*/__init__.py")}
    packages |= {f"flows/{path.parent.name}/" for path in (ROOT / "flows").glob("*/__init__.py")}
    assert packages - named == set()


def test_the_presets_have_the_sizes_and_encodings_the_readme_gives() -> None:
    sizes = {row["name"]: row["n_parameters"] for row in preset_rows()}
    rows = re.findall(r"\| `(\w+)` \| \w+ \| ([\d,]+) \| ([\d,]+) \| `(\w+)` \|", README)
    table = {name: size for name, size, _, _ in rows} | {f"{name}_tiny": size for name, _, size, _ in rows}
    assert {name: int(size.replace(",", "")) for name, size in table.items()} == {name: sizes[name] for name in PRESETS}
    for name, _, _, encoding in rows:
        assert {build_preset(preset).dataset.encoding.name for preset in (name, f"{name}_tiny")} == {encoding}


def test_the_bits_per_note_of_the_readme_are_those_of_the_results() -> None:
    results = (ROOT / "docs" / "results.md").read_text().split("## pop909")[1].split("## Commands")[0]
    measured = re.findall(
        r"^\| `(\w+)(?: as hourglass_tiny)?` \| `(\w+)` \|(?:[^|]*\|){5} ([\d.]+) \|", results, flags=re.M
    )
    bits = {
        (name, encoding): bits
        for name, encoding, bits in measured
        if (name, encoding) != ("orchestrion_small_tiny", "remi")
    }
    rows = re.findall(r"\| `(\w+)` \| \w+ \| [\d,]+ \| [\d,]+ \| `(\w+)` \| ([\d.]+) \|", README)
    assert len(rows) == len(PRESETS) / 2
    assert {(name, bits[f"{name}_tiny", encoding]) for name, encoding, _ in rows} == {
        (name, said) for name, _, said in rows
    }


def test_the_guide_to_training_lists_the_presets_with_their_steps() -> None:
    page = (ROOT / "docs" / "train.md").read_text()
    steps = {
        name: int(number.replace(",", ""))
        for name, number in re.findall(r"^\| `(\w+_tiny)` \| ([\d,]+) \|", page, re.M)
    }
    assert steps == {name: build_preset(name).train.n_steps for name in PRESETS if name.endswith("_tiny")}
    listed = dict(re.findall(r"^\| `(\w+)` \| (\w+) \| \D", page, re.M))
    systems = {row["name"]: row["system"] for row in preset_rows()}
    assert listed == {name: systems[name] for name in PRESETS if not name.endswith("_tiny")}


def test_the_guide_to_rebuilds_lists_every_encoding() -> None:
    table = (ROOT / "docs" / "rebuild.md").read_text().split("## Encodings")[1].split("## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.M) == list(ENCODINGS)
