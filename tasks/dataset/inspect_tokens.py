"""Tokens of a MIDI file, and the MIDI file of tokens, for inspection."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.config.overrides import apply_overrides
from tasks.errors import BadScore, ConfigError
from tasks.music.midi.read_midi import read_midi
from tasks.music.midi.writer import write_midi
from tasks.music.tokenizers.base import Tokenizer
from tasks.music.tokenizers.optimus.characters import song_name
from tasks.music.tokenizers.optimus.text_tokenizer import OptimusTxtTokenizer
from tasks.music.tokenizers.registry import (
    TokenizerConfig,
    build_tokenizer,
    default_config,
    needs_vocabulary,
    symbols_in,
    tokenizer_from_json,
    writes_names,
)
from tasks.storage.file_names import printable
from tasks.storage.foreign_text import OutOfBounds, parse_json
from tasks.storage.user_paths import check_output, read_input, write_output


@dataclass(frozen=True, slots=True)
class FileTokens:
    """The tokens of one file, the counts of notes that the encoding drops, and the tokenizer as JSON."""

    ids: list[int]
    names: list[str]
    dropped: dict[str, int]
    encoder: dict[str, Any]

    def rendering(self, line_starts: tuple[str, ...] = ("Bar", "BAR_START", "TRACK_START")) -> str:
        """Return the names in lines of a bar, a track or eight tokens; an encoding of characters gives its text."""
        if self.encoder["name"] == "optimus_txt":
            return "".join(_character(name) for name in self.names)
        has_bars = any(name.startswith(line_starts) for name in self.names)
        lines: list[list[str]] = [[]]
        for place, name in enumerate(self.names):
            if name.startswith(line_starts) if has_bars else place % 8 == 0:
                lines.append([])
            lines[-1].append(name)
        return "\n".join(" ".join(line) for line in lines if line)


def _character(name: str) -> str:
    """Return the character of a token, empty for special tokens such as `<start>`."""
    if name.startswith("U+"):
        return chr(int(name[2:], 16))
    return name if len(name) == 1 else ""


def encoding_config(encoding: str, overrides: Sequence[str] = ()) -> TokenizerConfig:
    """Return an encoding's default settings with overrides such as `use_rests=true`."""
    return apply_overrides(default_config(encoding), overrides)


def encode_file(path: Path, config: TokenizerConfig) -> FileTokens:
    """Return the tokens of one MIDI file; an encoding that learns its vocabulary learns it from this file alone."""
    data = read_input(path)
    try:
        score = read_midi(data, str(path))
    except BadScore as error:
        raise BadScore(error.reason, f"{path}: {error.detail}") from None
    batch = score.notes
    if needs_vocabulary(config):
        named = set(song_name(path.name)) if writes_names(config) else set()
        config = config.with_symbols(symbols_in(config, batch) | named)
    tokenizer = build_tokenizer(config)
    tokens = tokenizer.encode(batch)
    if writes_names(config):
        assert isinstance(tokenizer, OptimusTxtTokenizer)
        tokens = tokenizer.name_songs(tokens, [path.name])
    dropped = {reason: int(counts.sum()) for reason, counts in tokens.dropped.items() if counts.any()}
    ids = tokens.ids.tolist()
    return FileTokens(ids, [tokenizer.token_name(i) for i in ids], dropped, tokenizer.to_json())


def decode_file(path: Path, config: TokenizerConfig | None, out: Path) -> int:
    """Write the ids of a JSON file as MIDI; return the number of notes.

    Args:
        path: a list of ids, an object with `ids` and their `encoder`, or the output of `orchestrion encode --json` for
            one file.
        config: the encoding of a file that names none.
    Raises:
        NotFound, ConfigError: the file does not exist or does not hold ids of the encoding, or `out` cannot be written.
    """
    check_output(out)
    value = _read_json(path)
    if isinstance(value, dict) and isinstance(files := value.get("files"), list):
        if len(files) != 1:
            raise ConfigError(f"{path} holds the ids of {len(files)} files; decode takes one")
        value = files[0]
    stated = value.get("encoder") if isinstance(value, dict) else None
    tokenizer = _tokenizer_of(path, stated, config)
    ids = value.get("ids") if isinstance(value, dict) else value
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):  # true is no id
        raise ConfigError(f"{path}: expected a list of ids, or an object with `ids`")
    outside = [i for i in ids if not 0 <= i < tokenizer.vocab_size]
    if outside:
        raise ConfigError(f"{path}: id {outside[0]} outside 0-{tokenizer.vocab_size - 1} of {tokenizer.name}")
    score = tokenizer.decode(np.array(ids, np.uint16))
    write_output(out, write_midi(score, printable(out.stem)))
    return len(score.notes.pitch)


def _read_json(path: Path) -> Any:
    data = read_input(path)
    try:
        return parse_json(data)
    except OutOfBounds as error:
        raise ConfigError(f"{path}: {error}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None


def _tokenizer_of(path: Path, stated: Any, config: TokenizerConfig | None) -> Tokenizer:
    if isinstance(stated, Mapping):
        tokenizer = tokenizer_from_json(stated)
        if config is not None and config.name != tokenizer.name:
            raise ConfigError(f"{path} holds ids of {tokenizer.name}, not of {config.name}")
        return tokenizer
    if config is None:
        raise ConfigError(f"{path} does not say its encoding; name it with --encoding")
    return build_tokenizer(config)
