"""Pages made from the code: settings.md, systems.md, and the table of reject reasons in data-format.md, all in docs/.

python -m tests.made_pages     (writes them; `make docs` does so)
"""

import re
import tomllib
from pathlib import Path
from typing import Any

from tasks.config.describe import markdown_page
from tasks.errors import RejectReason

TESTS = Path(__file__).resolve().parent
DOCS = TESTS.parent / "docs"
PAGE, SETTINGS, SYSTEMS_PAGE = DOCS / "data-format.md", DOCS / "settings.md", DOCS / "systems.md"
_TABLE = re.compile(r"(?<=<!-- reasons -->\n).*(?=<!-- end of reasons -->\n)", re.S)

SYSTEMS = {
    "S000": "GPT with relative global attention on notes as integers",
    "S001": "GPT on readable characters, and its composer",
    "S002": "Transformer with a variational bottleneck",
    "S003": "Hourglass on REMI",
    "S004": "Music Transformer on events",
}
VERDICTS = ("holds", "partly", "missing")
_INTRODUCTION = """# The five systems

Orchestrion implements five published systems of symbolic music. Each has a checklist of what it promises, and this page
names what shows each point: tests, a command, or both. *Partly* and *missing* say what lacks. The errors of the
originals are not reproduced and their weights are not read, both by decision. `make docs` makes this page of
`tests/systems.toml`; a test checks that every named test and command exists. [train.md](train.md) lists the presets of
each system, and [results.md](results.md) has what they reach.
"""


def with_reasons(page: str) -> str:
    """Return the page with a new table between its two marks."""
    rows = [f"| `{reason}` | {reason.given_by} | {reason.meaning} |" for reason in RejectReason]
    return _TABLE.sub("\n".join(["| reason | given by | meaning |", "|---|---|---|", *rows, ""]), page)


def read_points() -> list[dict[str, Any]]:
    """Return the points of the five systems, in the order of the page."""
    return tomllib.loads((TESTS / "systems.toml").read_text(encoding="utf-8"))["point"]


def verdict(point: dict[str, Any]) -> str:
    return point["result"].partition(":")[0]


def systems_page(points: list[dict[str, Any]]) -> str:
    """Return docs/systems.md."""
    lines = [_INTRODUCTION, f"| system | points | {' | '.join(VERDICTS)} |", "|---|---:|---:|---:|---:|"]
    for system, title in SYSTEMS.items():
        verdicts = [verdict(point) for point in points if point["system"] == system]
        counts = " | ".join(str(verdicts.count(name)) for name in VERDICTS)
        lines.append(f"| {system}: {title} | {len(verdicts)} | {counts} |")
    for system, title in SYSTEMS.items():
        lines += ["", f"## {system}: {title}", "", "| | point | shown by | result |", "|---:|---|---|---|"]
        lines += [_row(point) for point in points if point["system"] == system]
    return "\n".join([*lines, ""])


def _row(point: dict[str, Any]) -> str:
    shown = [f"`{point['command']}`"] if "command" in point else []
    for test in point["tests"]:
        path, _, name = test.partition("::")
        shown.append(f"[`{name.partition('[')[0].removeprefix('test_')}`](../{path})")
    return f"| {point['number']} | {point['point']} | {'<br>'.join(shown)} | {point['result']} |"


if __name__ == "__main__":
    PAGE.write_text(with_reasons(PAGE.read_text()))
    SETTINGS.write_text(markdown_page())
    SYSTEMS_PAGE.write_text(systems_page(read_points()))
