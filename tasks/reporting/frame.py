"""The frame of a report: one file without scripts that fetches nothing, and a policy that says so."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib import resources

from tasks.reporting.markup import bullet_list, escape, figure_list


def assemble_page(
    kind: str,
    name: str,
    subtitle: str,
    figures: Mapping[str, str],
    warnings: Sequence[str],
    sections: Sequence[tuple[str, str, str]],
) -> str:
    """Return a whole page as HTML text.

    Args:
        kind: what it is a page of, such as `Dataset report`.
        subtitle: HTML.
        warnings: lines of text in a box of their own.
        sections: id, title and HTML of each.
    """
    page = resources.files("tasks.reporting")
    style = (page / "page.css").read_text(encoding="utf-8")
    digest = f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'"
    sources = "default-src 'none'; img-src data:; media-src data:; base-uri 'none'; form-action 'none'"
    parts = {
        "policy": f"{sources}; style-src {digest}",
        "title": f"{escape(name)}: {kind.lower()}",
        "kind": escape(kind),
        "name": escape(name),
        "subtitle": subtitle,
        "figures": figure_list(figures),
        "warnings": bullet_list(map(escape, warnings), "note") if warnings else "",
        "links": "".join(f'<li><a href="#{label}">{title}</a></li>' for label, title, _ in sections),
        "sections": "\n".join(
            f'<section id="{label}" aria-labelledby="{label}-title"><h2 id="{label}-title">{title}</h2>{body}</section>'
            for label, title, body in sections
        ),
        "style": style,
    }
    frame = (page / "page.html").read_text(encoding="utf-8")
    # One pass, so that nothing inside a value is taken for a marker.
    return re.sub("@@([a-z]+)@@", lambda marker: parts[marker[1]], frame)
