"""JSON files of a home, parsed within the bounds of `foreign_text` and validated against a shape."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.storage import foreign_text

MAX_BYTES = 256 * 2**20

Shape = Any  # see `check_shape`


class BadJson(ValueError):
    """Text that is not JSON, exceeds a limit or has another shape; the message is one line."""


def read_json(path: Path, limit_bytes: int = MAX_BYTES) -> Any:
    """Return the parsed JSON file at `path`, or raise BadJson."""
    with path.open("rb") as handle:
        data = handle.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise BadJson(f"it has more than {limit_bytes} bytes")
    return parse_json(data)


def parse_json(text: bytes | str) -> Any:
    """Return the value of JSON text in UTF-8, NaN and Infinity included, or raise BadJson."""
    try:
        return foreign_text.parse_json(text if isinstance(text, str) else text.decode())
    except UnicodeDecodeError as error:
        raise BadJson(f"byte {error.start} is not UTF-8") from None
    except (foreign_text.OutOfBounds, json.JSONDecodeError) as error:
        raise BadJson(str(error)) from None


def check_shape(value: Any, shape: Shape, place: str = "") -> None:
    """Raise BadJson with the first place where a JSON value has another shape.

    Args:
        shape: a type (`int` takes no bool, `float` takes whole numbers); None; a tuple of alternative shapes;
            `[shape]` for a list; `{str: shape}` for an object with such values; `{"key": shape}` for an object that
            has this key, among others; `{"key?": shape}` where it may lack it.
        place: of the value within its file, for messages.
    """
    if isinstance(shape, tuple):
        _check_any(value, shape, place)
    elif isinstance(shape, list):
        _require(isinstance(value, list), "a list", value, place)
        for number, item in enumerate(value):
            check_shape(item, shape[0], f"{place}[{number}]")
    elif isinstance(shape, Mapping):
        _require(isinstance(value, dict), "an object", value, place)
        _check_keys(value, shape, place)
    elif shape is None:
        _require(value is None, "null", value, place)
    elif shape is float:
        _require(isinstance(value, int | float) and not isinstance(value, bool), "a number", value, place)
    elif shape is int:
        _require(isinstance(value, int) and not isinstance(value, bool), "a whole number", value, place)
    else:
        _require(isinstance(value, shape), _NAMES.get(shape) or str(shape), value, place)


def _check_keys(value: dict[str, Any], shape: Mapping[Any, Shape], place: str) -> None:
    for key, wanted in shape.items():
        if key is str:
            for name, item in value.items():
                check_shape(item, wanted, _below(place, name))
            continue
        name = key.removesuffix("?")
        if name in value:
            check_shape(value[name], wanted, _below(place, name))
        elif name == key:
            raise BadJson(f"it has no {_below(place, name)!r}")


def _below(place: str, name: str) -> str:
    shown = name if name.isprintable() else ascii(name)
    return f"{place}.{shown[:60]}" if place else shown[:60]


def _check_any(value: Any, shapes: Sequence[Shape], place: str) -> None:
    problem: BadJson | None = None
    for shape in shapes:
        try:
            return check_shape(value, shape, place)
        except BadJson as error:
            problem = problem or error
    raise problem or BadJson(f"{place} has no shape that fits")


_NAMES = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}


def _require(condition: bool, wanted: str, value: Any, place: str) -> None:
    if not condition:
        shown = repr(value) if isinstance(value, int | float | str | None) else type(value).__name__
        raise BadJson(f"{place or 'it'} is {shown[:60]}, not {wanted}")
