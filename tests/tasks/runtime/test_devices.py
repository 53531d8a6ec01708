"""Placing of work on devices: on this machine, and on a cluster with a CPU head and a node that declares a GPU."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.decoder.step import DecoderStep
from tasks.checkpoints import load_model
from tasks.config.evaluation import EvaluateConfig
from tasks.config.old_names import first_names
from tasks.dataset.versions import DatasetVersion
from tasks.errors import ConfigError, OutOfMemory
from tasks.evaluation import steps
from tasks.generation.generate import find_batch, generate_batch, read_request
from tasks.generation.infill import join_nats
from tasks.music.tokenizers.oore import OoreConfig
from tasks.runtime import cluster, devices
from tasks.sampling.latents import LatentPlan, LatentSource, with_latents
from tasks.storage.home import Home
from tests.builders import make_score
from tests.conftest import REPOSITORY
from tests.models.vae.small_vae import build_vae, rows
from tests.pretend_device import pretended_device
from tests.studio import Setup, Studio, config_of
from tests.tasks.composer.test_composer import begin, random_checkpoint

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a GPU")


@without_gpu
def test_a_gpu_that_is_asked_for_and_not_there_is_told_with_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for prefix in ("train.", "--"):
        with pytest.raises(ConfigError) as error:
            devices.place(prefix, "cuda", on_ray=False)
        assert str(error.value) == (
            f"{prefix}device=cuda, but torch {torch.__version__} finds no GPU on this machine, which has"
            f" {cluster.n_cpus()} cores; leave it at auto, or set it to cpu"
        )
    assert devices.place("train.", "auto", on_ray=False) == devices.Placement("cpu")
    with pytest.raises(ConfigError, match="placed on a GPU, but torch"):
        devices.device_of("cuda")


def test_names_of_what_was_made_before_there_was_a_device_stay() -> None:
    for device in ("auto", "cpu"):  # earlier work was on CPUs
        assert first_names({"device": device, "gpus_per_worker": 1.0, "accelerator_type": "", "seed": 1}) == {"seed": 1}
    assert first_names({"device": "cuda"}) == {"device": "cuda"}


def out_of_memory(*_: object) -> None:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.80 GiB of which 1.10 GiB is"
        " free. Process 7 has 138.69 GiB memory in use."
    )


def test_a_gpu_without_enough_memory_is_told_with_what_lowers_the_need(
    home: Home, setup: Setup, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = r"the GPU is out of memory: 2\.00 GiB more, of 139\.80 GiB in all; lower "
    request = read_request(home, setup.model, setup.checkpoint, config_of(audio="none"))
    monkeypatch.setattr(DecoderStep, "__call__", out_of_memory)
    with pytest.raises(OutOfMemory, match=said + r"generate\.batch_size"):
        generate_batch(request)
    assert find_batch(home, request.name) is None
    monkeypatch.undo()
    assert generate_batch(request).manifest["config"]["device"] == "cpu"  # goes on where the other call ended

    loaded = load_model(studio.checkpoint)
    loaded.model.register_forward_pre_hook(out_of_memory)
    with pytest.raises(OutOfMemory, match=said + r"evaluate\.batch_size"):
        steps.score_model.fn(loaded, studio.dataset, EvaluateConfig())

    checkpoint = random_checkpoint(home.root, OoreConfig())
    session = begin(home, checkpoint)
    session.loaded.model.register_forward_pre_hook(out_of_memory)
    with pytest.raises(OutOfMemory, match=said + "--context-tokens"):
        session.propose()
    assert session.read().proposal is None
    assert OutOfMemory.exit_code == 1


@without_gpu
def test_requests_for_a_gpu_that_is_not_there_are_refused(home: Home, setup: Setup) -> None:
    with pytest.raises(ConfigError, match=r"^generate\.device=cuda, but .* no GPU on "):
        read_request(home, setup.model, setup.checkpoint, config_of(device="cuda"))
    session = begin(home, random_checkpoint(home.root, OoreConfig()))
    assert session.read().config.device == "cpu"  # what auto meant
    with pytest.raises(ConfigError, match=r"^--device=cuda, but torch"):
        session.propose(replace(session.read().config, device="cuda"))


def test_latents_and_losses_are_computed_where_the_model_is(monkeypatch: pytest.MonkeyPatch, setup: Setup) -> None:
    vae, loaded = build_vae(), load_model(setup.checkpoint)
    sources = tuple(LatentSource(str(i), "", tuple(row.tolist()), 0) for i, row in enumerate(rows(20, 20)))
    plans = [LatentPlan("prior", (), 2), LatentPlan("prompt", sources, 2, 0.5)]
    music = make_score([(480 * i, 480, 60 + i, 80) for i in range(12)])
    gap: Any = SimpleNamespace(span=SimpleNamespace(end_seconds=1.0, early_seconds=0.0))

    def figures() -> list[float]:
        latents = [with_latents(vae, plan, 7, [0, 1], [0, 1]) for plan in plans]
        numbers = [number for one in latents for number in one.latents_NZ.cpu().flatten().tolist()]
        return [*numbers, join_nats(loaded, gap, music)]

    wanted = figures()
    with pretended_device(monkeypatch):
        vae.to("meta"), loaded.model.to("meta")
        with pytest.raises(AssertionError, match="meets tensors of meta and of cpu"):
            vae.latent(rows(20))
        found = figures()
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-4)  # other paths, other rounding


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
    "generate": told(devices.check_workers, "generate.", devices.place_here_or_on_ray("generate.", "auto")),
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
    assert placed["generate"].endswith("or set generate.device=cpu")  # not sampled on the head in silence
    assert placed["left"] == []
