"""Pages from templates: Jinja2 with autoescape, and text of others without control characters.

A template is a file of the package that fills it (`page.html`); every value is escaped unless it is Markup. What is
inlined in a page (style, script, JSON) comes from `inlined` and `json_data`, which cannot leave their element.
"""

import base64
import hashlib
import json
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tasks.reporting.markup import UNPRINTABLE


@cache
def templates_of(package: str) -> Environment:
    """Return the environment for the templates in the folder of a package, such as `tasks.reporting`."""
    return Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def inlined(package: str, *names: str) -> Markup:
    """Return files of a package, one after the other, for a style or script element."""
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


def _printable(value: Any) -> Any:
    """Jinja calls this on each value before it is escaped."""
    return UNPRINTABLE.sub("\ufffd", value) if isinstance(value, str) and not isinstance(value, Markup) else value
