"""Validation of a trigger's parameters for a deployment: they hold all settings, so no default replaces one."""

from collections.abc import Mapping
from typing import Any

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext

from tasks.config.old_names import current_names
from tasks.config.pipeline import PipelineConfig
from tasks.config.presets import PRESETS, build_preset
from tasks.config.serialization import check_numbers
from tasks.config.training import TrainConfig
from tasks.errors import ConfigError

DEPLOY_HINT = "send the deployment's whole `config` with your changes, or run `orchestrion deploy` with other settings"


def check_trigger(config: Any) -> None:
    """Check, before any work, that the settings of this flow run are those that were asked for.

    Prefect replaces the deployment's `config` by that of a trigger, and what the trigger lacks gets the defaults
    of the code, not the deployment's settings. Raises ConfigError as `check_config`, or for a
    number that no setting takes.
    """
    check_numbers(config)
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    given = run.parameters.get("config") if run else None
    if run is None or run.deployment_id is None or not isinstance(given, Mapping):
        return
    with get_client(sync_client=True) as client:
        deployed = client.read_deployment(run.deployment_id).parameters.get("config")
    check_config(config, given, deployed if isinstance(deployed, Mapping) else {})


def check_config(config: Any, given: Mapping[str, Any], deployed: Mapping[str, Any]) -> None:
    """Check that a trigger's config, made of `given`, has all that the deployment sets, and the model of its preset.

    Raises ConfigError where it lacks a setting, or names another preset than that of its model.
    """
    given, deployed = current_names(given), current_names(deployed)
    if lacking := _lacking(given, deployed):
        named = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
        raise ConfigError(f"config lacks {named}, which the deployment sets: {DEPLOY_HINT}")
    train = config.train if isinstance(config, PipelineConfig) else config
    if not isinstance(train, TrainConfig):
        return
    section = deployed.get("train", {}) if isinstance(config, PipelineConfig) else deployed
    if train.preset == section.get("preset") or train.preset not in PRESETS:
        return
    if train.model != build_preset(train.preset).train.model:
        raise ConfigError(
            f"config.preset={train.preset!r} names a preset, but the model is not that preset's: `preset` is a label,"
            f" which changes no setting; {DEPLOY_HINT}, such as --preset {train.preset}"
        )


def _lacking(given: Mapping[str, Any], deployed: Mapping[str, Any], path: str = "") -> list[str]:
    """Return the paths that only `deployed` has; forms leave out what is empty, and another kind has other settings."""
    if given.get("name") != deployed.get("name") and "name" in given:
        return []
    lacking = []
    for key, value in deployed.items():
        if key not in given and value not in (None, "", [], {}):
            lacking.append(f"{path}{key}")
        elif isinstance(value, Mapping) and isinstance(given.get(key), Mapping):
            lacking += _lacking(given[key], value, f"{path}{key}.")
    return lacking
