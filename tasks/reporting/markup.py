"""Tables, lists and text as HTML: every name that comes from a file is escaped and cut here."""

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MAX_EXAMPLES = 5  # files named for each reason
MAX_LISTED = 10  # rows of a list of the largest, slowest or worst
MAX_MEMBERS = 8  # paths named of one group of duplicates
MAX_LETTERS = 300  # of one path or detail


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    kinds: Sequence[str] = (),
    *,
    label: str,
    caption: str = "",
    foot: Sequence[str] = (),
    is_long: bool = False,
) -> str:
    """Return a table that scrolls inside its place; cells are HTML already, heads and label are text.

    Args:
        kinds: class of each column: `number`, `path` or none.
        is_long: it scrolls down, too, and is low.
    """

    def row(cells: Sequence[str]) -> str:
        tds = [f'<td class="{kind}">{cell}</td>' for cell, kind in zip(cells, kinds, strict=True)]
        return f'<tr><th scope="row" class="{kinds[0]}">{cells[0]}</th>{"".join(tds[1:])}</tr>'

    kinds = kinds or [""] * len(heads)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    head = "".join(f'<th scope="col" class="{k}">{escape(h)}</th>' for h, k in zip(heads, kinds, strict=True))
    tail = f"<tfoot>{row(foot)}</tfoot>" if foot else ""
    place = "scroll long" if is_long else "scroll"
    return (
        f'<div class="{place}" role="region" tabindex="0" aria-label="{escape(label)}"><table>{title}'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(map(row, rows))}</tbody>{tail}</table></div>"
    )


def figure_list(values: Mapping[str, str]) -> str:
    """Return names and values as large figures."""
    entries = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in values.items())
    return f'<dl class="figures">{entries}</dl>'


def bullet_list(entries: Iterable[str], kind: str) -> str:
    """Return entries, which are HTML already, as a list of a class."""
    return f'<ul class="{kind}">{"".join(f"<li>{entry}</li>" for entry in entries)}</ul>'


def path_html(path: str) -> str:
    """Return a path as HTML; its letters may run from right to left without turning what stands around them."""
    return f"<bdi>{escape(path)}</bdi>"


def escape(value: Any) -> str:
    """Return a value as text for HTML: cut, escaped, without control characters."""
    return html.escape(UNPRINTABLE.sub("\ufffd", shorten(str(value))), quote=True)


def shorten(text: str) -> str:
    """Cut the middle out of a text that is too long."""
    half = MAX_LETTERS // 2
    return text if len(text) <= MAX_LETTERS else f"{text[:half]} … {text[-half:]}"


def label_of(name: str) -> str:
    """Return a snake_case name as words."""
    return str(name).removeprefix("n_").replace("_", " ")


def cell_kind(values: Sequence[Any]) -> str:
    """Return the class of a column that holds these values."""
    is_number = all(isinstance(value, int | float) for value in values if value is not None)
    return "number" if is_number else "path" if any(len(str(value)) > 24 for value in values) else ""


def say(value: Any) -> str:
    """Return any scalar as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return say_number(value)
    return "n/a" if value is None else str(value)


def say_number(value: float) -> str:
    """Return a number with separators, and with three digits where it is no whole one."""
    if not math.isfinite(value):
        return "n/a"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"


def compact(value: float) -> str:
    """Return a round number in few letters: 20k, 1.5M."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (1000, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


# Control characters, halves of surrogate pairs and marks that turn the direction of the text around them.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
