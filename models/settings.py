"""Fields of settings classes, each with a sentence and limits."""

import math
from dataclasses import field, fields
from typing import Any, Literal, get_args, get_origin

# Limits by their names in pydantic: a test of a value, and the phrase of the error.
LIMITS = {
    "ge": (lambda value, limit: value >= limit, "is below"),
    "gt": (lambda value, limit: value > limit, "is not above"),
    "le": (lambda value, limit: value <= limit, "is above"),
    "lt": (lambda value, limit: value < limit, "is not below"),
}


def setting(default: Any, description: str, each: dict[str, float] | None = None, **limits: float) -> Any:
    """Return a dataclass field whose metadata pydantic reads: its sentence and its limits.

    Args:
        default: a value, or a class that makes one.
        each: limits of the members of a tuple, which `check_settings` alone knows.
        limits: `ge`, `gt`, `le` and `lt`.
    """
    metadata = {"description": description, **limits} | ({"each": each} if each else {})
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


class Settings:
    """Base of settings classes that `check_settings` alone checks."""

    __slots__ = ()

    def __post_init__(self) -> None:
        check_settings(self)


def check_settings(config: Any) -> None:
    """Raise ValueError where a setting is beyond a limit, not finite or none of its choices; None is always within."""
    for entry in fields(config):
        value, choices = getattr(config, entry.name), get_args(entry.type)
        if get_origin(entry.type) is Literal and value not in choices:
            raise ValueError(f"{entry.name}={value!r} is not one of {', '.join(map(repr, choices))}")
        if not _is_finite(value):
            raise ValueError(f"{entry.name}={value} is not a finite number")
        each = entry.metadata.get("each", {})
        if value is None:
            continue
        for name, (is_within, phrase) in LIMITS.items():
            if name in entry.metadata and not is_within(value, entry.metadata[name]):
                raise ValueError(f"{entry.name}={value} {phrase} {entry.metadata[name]}")
            for member in value if name in each else ():
                if not is_within(member, each[name]):
                    raise ValueError(f"{entry.name}: {member} {phrase} {each[name]}")


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
