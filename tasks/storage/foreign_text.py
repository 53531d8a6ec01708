"""Parsing of foreign JSON and TOML within bounds of depth, numbers and keys."""

import json
import re
import tomllib
from collections.abc import Iterable
from typing import Any

MAX_DEPTH = 100  # of lists and tables within each other
MAX_KEY_PARTS = 32  # of a dotted key
INTEGERS = range(-(2**63), 2**64)  # seeds are without a sign
_PART = r"""(?:[\w-]+|"[^"\n]*"|'[^'\n]*')"""
_LONG_KEY = re.compile(rf"(?m)(?:^|[\[{{,])[ \t]*{_PART}(?:[ \t]*\.[ \t]*{_PART}){{{MAX_KEY_PARTS}}}")


class OutOfBounds(ValueError):
    """JSON or TOML beyond the bounds."""


def parse_json(text: str | bytes) -> Any:
    """Parse JSON text; NaN and Infinity become numbers.

    Raises:
        OutOfBounds: nested deeper than `MAX_DEPTH`, a whole number beyond 64 bits, or a key twice in one object.
        ValueError: it is not JSON, or not UTF-8.
    """
    try:
        value = json.loads(text, parse_int=_integer, object_pairs_hook=_object)
    except RecursionError:
        raise _too_deep() from None
    _check(value)
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML text.

    Raises:
        OutOfBounds: nested deeper than `MAX_DEPTH`, a key of more than `MAX_KEY_PARTS` parts, or a whole number beyond
            64 bits.
        ValueError: it is not TOML.
    """
    if _LONG_KEY.search(text):  # the parser's time grows with the square of the parts
        raise OutOfBounds(f"a key has more than {MAX_KEY_PARTS} parts")
    try:
        value = tomllib.loads(text)
    except RecursionError:
        raise _too_deep() from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:  # only `int` raises it
        raise OutOfBounds("a whole number is beyond 64 bits") from None
    _check(value)
    return value


def _check(value: Any) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _within(outer)]
        if not level:
            return
    raise _too_deep()


def _within(value: Any) -> Iterable[Any]:
    """Return the lists and tables directly within one."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found = []
    for item in inner:
        if isinstance(item, (dict, list)):
            found.append(item)
        elif type(item) is int and item not in INTEGERS:
            raise OutOfBounds(f"the whole number {item} is beyond 64 bits")
    return found


def _too_deep() -> OutOfBounds:
    return OutOfBounds(f"lists and tables are nested more than {MAX_DEPTH} deep")


def _integer(digits: str) -> int:
    if len(digits) > 20 or int(digits) not in INTEGERS:
        shown = digits if len(digits) <= 40 else f"{digits[:20]}... of {len(digits)} digits"
        raise OutOfBounds(f"the whole number {shown} is beyond 64 bits")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise OutOfBounds(f"key {twice[:40]!r} is there twice")
    return values
