"""Names of encodings and what builds them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tasks.errors import ConfigError
from tasks.music.tokenizers.base import Tokenizer
from tasks.music.tokenizers.oore import OoreConfig, OoreTokenizer

TokenizerConfig = OoreConfig
ENCODINGS: dict[str, tuple[type[Any], type[Any]]] = {"oore": (OoreConfig, OoreTokenizer)}


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """Return the tokenizer that a config describes."""
    return ENCODINGS[config.name][1](config)


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
    kind = type(default_config(str(form.get("name"))))
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
        raise ConfigError(f"the stored encoding {form['name']} is not what this version gives: {', '.join(differing)}")
    return tokenizer


def _tuples(value: Any) -> Any:
    """Return a JSON value with tuples for lists, as configs have them."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return _tuples(value)
