"""Settings to JSON and back. No settings module imports torch, Ray, Prefect or MLflow."""

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from models.config import ModelConfig, ScheduleConfig
from models.settings import LIMITS
from tasks.config.old_names import first_names
from tasks.errors import ConfigError
from tasks.music.tokenizers.registry import TokenizerConfig
from tasks.storage.files import json_digest

Config = TypeVar("Config")

LARGEST_FLOAT = 3.4e38  # of 32 bits, in which models compute


def to_json(config: Any) -> dict[str, Any]:
    """Return a config as plain JSON values; `from_json` is the inverse."""
    return _adapter(type(config)).dump_python(config, mode="json")


@functools.cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    """Return what dumps a config; to build it takes 20 ms of CPU."""
    return TypeAdapter(kind)


def from_json(kind: type[Config], values: Any, place: str = "") -> Config:
    """Build a config from JSON values; ConfigError with the field's path for an unknown key or an impossible value."""
    try:
        config = _validator(kind).model_validate({"value": values}).value  # type: ignore[attr-defined]
    except ValidationError as error:
        raise ConfigError("; ".join(_say(problem, kind, place) for problem in error.errors()[:3])) from None
    if wrong := _wrong_number(config, values):
        raise ConfigError(": ".join(filter(None, (place, *wrong))))
    return config


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with changes applied; a section whose `name` changes holds the changes alone."""
    both = dict(values)
    for key, value in changes.items():
        old = both.get(key)
        is_same = (
            isinstance(old, Mapping) and isinstance(value, Mapping) and value.get("name") in (None, old.get("name"))
        )
        both[key] = merged(old, value) if is_same else value  # type: ignore[arg-type]
    return both


def check_value(kind: type, keys: Sequence[str], value: Any, place: str) -> None:
    """Raise ConfigError where one setting below a config class does not take a value by its type and limits."""
    for key in keys[:-1]:
        kind = typing.get_type_hints(kind)[key]
    (entry,) = (field for field in dataclasses.fields(kind) if field.name == keys[-1])
    limits = {name: limit for name, limit in entry.metadata.items() if name in LIMITS}
    hint = typing.get_type_hints(kind, include_extras=True)[entry.name]
    model = create_model(kind.__name__, **{entry.name: (typing.Annotated[hint, Field(**limits)], ...)})  # type: ignore[call-overload]
    try:
        model.model_validate({entry.name: value})
    except ValidationError as error:
        problem = error.errors()[0]
        raise ConfigError(_say(problem | {"loc": ("value", place, *keys[:-1], *problem["loc"])}, kind, "")) from None


def check_numbers(config: Any) -> None:
    """Raise ConfigError where a number of a config is not finite or too large, however the config was made."""
    if wrong := _wrong_number(config, None):
        raise ConfigError(": ".join(wrong))


def _wrong_number(value: Any, given: Any, path: str = "") -> tuple[str, str] | None:
    """Return the path of the first number that no setting takes, and what is wrong with it.

    `given` is what `value` was made of, if known: true and false are not 1 and 0.
    """
    if dataclasses.is_dataclass(value):
        names = [entry.name for entry in dataclasses.fields(value)]
        known = given if isinstance(given, dict) else {}
        inner = [(getattr(value, name), known.get(name), f"{path}.{name}" if path else name) for name in names]
    elif isinstance(value, (tuple, list)):
        known = given if isinstance(given, (tuple, list)) else [None] * len(value)
        inner = [(item, one, path) for item, one in zip(value, known, strict=False)]
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    else:
        if isinstance(given, bool):
            return path, f"a number is wanted, not {str(given).lower()}"
        if isinstance(value, int):
            return (
                None if -(2**63) <= value < 2**63 else (path, f"{shortened(str(value))} is beyond 64 bits with a sign")
            )
        is_usable = math.isfinite(value) and abs(value) <= LARGEST_FLOAT
        return None if is_usable else (path, f"{value} is not a finite number that 32 bits hold")
    return next(filter(None, (_wrong_number(*one) for one in inner)), None)


def digest(value: Any) -> str:
    """Return the SHA-256 hex digest of a config's or JSON value's canonical form.

    Settings count under their first names, so that a renamed setting changes no version, run, sweep or batch.
    """
    plain = first_names(to_json(value) if dataclasses.is_dataclass(value) else value)
    return json_digest(plain)


def field_paths(kind: type, prefix: str = "") -> list[str]:
    """Return the dotted path of every setting below a config class, in order of definition."""
    paths: list[str] = []
    for entry in dataclasses.fields(kind):
        hint = typing.get_type_hints(kind)[entry.name]
        members = [m for m in (typing.get_args(hint) or (hint,)) if dataclasses.is_dataclass(m)]
        if members:
            nested = [path for member in members for path in field_paths(member, f"{prefix}{entry.name}.")]  # type: ignore[arg-type]
            paths += dict.fromkeys(nested)
        else:
            paths.append(prefix + entry.name)
    return paths


def shortened(text: str) -> str:
    """Return a text as a message holds it, however long it is."""
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


# Names of the members of unions; pydantic puts them into the place of a problem, and they are no keys.
_VARIANTS = {
    field.default
    for union in (ModelConfig, ScheduleConfig, TokenizerConfig)
    for member in typing.get_args(union)
    for field in dataclasses.fields(member)
    if field.name == "name"
}


@functools.cache
def _validator(kind: type) -> type[BaseModel]:
    # Plain dataclasses take their strictness from the model they stand in; on their own they ignore unknown keys.
    return create_model("Config", __config__=ConfigDict(extra="forbid"), value=(kind, ...))


def _say(problem: Any, kind: type, place: str) -> str:
    location = [str(part) for part in problem["loc"][1:]]
    path = ".".join(part for part in location if not part.endswith(("Config", "Schedule")) and part not in _VARIANTS)
    where = f"{place}: " if place else ""
    if problem["type"] == "unexpected_keyword_argument":
        known = [p for p in field_paths(kind) if p.rpartition(".")[0] == path.rpartition(".")[0]]
        return (
            f"{where}unknown key {shortened(repr(path))}; known here: {', '.join(p.rpartition('.')[2] for p in known)}"
        )
    for name, (_, phrase) in LIMITS.items():
        if name in problem.get("ctx", {}):
            limit = problem["ctx"][name]
            shown = int(limit) if limit == int(limit) else limit
            return f"{where}{path}={shortened(str(problem['input']))} {phrase} {shown}"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    shown = f" (got {shortened(repr(given))})" if not isinstance(given, dict) else ""
    return f"{where}{shortened(path) or kind.__name__}: {message}{shown}"
