"""Every setting with its type, default, limits and sentence, from the config classes."""

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

from tasks.config.pipeline import PipelineConfig
from tasks.config.serialization import shortened, to_json
from tasks.errors import ConfigError

_HEAD = """# Settings

`make docs` writes this page. `--set KEY=VALUE` changes a setting, and
`--config FILE` takes a TOML file of them. A preset has other defaults: `orchestrion settings --preset NAME`.
"""
_COLUMNS = "| setting | type | default | limits | meaning |\n|---|---|---|---|---|\n"
_NAMES = {str: "text", type(None): "null"}
_LOW, _HIGH = {"ge": "{:,}", "gt": "above {:,}"}, {"le": "{:,}", "lt": "below {:,}"}


def setting_rows(config: Any, section: str = "") -> list[dict[str, Any]]:
    """Return a row for each setting of a config: `setting`, `of`, `type`, `default`, `limits`, `about`.

    Raises ConfigError where there is no `section` or setting of that path; empty means all.
    """
    rows = list(_rows(config, ""))
    found = [row for row in rows if not section or f"{row['setting']}.".startswith(f"{section}.")]
    if not found:
        paths = {row["setting"] for row in rows}
        known = sorted({path[: place.start()] for path in paths for place in re.finditer(r"\.|$", path)})
        close = difflib.get_close_matches(section, known, n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        top = ", ".join(field.name for field in dataclasses.fields(config))
        raise ConfigError(f"unknown section {shortened(section)!r}{meant}; known: {top} and what is below them")
    return found


def markdown_page() -> str:
    """Return docs/settings.md: a table for each section."""
    tables = dict[str, list[str]]()
    for row in setting_rows(PipelineConfig()):
        path, _, name = row["setting"].rpartition(".")
        table = tables.setdefault(f"{path}, `{row['of']}`" if row["of"] else path, [])
        cells = (f"`{name}`", row["type"], _shown(row["default"]), row["limits"], row["about"])
        table.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |\n")
    return _HEAD + "".join(f"\n## {path}\n\n{_COLUMNS}{''.join(rows)}" for path, rows in tables.items())


def text_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Return rows as text for a terminal."""
    for row in rows:
        of = f" of {row['of']}" if row["of"] else ""
        limits = f", {row['limits']}" if row["limits"] else ""
        yield f"{row['setting']} = {_shown(row['default'])}  ({row['type']}{limits}{of})"
        yield f"    {row['about']}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value) or '""'


def _rows(config: Any, prefix: str, variant: str = "") -> Iterator[dict[str, Any]]:
    hints, values = typing.get_type_hints(type(config)), to_json(config)
    for field in dataclasses.fields(config):
        path, value, hint = f"{prefix}{field.name}", getattr(config, field.name), hints[field.name]
        about = field.metadata.get("description", "")
        members = [member for member in typing.get_args(hint) or (hint,) if dataclasses.is_dataclass(member)]
        if len(members) > 1:
            names = [member().name for member in members]  # type: ignore[attr-defined, operator]
            row = {"setting": f"{path}.name", "of": "", "type": " | ".join(names), "default": value.name}
            yield row | {"limits": "", "about": about}
        for member in members:
            of = member().name if len(members) > 1 else variant  # type: ignore[attr-defined, operator]
            own = value if isinstance(value, member) else member()  # type: ignore[arg-type, operator]
            yield from _rows(own, f"{path}.", of)
        is_variant = field.name == "name" and variant and len(typing.get_args(hint)) == 1
        if not members and not is_variant:
            row = {"setting": path, "of": variant, "type": _type(hint), "default": values[field.name]}
            yield row | {"limits": _limits(field.metadata), "about": about}


def _type(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " | ".join(map(str, inner))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_type, inner))
    if origin is tuple:
        return f"[{', '.join('...' if one is ... else _type(one) for one in inner)}]"
    return _NAMES.get(hint) or hint.__name__


def _limits(metadata: Any) -> str:
    each = metadata.get("each")
    named = each or metadata
    low = next((text.format(named[name]) for name, text in _LOW.items() if name in named), "")
    high = next((text.format(named[name]) for name, text in _HIGH.items() if name in named), "")
    text = f"{low} to {high}" if low and high else f"{low} or more" if "ge" in named else low
    return f"each {text}" if each else text
