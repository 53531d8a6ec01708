"""Request files: several batches of compositions in TOML or JSON."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.config.generation import GenerateConfig
from tasks.config.serialization import from_json, merged, shortened, to_json
from tasks.errors import ConfigError, NotFound
from tasks.generation.prompts import SPLIT_MARK, TEXT_MARK
from tasks.storage.foreign_text import MAX_KEY_PARTS, OutOfBounds, parse_json, parse_toml

TOP_KEYS, JOB_KEYS = ("model", "defaults", "jobs"), ("name", "model")
MAX_BYTES = 2**20
MAX_NAME = 200  # characters of a job's name
PATHS = ("prompt", "prompt_to", "soundfont")  # relative to the file's folder


@dataclass(frozen=True, slots=True)
class RequestedBatch:
    """One job of a request file."""

    name: str
    model: str  # reference; empty: the newest
    config: GenerateConfig


def read_request(path: Path, settings_of: Callable[[str], GenerateConfig]) -> list[RequestedBatch]:
    """Return the jobs of a request file.

    The file holds `model`, for jobs that name none; `defaults`, settings for all jobs; and `jobs`, each with
    optional `name` and `model` and with settings as below `generate.`. Paths are relative to the file.

    Args:
        settings_of: returns the settings of a model's preset, by the model's reference; the request changes these.
    Raises:
        NotFound: there is no such file or model.
        ConfigError: it is not TOML or JSON, or a key or value is wrong; the message names the job.
    """
    form = _read(path)
    if unknown := [key for key in form if key not in TOP_KEYS]:
        raise ConfigError(f"{path.name}: unknown key {unknown[0]!r}; known here: {', '.join(TOP_KEYS)}")
    jobs, defaults = form.get("jobs", []), form.get("defaults", {})
    if not isinstance(jobs, list) or not jobs or not all(isinstance(job, dict) for job in jobs):
        raise ConfigError(f"{path.name}: jobs is no list of tables, or an empty one; each [[jobs]] is a batch")
    if not isinstance(defaults, dict):
        raise ConfigError(f"{path.name}: defaults is no table")
    nested, default_model = _nested(defaults, f"{path.name}: defaults"), _text(form, "model", path.name)
    _check_values(nested, f"{path.name}: defaults")
    read = [_read_job(job, place, path, nested) for place, job in enumerate(jobs)]
    names = [job.name for job in read]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"{path.name}: two jobs are named {twice!r}")
    requested = []  # from here on models are looked for
    for job in read:
        model = job.model or default_model
        try:
            settings = to_json(settings_of(model))
        except NotFound as error:
            raise NotFound(f"{job.where}: {error}") from None
        values = merged(settings, _from_folder(job.wanted, path.parent))
        requested.append(RequestedBatch(job.name, model, from_json(GenerateConfig, values, job.where)))
    return requested


@dataclass(frozen=True, slots=True)
class _Job:
    name: str
    model: str
    wanted: dict[str, Any]  # settings
    where: str


def _read_job(job: Mapping[str, Any], place: int, path: Path, defaults: Mapping[str, Any]) -> _Job:
    where = f"{path.name}: jobs[{place}]"
    name, model = _text(job, "name", where), _text(job, "model", where)
    if name and (not name.isprintable() or set(name) & set("/\\") or name.startswith(".") or len(name) > MAX_NAME):
        raise ConfigError(
            f"{where}: name={shortened(name)!r} is no name: up to {MAX_NAME} printable characters without / and \\,"
            " the first no dot"
        )
    where += f" ({name})" if name else ""
    own = _nested({key: value for key, value in job.items() if key not in JOB_KEYS}, where)
    _check_values(own, where)
    return _Job(name or f"job {place}", model, merged(defaults, own), where)


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str):
        raise ConfigError(f"{where}: {key}={shortened(repr(value))} is no text")
    return value


def _check_values(settings: Mapping[str, Any], where: str) -> None:
    """Validate what does not depend on the model whose settings are changed: keys, and numbers that none takes."""
    known = to_json(GenerateConfig())
    for key, value in settings.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key {shortened(key)!r}; known here: {', '.join(known)}")
        for path, number in _numbers(value, key):
            if not math.isfinite(number):
                raise ConfigError(f"{where}: {shortened(path)}={number} is no finite number")


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, path)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise ConfigError(f"{path.name} is no text in UTF-8") from None
        raise NotFound(f"request {path}: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path.name} is longer than the {MAX_BYTES} bytes that a request may have")
    kind, parse = ("JSON", parse_json) if path.suffix.lower() == ".json" else ("TOML", parse_toml)
    try:
        form = parse(text)
    except OutOfBounds as error:
        raise ConfigError(f"{path.name} is no {kind} that is read: {error}") from None
    except ValueError as error:
        raise ConfigError(f"{path.name} is no {kind}: {error}") from None
    if not isinstance(form, dict):
        raise ConfigError(f"{path.name} holds no table, but {type(form).__name__}")
    return form


def _nested(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return settings with a table for each dot in a key, as in TOML; ConfigError where a key is there twice."""
    found = dict[str, Any]()
    for key, value in settings.items():
        *tables, last = key.split(".")
        if len(tables) >= MAX_KEY_PARTS:
            raise ConfigError(f"{where}: key {shortened(key)!r} has more than {MAX_KEY_PARTS} parts")
        inner = found
        for table in tables:
            inner = inner.setdefault(table, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{where}: {key!r} and {table!r} contradict each other")
        before = inner.get(last, {})
        if last in inner and not (
            isinstance(before, dict) and isinstance(value, dict) and before.keys().isdisjoint(value)
        ):
            raise ConfigError(f"{where}: {key!r} is there twice")
        inner[last] = {**before, **value} if isinstance(value, dict) else value
    return found


def _from_folder(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return settings whose paths stand on their own."""
    changed = dict(settings)
    for key in PATHS:
        value = settings.get(key)
        if isinstance(value, str) and value and not value.startswith((SPLIT_MARK, TEXT_MARK)) and "://" not in value:
            local = os.path.expanduser(value)  # noqa: PTH111  (Path's own raises on an unknown user)
            changed[key] = str((folder / local).absolute())
    return changed
