"""The sweep flow: trains and scores many points with the code of `train` and `evaluate`, and writes one table."""

import time

from prefect import flow

from flows.evaluate import evaluate
from flows.run_context import Summary, run_tags, since
from flows.triggers import check_trigger
from tasks.config.pipeline import PipelineConfig
from tasks.config.serialization import to_json
from tasks.dataset.versions import resolve_dataset
from tasks.errors import SweepFailed, words_of
from tasks.runtime.prefect_tasks import publish_summary
from tasks.storage.files import storage_problem
from tasks.storage.home import Home
from tasks.sweep import space as sweeps
from tasks.sweep.space import SweepConfig, SweepFolder, plan_points
from tasks.sweep.summary import log_sweep, sweep_summary, sweep_table
from tasks.tracking.mlflow_tracker import Tracker


@flow(name="sweep")
def sweep(
    config: PipelineConfig = PipelineConfig(),
    plan: SweepConfig = SweepConfig(),
    dataset: str = "",
    home: str = "",
) -> Summary:
    """Train and score every point of a grid or of a random search; the same sweep continues an interrupted one.

    Args:
        config: what all points have in common; only its `train` and `evaluate` sections count.
        plan: what is varied: `grid`, `search` with `samples`, and how many points train at once.
        dataset: `name`, `name@version`, or empty for the newest.
        home: folder of all results; empty: ORCHESTRION_HOME or `.orchestrion`.
    """
    from tasks.sweep.steps import train_points  # brings torch, which a mistake in the space need not wait for

    check_trigger(config)
    where, started = Home.at(home), time.monotonic()
    points = plan_points(config, plan)
    with where.locked("sweep"):
        tracker, version = Tracker(where), resolve_dataset(where, dataset)
        folder = SweepFolder.of(where, config, plan, version)
        known = folder.run_id()
        run_id = known if known and tracker.has_run(known) else ""
        tags = run_tags() | {"orchestrion.preset": config.train.preset, "orchestrion.sweep": folder.root.name}
        with tracker.open_run("orchestrion/training", f"sweep-{folder.root.name}", tags, run_id=run_id) as run:
            folder.start(run.run_id, config, plan, version)
            run.log_params(to_json(plan), "sweep")
            run.use_dataset(version, "training")
            rows = train_points(where, version, points, plan, folder, run, run_tags())
            to_score = [
                (point, row) for point, row in zip(points, rows, strict=True) if row["status"] == sweeps.TRAINED
            ]
            for point, row in to_score:
                _score(point, row, where, run.run_id)
                folder.write_rows(rows)
            ranked = folder.write_rows(rows)
            log_sweep(run, folder, ranked)
            if ranked[0]["status"] != sweeps.FINISHED:
                raise SweepFailed(
                    f"none of {len(ranked)} points came to a result; point {ranked[0]['point']}:"
                    f" {ranked[0]['reason']} (all in {folder.results})"
                )
    publish_summary("sweep", sweep_table(ranked))
    return sweep_summary(folder, run, version, ranked) | {
        "reused": not to_score,
        "seconds": since(started),
    }


def _score(point: sweeps.Point, row: sweeps.Row, home: Home, parent_run_id: str) -> None:
    """Put a trained point's held-out figures into its row; one that cannot be scored does not end the sweep."""
    try:
        scored = evaluate(point.config.evaluate, row["model_version"], "", str(home.root), parent_run_id)
    except Exception as error:
        if storage_problem(error):
            raise
        sweeps.set_failed(row, f"evaluation: {type(error).__name__}: {words_of(error)}")
        return
    sweeps.set_figures(row, scored["metrics"])
