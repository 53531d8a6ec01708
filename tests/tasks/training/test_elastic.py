"""An elastic run on a real cluster of two nodes, one of which is lost and replaced."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from models.config import ConstantSchedule
from tasks.config.training import TrainConfig
from tasks.dataset.versions import DatasetVersion
from tasks.training.job import make_job
from tasks.training.metrics_log import read_points
from tasks.training.worker import run_steps
from tests.conftest import REPOSITORY
from tests.samples import SMALL_MODEL, short_training
from tests.tasks.training.test_train import at_step


def elastic_training(**settings: object) -> TrainConfig:
    """Return settings of a run that ends when it is stopped, without draws that belong to a rank."""
    given: dict[str, object] = {
        "model": replace(SMALL_MODEL, dropout=0.0), "schedule": ConstantSchedule(rate=1e-3), "n_steps": 10**6,
        "n_workers": (1, 2), "batch_size": 16, "seq_len": 96, "eval_interval": 10**6, "checkpoint_interval": 10,
        "log_interval": 10,
    }  # fmt: skip
    return short_training(**given | settings)


CHILD = """
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from flows.services import environment
from tasks.dataset.versions import resolve_dataset
from tasks.errors import Interrupted
from tasks.storage.home import Home

environment.prepare(Home.at(sys.argv[2]))
from tasks.training import trainer
from tasks.training.job import make_job
from tests.tasks.training.test_elastic import elastic_training

trainer.RESIZE_SECONDS = 3.0
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
nodes = [cluster.add_node(num_cpus=1)]
ray.init(address=cluster.address, log_to_driver=False)
job = make_job(elastic_training(), resolve_dataset(Home.at(sys.argv[1])), Path(sys.argv[2]) / "run")
seen = []

def follow(points):
    for point in points:
        n_workers = int(point["train/n_workers"])
        if not seen or seen[-1] != n_workers:
            seen.append(n_workers)
            print(int(point["step"]), n_workers, flush=True)
            if seen == [2]:
                cluster.remove_node(nodes.pop())
            elif seen == [2, 1]:
                nodes.append(cluster.add_node(num_cpus=1))
            elif seen == [2, 1, 2]:
                job.stop_request.touch()

try:
    trainer.fit(job, follow)
except Interrupted as error:
    print(error, flush=True)
finally:
    ray.shutdown()
    cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.nightly  # Ray takes a minute and more to notice a node
def test_a_lost_node_shrinks_the_group_and_a_new_one_grows_it(dataset: DatasetVersion, tmp_path: Path) -> None:
    home = dataset.folder.parents[1]
    environment = os.environ | {"ORCHESTRION_CPUS": "2", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(home), str(tmp_path)],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines[:3]] == ["2", "1", "2"], done.stderr[-3000:]
    assert lines[-1].startswith("training stopped by request at step")
    points = [point for point in read_points(tmp_path / "run" / "metrics.jsonl") if "train/loss" in point]
    assert {point["train/n_workers"] for point in points} == {1.0, 2.0}
    assert [point["step"] for point in points[:-1]] == [*range(10, 10 * len(points), 10)]
    # The batches are those of one worker, however many there are.
    shrunk = next(i for i, point in enumerate(points) if point["train/n_workers"] == 1.0)
    n_steps = min(int(points[shrunk]["step"]) + 20, 1000)
    alone = make_job(elastic_training(n_workers=1), dataset, tmp_path / "alone")
    run_steps(alone, wrap=at_step(n_steps, alone.stop_request.touch))
    expected = [point["train/loss"] for point in read_points(alone.metrics) if "train/loss" in point]
    found = [point["train/loss"] for point in points[: len(expected)]]
    assert found == pytest.approx(expected, rel=1e-3)
