"""Tables, lists and text as HTML; names from files are escaped and shortened here."""

import math
import re
from collections.abc import Sequence
from typing import Any

MAX_EXAMPLES = 5  # files named for each reason
MAX_LISTED = 10  # rows of a list of the largest, slowest or worst
MAX_MEMBERS = 8  # paths named of one group of duplicates
MAX_LETTERS = 300  # of one path or detail


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
