"""File names of MIDI, and the form of names in messages and tables."""

import os
import re

import pyarrow as pa

MIDI_SUFFIXES = (".mid", ".midi", ".kar", ".rmi", ".smf")
_MIDI = tuple(suffix.encode() for suffix in MIDI_SUFFIXES)


def is_midi(name: bytes) -> bool:
    """Return whether a name has a suffix of MIDI files, in any case."""
    return name[-5:].lower().endswith(_MIDI)


def printable(name: str | bytes) -> str:
    """Return a file name as valid UTF-8; bytes that are not UTF-8 become \\xNN."""
    return os.fsencode(name).decode("utf-8", errors="backslashreplace")


def one_line(text: str) -> str:
    """Return a sentence with its control characters as \\xNN."""
    return re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\x{ord(match[0]):02x}", text)


def printable_column(names: pa.Array) -> pa.Array:
    """Return a column of names in bytes as strings; nothing is copied where all of it is UTF-8."""
    try:
        return names.cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array((printable(name.as_py()) for name in names), pa.string())
