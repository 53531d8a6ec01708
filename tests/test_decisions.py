"""docs/decisions: one numbered file for each decision, all of them in the index."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "decisions"
FILES = sorted(FOLDER.glob("[0-9]*.md"))
HEADINGS = ["Context", "Decision", "Measured", "Rejected", "Risks of upkeep"]


def test_numbers_are_consecutive_and_the_index_names_every_file() -> None:
    assert [int(path.name[:4]) for path in FILES] == list(range(1, len(FILES) + 1))
    rows = re.findall(
        r"^\| \[(\d{4})\]\((\S+)\) \| (.+) \| \d{4}-\d{2}-\d{2} \|$", (FOLDER / "README.md").read_text(), re.M
    )
    titles = [path.read_text().splitlines()[0].split(": ", 1)[1] for path in FILES]
    assert rows == [(path.name[:4], path.name, title) for path, title in zip(FILES, titles, strict=True)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_decision_has_its_headings_in_order_and_none_empty(path: Path) -> None:
    text = path.read_text()
    assert text.startswith(f"# {path.name[:4]}: ")
    headings = re.findall(r"^## (.+)$", text, re.M)
    assert headings
    assert headings == [heading for heading in HEADINGS if heading in headings]
    assert all(part.strip() for part in re.split(r"^## .+$", text, flags=re.M)[1:])
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (FOLDER / target).exists(), target
