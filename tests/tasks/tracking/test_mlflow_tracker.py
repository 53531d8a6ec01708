"""Runs end as they should, curves and parameters may be offered twice, models are found, fetched and promoted."""

import math
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
from mlflow.exceptions import MlflowException

from tasks.checkpoints import exported, load_model
from tasks.config.evaluation import EvaluateConfig
from tasks.config.serialization import to_json
from tasks.dataset.versions import DatasetVersion
from tasks.errors import Interrupted, NotFound
from tasks.evaluation.evaluate import Evaluation
from tasks.evaluation.summary import log_evaluation
from tasks.storage.home import Home
from tasks.tracking.mlflow_tracker import CurveLog, ModelVersion, Run, Tracker
from tests.flows.conftest import clean_environment
from tests.samples import short_training, small_corpus, small_dataset, small_model

pytestmark = pytest.mark.slow  # seconds a test; see `make check`

TRAINING, EVALUATION = "orchestrion/training", "orchestrion/evaluation"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """One home for the file: a new tracking store takes seconds."""
    return Home.at(tmp_path_factory.mktemp("tracking") / "home")


@pytest.fixture(scope="module")
def dataset(home: Home) -> DatasetVersion:
    return small_dataset(home, small_corpus(home.root.parent / "midi"))


@pytest.fixture(scope="module")
def checkpoint(home: Home, dataset: DatasetVersion) -> Path:
    return small_model(home, dataset, n_steps=2)


@pytest.fixture(scope="module")
def tracker(home: Home, quiet_environment: Path) -> Tracker:
    return Tracker(home)


@pytest.fixture(scope="module")
def register(tracker: Tracker, dataset: DatasetVersion, checkpoint: Path) -> Callable[[str], ModelVersion]:
    """Register the one checkpoint under a name."""

    def register(name: str) -> ModelVersion:
        path = str(checkpoint.relative_to(tracker.home.root))
        facts = {"preset": "small", "dataset": dataset.reference, "checkpoint": path}
        with tracker.open_run(TRAINING, name) as run, exported(checkpoint, facts) as folder:
            return run.register_model(name, folder, facts)

    return register


def status_of(tracker: Tracker, run: Run) -> str:
    return tracker.client.get_run(run.run_id).info.status


def test_a_home_without_models_says_what_to_do(tracker: Tracker) -> None:
    # First in the file: the store is empty.
    assert tracker.models() == []
    assert tracker.recent_runs() == []
    with pytest.raises(NotFound, match="holds no trained model yet; run `orchestrion train` first"):
        tracker.model()


def test_a_run_can_hold_figures_of_the_machine(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    cpu, n_points = "system/cpu_utilization_percentage", 0
    run_id = ""
    for _ in range(2):  # a run that is continued goes on after the points that it has
        with tracker.open_run(TRAINING, "watched", run_id=run_id, watches_machine=True) as run:
            run_id, begun = run.run_id, n_points
            while n_points < begun + 2:
                time.sleep(0.05)
                n_points = len(history(tracker, run, cpu))
        steps = [step for step, _ in history(tracker, run, cpu)]
        assert steps == sorted(set(steps))
    metrics = tracker.client.get_run(run_id).data.metrics
    assert metrics["system/system_memory_usage_megabytes"] > 0
    (found,) = tracker.find_runs(run_id)
    assert found["metrics"] == {}  # lists of runs show those of the training
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    with tracker.open_run(TRAINING, "unwatched", watches_machine=True):
        assert not any(thread.name == "SystemMetricsMonitor" for thread in threading.enumerate())


def history(tracker: Tracker, run: Run, metric: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in tracker.client.get_metric_history(run.run_id, metric))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "FINISHED"),
        (ValueError("loss is not finite"), "FAILED"),
        (Interrupted("stopped by SIGINT at step 5 of 12; saved"), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(143), "KILLED"),
    ],
)
def test_a_run_ends_as_what_happened_in_it(tracker: Tracker, error: BaseException | None, status: str) -> None:
    opened: list[Run] = []

    def work() -> None:
        with tracker.open_run(TRAINING, "a run", {"orchestrion.preset": "small"}) as run:
            opened.append(run)
            assert status_of(tracker, run) == "RUNNING"
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            work()
    else:
        work()
    info = tracker.client.get_run(opened[0].run_id).info
    assert info.status == status
    assert info.end_time is not None


def test_a_run_that_was_stopped_goes_on_as_the_same_run(tracker: Tracker) -> None:
    with tracker.open_run(TRAINING, "stopped") as run:
        run.log_params({"n_steps": 12})
    with tracker.open_run(TRAINING, "stopped", run_id=run.run_id) as again:
        assert again.run_id == run.run_id
        assert status_of(tracker, again) == "RUNNING"
    assert status_of(tracker, run) == "FINISHED"


def test_runs_carry_their_tags_parent_and_commit(tracker: Tracker) -> None:
    with (
        tracker.open_run(TRAINING, "parent") as parent,
        tracker.open_run(EVALUATION, "child", {"orchestrion.batch": "b-1"}, parent.run_id) as child,
    ):
        child.log_tags({"orchestrion.model_version": "small@1"})
        child.describe("# A page")
    tags = tracker.client.get_run(child.run_id).data.tags
    assert tags["mlflow.parentRunId"] == parent.run_id
    assert tags["orchestrion.batch"] == "b-1"
    assert tags["orchestrion.model_version"] == "small@1"
    assert tags["orchestrion.git_commit"]
    assert tags["mlflow.note.content"] == "# A page"
    newest = tracker.recent_runs(limit=2)
    assert {entry["name"] for entry in newest} == {"parent", "child"}
    assert next(entry for entry in newest if entry["name"] == "child")["experiment"] == EVALUATION


def test_the_file_says_what_mlflow_says(tracker: Tracker, register: Callable[[str], ModelVersion]) -> None:
    tracker.promote(register("direct"))
    with tracker.open_run(TRAINING, "with figures", {"orchestrion.preset": "small"}) as run:
        run.log_metrics({"loss": 0.5, "broken": math.nan})
        run.log_metrics({"loss": 0.25}, step=2)
    asked = Tracker(tracker.home)
    asked.__dict__["_file"] = None  # as where a server keeps the store
    assert repr(tracker.recent_runs()) == repr(asked.recent_runs())  # NaN is not equal to itself
    assert repr(tracker.find_runs(run.run_id[:6])) == repr(asked.find_runs(run.run_id[:6]))
    assert tracker.models() == asked.models() != []


def test_parameters_may_be_logged_twice(tracker: Tracker) -> None:
    with tracker.open_run(TRAINING, "twice") as run:
        run.log_params(to_json(short_training()), "train")
        first = dict(tracker.client.get_run(run.run_id).data.params)
        run.log_params(to_json(short_training(n_steps=99)), "train")  # MLflow itself refuses another value
        run.log_params({"extra": {"deep": [1, 2]}})
    assert first["train.model.d_model"] == "32"
    assert first["train.n_steps"] == "12"
    assert dict(tracker.client.get_run(run.run_id).data.params) == first | {"extra.deep": "[1, 2]"}


def test_long_parameters_and_many_of_them_are_kept(tracker: Tracker) -> None:
    with tracker.open_run(TRAINING, "many") as run:
        run.log_params({f"p{index}": index for index in range(250)} | {"long": "x" * 7000})
    params = tracker.client.get_run(run.run_id).data.params
    assert len(params) == 251
    assert params["long"] == "x" * 6000


def test_a_curve_offered_again_has_each_step_once(tracker: Tracker) -> None:
    points = [(step, {"train/loss": 6 - step / 10, "train/rate": float(step)}) for step in range(1, 2501)]
    with tracker.open_run(TRAINING, "curve") as run:
        run.log_curve(points[:1500])
        run.log_curve(points[:1500])
        run.log_curve([])
    with tracker.open_run(TRAINING, "curve", run_id=run.run_id) as resumed:
        resumed.log_curve(points)
    for metric in ("train/loss", "train/rate"):
        assert history(tracker, run, metric) == [(step, values[metric]) for step, values in points]


class Silent:
    """A client whose tracker does not answer while `is_away`."""

    def __init__(self, client: Any) -> None:
        self.client, self.error, self.n_asked = client, None, 0

    def __getattr__(self, name: str) -> Any:
        if self.error and name in ("log_batch", "get_metric_history"):
            self.n_asked += 1
            raise self.error
        return getattr(self.client, name)


def test_a_tracker_that_is_away_gets_the_curve_later(
    home: Home, tracker: Tracker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tasks.tracking.mlflow_tracker")
    points = [{"step": float(step), "train/loss": 1.0 / step} for step in range(1, 8)]
    other = Tracker(home)
    other.client = client = Silent(tracker.client)  # type: ignore[assignment]
    with other.open_run(TRAINING, "outage") as run:
        curves = CurveLog(run)
        curves.add(points[:1])
        for error in (MlflowException("API request failed"), ConnectionResetError("reset"), TimeoutError()):
            client.error = error  # type: ignore[assignment]
            curves.add(points[1:2])
            curves.add([])
        assert client.n_asked == 3
        with pytest.raises(TimeoutError):
            curves.close()  # a training that is over needs the tracker
        client.error = MlflowException("database or disk is full")  # type: ignore[assignment]
        with pytest.raises(MlflowException):
            curves.add(points[2:3])
        client.error = None
        curves.add(points[3:])
        curves.close()
    assert history(tracker, run, "train/loss") == [(int(p["step"]), p["train/loss"]) for p in points]
    assert [record.levelname for record in caplog.records if "tracker" in record.message] == ["WARNING", "INFO"]


def test_figures_that_are_no_numbers_do_not_stop_a_run(tracker: Tracker) -> None:
    with tracker.open_run(EVALUATION, "odd") as run:
        run.log_metrics({"a": math.nan, "b": math.inf, "c": 1.5})
        run.log_metrics({"c": 2.5})
    assert tracker.client.get_run(run.run_id).data.metrics["c"] == 2.5
    assert math.isnan(tracker.client.get_run(run.run_id).data.metrics["a"])


def test_files_texts_and_datasets_are_found_on_the_run(
    tracker: Tracker, dataset: DatasetVersion, tmp_path: Path
) -> None:
    (tmp_path / "batch" / "pieces").mkdir(parents=True)
    (tmp_path / "batch" / "pieces" / "0000.mid").write_bytes(b"MThd")
    with tracker.open_run(TRAINING, "files") as run:
        run.log_file(dataset.manifest_path)
        run.log_folder(tmp_path / "batch")
        run.log_text("# Report", "report.md")
        run.use_dataset(dataset, "training")
    names = {item.path for item in tracker.client.list_artifacts(run.run_id)}
    assert {"manifest.json", "pieces", "report.md"} <= names
    found = tracker.client.get_run(run.run_id)
    (used,) = found.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == (dataset.name, dataset.version)
    assert found.data.tags["orchestrion.dataset_version"] == dataset.version


def test_a_run_that_is_gone_is_told_from_one_that_is_there(tracker: Tracker) -> None:
    with tracker.open_run(TRAINING, "here") as run:
        pass
    assert tracker.has_run(run.run_id)
    assert not tracker.has_run("0" * 32)
    tracker.client.delete_run(run.run_id)
    assert not tracker.has_run(run.run_id)


def test_models_are_found_by_version_alias_name_and_as_the_newest(
    tracker: Tracker, register: Callable[[str], ModelVersion], dataset: DatasetVersion
) -> None:
    first, second = register("found"), register("found")
    assert [first.reference, second.reference] == ["found@1", "found@2"]
    assert (first.dataset, first.checkpoint.is_absolute()) == (dataset.reference, False)
    assert tracker.has_run(first.run_id)
    assert tracker.client.get_run(first.run_id).data.tags["orchestrion.model_version"] == "found@1"
    tracker.promote(first)
    promoted = replace(first, aliases=("champion",))
    assert tracker.model("found@1") == tracker.model("found@champion") == tracker.champion("found") == promoted
    assert tracker.model("found@2") == tracker.model("found@latest") == tracker.model("found") == second
    assert tracker.model() == second
    tracker.promote(second)
    assert tracker.champion("found") == replace(second, aliases=("champion",))
    assert tracker.model("found@1") == first
    assert tracker.champion("nonesuch") is None


def test_what_is_not_found_lists_what_there_is(tracker: Tracker, register: Callable[[str], ModelVersion]) -> None:
    tracker.promote(register("listed"))
    register("listed")
    with pytest.raises(NotFound, match=r"no model 'absent'; known: .*listed") as error:
        tracker.model("absent@3")
    assert "\n" not in str(error.value)
    for wanted in ("7", "staging", "0"):
        message = rf"model 'listed' has no version or alias '{wanted}'; known: listed@2, listed@1 \(champion\)"
        with pytest.raises(NotFound, match=message):
            tracker.model(f"listed@{wanted}")


def test_a_model_is_fetched_from_its_checkpoint_else_from_the_registry(
    tracker: Tracker, register: Callable[[str], ModelVersion], checkpoint: Path, tmp_path: Path
) -> None:
    model = register("fetched")
    assert tracker.fetch(model) == checkpoint
    weights = (checkpoint / "model.safetensors").read_bytes()
    away = tmp_path / "away"
    shutil.move(checkpoint, away)
    try:
        copy = tracker.fetch(model)
        assert copy != checkpoint
        assert (copy / "model.safetensors").read_bytes() == weights
        assert load_model(copy).state == load_model(away).state
        assert not (copy / "optimizer.safetensors").exists()
        with pytest.raises(NotFound, match=r"model fetched@99: its checkpoint .* is gone and the registry has no copy"):
            tracker.fetch(replace(model, version="99"))
    finally:
        shutil.move(away, checkpoint)
    assert tracker.fetch(model) == checkpoint


def test_tags_of_a_version_come_back(tracker: Tracker, register: Callable[[str], ModelVersion]) -> None:
    model = register("tagged")
    tracker.set_model_tags(model, {"bits_per_note": "12.5"})
    tags = tracker.model_tags(model)
    assert tags["bits_per_note"] == "12.5"
    assert tags["preset"] == "small"


def score(
    tracker: Tracker,
    model: ModelVersion,
    dataset: DatasetVersion,
    bits_per_note: float,
    piece_nats: tuple[float, ...] = (),
    **settings: Any,
) -> bool:
    names = ("nll_per_token", "accuracy", "perplexity", "bits_per_second", "n_tokens")
    figures = dict.fromkeys((*names, "baseline/accuracy", "baseline/nll_per_token"), 1.0)
    figures |= {"bits_per_note": bits_per_note} | settings.pop("figures", {})
    result = Evaluation(figures, {}, 1, 1, 0, piece_nats)
    with tracker.open_run(EVALUATION, "score") as run:
        run.log_params(to_json(EvaluateConfig(**settings)), "evaluate")
        return log_evaluation(run, result, model, dataset, EvaluateConfig(**settings))


def test_the_champion_gives_way_only_to_a_better_model(
    tracker: Tracker, register: Callable[[str], ModelVersion], dataset: DatasetVersion
) -> None:
    first, second, third = (register("rivals") for _ in range(3))

    def champion() -> str | None:
        found = tracker.champion("rivals")
        return found.version if found else None

    assert not score(tracker, first, dataset, 9.0, promote=False)
    assert champion() is None
    assert score(tracker, first, dataset, 9.0)
    assert champion() == "1"
    assert not score(tracker, second, dataset, 9.0)  # as good is not better
    assert not score(tracker, second, dataset, 9.5)
    assert not score(tracker, second, dataset, 8.0, promote=False)
    assert champion() == "1"
    assert score(tracker, second, dataset, 8.9)
    assert champion() == "2"
    assert score(tracker, second, dataset, 9.9)  # the champion itself, scored anew
    assert not score(tracker, third, dataset, math.nan)  # a model that has diverged
    assert champion() == "2"
    assert score(tracker, third, dataset, 9.8)
    assert champion() == "3"
    assert tracker.model_tags(third)["bits_per_note"] == "9.800000"


@pytest.mark.parametrize(("promote_by", "wins"), [("interval", False), ("figure", True)])
def test_a_lower_figure_within_noise_makes_no_champion(
    tracker: Tracker, register: Callable[[str], ModelVersion], dataset: DatasetVersion, promote_by: str, wins: bool
) -> None:
    name = f"noisy-{promote_by}"
    first, second, third = (register(name) for _ in range(3))
    nats = (100.0, 90.0, 110.0, 95.0, 105.0, 100.0)
    assert score(tracker, first, dataset, 8.0, nats)
    lucky = (20.0, 91.0, 111.0, 96.0, 106.0, 101.0)  # one piece makes all the difference
    assert score(tracker, second, dataset, 7.0, lucky, promote_by=promote_by) is wins
    better = tuple(0.8 * n for n in nats)
    assert score(tracker, third, dataset, 6.4, better, promote_by=promote_by)
    description = tracker.client.get_run(tracker.recent_runs(1)[0]["run_id"]).data.tags["mlflow.note.content"]
    assert f"Champion {name}@" in description
    assert ("(95 %)" in description) is not wins


def test_figures_of_another_dataset_version_or_split_are_not_compared(
    tracker: Tracker, register: Callable[[str], ModelVersion], dataset: DatasetVersion
) -> None:
    first, second = register("moved"), register("moved")
    assert score(tracker, first, dataset, 5.0)
    assert score(tracker, second, replace(dataset, version="0123456789abcdef"), 7.0)
    assert score(tracker, first, dataset, 6.0, split="validation")
    champion = tracker.champion("moved")
    assert champion is not None
    assert champion.version == "1"


def last_words(tracker: Tracker) -> str:
    """Return the description of the newest run."""
    return tracker.client.get_run(tracker.recent_runs(1)[0]["run_id"]).data.tags["mlflow.note.content"]


NATS = (100.0, 90.0, 110.0, 95.0, 105.0, 100.0)
BETTER = tuple(0.5 * nats for nats in NATS)


def test_a_model_scored_with_more_context_is_not_compared_until_both_are(
    tracker: Tracker, register: Callable[[str], ModelVersion], dataset: DatasetVersion
) -> None:
    first, second = register("context"), register("context")
    assert score(tracker, first, dataset, 8.0, NATS, seq_len=64)
    for promote_by in ("interval", "figure"):
        more = {"seq_len": 4096, "promote_by": promote_by}
        assert not score(tracker, second, dataset, 4.0, BETTER, **more)
        assert "context@1 was scored with seq_len=64, this model with 4096" in last_words(tracker)
    assert score(tracker, first, dataset, 7.0, NATS, seq_len=4096)  # the champion again, with the same context
    assert score(tracker, second, dataset, 4.0, BETTER, seq_len=4096)


def test_a_champion_of_an_older_release_is_compared_by_the_settings_of_its_run(
    tracker: Tracker, register: Callable[[str], ModelVersion], dataset: DatasetVersion
) -> None:
    first, second = register("older"), register("older")
    assert score(tracker, first, dataset, 8.0, NATS, seq_len=64)
    tracker.client.delete_model_version_tag("older", first.version, "scored_with")
    assert not score(tracker, second, dataset, 4.0, BETTER, seq_len=4096)
    assert score(tracker, second, dataset, 4.0, BETTER, seq_len=64)
    tracker.client.delete_model_version_tag("older", second.version, "scored_with")
    tracker.set_model_tags(second, {"scored_by": "0" * 32})
    assert not score(tracker, first, dataset, 2.0, BETTER, seq_len=64)
    assert "scored with unknown settings (seq_len)" in last_words(tracker)


def test_lost_piece_scores_make_no_champion(
    tracker: Tracker, register: Callable[[str], ModelVersion], dataset: DatasetVersion
) -> None:
    first, second = register("lost"), register("lost")
    assert score(tracker, first, dataset, 8.0, NATS)
    run_id = tracker.model_tags(first)["scored_by"]
    artifacts = Path(url2pathname(urlsplit(tracker.client.get_run(run_id).info.artifact_uri).path))
    (artifacts / "pieces.json").write_text("{")
    assert not score(tracker, second, dataset, 4.0, BETTER)
    assert "No interval can be computed: the piece scores of lost@1 cannot be read" in last_words(tracker)
    (artifacts / "pieces.json").unlink()
    assert not score(tracker, second, dataset, 4.0, BETTER)
    assert not score(tracker, second, dataset, 4.0, BETTER[:1])
    assert score(tracker, second, dataset, 4.0, BETTER, promote_by="figure")  # asked for


@pytest.mark.parametrize("nats", [(), BETTER], ids=["ours", "theirs"])
def test_pieces_without_scores_are_compared_by_the_figure_and_it_is_said(
    tracker: Tracker, register: Callable[[str], ModelVersion], dataset: DatasetVersion, nats: tuple[float, ...]
) -> None:
    name = f"latent-{len(nats)}"
    first, second = register(name), register(name)
    assert score(tracker, first, dataset, 8.0, () if nats else NATS)
    assert score(tracker, second, dataset, 7.9, nats)
    whose = f"{name}@1" if nats else "this model"
    assert f"By the figure alone, for the pieces of {whose} have no scores of their own: it has" in last_words(tracker)


def test_the_latents_of_two_models_are_drawn_alike(
    tracker: Tracker, register: Callable[[str], ModelVersion], dataset: DatasetVersion
) -> None:
    first, second = register("drawn"), register("drawn")
    latent: Any = {"figures": {"kl": 0.1}}
    assert score(tracker, first, dataset, 8.0, **latent, seq_len=64)
    assert not score(tracker, second, dataset, 7.0, **latent, seed=1)
    assert "scored with seed=0, this model with 1" in last_words(tracker)
    assert score(tracker, second, dataset, 7.0, **latent)  # whole blocks, whatever the window


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_model_with_a_figure_that_is_not_finite_makes_no_champion(
    tracker: Tracker, register: Callable[[str], ModelVersion], dataset: DatasetVersion, value: float
) -> None:
    name = f"broken{value}".replace("-", "_")
    first, second = register(name), register(name)
    assert not score(tracker, first, dataset, 5.0, figures={"nll_per_token": value})
    assert not score(tracker, first, dataset, value)
    assert tracker.champion(name) is None
    assert score(tracker, first, dataset, 8.0)
    assert not score(tracker, first, dataset, value)  # the champion itself, whose file was damaged
    assert score(tracker, second, dataset, 9.0)


def test_scores_on_the_training_split_make_no_champion_and_leave_its_figure(
    tracker: Tracker, register: Callable[[str], ModelVersion], dataset: DatasetVersion
) -> None:
    model = register("memory")
    assert not score(tracker, model, dataset, 0.1, split="train")
    assert tracker.champion("memory") is None
    assert score(tracker, model, dataset, 5.0)
    assert not score(tracker, model, dataset, 0.1, split="train")
    assert tracker.model_tags(model)["bits_per_note"] == "5.000000"


def test_models_of_other_names_do_not_compete(
    tracker: Tracker, register: Callable[[str], ModelVersion], dataset: DatasetVersion
) -> None:
    assert score(tracker, register("one"), dataset, 5.0)
    assert score(tracker, register("other"), dataset, 9.0)
    assert tracker.champion("one") is not None
    assert tracker.champion("other") is not None


@pytest.mark.slow
def test_a_store_that_cannot_be_written_says_nothing_of_its_own(tmp_path: Path) -> None:
    """A file that may not grow stands for a disk that is full; the caller tells of it in one line."""
    code = (
        "import resource, signal, sys; from pathlib import Path; from flows.services import environment\n"
        "environment.set_defaults()\n"
        "from tasks.storage.home import Home, storage_problem; from tasks.tracking.mlflow_tracker import Tracker\n"
        "home = Home.at(sys.argv[1]); home.prepare()\n"
        "with Tracker(home).open_run('orchestrion/training', 'a run') as run: pass\n"
        "size = (home.mlflow / 'mlflow.db').stat().st_size\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
        "try:\n"
        "    for number in range(1000): run.log_params({f'p{number}_{key}': 'x' * 5000 for key in range(100)})\n"
        "except Exception as error: print(type(error).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "home")],
        capture_output=True, text=True, timeout=300, check=False, env=clean_environment(tmp_path / "home"),
    )  # fmt: skip
    assert done.stdout == "MlflowException\n", done.stderr
    assert done.stderr == ""
