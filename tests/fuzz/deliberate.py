"""Readers with every fault the harness must see, for `test_harness.py`. An input names the fault."""

import os
import select
from collections.abc import Sequence
from random import Random

from tasks.errors import BadScore
from tests.fuzz.harness import Target

KINDS = b"crash", b"hang", b"exit", b"eat", b"raise", b"lines", b"refuse", b"read"


def check(data: bytes) -> str | None:
    """Do what the input says."""
    if data == b"crash":
        os.abort()
    if data == b"hang":
        while True:
            pass
    if data == b"exit":
        os._exit(3)
    if data == b"wait":
        select.select([os.pipe()[0]], [], [])
    if data == b"eat":
        bytearray(2**33)
    if data == b"raise":
        raise KeyError("counts")
    if data == b"lines":
        raise BadScore("two_lines", "one\ntwo")
    if data == b"refuse":
        raise BadScore("not_midi", "no")
    return None


def one_kind_each(data: bytes, dice: Random, others: Sequence[bytes]) -> bytes:
    return dice.choice(KINDS)


def seeds() -> list[bytes]:
    return [b"fine"]


TARGETS = (
    Target(name="every_fault", seeds=seeds, check=check, mutators=(one_kind_each,), seconds=1, memory_bytes=2**30),
    Target(name="waits", seeds=seeds, check=check, mutators=(lambda data, dice, others: b"wait",), memory_bytes=2**30),
)
