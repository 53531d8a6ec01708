"""An embedded Ray and its keeper process, and joining a cluster. All calls of `ray.init` are here.

The keeper starts the servers. It reports their death at once, where Ray waits for a minute and then ends the process
that uses it. It ends the servers when the process that started it is killed.

    python -P -m tasks.runtime.ray_node FOLDER CORES     (started by `Node`; speaks on its standard output)
"""

import atexit
import contextlib
import json
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tasks.errors import words_of
from tasks.runtime.ray_files import Folder
from tasks.runtime.signals import deaf_children

START_SECONDS = 120.0  # Ray's own bounds, 30 s for each server, do not cover all waits
SERVERS = ("gcs_server", "raylet")  # Ray works without the others
NAMESPACE = "orchestrion"
OBJECT_STORE_BYTES = 256 * 2**20
_LOOPBACK = "lo"  # the interface, on Linux
_OWN_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listen on loopback alone, as on a Mac and on Windows
    **({"GLOO_SOCKET_IFNAME": _LOOPBACK} if Path(f"/sys/class/net/{_LOOPBACK}").exists() else {}),
}


class Node:
    """The servers of one embedded Ray and what they started; stopped by `stop`, or at exit."""

    def __init__(self, n_cpus: int) -> None:
        self.folder = Folder()
        self._death = ""
        with (self.folder.path / "keeper.log").open("wb") as log, deaf_children(signal.SIGINT):
            command = [sys.executable, "-P", "-m", "tasks.runtime.ray_node", str(self.folder.ray), str(n_cpus)]
            self._keeper = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                env=os.environ | _OWN_ENVIRONMENT, start_new_session=True,
            )  # fmt: skip
        atexit.register(self.stop)

    def wait(self) -> str:
        """Return the address of the Ray once its servers answer; RuntimeError if one died or was too slow."""
        assert self._keeper.stdout is not None
        if not select.select([self._keeper.stdout], [], [], START_SECONDS)[0]:
            raise RuntimeError(f"its servers do not answer after {START_SECONDS:.0f} s")
        reply = self._read()
        if "address" not in reply:
            raise RuntimeError(reply.get("dead") or self._last_words())
        return reply["address"]

    def death(self) -> str:
        """Return which server died, or an empty string."""
        assert self._keeper.stdout is not None
        # `poll` does not see a zombie of several threads at once; its pipe is closed at once.
        if not self._death and select.select([self._keeper.stdout], [], [], 0)[0]:
            self._death = self._read().get("dead") or "its keeper died"
        return self._death

    def stop(self) -> None:
        """Disconnect, end all processes of this Ray and remove its folder."""
        import ray

        atexit.unregister(self.stop)
        try:
            ray.shutdown()
        finally:
            kill_session(self._keeper.pid)
            with self._keeper:  # which closes its pipes and waits
                self.folder.remove()

    def abandon(self) -> None:
        """End all processes of this Ray under a thread that is inside of it, where `ray.shutdown` crashes."""
        from ray._private import worker

        atexit.unregister(self.stop)
        atexit.unregister(worker.shutdown)
        kill_session(self._keeper.pid)
        with self._keeper:
            self.folder.remove()

    def _read(self) -> dict[str, str]:
        assert self._keeper.stdout is not None
        line = self._keeper.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else {}

    def _last_words(self) -> str:
        lines = (self.folder.path / "keeper.log").read_text(errors="replace").strip().splitlines()
        return f"its keeper ended with status {self._keeper.wait()}" + (f": {lines[-1]}" if lines else "")


def join(address: str, is_own: bool = False) -> None:
    """Connect to the Ray at an address.

    Args:
        is_own: the address is that of a `Node` on loopback; Ray would replace it by this machine's outer address.
    """
    import ray
    from ray._private import ray_constants, utils

    handler = signal.getsignal(signal.SIGTERM)
    try:
        with (
            # Ray's handler of SIGTERM exits at once, without saving.
            _replaced(utils, "set_sigterm_handler", lambda handler: None),
            _replaced(ray_constants, "ENABLE_RAY_CLUSTER", ray_constants.ENABLE_RAY_CLUSTER and not is_own),
        ):
            ray.init(
                address=address, job_config=_job_config(), namespace=NAMESPACE, logging_level=logging.ERROR,
                log_to_driver=False,
            )  # fmt: skip
    finally:
        if threading.current_thread() is threading.main_thread():
            # Compiled code of Ray has put a handler that aborts below Python's.
            signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)


def _job_config() -> Any:
    """Return Ray's settings of a job whose workers do not import from the driver's working folder.

    Ray puts that folder first in its workers' `sys.path` unless a runtime environment has a working folder.
    """
    from ray.job_config import JobConfig

    class OwnPath(JobConfig):
        def _runtime_env_has_working_dir(self) -> bool:
            return True

    return OwnPath()


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def kill_session(session: int) -> None:
    """Kill all other processes of a session."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            after_name = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(after_name[3]) == session and int(folder.name) != os.getpid():
                os.kill(int(folder.name), signal.SIGKILL)


# --- in the keeper


class _Keeper:
    """Starts the servers, reports the address or who died, and ends all when one of them or its starter dies."""

    def __init__(self, orders: int, replies: IO[bytes], folder: Path) -> None:
        self.orders, self.replies, self.folder = orders, replies, folder
        self.servers: dict[str, subprocess.Popen[bytes]] = {}
        self.looking = threading.Lock()  # `Popen.poll` says "alive" while another thread is in it

    def start(self, n_cpus: int) -> None:
        from ray._private import services
        from ray._private.node import Node as RayNode
        from ray._private.parameter import RayParams

        servers = self.servers

        class Known(services.ConsolePopen):
            def __init__(self, command: list[str], *arguments: Any, **options: Any) -> None:
                super().__init__(command, *arguments, **options)
                servers[Path(command[0]).name] = self

        class Bare(RayNode):
            """Without what nothing here asks, and what takes a third of the start."""

            def start_api_server(self, **_: Any) -> None: ...

            def start_log_monitor(self) -> None: ...

        threading.Thread(target=self._watch, daemon=True).start()
        with _replaced(services, "ConsolePopen", Known):
            # As in `ray.init`, but without a job, for which Ray would start workers.
            settings = RayParams(
                num_cpus=n_cpus, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False, no_monitor=True,
                temp_dir=str(self.folder),
            )  # fmt: skip
            try:
                node = Bare(settings, head=True, shutdown_at_exit=False, ray_init_cluster=True)
            except Exception:
                self._report_dead()  # the other thread cannot run while Ray waits for a server
                raise
        self.say({"address": node.gcs_address})

    def say(self, reply: dict[str, str]) -> None:
        self.replies.write(json.dumps(reply).encode() + b"\n")
        self.replies.flush()

    def _watch(self) -> None:
        while not select.select([self.orders], [], [], 0.1)[0]:
            self._report_dead()
        kill_session(os.getsid(0))  # the parent process is gone
        shutil.rmtree(self.folder.parent, ignore_errors=True)
        os._exit(1)

    def _report_dead(self) -> None:
        """Report the dead servers, if any, and exit."""
        with self.looking:
            dead = [name for name in SERVERS if name in self.servers and self.servers[name].poll() is not None]
            if dead:
                self.say({"dead": f"its {' and its '.join(dead)} died"})
                os._exit(1)


if __name__ == "__main__":
    orders, replies = os.dup(0), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what Ray prints goes to the log, not between the replies
    keeper = _Keeper(orders, replies, Path(sys.argv[1]))
    try:
        keeper.start(int(sys.argv[2]))
    except Exception as error:
        keeper.say({"dead": words_of(error)})
        os._exit(1)
    while True:
        time.sleep(3600)
