"""Pages from Jinja2 templates with autoescape, and foreign text without control characters.

A template is a file of the package that fills it (`page.html`); every value is escaped unless it is Markup. What is
inlined in a page (style, script, JSON) comes from `inlined` and `json_data`, which cannot leave their element.
"""

import base64
import hashlib
import json
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tasks.errors import plural
from tasks.reporting.axes import BOTTOM, HEAD, LEFT, RIGHT, WIDTH
from tasks.reporting.markup import (
    MAX_EXAMPLES,
    MAX_LISTED,
    MAX_MEMBERS,
    UNPRINTABLE,
    label_of,
    say,
    say_number,
    shorten,
)

HERE = "tasks.reporting"


@cache
def templates_of(package: str) -> Environment:
    """Return the environment for the templates in the folder of a package; it knows those of this folder too."""
    found = Environment(
        loader=ChoiceLoader([PackageLoader(package, ""), PackageLoader(HERE, "")]),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"short": _short, "label": label_of, "say": say, "number": say_number, "count": "{:,}".format}
    found.filters |= {"place": "{:.1f}".format, "fine": "{:.2f}".format}  # digits of a place in a chart
    found.globals |= {"MAX_EXAMPLES": MAX_EXAMPLES, "MAX_LISTED": MAX_LISTED, "MAX_MEMBERS": MAX_MEMBERS}
    found.globals |= {"plural": plural, "WIDTH": WIDTH, "LEFT": LEFT, "RIGHT": RIGHT, "HEAD": HEAD, "BOTTOM": BOTTOM}
    return found


def path_html(path: str) -> Markup:
    """Return a path as HTML; its letters may run from right to left without turning what stands around them."""
    return templates_of(HERE).get_template("macros.html").module.path(path)  # type: ignore[attr-defined]


def chart_macros() -> Any:
    """Return the macros of charts.html."""
    return templates_of(HERE).get_template("charts.html").module


def inlined(package: str, *names: str) -> Markup:
    """Return files of a package, in sequence, for a style or script element."""
    folder = resources.files(package)
    return Markup("\n".join((folder / name).read_text(encoding="utf-8") for name in names))


def digest_source(text: str) -> str:
    """Return the source that allows an inlined text in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def json_data(data: Any) -> Markup:
    """Return JSON that cannot leave the script element it stands in."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("&", "\\u0026"))


def data_address(mime: str, data: bytes) -> Markup:
    """Return a data: address that holds a file."""
    return Markup(f"data:{mime};base64,{base64.b64encode(data).decode()}")


def _short(value: Any) -> Any:
    return value if isinstance(value, Markup) else shorten(str(value))


def _printable(value: Any) -> Any:
    """Jinja calls this on each value before it is escaped."""
    return UNPRINTABLE.sub("\ufffd", value) if isinstance(value, str) and not isinstance(value, Markup) else value
