"""One config, checked once: overrides, unknown keys, wrong types, impossible values."""

import json
import re
from pathlib import Path

import pytest

from models.config import OptimizerConfig, WarmupCosineSchedule
from tasks.config.dataset import DatasetConfig
from tasks.config.generation import GenerateConfig
from tasks.config.old_names import OLD_NAMES
from tasks.config.overrides import apply_overrides, check_overrides, read_overrides
from tasks.config.pipeline import PipelineConfig
from tasks.config.presets import PRESETS, build_preset
from tasks.config.serialization import digest, field_paths, from_json, to_json
from tasks.config.training import TrainConfig
from tasks.errors import ConfigError, NotFound


@pytest.mark.parametrize("name", PRESETS)
def test_json_form_gives_the_same_preset_back(name: str) -> None:
    config = build_preset(name)
    assert from_json(PipelineConfig, json.loads(json.dumps(to_json(config)))) == config


def test_overrides_reach_nested_settings_and_leave_the_rest() -> None:
    before = PipelineConfig()
    after = apply_overrides(
        before, ["train.model.n_layers=4", "dataset.augment.transpositions=[-1,0]", "generate.sampling.top_k=8"]
    )
    assert after.train.model.n_layers == 4
    assert after.dataset.augment.transpositions == (-1, 0)
    assert after.generate.sampling.top_k == 8
    assert after.evaluate == before.evaluate
    assert before == PipelineConfig()


def test_another_schedule_brings_its_own_defaults_and_settings() -> None:
    config = apply_overrides(
        PipelineConfig(),
        ["train.schedule.name=warmup_cosine", "train.schedule.max_lr=0.002", "train.schedule.warmup_steps=7"],
    )
    assert config.train.schedule == WarmupCosineSchedule(max_lr=0.002, warmup_steps=7)


def test_another_optimizer_keeps_the_settings_they_share() -> None:
    config = apply_overrides(PipelineConfig(), ["train.optimizer.eps=1e-6", "train.optimizer.name=adamw"])
    assert (config.train.optimizer.name, config.train.optimizer.eps) == ("adamw", 1e-6)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.n_step=5", "unknown key 'train.n_step'; did you mean 'train.n_steps'?; known here: preset, model"),
        ("nothing.at.all=5", "unknown key 'nothing'; known here: dataset, train, evaluate, generate"),
        ("train.model.depth=5", "'train.model.depth'"),
        ("train.n_steps.deep=5", "unknown key 'train.n_steps.deep'"),
        ("train.n_steps=many", "train.n_steps"),
        ("train.n_steps=0", "n_steps=0 is below 1"),
        ("train.n_steps=2.5", "train.n_steps"),
        ("train.model.n_heads=7", "d_model=128 is not a multiple of n_heads=7"),
        ("generate.sampling.temperature=0", "temperature=0.0"),
        ("dataset.parse.shard_files=0", "shard_files=0 is not above 0"),
        ("train.schedule.name=cosine", "cosine"),
        ("train.n_steps", "write it as key=value"),
    ],
)
def test_a_mistake_is_one_message_with_the_place(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(PipelineConfig(), [override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_key_in_json_is_refused_at_any_depth() -> None:
    values = to_json(PipelineConfig())
    values["train"]["model"]["n_layer"] = 3
    with pytest.raises(ConfigError, match=r"train\.model\.n_layer"):
        from_json(PipelineConfig, values)


def test_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="music_transformer_tiny"):
        build_preset("music_transformer_huge")


def test_digest_sees_every_setting_and_not_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(DatasetConfig()) != digest(DatasetConfig(split_seed=1))


def test_earlier_names_of_settings_are_read(tmp_path: Path) -> None:
    old = {
        "n_parts": 2, "window_tokens": 64, "compiled": True, "keep_periodic": 3, "evaluate_every": 7,
        "checkpoint_every": 8, "log_every": 9, "schedule": {"name": "warmup_cosine", "peak": 0.5, "floor_share": 0.2},
        "optimizer": {"name": "adamw", "decayed": "linear"},
    }  # fmt: skip
    config = from_json(TrainConfig, old)
    assert config == TrainConfig(
        grad_accumulation_steps=2, seq_len=64, compile=True, keep_last_n=3, eval_interval=7, checkpoint_interval=8,
        log_interval=9, schedule=WarmupCosineSchedule(max_lr=0.5, min_lr_ratio=0.2),
        optimizer=OptimizerConfig(name="adamw", decay_params="linear"),
    )  # fmt: skip
    assert set(OLD_NAMES) <= {*old, *old["schedule"], *old["optimizer"]}  # type: ignore[misc]
    overrides = ["train.schedule.name=warmup_cosine", "train.schedule.peak=0.5", "evaluate.window_tokens=64"]
    assert apply_overrides(PipelineConfig(), overrides).train.schedule == WarmupCosineSchedule(max_lr=0.5)
    (tmp_path / "run.toml").write_text("[evaluate]\nwindow_tokens = 64\n")
    filed = apply_overrides(PipelineConfig(), read_overrides(tmp_path / "run.toml"))
    assert filed.evaluate.seq_len == apply_overrides(PipelineConfig(), overrides).evaluate.seq_len == 64


def test_a_setting_under_two_names_is_refused() -> None:
    with pytest.raises(ConfigError, match="window_tokens and seq_len are one setting"):
        from_json(TrainConfig, {"window_tokens": 64, "seq_len": 64})
    for overrides in (["train.window_tokens=64", "train.seq_len=64"], ["train.seq_len=64", "train.window_tokens=64"]):
        with pytest.raises(ConfigError, match=r"are one setting, train\.seq_len; give it once"):
            apply_overrides(PipelineConfig(), overrides)


# Of 96e5a72, where ten settings had other names.
DIGESTS = {
    "char_gpt": "37ac77be6a59b33d", "hourglass_tiny": "a9c62f3d824d9034", "mmm_vae": "5d87f4e13032a338",
    "music_transformer": "444e8d08b207dce4",
}  # fmt: skip


@pytest.mark.parametrize("name", DIGESTS)
def test_renamed_settings_change_no_digest(name: str) -> None:
    assert digest(build_preset(name)).startswith(DIGESTS[name])


def test_field_paths_name_every_setting() -> None:
    paths = field_paths(PipelineConfig)
    assert "train.model.n_layers" in paths
    assert "train.schedule.max_lr" in paths
    assert len(paths) == len(set(paths))


def test_a_name_hides_no_mistake_and_takes_no_setting_away() -> None:
    for overrides in (["dataset.split_seed=-1", "dataset.name=mine"], ["dataset.name=mine", "dataset.split_seed=-1"]):
        with pytest.raises(ConfigError, match="split_seed=-1"):
            apply_overrides(PipelineConfig(), overrides)
    with pytest.raises(ConfigError, match="names a source twice"):
        apply_overrides(PipelineConfig(), ['dataset.sources=["/a", "/a"]', "dataset.name=mine"])
    config = apply_overrides(PipelineConfig(), ["train.model.d_model=48", "train.model.name=hourglass"])
    assert (config.train.model.name, config.train.model.d_model) == ("hourglass", 48)


def test_a_file_of_settings_says_what_set_says_and_set_wins(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[train]\nn_steps = 7\nschedule.name = "constant"\n[dataset.augment]\ntranspositions = [-1, 0]\n')
    given = ["train.n_steps=7", 'train.schedule.name="constant"', "dataset.augment.transpositions=[-1, 0]"]
    assert read_overrides(file) == given
    config = apply_overrides(PipelineConfig(), [*read_overrides(file), "train.n_steps=9"])
    assert (config.train.n_steps, config.dataset.augment.transpositions) == (9, (-1, 0))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[train", "run.toml"),
        ("train.n_steps = 1979-05-27", "run.toml: Object of type date"),
        ("x = " + "[" * 5000, "run.toml"),
        ("train.n_steps = " + "1" * 5000, "run.toml"),
    ],
)
def test_a_bad_file_of_settings_is_one_message(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        read_overrides(tmp_path / "run.toml")
    with pytest.raises(NotFound, match=r"absent\.toml: No such file"):
        read_overrides(tmp_path / "absent.toml")


def test_a_mistyped_setting_is_told_the_one_that_was_meant() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'train\.n_step'; did you mean 'train\.n_steps'\?; known here"):
        apply_overrides(PipelineConfig(), ["train.n_step=1"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("generate.n_pieces=0", "generate.n_pieces=0 is below 1"),
        ("generate.sampling.top_p=2", "generate.sampling.top_p=2 is above 1"),
        ("generate.best_by=luck", "generate.best_by: "),
        ("generate.n_piece=3", "unknown key 'generate.n_piece'; did you mean 'generate.n_pieces'?"),
    ],
)
def test_a_setting_alone_is_checked_before_the_preset_is_known(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_overrides("generate", GenerateConfig, [override])
    assert message in str(caught.value)


def test_what_only_the_preset_decides_is_not_refused_before_it_is_known() -> None:
    """1500 tokens of a prompt fit the 2048 of `char_gpt`, not the 1024 of the default."""
    overrides = ["generate.prompt=a.mid", "generate.prompt_tokens=1500", "train.n_steps=0"]
    check_overrides("generate", GenerateConfig, overrides)
    assert apply_overrides(build_preset("char_gpt"), overrides[:2]).generate.prompt_tokens == 1500
