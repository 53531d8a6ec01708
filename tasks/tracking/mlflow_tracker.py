"""The tracker on MLflow: parameters, curves, files, lineage and registered models of a run."""

import logging
import os
import sqlite3
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from tasks.config.old_names import current_path
from tasks.errors import Interrupted, NotFound, plural, words_of
from tasks.runtime.signals import held, last_words
from tasks.storage.databases import check_database
from tasks.storage.files import storage_problem
from tasks.storage.home import Home
from tasks.storage.integrity import parse_sealed
from tasks.storage.project import git_commit
from tasks.tracking.mlflow_server import check_password
from tasks.tracking.sqlite_store import StoredVersion, read_runs, read_versions, run_facts

logger = logging.getLogger(__name__)

EXPERIMENTS = ("orchestrion/datasets", "orchestrion/training", "orchestrion/evaluation", "orchestrion/generation")
CHAMPION, LATEST = "champion", "latest"  # MLflow reserves `latest` and means the highest version by it
PIECE_SCORES = "pieces.json"  # artifact of an evaluation
NATS = {"nats": [float]}  # shape of it
NUMBER = "orchestrion.number"  # tag of a model version: its number in the home
_MAX_PARAM_LENGTH = 6000
_MOST_VERSIONS = 10_000  # of models, of all names together


class TrackedDataset(Protocol):
    """What a run records of a dataset version that it reads or builds."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def manifest_path(self) -> Path: ...


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A registered model version and the checkpoint folder it was made from."""

    name: str
    version: str
    run_id: str
    checkpoint: Path  # within the home
    dataset: str  # name@version
    preset: str
    model_id: str
    aliases: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"


class Run:
    """One open MLflow run. Ids travel; the run itself is only touched by the flow that opened it."""

    def __init__(self, tracker: "Tracker", run_id: str) -> None:
        self.tracker, self.run_id, self._client = tracker, run_id, tracker.client
        self._steps_of: dict[str, set[int]] = {}  # metric -> steps that the store has a point of

    def log_params(self, values: Mapping[str, Any], prefix: str = "") -> None:
        """Log nested settings once, as dotted names."""
        from mlflow.entities import Param

        flat = {key: str(value)[:_MAX_PARAM_LENGTH] for key, value in _flatten(values, prefix)}
        known = self._client.get_run(self.run_id).data.params
        self._client.log_batch(self.run_id, params=[Param(*item) for item in flat.items() if item[0] not in known])

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self._log_points([(step, values)])

    def log_curve(self, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Log many points at once: (step, {metric: value}); a step that a curve has already is left as it is.

        So a training run that was stopped or retried may offer its curves again from the beginning.
        """
        fresh = [
            (step, {key: value for key, value in values.items() if self._is_new(key, step)}) for step, values in points
        ]
        self._log_points(fresh)
        for step, values in fresh:
            for key in values:
                self._steps_of[key].add(step)

    def _is_new(self, key: str, step: int) -> bool:
        if key not in self._steps_of:
            self._steps_of[key] = {point.step for point in self._client.get_metric_history(self.run_id, key)}
        return step not in self._steps_of[key]

    def _log_points(self, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(key, float(value), now, step) for step, values in points for key, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self._client.set_tag(self.run_id, key, value)

    def log_file(self, path: Path, folder: str = "") -> None:
        self._client.log_artifact(self.run_id, str(path), folder or None)

    def log_folder(self, path: Path, folder: str = "") -> None:
        self._client.log_artifacts(self.run_id, str(path), folder or None)

    def log_text(self, text: str, file: str) -> None:
        self._client.log_text(self.run_id, text, file)

    def describe(self, markdown: str) -> None:
        """Set the description that heads the run's page."""
        self._client.set_tag(self.run_id, "mlflow.note.content", markdown)

    def use_dataset(self, dataset: TrackedDataset, context: str) -> None:
        from mlflow.data.dataset_source_registry import resolve_dataset_source
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a local path may be several kinds of source: one warning a call
            source = resolve_dataset_source(str(dataset.manifest_path))
            entity = MetaDataset(source=source, name=dataset.name, digest=dataset.version)._to_mlflow_entity()
        tag = InputTag("mlflow.data.context", context)
        self._client.log_inputs(self.run_id, datasets=[DatasetInput(entity, [tag])])
        self.log_tags({"orchestrion.dataset": dataset.name, "orchestrion.dataset_version": dataset.version})

    def use_model(self, model: ModelVersion) -> None:
        from mlflow.entities import LoggedModelInput

        if model.model_id:
            self._client.log_inputs(self.run_id, models=[LoggedModelInput(model.model_id)])
        self.log_tags({"orchestrion.model_version": model.reference})

    def register_model(self, name: str, export: Path, facts: Mapping[str, str]) -> ModelVersion:
        """Register the files of `export` (weights, config, card) as a version of `name` with `facts` as tags."""
        from mlflow.entities import LoggedModelOutput

        client = self._client
        run = client.get_run(self.run_id)
        logged = client.create_logged_model(
            experiment_id=run.info.experiment_id,
            name=name,
            source_run_id=self.run_id,
            model_type=facts.get("preset", name),
            tags={key: str(value) for key, value in facts.items()},
        )
        client.log_model_artifacts(logged.model_id, str(export))
        client.finalize_logged_model(logged.model_id, "READY")
        client.log_outputs(self.run_id, models=[LoggedModelOutput(logged.model_id, 0)])
        if not any(known.name == name for known in client.search_registered_models(f"name='{name}'")):
            client.create_registered_model(name)
        made = client.create_model_version(
            name,
            source=f"models:/{logged.model_id}",
            run_id=self.run_id,
            tags=dict(facts) | {"model_id": logged.model_id, NUMBER: str(self.tracker.next_number())},
            model_id=logged.model_id,
        )
        self.log_tags({"orchestrion.model_version": f"{name}@{made.version}"})
        return self.tracker.model(f"{name}@{made.version}")


class CurveLog:
    """Sends a training's points to its run; a tracker that does not answer stops no training.

    What could not be sent is sent with the next points, or by `close`.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.waiting: list[tuple[int, Mapping[str, float]]] = []
        self.is_away = False

    def add(self, points: Sequence[Mapping[str, float]]) -> None:
        """Send points, each with its `step`, and those that wait.

        Raises the tracker's own error where its disk is full or cannot be written to: training would fail too.
        """
        from mlflow.exceptions import MlflowException

        if not points:
            return
        self.waiting += [(int(point["step"]), {k: v for k, v in point.items() if k != "step"}) for point in points]
        try:
            self.close()
        except (MlflowException, OSError) as error:
            if storage_problem(error):
                raise
            if not self.is_away:
                message = "the tracker does not answer, training goes on and its curves follow later: %s"
                logger.warning(message, words_of(error))
            self.is_away = True

    def close(self) -> None:
        """Send what waits; raises where the tracker still does not answer."""
        if self.waiting:
            self.run.log_curve(self.waiting)
        if self.is_away:
            logger.info("the tracker answers again: %s sent", plural(len(self.waiting), "point"))
        self.waiting, self.is_away = [], False


class Tracker:
    """The tracking store of a home: MLFLOW_TRACKING_URI where set, otherwise SQLite and files below `<home>/mlflow`."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home.mlflow / 'mlflow.db'}"

    @cached_property
    def _file(self) -> Path | None:
        """The SQLite file of the store, seen to be whole; None where a server or another database keeps it."""
        self.check_store()
        return Path(self.uri.removeprefix("sqlite:///")) if self.uri.startswith("sqlite:///") else None

    @cached_property
    def client(self) -> Any:
        logging.getLogger("alembic").setLevel(logging.WARNING)
        import mlflow

        if self.uri.startswith("sqlite:///"):
            self.home.mlflow.mkdir(parents=True, exist_ok=True)
            self.check_store()
        logging.getLogger("mlflow").setLevel(os.environ.get("MLFLOW_LOGGING_LEVEL", "WARNING").upper())
        given = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(self.uri)  # its registry asks for it; it also sets the variable, which is the user's
        if given is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        if self.uri.startswith(("http://", "https://")):
            check_password(self.uri)
        return mlflow.MlflowClient(self.uri)

    def check_store(self, thorough: bool = False) -> None:
        """Raise DamagedDatabase where the SQLite store is damaged, before MLflow makes a new one over it."""
        if self.uri.startswith("sqlite:///"):
            lost = "the runs and models it knew (datasets, checkpoints and batches stay)"
            check_database(Path(self.uri.removeprefix("sqlite:///")), lost, thorough)

    def experiment(self, name: str) -> str:
        """Return the id of an experiment, made on first use."""
        found = self.client.get_experiment_by_name(name)
        if found:
            return found.experiment_id
        location = None
        if self.uri.startswith("sqlite:///"):
            location = (self.home.mlflow / "artifacts" / name.replace("/", "-")).as_uri()
        return self.client.create_experiment(name, artifact_location=location)

    @contextmanager
    def open_run(
        self,
        experiment: str,
        name: str,
        tags: Mapping[str, str] | None = None,
        parent: str = "",
        run_id: str = "",
        watches_machine: bool = False,
    ) -> Iterator[Run]:
        """Open a run, or continue `run_id`, and close it as FINISHED, FAILED or KILLED.

        Args:
            watches_machine: log CPU, memory, disk, network and GPUs of this machine, by MLflow's own thread, every 10 s
                or MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL; MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false turns it off.
        """
        all_tags = {"mlflow.runName": name, "orchestrion.git_commit": git_commit(), **(tags or {})}
        if parent:
            all_tags["mlflow.parentRunId"] = parent
        with ExitStack() as stack:
            try:
                with held():  # otherwise a run may begin whose id is lost
                    if run_id:
                        self.client.update_run(run_id, status="RUNNING")
                    else:
                        made = self.client.create_run(self.experiment(experiment), tags=all_tags, run_name=name)
                        run_id = made.info.run_id
                    stack.enter_context(last_words(lambda: self.client.set_terminated(run_id, "KILLED")))
                if watches_machine:
                    stack.enter_context(self._machine_watched(run_id))
                yield Run(self, run_id)
            except BaseException as error:
                if run_id:  # not an Exception: Ctrl-C, a cancel from Prefect
                    is_failed = isinstance(error, Exception) and not isinstance(error, Interrupted)
                    self.client.set_terminated(run_id, "FAILED" if is_failed else "KILLED")
                raise
            self.client.set_terminated(run_id, "FINISHED")

    @contextmanager
    def _machine_watched(self, run_id: str) -> Iterator[None]:
        """Log the machine's metrics (`system/*`) to a run, after those that it has."""
        if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "").lower() in ("false", "0"):
            yield
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=self.uri)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def has_run(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException:
            return False

    def _read_file(self, read: Callable[..., list[Any]], *arguments: Any) -> list[Any] | None:
        """Return what `read` finds in the SQLite file of the store; None where MLflow has to be asked."""
        if self._file is None:
            return None
        try:
            return read(self._file, *arguments) if self._file.exists() else []
        except sqlite3.DatabaseError as error:  # tables of another MLflow, which its client upgrades
            logger.debug("%s is not read directly: %s", self._file, error)
            return None

    def recent_runs(self, limit: int = 20) -> list[dict[str, Any]]:
        """Return the newest runs of all experiments with their status, tags and main figures."""
        found = self._read_file(read_runs, EXPERIMENTS, "", limit)
        return self._search_runs(EXPERIMENTS, max_results=limit) if found is None else found

    def find_runs(self, beginning: str) -> list[dict[str, Any]]:
        """Return the runs whose id begins so, as `recent_runs` does."""
        found = self._read_file(read_runs, EXPERIMENTS, beginning)
        return self._search_runs(EXPERIMENTS, f"attributes.run_id LIKE '{beginning}%'") if found is None else found

    def evaluations(self, model: ModelVersion) -> list[dict[str, Any]]:
        """Return the finished evaluations of a model version, newest first, as `recent_runs` does."""
        wanted = f"tags.`orchestrion.model_version` = '{model.reference}' and attributes.status = 'FINISHED'"
        return self._search_runs(EXPERIMENTS[2:3], wanted)

    def _search_runs(
        self, experiments: Sequence[str], wanted: str = "", max_results: int = 100
    ) -> list[dict[str, Any]]:
        found = [experiment for name in experiments if (experiment := self.client.get_experiment_by_name(name))]
        if not found:
            return []
        names = {experiment.experiment_id: experiment.name for experiment in found}
        order = ["attributes.start_time DESC"]
        runs = self.client.search_runs(list(names), wanted, order_by=order, max_results=max_results)
        return [_run_facts(run, names[run.info.experiment_id]) for run in runs]

    def curve(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """Return (step, value) of a metric of a run, each step once; none where the run has no such metric."""
        return sorted({point.step: point.value for point in self.client.get_metric_history(run_id, key)}.items())

    def models(self) -> list[ModelVersion]:
        """Return every registered model version, newest first by number; versions without a number come last, by time.

        Numbers do not depend on the clock.
        """
        entries = self._read_file(read_versions)
        if entries is None:
            entries = self._asked_versions()
        entries.sort(key=lambda e: (_number_of(e), e.creation_timestamp, int(e.version)), reverse=True)
        return [_as_model_version(entry) for entry in entries]

    def _asked_versions(self) -> list[StoredVersion]:
        aliases = defaultdict[tuple[str, str], list[str]](list)
        for registered in self.client.search_registered_models(max_results=1000):
            for alias, version in sorted(registered.aliases.items()):
                aliases[registered.name, str(version)].append(alias)
        return [
            StoredVersion(
                entry.name, str(entry.version), entry.creation_timestamp, entry.run_id or "", entry.tags,
                aliases[entry.name, str(entry.version)],
            )
            for entry in self.client.search_model_versions(max_results=_MOST_VERSIONS)
        ]  # fmt: skip

    def next_number(self) -> int:
        """Return the number of the model version that is registered next, counted over all names."""
        entries = self.client.search_model_versions(max_results=_MOST_VERSIONS)
        return 1 + max(map(_number_of, entries), default=0)

    def model(self, reference: str = "") -> ModelVersion:
        """Return the version that `name@3`, `name@champion`, `name` (its latest) or nothing (the newest of all) names.

        Raises NotFound with the known models or versions.
        """
        known = self.models()
        if not known:
            raise NotFound(f"home {self.home.root} holds no trained model yet; run `orchestrion train` first")
        name, _, wanted = reference.partition("@")
        if not name:
            return known[0]
        versions = sorted((entry for entry in known if entry.name == name), key=lambda entry: -int(entry.version))
        if not versions:
            raise NotFound(f"no model {name!r}; known: {', '.join(sorted({entry.name for entry in known}))}")
        matching = [entry for entry in versions if wanted in ("", LATEST, entry.version) or wanted in entry.aliases]
        if not matching:
            listed = ", ".join(f"{v.reference}{''.join(f' ({a})' for a in v.aliases)}" for v in versions)
            raise NotFound(f"model {name!r} has no version or alias {wanted!r}; known: {listed}")
        return matching[0]

    def fetch(self, model: ModelVersion) -> Path:
        """Return a folder with a model's weights and state: its checkpoint or a copy; NotFound without both."""
        from mlflow.exceptions import MlflowException

        local = self.home.root / model.checkpoint
        if (local / "state.json").exists():
            return local
        try:
            _ = self.client  # MLflow's registry has the address that it sets
            from mlflow.artifacts import download_artifacts

            return Path(download_artifacts(f"models:/{model.name}/{model.version}", tracking_uri=self.uri))
        except (MlflowException, OSError) as error:
            raise NotFound(
                f"model {model.reference}: its checkpoint {local} is gone and the registry has no copy: {error}"
            ) from None

    def champion(self, name: str) -> ModelVersion | None:
        """Return the version of a model that carries the alias `champion`, if one does."""
        return next((entry for entry in self.models() if entry.name == name and CHAMPION in entry.aliases), None)

    def promote(self, model: ModelVersion) -> None:
        self.client.set_registered_model_alias(model.name, CHAMPION, model.version)

    def set_model_tags(self, model: ModelVersion, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self.client.set_model_version_tag(model.name, model.version, key, value)

    def piece_scores(self, run_id: str) -> list[float] | None:
        """Return the nats of each piece that an evaluation has scored; [] where pieces have no scores of their own.

        None where what the run kept cannot be read any more.
        """
        if not run_id or not self.has_run(run_id):
            return None
        try:
            with tempfile.TemporaryDirectory() as folder:
                text = Path(self.client.download_artifacts(run_id, PIECE_SCORES, folder)).read_text()
            return parse_sealed(text, f"{PIECE_SCORES} of run {run_id}", NATS)["nats"]
        except Exception as error:  # the store's own classes, many of them, or a damaged file
            logger.warning("%s of run %s cannot be read: %s", PIECE_SCORES, run_id, words_of(error))
            return None

    def params(self, run_id: str) -> dict[str, str]:
        """Return the parameters of a run, under their present names; none where the run is gone."""
        logged = self.client.get_run(run_id).data.params if run_id and self.has_run(run_id) else {}
        return {current_path(name): value for name, value in logged.items()}

    def model_tags(self, model: ModelVersion) -> dict[str, str]:
        return dict(self.client.get_model_version(model.name, model.version).tags)


def _run_facts(run: Any, experiment: str) -> dict[str, Any]:
    info = run.info
    return run_facts(
        info.run_id, experiment, info.experiment_id, info.run_name, info.status, info.start_time, info.end_time,
        run.data.tags, run.data.metrics,
    )  # fmt: skip


def _number_of(entry: Any) -> int:
    number = entry.tags.get(NUMBER, "0")
    return int(number) if number.isascii() and number.isdigit() and len(number) < 16 else 0


def _as_model_version(entry: StoredVersion) -> ModelVersion:
    tags = entry.tags
    return ModelVersion(
        name=entry.name,
        version=entry.version,
        run_id=entry.run_id or tags.get("run_id", ""),
        checkpoint=Path(tags.get("checkpoint", "")),
        dataset=tags.get("dataset", ""),
        preset=tags.get("preset", ""),
        model_id=tags.get("model_id", ""),
        aliases=tuple(entry.aliases),
    )


def _flatten(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        path = f"{prefix}.{key}" if prefix else key
        if isinstance(value, Mapping):
            yield from _flatten(value, path)
        else:
            yield path, value
