"""The list of settings: complete, with a sentence each, and the page that is made from it."""

import pytest
from pydantic import TypeAdapter

from tasks.config.describe import markdown_page, setting_rows
from tasks.config.overrides import apply_overrides
from tasks.config.pipeline import PipelineConfig
from tasks.config.presets import build_preset
from tasks.config.serialization import field_paths
from tasks.errors import ConfigError
from tests.made_pages import SETTINGS

ROWS = setting_rows(PipelineConfig())


def test_every_setting_has_a_row_with_a_sentence() -> None:
    assert {row["setting"] for row in ROWS} == set(field_paths(PipelineConfig))
    assert [row["setting"] for row in ROWS if not row["about"].endswith(".")] == []


def test_the_page_is_up_to_date() -> None:
    assert SETTINGS.read_text() == markdown_page(), "write it by `make docs`"


def test_a_section_and_a_single_setting() -> None:
    schedules = setting_rows(build_preset("rga"), "train.schedule")
    assert {row["of"] for row in schedules} == {"", "noam", "warmup_cosine", "constant", "one_cycle"}
    (warmup,) = (row for row in schedules if row["of"] == "noam" and row["setting"] == "train.schedule.warmup_steps")
    assert warmup["default"] == 4000
    (steps,) = setting_rows(PipelineConfig(), "train.n_steps")
    assert (steps["type"], steps["limits"], steps["default"]) == ("int", "1 or more", 20_000)
    with pytest.raises(ConfigError, match=r"unknown section 'train.modle'; did you mean 'train.model'\?"):
        setting_rows(PipelineConfig(), "train.modle")


def test_prefects_form_has_the_sentence_and_the_limits() -> None:
    schema = TypeAdapter(PipelineConfig).json_schema()["$defs"]["TrainConfig"]["properties"]
    assert schema["n_steps"]["minimum"] == 1
    assert schema["seq_len"]["maximum"] == 2**20
    sections = TypeAdapter(PipelineConfig).json_schema()["$defs"].values()
    fields = [pair for section in sections for pair in section["properties"].items()]
    assert [name for name, values in fields if name != "name" and not values.get("description")] == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.n_steps=0", "train.n_steps=0 is below 1"),
        ("train.seq_len=4194304", "train.seq_len=4194304 is above 1048576"),
        ("train.model.dropout=1", "train.model.dropout=1 is not below 1"),
        ("dataset.validation_share=0", "dataset.validation_share=0 is not above 0"),
        ("dataset.augment.transpositions=[0,60]", "dataset.augment: transpositions: 60 is above 48"),
    ],
)
def test_a_value_beyond_a_limit_is_named_with_it(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(PipelineConfig(), [override])
    assert message in str(caught.value)
