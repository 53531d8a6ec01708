"""Encodings by name, and the functions that build them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeGuard

from tasks.errors import ConfigError
from tasks.music.notes import NoteBatch
from tasks.music.tokenizers.base import Tokenizer
from tasks.music.tokenizers.miditok_adapter import MidiTokConfig, MidiTokTokenizer
from tasks.music.tokenizers.mmm.tokenizer import MmmTokenizer, words_in
from tasks.music.tokenizers.mmm.vocabulary import MmmConfig
from tasks.music.tokenizers.oore import OoreConfig, OoreTokenizer
from tasks.music.tokenizers.optimus.int_tokenizer import OptimusIntConfig, OptimusIntTokenizer
from tasks.music.tokenizers.optimus.text_tokenizer import OptimusTxtConfig, OptimusTxtTokenizer
from tasks.music.tokenizers.remi.tokenizer import RemiTokenizer
from tasks.music.tokenizers.remi.vocabulary import RemiConfig
from tasks.music.tokenizers.token_ids import TokenIdsConfig, TokenIdsTokenizer

TokenizerConfig = OoreConfig | RemiConfig | OptimusIntConfig | OptimusTxtConfig | MmmConfig | MidiTokConfig
LearnedConfig = OptimusTxtConfig | MmmConfig  # their `vocabulary` is empty until it has been made of the data
ENCODINGS: dict[str, tuple[type[Any], type[Any]]] = {
    "oore": (OoreConfig, OoreTokenizer),
    "remi": (RemiConfig, RemiTokenizer),
    "optimus_int": (OptimusIntConfig, OptimusIntTokenizer),
    "optimus_txt": (OptimusTxtConfig, OptimusTxtTokenizer),
    "mmm": (MmmConfig, MmmTokenizer),
    "miditok": (MidiTokConfig, MidiTokTokenizer),
}
# Encodings of datasets, with or without music.
_STORED: dict[str, tuple[type[Any], type[Any]]] = ENCODINGS | {"tokens": (TokenIdsConfig, TokenIdsTokenizer)}


def build_tokenizer(config: TokenizerConfig | TokenIdsConfig) -> Tokenizer:
    """Return the tokenizer that a config describes."""
    return _STORED[config.name][1](config)


def needs_vocabulary(config: TokenizerConfig) -> TypeGuard[LearnedConfig]:
    """Return whether an encoding has to learn its vocabulary before it can encode."""
    is_closed = isinstance(config, MmmConfig) and config.vocabulary_from == "all"
    return isinstance(config, LearnedConfig) and not config.vocabulary and not is_closed


def writes_names(config: TokenizerConfig) -> TypeGuard[OptimusTxtConfig]:
    """Return whether the tokens of a piece hold the name of its file."""
    return isinstance(config, OptimusTxtConfig) and config.header == "name"


def symbols_in(config: LearnedConfig, batch: NoteBatch) -> set[str]:
    """Return the characters or words that a learned vocabulary needs for these pieces."""
    return words_in(config, batch) if isinstance(config, MmmConfig) else config.symbols(batch)


def default_config(name: str) -> TokenizerConfig:
    """Return the default settings of an encoding.

    Raises:
        ConfigError: no encoding has that name.
    """
    if name not in ENCODINGS:
        raise ConfigError(f"unknown encoding {name!r}; known: {', '.join(ENCODINGS)}")
    return ENCODINGS[name][0]()


def tokenizer_from_json(form: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer whose `to_json` gave this form.

    Raises:
        ConfigError: an unknown name, or a form that this version would read otherwise.
    """
    name = str(form.get("name"))
    kind = TokenIdsConfig if name == "tokens" else type(default_config(name))
    names = [field.name for field in dataclasses.fields(kind)]
    try:
        config = kind(**{name: _tuples(form[name]) for name in names})
        tokenizer = build_tokenizer(config)
    except KeyError as error:
        raise ConfigError(f"the stored encoding lacks {error}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the stored encoding {form['name']} does not fit this version: {error}") from error
    ours = tokenizer.to_json()
    if _plain(ours) != _plain(form):
        differing = sorted(key for key in {*ours, *form} if _plain(ours.get(key)) != _plain(form.get(key)))
        named = ", ".join(repr(key[:40]) for key in differing[:3]) + (", ..." if len(differing) > 3 else "")
        raise ConfigError(f"the stored encoding {form['name']} is not what this version gives: {named}")
    return tokenizer


def _tuples(value: Any) -> Any:
    """Return a JSON value with tuples for lists, as configs have them."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return _tuples(value)
