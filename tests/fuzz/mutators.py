"""Seeded mutators: a well-formed input and a random generator -> an input that a stranger could send.

A mutator is a function `(data, dice, others) -> bytes`; `others` are the well-formed inputs of the target, for splices.
`BINARY` holds those for files of bytes, `TEXT` those for text, `JSON` those for JSON, which change values in place.
"""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

Mutator = Callable[[bytes, random.Random, Sequence[bytes]], bytes]

MAX_BYTES = 1 << 20  # a mutant is cut here: repetition must not make one input cost a minute
DIGITS_MANY = 5_000  # more digits than int() converts (sys.get_int_max_str_digits is 4300)
DEPTH = 20_000  # deeper than a recursive parser can follow

# What a field of a length or a count is replaced with.
HOSTILE_INTEGERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 2**63 - 1)
HOSTILE_LITERALS = (
    "-1", "0", "1", "-0", "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e-999", "0.1", "1e5", "2147483648",
    "9223372036854775808", "18446744073709551616", "1" * DIGITS_MANY, "-" + "9" * DIGITS_MANY, "0." + "3" * DIGITS_MANY,
    "null", "true", "false", '""', '"\\u0000"', '"\\ud800"', '"\u00b2"', '"../../etc/passwd"', '"/etc"', "[]", "{}",
    "[[]]", '{"": ""}', "[null]", '"' + "x" * 100_000 + '"',
)  # fmt: skip
HOSTILE_TEXTS = (
    "",
    "-1",
    "1" * DIGITS_MANY,
    "\u00b2",
    "\u0661",
    "0x10",
    "1_000",
    "1e3",
    " 1",
    "\0",
    "\r\n",
    "nan",
    "../..",
    "%s",
)


def flip_bit(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    if not data:
        return data
    place = dice.randrange(8 * len(data))
    return _with(data, place >> 3, bytes([data[place >> 3] ^ 1 << (place & 7)]))


def set_byte(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    if not data:
        return data
    value = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
    return _with(data, dice.randrange(len(data)), bytes([value]))


def set_length_field(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    """Put a hostile number of 1, 2, 4 or 8 bytes, in either order, or the size of the file and its neighbours."""
    width = dice.choice((1, 2, 4, 8))
    if len(data) < width:
        return data
    near = [len(data) + shift for shift in (-1, 0, 1)]
    value = dice.choice((*HOSTILE_INTEGERS, *near, dice.randrange(1 << 16))) % (1 << 8 * width)
    return _with(data, dice.randrange(len(data) - width + 1), value.to_bytes(width, dice.choice(("big", "little"))))


def truncate(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    return data[: dice.randrange(len(data) + 1)]


def cut_head(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    return data[dice.randrange(len(data) + 1) :]


def delete_span(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    begin, end = _span(data, dice)
    return data[:begin] + data[end:]


def double_span(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    begin, end = _span(data, dice)
    times = dice.choice((1, 1, 1, 2, 16, 256))
    return data[:begin] + data[begin:end] * times + data[begin:]


def fill_span(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    begin, end = _span(data, dice)
    return data[:begin] + bytes([dice.choice((0, 0x20, 0x7F, 0x80, 0xFF))]) * (end - begin) + data[end:]


def swap_spans(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    cuts = sorted(dice.randrange(len(data) + 1) for _ in range(4))
    a, b, c, d = cuts
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def insert_noise(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    place = dice.randrange(len(data) + 1)
    return data[:place] + dice.randbytes(dice.choice((1, 2, 3, 4, 16, 300))) + data[place:]


def splice(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    """Put the head of this input before the tail of another one."""
    other = dice.choice(others)
    return data[: dice.randrange(len(data) + 1)] + other[dice.randrange(len(other) + 1) :]


def join(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    return data + dice.choice(others)


def noise_only(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    return dice.randbytes(dice.choice((0, 1, 3, 14, 100, 4096)))


def put_number(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    """Replace a run of decimal digits by a hostile text, 5,000 digits among them."""
    begin = dice.randrange(len(data) + 1)
    while begin < len(data) and not 0x30 <= data[begin] <= 0x39:
        begin += 1
    end = begin
    while end < len(data) and 0x30 <= data[end] <= 0x39:
        end += 1
    return data[:begin] + dice.choice(HOSTILE_TEXTS).encode() + data[end:]


def nest_deeply(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    opening, closing = dice.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"(", b")"), (b"<a>", b"</a>")))
    depth = dice.choice((100, 1_000, DEPTH))
    return opening * depth + data + closing * dice.choice((0, depth))


def break_utf8(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    place = dice.randrange(len(data) + 1)
    return data[:place] + dice.choice((b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xef\xbb\xbf", b"\xe2")) + data[place:]


def swap_json_value(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    """Replace one value at any depth by a hostile literal; what is no JSON any more stays as it is."""
    return _edit_json(data, dice, lambda _, literal: literal, dice.choice(HOSTILE_LITERALS))


def nest_json_value(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    depth = dice.choice((100, DEPTH))
    return _edit_json(data, dice, lambda _, literal: literal, "[" * depth + "]" * depth)


def delete_json_key(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    return _edit_json(data, dice, None, "")


def rename_json_key(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    return _edit_json(data, dice, "rename", dice.choice(("", "x", "__class__", "a.b", ".".join("a" * 100_000))))


BINARY: tuple[Mutator, ...] = (
    flip_bit, flip_bit, set_byte, set_byte, set_length_field, set_length_field, truncate, cut_head, delete_span,
    double_span, fill_span, swap_spans, insert_noise, splice, join, noise_only,
)  # fmt: skip
TEXT: tuple[Mutator, ...] = (
    flip_bit, set_byte, truncate, delete_span, double_span, swap_spans, insert_noise, splice, join, noise_only,
    put_number, put_number, nest_deeply, break_utf8,
)  # fmt: skip
JSON: tuple[Mutator, ...] = (
    *TEXT, swap_json_value, swap_json_value, swap_json_value, swap_json_value, nest_json_value, delete_json_key,
    delete_json_key, rename_json_key,
)  # fmt: skip


def mutate(seeds: Sequence[bytes], mutators: Sequence[Mutator], dice: random.Random) -> bytes:
    """Return one of the seeds after one to four mutators, rarely none."""
    data = dice.choice(seeds)
    for _ in range(dice.choice((0, 1, 1, 1, 1, 2, 2, 3, 4))):
        data = dice.choice(mutators)(data, dice, seeds)[:MAX_BYTES]
    return data


def _with(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


def _span(data: bytes, dice: random.Random) -> tuple[int, int]:
    begin = dice.randrange(len(data) + 1)
    return begin, min(begin + dice.choice((1, 2, 3, 4, 8, 30, 200, len(data))), len(data))


def _edit_json(data: bytes, dice: random.Random, edit: Any, literal: str) -> bytes:
    """Change one place of a JSON text; `literal` need not be JSON, so it is put in as text."""
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError):
        return data
    places = list[tuple[Any, Any]]()
    waiting = [whole]
    while waiting:
        node = waiting.pop()
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            waiting.append(node[key])
    if not places:
        return literal.encode("utf-8", "surrogatepass")
    node, key = dice.choice(places)
    mark = "\ue000MARK\ue000"
    if edit is None:
        del node[key]
    elif edit == "rename":
        if isinstance(node, dict):
            node[literal] = node.pop(key)
    else:
        node[key] = mark
    try:
        text = json.dumps(whole, ensure_ascii=False)
    except (ValueError, RecursionError):  # an integer of 5,000 digits from the mutator before, or its nesting
        return data
    return text.replace(f'"{mark}"', literal).encode("utf-8", "surrogatepass")
