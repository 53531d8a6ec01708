"""What the README says is true: its commands parse, its settings and files exist, its figures are those of the code."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from flows.cli.main import app
from tasks.config.overrides import apply_overrides
from tasks.config.presets import PRESETS, build_preset

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "infra").glob("*.md"))]


def commands_of(page: Path) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.S)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [re.sub(r"^\S*bin/", "", line) for line in lines if re.match(r"(\S*bin/)?orchestrion ", line)]


COMMANDS = [(page.name, line) for page in PAGES for line in commands_of(page)]


def test_the_readme_shows_commands() -> None:
    assert sum(name == "README.md" for name, _ in COMMANDS) >= 8


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: value if " " in value else None)
def test_each_command_is_one(page: str, line: str) -> None:
    words = shlex.split(re.split(r"[|;&>]", line)[0])[1:]
    group = typer.main.get_command(app)
    command = group.commands[words[0]]  # type: ignore[attr-defined]
    context = command.make_context(words[0], list(words[1:]))  # raises for an option that does not exist
    overrides = list(context.params.get("overrides") or ())
    preset = context.params.get("preset") or "music_transformer_tiny"
    assert apply_overrides(build_preset(preset), overrides)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_link_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_tree_names_files_that_exist() -> None:
    block = (ROOT / "README.md").read_text().split("## The tree")[1].split("```")[1]
    folder = ""
    for line in block.strip().splitlines():
        for name in re.findall(r"(?<!\S)[\w/]+(?:\.py|/)", line.split("  ", 1)[0] if line[0] != " " else line[:24]):
            if line[0] != " ":
                folder = name
                assert (ROOT / name).is_dir(), name
            else:
                assert any((ROOT / base / name).exists() for base in (folder, "tasks/music")), f"{folder}{name}"


def test_the_presets_have_the_sizes_the_readme_gives() -> None:
    from tasks.config.model_sizes import preset_rows

    sizes = {row["name"]: row["n_parameters"] for row in preset_rows()}
    table = dict(re.findall(r"\| `(\w+)` \| \w+ \| ([\d,]+) \|", (ROOT / "README.md").read_text()))
    assert {name: int(size.replace(",", "")) for name, size in table.items()} == {name: sizes[name] for name in PRESETS}
