"""Names of encodings and what builds them."""

from collections.abc import Mapping
from typing import Any

from tasks.errors import ConfigError
from tasks.music.tokenizers.oore import OoreConfig, OoreTokenizer

TokenizerConfig = OoreConfig
Tokenizer = OoreTokenizer


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """Return the tokenizer that a config describes."""
    return OoreTokenizer(config)


def tokenizer_from_json(form: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer whose `to_json` gave this form.

    Raises:
        ConfigError: an unknown name, or a form that this version would read otherwise.
    """
    if form.get("name") != "oore":
        raise ConfigError(f"no encoding is named {form.get('name')!r}, only 'oore'")
    try:
        config = OoreConfig(sustain=bool(form["sustain"]), drums=form["drums"])
    except KeyError as error:
        raise ConfigError(f"the stored encoding lacks {error}") from error
    tokenizer = OoreTokenizer(config)
    if tokenizer.to_json() != dict(form):
        raise ConfigError(f"the stored encoding {dict(form)} is not what this version gives: {tokenizer.to_json()}")
    return tokenizer
