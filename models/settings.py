"""Fields of settings classes, each with a sentence and limits."""

import math
from dataclasses import field, fields
from typing import Any, Literal, get_args, get_origin

# A limit, by the name that pydantic has for it: whether a value is within, and what is said otherwise.
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


def check_settings(config: Any) -> None:
    """Raise ValueError where a setting is beyond a limit, not finite or none of its choices; None is always within."""
    for entry in fields(config):
        value: Any = getattr(config, entry.name)
        choices = get_args(entry.type)
        if get_origin(entry.type) is Literal and value not in choices:
            raise ValueError(f"{entry.name}={value!r} is not one of {', '.join(map(repr, choices))}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{entry.name}={value} is not a finite number")
        if value is None:
            continue
        for name, (is_within, phrase) in LIMITS.items():
            limit, each = entry.metadata.get(name), entry.metadata.get("each", {}).get(name)
            if limit is not None and not is_within(value, limit):
                raise ValueError(f"{entry.name}={value} {phrase} {limit}")
            if each is not None and (beyond := [member for member in value if not is_within(member, each)]):
                raise ValueError(f"{entry.name}: {beyond[0]} {phrase} {each}")
