"""Settings of other releases: earlier names, which stored settings and `--set` may have, and later additions."""

from collections.abc import Mapping
from typing import Any

from tasks.errors import ConfigError

# Earlier name -> name. No other setting has one of these names.
OLD_NAMES = {
    "n_parts": "grad_accumulation_steps",
    "window_tokens": "seq_len",
    "compiled": "compile",
    "keep_periodic": "keep_last_n",
    "peak": "max_lr",
    "floor_share": "min_lr_ratio",
    "decayed": "decay_params",
    "evaluate_every": "eval_interval",
    "checkpoint_every": "checkpoint_interval",
    "log_every": "log_interval",
}
# Settings that were added later. At these defaults they do not count in digests, so that earlier runs keep theirs. A
# tuple holds several such values.
LATER_SETTINGS = {
    "early_stopping_patience": 0,
    "early_stopping_metric": "loss",
    "interval_unit": "steps",
    "temperature_points": [],
    "top_k_points": [],
    "channels": [],
    "row_mode": "whole",
    "chain_bars": 0,
    "chain_hop_bars": 0,
    "chain_step": 0.2,
    "median_pitch": 0,
    "flip": False,
    "threads": 1,
    "precision": "float16",
    "device": ("auto", "cpu"),
    "gpus_per_worker": 1.0,
    "accelerator_type": "",
    "activation_checkpointing": False,
    "parallel": "ddp",
    "max_nonfinite_steps": 20,
}
# Setting -> its default, and the earlier one, as which it counts in digests.
CHANGED_DEFAULTS = {"bf16": ("auto", False)}
_FIRST_NAMES = {name: old for old, name in OLD_NAMES.items()}


def current_path(path: str) -> str:
    """Return the dotted path of a setting under its present name."""
    return _path(path, OLD_NAMES)


def first_path(path: str) -> str:
    """Return the dotted path of a setting under the name it had first; names that are digests are made of it."""
    return _path(path, _FIRST_NAMES)


def current_names(values: Any) -> Any:
    """Return nested settings under their present names; ConfigError where one is there under both names."""
    if isinstance(values, Mapping):
        for old, name in OLD_NAMES.items():
            if old in values and name in values:
                raise ConfigError(f"{old} and {name} are one setting, whose name is {name}; give it once")
    return _renamed(values, current_path, current_names)


def first_names(values: Any) -> Any:
    """Return settings, nested as JSON, under the names they had first, without those that came later and are unused."""
    if isinstance(values, Mapping):
        values = {key: _earlier(key, value) for key, value in values.items() if not _is_unused(key, value)}
    return _renamed(values, first_path, first_names)


def _is_unused(key: Any, value: Any) -> bool:
    if key not in LATER_SETTINGS:
        return False
    unused, plain = LATER_SETTINGS[key], list(value) if isinstance(value, tuple) else value
    return plain in unused if isinstance(unused, tuple) else plain == unused


def _earlier(key: Any, value: Any) -> Any:
    default, earlier = CHANGED_DEFAULTS.get(key, (None, None))
    return earlier if default is not None and value == default else value


def _path(path: str, names: Mapping[str, str]) -> str:
    return ".".join(names.get(part, part) for part in path.split("."))


def _renamed(values: Any, rename: Any, inner: Any) -> Any:
    if isinstance(values, Mapping):
        return {rename(key) if isinstance(key, str) else key: inner(value) for key, value in values.items()}
    return values
