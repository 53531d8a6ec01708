"""What commands share: building a config, running a flow, reporting errors."""

import dataclasses
import gc
import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import typer

from flows.services import environment, interrupts
from tasks.storage.home import Home

START_RAY = ("rebuild_dataset", "train", "pipeline", "sweep")  # `evaluate` and `generate` mostly do without
# What a flow imports when it needs it; its Prefect server starts meanwhile.
NEEDED = {
    "generate": ("mlflow", "tasks.generation.steps", "scipy.signal", "matplotlib.backends.backend_agg"),
    "evaluate": ("mlflow", "tasks.evaluation.steps"),
}
LONGEST_MESSAGE = 4000  # characters


def complain(message: str) -> None:
    """Print one line on stderr, with control characters and names that are not UTF-8 escaped."""
    line = " ".join(message.split())
    if len(line) > LONGEST_MESSAGE:
        line = f"{line[: LONGEST_MESSAGE // 2]} ... {line[-LONGEST_MESSAGE // 2 :]}"
    shown = "".join(character if character.isprintable() else repr(character)[1:-1] for character in line)
    with suppress(OSError):  # the terminal is gone
        typer.echo(f"orchestrion: {shown}", err=True)


def build_config(preset: str, overrides: Sequence[str], file: Path | None = None, train: Any = None) -> Any:
    """Return the config of a preset with the settings of a file and, over these, the overrides.

    Args:
        train: settings of training in place of the preset's.

    Raises:
        ConfigError: an unknown preset or setting, an impossible value, or a file that is no TOML.
        NotFound: there is no such file.
    """
    from tasks.config.overrides import apply_overrides, current_overrides, read_overrides
    from tasks.config.presets import build_preset

    filed = read_overrides(file) if file else []
    for override in [*filed, *overrides]:
        note_old_name(override)
    base = build_preset(preset)
    if train is not None:
        base = dataclasses.replace(base, train=train)
    return apply_overrides(base, current_overrides(filed) + current_overrides(overrides))


def early_config(section: str, preset: str, overrides: Sequence[str], file: Path | None) -> Any:
    """Return the config of a preset, or None where the model decides the preset; errors as in `build_config`.

    Without a preset only the settings below `section` are validated.
    """
    if preset:
        return build_config(preset, overrides, file)
    from tasks.config.overrides import check_overrides, read_overrides
    from tasks.config.pipeline import PipelineConfig

    kind = type(getattr(PipelineConfig(), section))
    check_overrides(section, kind, [*(read_overrides(file) if file else ()), *overrides])
    return None


def note_old_name(override: str) -> None:
    """Print the present name of a setting that is given under an earlier one."""
    from tasks.config.old_names import current_path

    path = override.partition("=")[0].strip()
    if (name := current_path(path)) != path:
        complain(f"setting {path} is now {name}; the old name works in this release only")


def run_flow(home: Home, name: str, *arguments: Any, **options: Any) -> dict[str, Any]:
    """Run the flow `name` on the locked home, with Prefect started, and return its result."""
    purpose = name.replace("_", "-")
    # The flow takes the same lock again, for runs that Prefect triggers.
    with interrupts.ended_soon(home.root / "logs" / "hung.txt"), home.locked(f"orchestrion {purpose}"):
        from flows.services import servers
        from tasks.runtime import cluster, progress

        if name in START_RAY:
            cluster.check_start()
        with progress.Progress(purpose) as whole:
            whole.note = "starting Prefect"
            progress.count_from_process_start()
            wait_for_prefect = servers.ensure_prefect(home)
            with _no_garbage():
                environment.import_prefect(home)
                interrupts.ignore_repeats()
                flow = getattr(importlib.import_module(f"flows.{name}"), name)
                for module in NEEDED.get(name, ()):
                    importlib.import_module(module)
            wait_for_prefect()
            try:
                return flow(*arguments, home=str(home.root), **options)
            finally:
                cluster.disconnect()


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Import without garbage collection, a quarter of the time, and exempt the imported objects from later ones."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
