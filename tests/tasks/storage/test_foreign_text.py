"""JSON and TOML of others: what fits is read, what does not is refused in one line and at once."""

import json
import math
import tomllib

import pytest

from tasks.storage.foreign_text import MAX_DEPTH, MAX_KEY_PARTS, OutOfBounds, parse_json, parse_toml


def test_what_fits_is_read_as_the_standard_library_reads_it() -> None:
    edge = 2**63
    text = json.dumps({"a": [1, -edge, 2 * edge - 1, 1.5, None, True, {"b": "é"}], "deep": _nested(MAX_DEPTH - 2)})
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)
    key = ".".join("k" * MAX_KEY_PARTS)
    text = f"{key} = 1\n[t.u]\nv = [1, {{ w.x = 2.5 }}]\n'quoted.key' = '{'a.' * 99}'\n"
    assert parse_toml(text) == tomllib.loads(text)
    assert math.isnan(parse_json("[NaN]")[0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested"), ("[" * 200 + "]" * 200, "nested"), ('{"a":' * 5000 + "1" + "}" * 5000, "nested"),
        ("9" * 5000, "5000 digits"), ('{"a": -' + "9" * 21 + "}", "beyond 64 bits"), (str(2**64), "beyond 64 bits"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' is there twice"),
    ],
)  # fmt: skip
def test_json_beyond_the_bounds_is_refused(text: str, said: str) -> None:
    with pytest.raises(OutOfBounds, match=said) as refused:
        parse_json(text)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("text", ["{", "[1,]", '"\x01"', "nan", "", b"\xff", b'"\xe9"'])
def test_what_is_no_json_is_a_plain_value_error(text: str | bytes) -> None:
    with pytest.raises((json.JSONDecodeError, UnicodeDecodeError)):
        parse_json(text)


@pytest.mark.parametrize(
    "text",
    [
        ".".join("k" * 100_000) + " = 1", "[" + ".".join(["'k'"] * 100_000) + "]",
        "a = {" + ". ".join("k" * 100_000) + " = 1}",
        "a = " + "[" * 100_000, "a = " + "[" * 150 + "]" * 150, "a = " + "9" * 5000, f"a = {2**64}",
        "a = " + "{b = " * 150 + "1" + "}" * 150,
    ],
)  # fmt: skip
def test_toml_beyond_the_bounds_is_refused(text: str) -> None:
    with pytest.raises(OutOfBounds) as refused:
        parse_toml(text)
    assert len(str(refused.value)) < 200


def _nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value
