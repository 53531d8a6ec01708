"""JSON that somebody else may have written: bounded in bytes, in depth and in digits before anything is made of it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MAX_BYTES = 256 * 2**20
MAX_DEPTH = 64  # the deepest file of this project has 9 levels
MAX_DIGITS = 400  # of a number; a float has at most 309 before its point

Shape = Any  # see `check_shape`


class BadJson(ValueError):
    """Text that is no JSON, goes beyond a limit, or has another shape than asked for; the message is one line."""


def read_json(path: Path, limit_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Any:
    """Return the parsed JSON file at `path`.

    Raises:
        BadJson: it is no JSON, or larger or deeper than the limits.
        OSError: it cannot be read.
    """
    with path.open("rb") as handle:
        data = handle.read(limit_bytes + 1)
    return parse_json(data, limit_bytes, max_depth)


def parse_json(text: bytes | str, limit_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Any:
    """Return the value of JSON text; NaN and Infinity are taken, as Python writes them.

    Raises:
        BadJson: it is no JSON, or longer or deeper than the limits, or has a number of more than 400 digits.
    """
    if len(text) > limit_bytes:
        raise BadJson(f"it has more than {limit_bytes} bytes")
    try:
        decoded = text if isinstance(text, str) else text.decode()
        value = json.loads(decoded, parse_int=_parse_int, parse_float=_parse_float)
    except RecursionError:
        raise BadJson(f"it is nested deeper than {max_depth} levels") from None
    except UnicodeDecodeError as error:
        raise BadJson(f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise BadJson(str(error)) from None
    if _is_deeper(value, max_depth):
        raise BadJson(f"it is nested deeper than {max_depth} levels")
    return value


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise BadJson(f"it has a number of {len(digits)} digits, more than {MAX_DIGITS}")
    return int(digits)


def _parse_float(digits: str) -> float:
    if len(digits) > MAX_DIGITS:
        raise BadJson(f"it has a number of {len(digits)} digits, more than {MAX_DIGITS}")
    return float(digits)


def _is_deeper(value: Any, max_depth: int) -> bool:
    level = [value]
    for _ in range(max_depth):
        level = [
            item
            for parent in level
            if isinstance(parent, dict | list)
            for item in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True


def check_shape(value: Any, shape: Shape, place: str = "") -> None:
    """Check that a JSON value is built as it should be.

    Args:
        shape: a type (`int` takes no bool, `float` takes whole numbers); None; a tuple of shapes, one of which must
            fit; `[shape]` for a list of such; `{str: shape}` for an object with such values; `{"key": shape}` for an
            object that has this key, among others; `{"key?": shape}` where it may lack it.
        place: of the value within its file, for messages.
    Raises:
        BadJson: it is not; the message names the first place that differs.
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
