"""Kinds of devices: what the settings ask for, what there is, and what Ray is to give each worker for it."""

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from tasks.errors import ConfigError, OutOfMemory, plural, words_of
from tasks.runtime import cluster

if TYPE_CHECKING:
    import torch

DeviceSetting = Literal["auto", "cpu", "cuda"]
DeviceKind = Literal["cpu", "cuda"]
_OUT_OF_MEMORY = re.compile(r"Tried to allocate (\d[\d.]* \w+)\..* total capacity of (\d[\d.]* \w+)", re.DOTALL)
_TYPE = "accelerator_type:"  # how Ray begins the names of resources that say what a node has


@dataclass(frozen=True, slots=True)
class Placement:
    """The kind of device of some work, and what each worker gets of the GPUs.

    Args:
        on_ray: workers of Ray do the work; otherwise this process does.
        gpus: GPUs of a worker, 0 on CPU; below 1 several workers share one.
        accelerator_type: the type of GPU by Ray's name, such as `H100`; empty: any.
    """

    device: DeviceKind = "cpu"
    on_ray: bool = False
    gpus: float = 0.0
    accelerator_type: str = ""

    @property
    def own_device(self) -> DeviceKind:
        """The kind of device that this process uses itself."""
        return "cpu" if self.on_ray else self.device

    @property
    def ray_options(self) -> dict[str, Any]:
        """The options of a Ray task that runs there."""
        if self.device == "cpu":
            return {"num_gpus": 0}
        return {"num_gpus": self.gpus} | ({"accelerator_type": self.accelerator_type} if self.accelerator_type else {})


ON_CPU = Placement()


def place(
    prefix: str,
    asked: DeviceSetting,
    *,
    on_ray: bool,
    gpus_per_worker: float = 1.0,
    n_workers: int = 1,
    accelerator_type: str = "",
) -> Placement:
    """Return where work runs; `auto` is a GPU where there is one.

    Work on Ray is placed by what its cluster has, work in this process by what torch finds here.

    Args:
        prefix: of the settings in messages, such as `train.`.
        n_workers: that work at the same time and cannot wait for each other.
    Raises:
        ConfigError: there is no GPU, none of the type, or fewer than the workers need; the message names what there is.
    """
    if asked == "cpu":
        return Placement("cpu", on_ray)
    n_gpus = _cluster_gpus() if on_ray and cluster.is_joined() else _own_gpus()
    if not n_gpus:
        if asked == "cuda":
            raise ConfigError(f"{prefix}device=cuda, but {_what_is_there(on_ray)}; leave it at auto, or set it to cpu")
        return Placement("cpu", on_ray)
    if not on_ray:
        return Placement("cuda")
    if accelerator_type and cluster.is_joined() and accelerator_type not in (types := _cluster_types()):
        known = f"only {', '.join(types)}" if types else "no GPU of a known type"
        raise ConfigError(f"{prefix}accelerator_type={accelerator_type}, but the Ray cluster has {known}")
    if n_workers * gpus_per_worker > n_gpus:
        there = f"{plural(int(n_gpus), 'GPU')} there {'is' if n_gpus == 1 else 'are'}"
        raise ConfigError(
            f"{prefix}n_workers={n_workers} x {gpus_per_worker:g} GPU each are more than the {there}; lower n_workers,"
            f" or set {prefix}device=cpu"
        )
    return Placement("cuda", True, gpus_per_worker, accelerator_type)


def place_here_or_on_ray(
    prefix: str, asked: DeviceSetting, n_workers: int = 1, gpus_per_worker: float = 1.0
) -> Placement:
    """Return where work runs that one worker does in this process, unless a joined cluster has the GPU for it."""
    is_joined = cluster.is_joined()
    placement = place(prefix, asked, on_ray=n_workers > 1 or is_joined, gpus_per_worker=gpus_per_worker)
    return replace(placement, on_ray=n_workers > 1 or (is_joined and placement.device == "cuda"))


def shared(placement: Placement, concurrent: int) -> Placement:
    """Return a placement for one of several workers at once, which share the GPUs where there is not one for each."""
    if placement.device == "cpu":
        return placement
    n_gpus = _cluster_gpus() if cluster.is_joined() else _own_gpus()
    part = 1 / math.ceil(concurrent / max(int(n_gpus), 1))
    gpus = min(placement.gpus, math.floor(part * 10_000) / 10_000)  # Ray counts in parts of 10,000
    return replace(placement, gpus=gpus)


def check_workers(prefix: str, placement: Placement) -> None:
    """Raise ConfigError where a worker of a cluster is given a GPU that its torch cannot use; waits for that GPU."""
    if placement.device == "cpu" or not cluster.is_joined():  # here torch was asked already
        return
    (found,) = cluster.run_over(_torch_of_worker, [None], options=placement.ray_options)
    if not found["gpus"]:
        raise ConfigError(
            f"Ray gives a GPU of node {found['node']}, but torch {found['torch']} there finds none; install a build of"
            f" torch for CUDA on the node, or set {prefix}device=cpu"
        )


def device_of(kind: DeviceKind) -> "torch.device":
    """Return torch's device of a kind in this process; a worker of Ray sees the GPU that it was given alone."""
    import torch

    if kind == "cuda" and not _own_gpus():
        raise ConfigError(f"the work was placed on a GPU, but {_what_is_there(on_ray=False)}")
    return torch.device(kind)


@contextmanager
def explained_memory(way_out: str) -> Iterator[None]:
    """Raise OutOfMemory, with what lowers the need, where the memory of a GPU does not suffice for the work inside."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        sizes = _OUT_OF_MEMORY.search(str(error))
        size = f"{sizes[1]} more, of {sizes[2]} in all" if sizes else words_of(error)
        raise OutOfMemory(f"the GPU is out of memory: {size}; {way_out}") from None


def words_of_cluster() -> str:
    """Return the cores, GPUs and nodes of the joined Ray cluster, such as `8 cores, 2 GPUs (H100) on 3 nodes`."""
    import ray

    resources: Mapping[str, float] = ray.cluster_resources()
    parts = [plural(int(resources.get("CPU", 0)), "core")]
    if n_gpus := int(resources.get("GPU", 0)):
        types = _cluster_types()
        parts.append(plural(n_gpus, "GPU") + (f" ({', '.join(types)})" if types else ""))
    else:
        parts.append("no GPU")
    return f"{', '.join(parts)} on {plural(sum(node['Alive'] for node in ray.nodes()), 'node')}"


def words_of_torch() -> str:
    """Return the version of torch and the GPUs that it finds in this process."""
    import torch

    n_gpus = _own_gpus()
    names = sorted({torch.cuda.get_device_name(i) for i in range(n_gpus)})
    found = f"{plural(n_gpus, 'GPU')} ({', '.join(names)})" if n_gpus else "no GPU"
    return f"torch {torch.__version__} finds {found}"


def _what_is_there(on_ray: bool) -> str:
    if on_ray and cluster.is_joined():
        return f"the Ray cluster{_at()} has {words_of_cluster()}"
    return f"{words_of_torch()} on this machine, which has {plural(cluster.n_cpus(), 'core')}"


def _at() -> str:
    address = os.environ.get("RAY_ADDRESS")
    return f" at {address}" if address else ""


def _cluster_gpus() -> float:
    import ray

    cluster.connect()
    return float(ray.cluster_resources().get("GPU", 0))


def _cluster_types() -> list[str]:
    import ray

    return sorted(name.removeprefix(_TYPE) for name in ray.cluster_resources() if name.startswith(_TYPE))


def _own_gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _torch_of_worker(_: None) -> dict[str, Any]:
    import ray
    import torch

    return {"gpus": _own_gpus(), "torch": torch.__version__, "node": ray.util.get_node_ip_address()}
