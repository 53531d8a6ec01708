"""Presets: whole-run configs by name, read from presets.toml."""

import tomllib
from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from tasks.config.pipeline import PipelineConfig
from tasks.config.serialization import from_json, merged, to_json
from tasks.errors import ConfigError

_TABLES = tomllib.loads((resources.files("tasks.config") / "presets.toml").read_text(encoding="utf-8"))
PRESETS = [name for name, table in _TABLES.items() if "about" in table]
_SECTIONS = ("dataset", "train", "evaluate", "generate")


@cache
def build_preset(name: str) -> PipelineConfig:
    """Return the whole-run config of a preset; ConfigError where none has that name."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    values = merged(to_json(PipelineConfig()), _settings_of(name))
    values["train"]["preset"] = name
    return from_json(PipelineConfig, values, name)


def _settings_of(name: str) -> dict[str, Any]:
    table, settings = _TABLES[name], dict[str, Any]()
    bases = table.get("base", [])
    for base in [bases] if isinstance(bases, str) else bases:
        settings = merged(settings, _settings_of(base))
    return merged(settings, _with_nulls({key: table[key] for key in _SECTIONS if key in table}))


def _with_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_nulls(inner) for key, inner in value.items()}
    return None if value == "null" else value


def preset_rows() -> list[dict[str, Any]]:
    """Return name, system, encoding and size of each preset."""
    return [
        {
            "name": name,
            "system": _TABLES[name]["system"],
            "encoding": build_preset(name).dataset.encoding.name,
            **dict(zip(("vocab_size", "n_parameters"), _TABLES[name]["size"], strict=True)),
        }
        for name in PRESETS
    ]


def preset_facts(name: str) -> dict[str, Any]:
    """Return the row, description and settings of one preset, and the shapes of a model with latents."""
    config = build_preset(name)
    row = next(row for row in preset_rows() if row["name"] == name)
    facts = row | {"about": _TABLES[name]["about"], "settings": to_json(config)}
    return facts | ({"shapes": preset_summary(name)} if config.train.model.has_latents else {})


def preset_summary(name: str) -> dict[str, Any]:
    """Return the sizes of a preset's model, part by part, and the shapes of its latents if it has any."""
    config = build_preset(name)
    from models.registry import build_shapes

    vocab_size = _TABLES[name]["size"][0]
    model: Any = build_shapes(config.train.model, vocab_size)
    if config.train.model.has_latents:
        return model.summary()
    parts = Counter[str]()
    for path, parameter in model.named_parameters():
        parts[path.partition(".")[0]] += parameter.numel()
    sizes = {"vocab_size": vocab_size, "d_model": config.train.model.d_model}
    return sizes | {"parameters": {**parts, "total": model.n_parameters}}
