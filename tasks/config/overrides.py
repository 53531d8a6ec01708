"""Settings given as text: `a.b=value`."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.config.old_names import current_path
from tasks.config.serialization import Config, check_value, from_json, shortened, to_json
from tasks.errors import ConfigError, NotFound
from tasks.storage.foreign_text import OutOfBounds, parse_json, parse_toml


def apply_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Return `config` with `a.b=value` overrides applied; a value is JSON where it parses as JSON, else text.

    Raises:
        ConfigError: an override without `=`, an unknown key (the message lists the known ones) or a bad value.
    """
    values = to_json(config)
    # A choice of a variant comes first, or it would take the other settings of its section away.
    for override in sorted(current_overrides(overrides), key=lambda override: not _VARIANT_NAME.match(override)):
        path, equals, text = override.partition("=")
        shown = f"--set {shortened(override)}"
        if not equals:
            raise ConfigError(f"{shown}: write it as key=value, for example train.n_steps=500")
        keys = path.strip().split(".")
        section = _section_of(values, keys, shown)
        try:
            section[keys[-1]] = parse_value(text)
        except OutOfBounds as error:
            raise ConfigError(f"{shown}: {error}") from None
        if _VARIANT_NAME.match(override):
            values = _switch_variant(type(config), values, section)
    return from_json(type(config), values)


def check_overrides(section: str, kind: type, overrides: Sequence[str]) -> None:
    """Validate the settings of one section each on its own, before it is known which preset they change.

    Raises ConfigError for an unknown key below `section`, or a value that its setting never takes.
    """
    for override in current_overrides(overrides):
        path, _, text = override.partition("=")
        top, *keys = path.split(".")
        if top == section and keys:
            _section_of({section: to_json(kind())}, [section, *keys], f"--set {shortened(override)}")
            check_value(kind, keys, parse_value(text), section)


def read_overrides(path: Path) -> list[str]:
    """Return the settings of a TOML file as overrides: the table `[train]` with `n_steps = 5` is `train.n_steps=5`.

    Raises:
        NotFound: there is no such file.
        ConfigError: it is not UTF-8, not TOML, or holds a date.
    """
    try:
        return list(_flat(parse_toml(path.read_text())))
    except OSError as error:
        raise NotFound(f"--config {path}: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"--config {path}: {error}") from None


def current_overrides(overrides: Sequence[str]) -> list[str]:
    """Return overrides with the present names of settings; ConfigError where one is given under two names."""
    given, current = dict[str, str](), list[str]()
    for override in overrides:
        path, equals, text = override.partition("=")
        name = current_path(path.strip())
        if given.setdefault(name, path.strip()) != path.strip():
            raise ConfigError(f"--set {given[name]} and --set {path.strip()} are one setting, {name}; give it once")
        current.append(f"{name}{equals}{text}")
    return current


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={json.dumps(value)}"


def parse_value(text: str) -> Any:
    """Return the value of a setting's text: JSON where it parses as JSON, otherwise text; errors as `parse_json`."""
    try:
        return parse_json(text)
    except OutOfBounds:
        raise
    except ValueError:
        return text


def _section_of(values: dict[str, Any], keys: list[str], shown: str) -> dict[str, Any]:
    section: Any = values
    for depth, key in enumerate(keys):
        if not isinstance(section, dict) or key not in section:
            known = ", ".join(section) if isinstance(section, dict) else "nothing below it"
            close = difflib.get_close_matches(key, section if isinstance(section, dict) else (), n=1)
            meant = f"; did you mean {'.'.join([*keys[:depth], close[0]])!r}?" if close else ""
            raise ConfigError(
                f"{shown}: unknown key {shortened('.'.join(keys[: depth + 1]))!r}{meant}; known here: {known}"
            )
        if depth < len(keys) - 1:
            section = section[key]
    return section


_VARIANT_NAME = re.compile(r"\s*([^=]*\.)?(model|schedule|encoding)\.name\s*=")  # names a member of a union


def _switch_variant(kind: type, values: dict[str, Any], section: dict[str, Any]) -> dict[str, Any]:
    """Complete a section whose `name` was set: where the old fields do not fit the new variant, its defaults do."""
    try:
        return to_json(from_json(kind, values))
    except ConfigError:
        name = section["name"]
        section.clear()
        section["name"] = name
        return to_json(from_json(kind, values))
