"""Settings of a trigger: whole, and under the name of the preset that they are."""

from typing import Any

import pytest

from flows.triggers import check_config
from tasks.config.dataset import DatasetConfig
from tasks.config.overrides import apply_overrides
from tasks.config.pipeline import PipelineConfig
from tasks.config.presets import build_preset
from tasks.config.serialization import from_json, to_json
from tasks.config.training import TrainConfig
from tasks.errors import ConfigError

TINY = build_preset("music_transformer_tiny")
DEPLOYED = to_json(TINY.train)


def trigger(given: dict[str, Any], deployed: dict[str, Any] | None = None) -> None:
    check_config(from_json(TrainConfig, given), given, DEPLOYED if deployed is None else deployed)


def test_the_deployments_own_settings_and_whole_ones_with_changes_are_taken() -> None:
    trigger(DEPLOYED)
    trigger(DEPLOYED | {"n_steps": 30, "preset": "a label of one's own"})
    trigger(to_json(build_preset("hourglass_tiny").train))
    form = {key: value for key, value in DEPLOYED.items() if value not in (None, "", [])}
    trigger(form)
    sampled = to_json(TINY.generate)
    check_config(TINY.generate, sampled, sampled)


@pytest.mark.parametrize(
    "given", [{"preset": "hourglass_tiny"}, {"n_steps": 40}, {"preset": "hourglass_tiny", "n_steps": 30}]
)
def test_a_part_of_the_settings_does_not_replace_the_deployments(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"config lacks .*model.*, which the deployment sets"):
        trigger(given)


def test_another_presets_name_on_the_deployments_settings_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"preset='hourglass_tiny' names a preset, but the model is not that"):
        trigger(DEPLOYED | {"preset": "hourglass_tiny"})
    whole = to_json(TINY)
    given = whole | {"train": whole["train"] | {"preset": "music_transformer"}}
    with pytest.raises(ConfigError, match="music_transformer"):
        check_config(from_json(PipelineConfig, given), given, whole)
    with pytest.raises(ConfigError, match="config lacks dataset, evaluate, generate"):
        check_config(from_json(PipelineConfig, {"train": DEPLOYED}), {"train": DEPLOYED}, whole)


def test_a_deployment_without_settings_of_its_own_takes_a_part_but_no_wrong_name() -> None:
    trigger({"n_steps": 40}, {})
    with pytest.raises(ConfigError, match="names a preset"):
        trigger({"preset": "hourglass_tiny", "n_steps": 40}, {})
    part = {"sources": ["/data/midi"], "name": "midi"}
    check_config(from_json(DatasetConfig, part), part | {"rehash": True}, part)


def test_settings_of_the_command_line_under_a_presets_label_are_the_deployments() -> None:
    changed = to_json(apply_overrides(TINY, ["train.model.n_layers=2"]).train)
    trigger(changed, changed)
    trigger(changed | {"n_steps": 3}, changed)
