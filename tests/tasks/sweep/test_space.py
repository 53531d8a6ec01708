"""The points of a sweep, its name and its table; nothing is trained here."""

import csv
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.config.overrides import apply_overrides
from tasks.config.pipeline import PipelineConfig
from tasks.config.presets import build_preset
from tasks.config.training import TRAIN_WITHOUT_EFFECT
from tasks.errors import ConfigError
from tasks.storage.files import write_atomically
from tasks.storage.home import Home
from tasks.storage.integrity import sealed_bytes
from tasks.sweep.plot import draw_sweep
from tasks.sweep.space import (
    FAILED,
    FINISHED,
    STOPPED,
    TRAINED,
    Point,
    SweepConfig,
    SweepFolder,
    csv_bytes,
    new_row,
    plan_points,
    rank,
    set_failed,
    set_figures,
    sweep_name,
)

TINY = build_preset("music_transformer_tiny")
DATASET: Any = SimpleNamespace(name="mine", version="0123456789abcdef", reference="mine@0123456789abcdef")


def points_of(*grid: str, search: Sequence[str] = (), **settings: Any) -> list[Point]:
    return plan_points(TINY, SweepConfig(grid=grid, search=tuple(search), **settings))


def test_a_grid_gives_every_combination_in_order() -> None:
    points = points_of("train.model.n_layers=2,4", "train.model.n_heads=4,8", "train.model.d_model=64,128")
    layers, heads, width = zip(*(point.values.values() for point in points), strict=True)
    assert layers == (2, 2, 2, 2, 4, 4, 4, 4)
    assert heads == (4, 4, 8, 8, 4, 4, 8, 8)
    assert width == (64, 128) * 4
    assert [point.number for point in points] == list(range(1, 9))
    model = points[-1].config.train.model
    assert (model.n_layers, model.n_heads, model.d_model) == (4, 8, 128)  # type: ignore[union-attr]
    assert points[-1].config.dataset == TINY.dataset


def test_values_that_hold_commas_are_json_with_semicolons() -> None:
    points = points_of("train.optimizer.betas=[0.9,0.95];[0.8,0.99]")
    assert [point.config.train.optimizer.betas for point in points] == [(0.9, 0.95), (0.8, 0.99)]
    assert points_of("train.optimizer.betas=[0.9,0.95]")[0].config.train.optimizer.betas == (0.9, 0.95)
    assert [p.values["train.schedule.name"] for p in points_of("train.schedule.name=noam;warmup_cosine")] == [
        "noam",
        "warmup_cosine",
    ]


def test_another_kind_of_schedule_comes_before_its_settings() -> None:
    points = points_of("train.schedule.max_lr=0.001,0.002", "train.schedule.name=warmup_cosine")
    assert [p.config.train.schedule.max_lr for p in points] == [0.001, 0.002]  # type: ignore[union-attr]


SEARCH = (
    "train.schedule.max_lr=loguniform(1e-4,1e-2)",
    "train.model.dropout=uniform(0,0.5)",
    "train.model.n_layers=randint(1,3)",
    "train.batch_size=choice(4;8;16)",
)


def test_the_same_seed_draws_the_same_points_and_another_seed_others() -> None:
    first = points_of(search=SEARCH, samples=20, seed=3)
    assert first == points_of(search=SEARCH, samples=20, seed=3)
    other = points_of(search=SEARCH, samples=20, seed=4)
    assert {point.settings for point in first}.isdisjoint(point.settings for point in other)


def test_draws_stay_within_their_ranges_and_reach_both_ends_of_whole_numbers() -> None:
    drawn = [tuple(point.values.values()) for point in points_of(search=SEARCH, samples=100)]
    peaks, dropouts, layers, batches = zip(*drawn, strict=True)
    assert min(peaks) >= 1e-4
    assert max(peaks) <= 1e-2
    assert 35 < sum(peak < 1e-3 for peak in peaks) < 65  # as many in each decade
    assert 0 <= min(dropouts) < 0.1
    assert 0.4 < max(dropouts) <= 0.5
    assert set(layers) == {1, 2, 3}
    assert set(batches) == {4, 8, 16}


def test_more_samples_and_more_searched_settings_keep_the_draws_there_are() -> None:
    few = [point.values["train.schedule.max_lr"] for point in points_of(search=SEARCH[:1], samples=4)]
    more = [point.values["train.schedule.max_lr"] for point in points_of(search=SEARCH, samples=8)]
    assert more[:4] == few


def test_each_draw_meets_every_point_of_the_grid() -> None:
    points = points_of("train.model.n_layers=1,2", search=SEARCH[:1], samples=3)
    peaks = [point.values["train.schedule.max_lr"] for point in points]
    assert peaks[:3] == peaks[3:]
    assert len(set(peaks)) == 3


def test_draws_that_are_equal_are_one_point(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    points = points_of(search=["train.model.n_layers=choice(1;2)"], samples=10)
    assert sorted(point.values["train.model.n_layers"] for point in points) == [1, 2]
    assert [point.number for point in points] == [1, 2]
    assert "8 of 10 points are the same as another" in caplog.text


@given(st.text(max_size=40))
def test_any_text_is_a_point_or_one_clear_error(text: str) -> None:
    for plan in (SweepConfig(grid=(text,)), SweepConfig(search=(text,), samples=2)):
        with pytest.raises(ConfigError) as error:
            plan_points(TINY, plan)
        assert text.strip()[:1] in str(error.value)


@pytest.mark.parametrize(
    ("grid", "search", "samples", "said"),
    [
        ([], [], 0, "nothing to sweep"),
        (["train.n_steps"], [], 0, "write it as key=a,b,c"),
        (["train.n_steps=1,,2"], [], 0, "there is an empty value"),
        (["train.n_steps=1,2,1"], [], 0, "names 1 twice"),
        (["train.n_step=1,2"], [], 0, "unknown key 'train.n_step'"),
        (["train.n_steps=1,many"], [], 0, "train.n_steps=many: train.n_steps: Input should be a valid integer"),
        (["train.n_steps=1", "train.n_steps=2"], [], 0, "train.n_steps is swept twice"),
        (["train.model.n_heads=4,5", "train.n_steps=1,2"], [], 0, "2 of 4 points are impossible; the first is"),
        (["train.model.n_heads=4,5"], [], 0, "train.model.n_heads=5: train.model: d_model=128 is not a multiple of"),
        (["dataset.split_seed=1,2"], [], 0, "rebuild with the other settings, then give --dataset"),
        (["generate.seed=1,2"], [], 0, "a sweep composes nothing"),
        (["train.preset=a,b"], [], 0, "it is a label"),
        (["evaluate.split=test,validation"], [], 0, "figures on two splits cannot be compared"),
        (["train={}"], [], 0, "train cannot be swept whole"),
        (["train.optimizer.betas=[0.9,0.95;[0.9,0.99]"], [], 0, "is not whole"),
        (["train.seed=" + ",".join(map(str, range(1001)))], [], 0, "1001 points are more than the 1000"),
        ([], ["train.n_steps=uniform(1,2)"], 0, "say with --samples"),
        (["train.n_steps=1,2"], [], 5, "--samples 5 needs a --search"),
        ([], ["train.schedule.max_lr=normal(0,1)"], 2, "known: uniform, loguniform, randint, choice"),
        ([], ["train.schedule.max_lr=uniform(0.1)"], 2, "uniform takes two numbers"),
        ([], ["train.schedule.max_lr=uniform(2,1)"], 2, "2 to 1 is no range"),
        ([], ["train.schedule.max_lr=uniform(0,inf)"], 2, "is no range"),
        ([], ["train.schedule.max_lr=loguniform(0,1)"], 2, "loguniform needs numbers above 0"),
        ([], ["train.n_steps=randint(1,2.5)"], 2, "randint takes whole numbers"),
        ([], ["train.n_steps=uniform(1,2)"], 2, "Input should be a valid integer"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_mistake_in_the_space_is_one_clear_error(grid: list[str], search: list[str], samples: int, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        points_of(*grid, search=search, samples=samples)
    assert said in str(error.value)
    assert "--set" not in str(error.value)


@pytest.mark.parametrize("name", TRAIN_WITHOUT_EFFECT)
def test_what_does_not_change_the_numbers_cannot_be_swept(name: str) -> None:
    with pytest.raises(ConfigError, match="it does not change the numbers"):
        points_of(f"train.{name}=1,2")


def test_several_workers_for_one_point_are_refused() -> None:
    config = apply_overrides(TINY, ["train.n_workers=2"])
    with pytest.raises(ConfigError, match="one worker"):
        plan_points(config, SweepConfig(grid=("train.n_steps=1,2",)))


@pytest.mark.parametrize("field", ["samples", "seed"])
def test_numbers_below_zero_are_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field}=-1 is below 0"):
        SweepConfig(**{field: -1})


def name_of(config: PipelineConfig = TINY, dataset: Any = DATASET, **settings: Any) -> str:
    return sweep_name(config, SweepConfig(**({"grid": ("train.n_steps=1,2",)} | settings)), dataset)


def test_a_sweep_is_named_by_what_it_computes() -> None:
    name = name_of()
    assert name.startswith("music_transformer_tiny-")
    same = [
        name_of(concurrent=2),
        name_of(seed=5),  # nothing is drawn
        name_of(grid=("train.n_steps=1, 2",)),
        name_of(apply_overrides(TINY, ["train.cpus_per_worker=1"])),
        name_of(apply_overrides(TINY, ["generate.n_pieces=2", "dataset.name=other"])),
    ]
    assert set(same) == {name}
    drawn = {"search": ("train.schedule.max_lr=uniform(0.1,0.2)",), "samples": 3}
    others = [
        name_of(early_stopping=True),
        name_of(grid=("train.n_steps=1,3",)),
        name_of(apply_overrides(TINY, ["train.seed=1"])),
        name_of(apply_overrides(TINY, ["evaluate.seed=1"])),
        name_of(dataset=SimpleNamespace(name="mine", version="f" * 16)),
        name_of(**drawn),
        name_of(**drawn, seed=1),
        name_of(**(drawn | {"samples": 4})),
        name_of(**(drawn | {"search": ("train.schedule.max_lr=loguniform(0.1,0.2)",)})),
    ]
    assert len({name, *others}) == len(others) + 1


OLD_SPACE = {
    "grid": ("evaluate.window_tokens=32,64", "train.compiled=true,false"),
    "search": ("train.schedule.peak=loguniform(1e-4,1e-2)",),
    "samples": 3,
}
SPACE = {
    "grid": ("evaluate.seq_len=32,64", "train.compile=true,false"),
    "search": ("train.schedule.max_lr=loguniform(1e-4,1e-2)",),
    "samples": 3,
}


@pytest.mark.parametrize("space", [OLD_SPACE, SPACE], ids=["old", "new"])
def test_renamed_settings_change_no_sweep_and_no_draw(space: dict[str, Any]) -> None:
    """The name and the draws are those of 96e5a72, where the settings had other names."""
    assert name_of(**space) == "music_transformer_tiny-cc6a04cace83"
    points = plan_points(TINY, SweepConfig(**space))
    assert [point.values["train.schedule.max_lr"] for point in points[:3]] == [0.00384373, 0.00611731, 0.00010942]
    assert points[0].settings == "evaluate.seq_len=32, train.compile=true, train.schedule.max_lr=0.00384373"


def test_rows_of_an_earlier_release_are_found(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    points = plan_points(TINY, SweepConfig(**SPACE))
    rows = [new_row(point) | {"reason": f"row {point.number}"} for point in points]
    old = {"evaluate.seq_len": "evaluate.window_tokens", "train.compile": "train.compiled", "max_lr": "peak"}
    text = json.dumps({"sweep": "s", "rows": rows})
    for name, before in old.items():
        text = text.replace(name, before)
    write_atomically(folder.results, sealed_bytes(json.loads(text)))
    assert folder.read_rows(points) == rows


TWO_AXES = ("train.model.n_layers=1,2,3", "train.optimizer.betas=[0.9,0.95];[0.8,0.9]")


def some_rows() -> list[dict[str, Any]]:
    rows = [
        new_row(point)
        for point in points_of("train.model.n_layers=1,2,3", "train.optimizer.betas=[0.9,0.95];[0.8,0.9]")
    ]
    for row, bits in zip(rows, (9.5, 8.0, float("nan"), 8.5), strict=False):
        row |= {"status": TRAINED, "val_loss": 2.0, "step": 5, "model_version": "m@1"}
        set_figures(row, {"bits_per_note": bits, "nll_per_token": 2.0, "accuracy": 0.3})
    rows[4] |= {"status": STOPPED, "step": 3, "val_loss": 3.0}
    set_failed(rows[5], "RuntimeError:\n  not enough\nmemory")
    return rows


def test_rows_are_ranked_by_bits_per_note_and_the_failed_come_last() -> None:
    ranked = rank(some_rows())
    assert [row["point"] for row in ranked] == [2, 4, 1, 5, 3, 6]
    assert [row["status"] for row in ranked] == [FINISHED, FINISHED, FINISHED, STOPPED, FAILED, FAILED]
    assert ranked[4]["reason"] == "bits_per_note is nan"
    assert ranked[5]["reason"] == "RuntimeError: not enough memory"
    assert ranked[4]["bits_per_note"] is None


def test_the_table_has_a_column_for_each_swept_setting() -> None:
    lines = list(csv.DictReader(io.StringIO(csv_bytes(rank(some_rows())).decode())))
    assert len(lines) == 6
    assert lines[0] | {"run_id": ""} == {
        "point": "2", "train.model.n_layers": "1", "train.optimizer.betas": "[0.8, 0.9]", "status": "finished",
        "reason": "", "step": "5", "n_steps": "2000", "val_loss": "2.0", "bits_per_note": "8.0", "nll_per_token": "2.0",
        "accuracy": "0.3", "model_version": "m@1", "run_id": "", "run_dir": "", "n_parameters": "",
    }  # fmt: skip
    assert lines[-1]["bits_per_note"] == ""


def test_rows_are_found_again_by_their_settings(tmp_path: Path) -> None:
    plan = SweepConfig(grid=TWO_AXES)
    folder = SweepFolder.of(Home.at(tmp_path), TINY, plan, DATASET)
    points = plan_points(TINY, plan)
    assert folder.read_rows(points) == [new_row(point) for point in points]
    rows = some_rows()
    assert folder.write_rows(rows) == rank(rows)
    assert folder.read_rows(points) == rows
    assert json.loads(folder.results.read_text())["rows"][0]["point"] == 2
    assert folder.run_id() == ""
    folder.start("run-1", TINY, plan, DATASET)
    assert folder.run_id() == "run-1"


def pixels(picture: bytes) -> Any:
    from matplotlib.image import imread

    return imread(io.BytesIO(picture))


def test_the_picture_has_a_panel_for_each_setting_and_shows_the_best_in_red() -> None:
    rows = rank(some_rows())
    drawn = pixels(draw_sweep("a sweep", rows))
    single = pixels(draw_sweep("a sweep", [row | {"values": {"train.n_steps": row["point"]}} for row in rows]))
    assert drawn.shape[1] > single.shape[1]

    def n_red(image: Any) -> int:
        return int(((image[..., 0] > 0.7) & (image[..., 1] < 0.3) & (image[..., 2] < 0.3)).sum())

    assert n_red(drawn) > 1.5 * n_red(single) > 0
    assert n_red(pixels(draw_sweep("none", [row for row in rows if row["status"] == FAILED]))) == 0
