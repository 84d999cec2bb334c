"""Dask and Ray clusters of real processes that share nothing: each worker has its own home, TMPDIR and folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import wait_for

_REPOSITORY = Path(__file__).parents[3]
_START_SECONDS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A worker's process, and the folder that only this worker uses."""

    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def home(self) -> Path:
        """Its ROWVEC_HOME."""
        return self.folder / "home"

    def kill(self) -> None:
        """Send SIGKILL to the worker and to all it has started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def log(self) -> str:
        """What the worker has printed."""
        return (self.folder / "log").read_text("utf-8", "replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningCluster:
    """The value of ROWVEC_CLUSTER, and the workers."""

    address: str
    workers: tuple[Worker, ...]


@contextmanager
def dask_cluster(folder: Path, workers: int, environment: Mapping[str, str]) -> Generator[RunningCluster]:
    """A scheduler and workers of one thread each; a worker that is killed is not started again."""
    with ExitStack() as stack:
        file = folder / "scheduler.json"
        listening = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
        scheduler = stack.enter_context(
            _process(folder / "scheduler", ["distributed.cli.dask_scheduler", *listening], {})
        )
        wait_for(lambda: scheduler.process.poll() is not None or file.exists(), _START_SECONDS)
        assert scheduler.process.poll() is None, scheduler.log()
        address: str = json.loads(file.read_text())["address"]
        alone = ["--nthreads", "1", "--nworkers", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1"]
        started = [
            stack.enter_context(
                _process(
                    folder / f"worker-{number}",
                    ["distributed.cli.dask_worker", address, *alone, "--local-directory", "scratch"],
                    environment,
                )
            )
            for number in range(workers)
        ]
        for worker in started:
            wait_for(lambda w=worker: "Registered to" in w.log() or w.process.poll() is not None, _START_SECONDS)
            assert worker.process.poll() is None, worker.log()
        yield RunningCluster(address=address, workers=tuple(started))


@contextmanager
def ray_cluster(folder: Path, workers: int, environment: Mapping[str, str]) -> Generator[RunningCluster]:
    """A head that works on nothing, and nodes of one CPU each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    # The path of a Unix socket may have 107 bytes; Ray's own part leaves no room for a test's long folder.
    temporary = Path(tempfile.mkdtemp(prefix="ray"))
    alone = ["--block", "--node-ip-address", "127.0.0.1", "--disable-usage-stats", "--object-store-memory", "80000000"]
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        head = ["--head", "--port", str(port), "--num-cpus", "0", "--include-dashboard", "false"]
        started = [
            stack.enter_context(
                _process(
                    folder / "head",
                    ["ray.scripts.scripts", "start", *head, *alone, "--temp-dir", str(temporary)],
                    {},
                )
            )
        ]
        _wait_until_ray_runs(started[0])
        for number in range(workers):
            node = ["ray.scripts.scripts", "start", "--address", address, "--num-cpus", "1", *alone]
            started.append(stack.enter_context(_process(folder / f"worker-{number}", node, environment)))
            _wait_until_ray_runs(started[-1])
        yield RunningCluster(address=address, workers=tuple(started[1:]))


def _wait_until_ray_runs(node: Worker) -> None:
    wait_for(lambda: "Ray runtime started" in node.log() or node.process.poll() is not None, _START_SECONDS)
    assert node.process.poll() is None, node.log()


@contextmanager
def _process(folder: Path, module: list[str], environment: Mapping[str, str]) -> Generator[Worker]:
    """``python -m`` with its own folder, home and TMPDIR, and only the given environment."""
    for name in ("home", "tmp"):
        (folder / name).mkdir(parents=True)
    own = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder / "home"),
        "PYTHONPATH": str(_REPOSITORY),
        "ROWVEC_HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "PREFECT_HOME": str(folder / "prefect"),
        # On a busy machine a Ray node needs longer than its default limit of 30 s.
        "RAY_raylet_start_wait_time_s": str(_START_SECONDS),
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 # ours
            [sys.executable, "-m", *module],
            cwd=folder,
            env={**own, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    worker = Worker(process=process, folder=folder)
    try:
        yield worker
    finally:
        if process.poll() is None:
            worker.kill()
