"""Placing of work on devices: on this machine, and on a cluster with a CPU head and a node that declares a GPU."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from tasks.config.old_names import first_names
from tasks.dataset.versions import DatasetVersion
from tasks.errors import ConfigError
from tasks.runtime import cluster, devices
from tests.conftest import REPOSITORY

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a GPU")


@without_gpu
def test_a_gpu_that_is_asked_for_and_not_there_is_told_with_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for setting in ("train.device", "device"):
        with pytest.raises(ConfigError) as error:
            devices.place(setting.rpartition(".")[0], "cuda", on_ray=False)
        assert str(error.value) == (
            f"{setting}=cuda, but torch {torch.__version__} finds no GPU on this machine, which has"
            f" {cluster.n_cpus()} cores; leave it at auto, or set it to cpu"
        )
    assert devices.place("train", "auto", on_ray=False) == devices.Placement("cpu")
    with pytest.raises(ConfigError, match="placed on a GPU, but torch"):
        devices.device_of("cuda")


def test_names_of_what_was_made_before_there_was_a_device_stay() -> None:
    for device in ("auto", "cpu"):  # earlier work was on CPUs
        assert first_names({"device": device, "gpus_per_worker": 1.0, "accelerator_type": "", "seed": 1}) == {"seed": 1}
    assert first_names({"device": "cuda"}) == {"device": "cuda"}


CHILD = """
import json, os, sys
from pathlib import Path

from flows.services import environment
from tasks.storage.home import Home

environment.prepare(Home.at(sys.argv[2]))
from ray.cluster_utils import Cluster

from tasks.dataset.versions import resolve_dataset
from tasks.errors import ConfigError
from tasks.runtime import cluster, devices, ray_node
from tasks.runtime.ray_files import secure_token
from tasks.sweep.trials import share_cores
from tasks.training import trainer
from tasks.training.job import make_job
from tests.samples import short_training

secure_token(is_new=True)
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0})
nodes.add_node(num_cpus=1, num_gpus=1, resources={"accelerator_type:T4": 1})
os.environ["RAY_ADDRESS"] = nodes.address
ray_node.join(nodes.address, is_own=True)
dataset = resolve_dataset(Home.at(sys.argv[1]))

def job(**settings):
    return make_job(short_training(**settings), dataset, Path(sys.argv[2]) / "run")

def told(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except ConfigError as error:
        return str(error)

def where(_):
    import ray
    ids = [node["NodeID"] for node in ray.nodes() if node["Resources"].get("GPU")]
    return [ray.get_runtime_context().get_node_id() in ids, len(ray.get_gpu_ids())]

def run(placement, n):
    return cluster.run_over(where, range(n), options=placement.ray_options)

whole, half = job(), job(device="cuda", gpus_per_worker=0.5, accelerator_type="T4")
print(json.dumps({
    "words": devices.words_of_cluster(),
    "auto": [whole.placement.device, whole.placement.gpus],
    "on_gpu": run(half.placement, 2),
    "on_cpu": run(job(device="cpu").placement, 1),
    "shared": [share_cores([whole], n)[0].placement.gpus for n in (1, 2, 3)],
    "too_many": told(job, n_workers=2),
    "no_such": told(job, accelerator_type="H100"),
    "no_cuda": told(trainer.fit, whole, print),
    "left": os.listdir(whole.run_dir),
}))
cluster.disconnect()
nodes.shutdown()
"""


@pytest.fixture(scope="module")
def placed(dataset: DatasetVersion, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happens on a cluster of a head with 2 cores and a node with a core and a declared GPU of type T4."""
    folder = tmp_path_factory.mktemp("cluster")
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(dataset.folder.parents[1]), str(folder)],
        cwd=REPOSITORY, env=os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


@pytest.mark.slow
@without_gpu
def test_work_goes_to_the_node_with_the_gpu_or_a_message_names_what_the_cluster_has(placed: dict[str, Any]) -> None:
    assert placed["words"] == "3 cores, 1 GPU (T4) on 2 nodes"
    assert placed["auto"] == ["cuda", 1.0]
    assert placed["on_gpu"] == [[True, 1], [True, 1]]
    assert placed["on_cpu"][0][1] == 0
    assert placed["shared"] == [1.0, 0.5, 0.3333]
    assert placed["too_many"] == (
        "train.n_workers=2 x 1 GPU each are more than the 1 GPU there is; lower n_workers, or set train.device=cpu"
    )
    assert placed["no_such"] == "train.accelerator_type=H100, but the Ray cluster has only T4"
    assert f"but torch {torch.__version__} there finds none; install a build of torch for CUDA" in placed["no_cuda"]
    assert placed["left"] == []
