"""Pages made from the code: docs/settings.md, and the table of reject reasons in docs/data-format.md.

python -m tests.made_pages     (writes them; `make docs` does so)
"""

import re
from pathlib import Path

from tasks.config.describe import markdown_page
from tasks.errors import RejectReason

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, SETTINGS = DOCS / "data-format.md", DOCS / "settings.md"
_TABLE = re.compile(r"(?<=<!-- reasons -->\n).*(?=<!-- end of reasons -->\n)", re.S)


def with_reasons(page: str) -> str:
    """Return the page with a new table between its two marks."""
    rows = [f"| `{reason}` | {reason.given_by} | {reason.meaning} |" for reason in RejectReason]
    return _TABLE.sub("\n".join(["| reason | given by | meaning |", "|---|---|---|", *rows, ""]), page)


if __name__ == "__main__":
    PAGE.write_text(with_reasons(PAGE.read_text()))
    SETTINGS.write_text(markdown_page())
