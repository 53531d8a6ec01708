"""A file as tokens and back, for people who want to look."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import BadScore, ConfigError, NotFound
from tasks.home import write_atomically
from tasks.music.notes import NoteBatch
from tasks.music.score import read_midi, write_midi
from tasks.music.tokenizers.oore import OoreConfig
from tasks.music.tokenizers.registry import build_tokenizer

ENCODINGS = {"oore": OoreConfig}


@dataclass(frozen=True, slots=True)
class FileTokens:
    """One file's ids and their readable names."""

    ids: list[int]
    names: list[str]


def named_tokenizer(encoding: str) -> Any:
    """Return the tokenizer of a name with its default settings.

    Raises:
        ConfigError: no encoding has that name.
    """
    if encoding not in ENCODINGS:
        raise ConfigError(f"unknown encoding {encoding!r}; known: {', '.join(ENCODINGS)}")
    return build_tokenizer(ENCODINGS[encoding]())


def encode_file(path: Path, encoding: str) -> FileTokens:
    """Return the tokens of one MIDI file.

    Raises:
        NotFound, BadScore: there is no such file, or it is not usable MIDI.
    """
    tokenizer = named_tokenizer(encoding)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise NotFound(f"cannot read {path}: {error.strerror}") from None
    try:
        score = read_midi(data, str(path))
    except BadScore as error:
        raise BadScore(error.reason, f"{path}: {error.detail}") from None
    ids = tokenizer.encode(NoteBatch.from_scores([score])).ids.tolist()
    return FileTokens(ids, [tokenizer.token_name(i) for i in ids])


def decode_file(path: Path, encoding: str, out: Path) -> int:
    """Write the ids of a JSON file (a list, or an object with `ids`) as MIDI; return the number of notes.

    Raises:
        NotFound, ConfigError: there is no such file, or it does not hold ids of the encoding.
    """
    tokenizer = named_tokenizer(encoding)
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise NotFound(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    ids = value.get("ids") if isinstance(value, dict) else value
    if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
        raise ConfigError(f"{path}: expected a list of ids, or an object with `ids`")
    outside = [i for i in ids if not 0 <= i < tokenizer.vocab_size]
    if outside:
        raise ConfigError(f"{path}: id {outside[0]} outside 0-{tokenizer.vocab_size - 1} of {encoding}")
    score = tokenizer.decode(np.array(ids, np.uint16))
    write_atomically(out, write_midi(score, out.stem))
    return len(score.notes.pitch)
