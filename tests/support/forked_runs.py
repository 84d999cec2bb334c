"""Runs in their own processes, cheap enough to kill hundreds of them, and the server of the embedder they use."""

from __future__ import annotations

import multiprocessing
import os
import threading
import traceback
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Literal

import pytest

from rowvec.pipeline import Pipeline
from tests.support.reference_model import POISON
from tests.support.servers.openai_server import KEY, Fault, OpenAIServer
from tests.support.waiting import PATIENCE_SECONDS, wait_for

By = Literal["flow", "plain"]
"""``flow``: by Prefect, as ``rowvec sync`` does it; ``plain``: the same stages one after the other, without it."""
Job = Literal["sync", "audit", "repair"]

# Each fork would import these again, because a run imports them late.
_PRELOAD = [
    "pytest",
    "rowvec_flows.sync",
    "prefect.flow_engine",
    "prefect.task_engine",
    "prefect.concurrency.sync",
    "prefect.telemetry.run_telemetry",
    "prefect.utilities.visualization",
    "fastapi",
    "anyio._backends._asyncio",
    "openai.resources.embeddings",
    "httpcore2",
    "truststore",
    "numpy.ma",
    "rowvec.operations.audit",
    "rowvec.operations.repair",
    "rowvec.store.folder",
    "rowvec.embedders.openai.texts",
    "tests.support.paintings",
    "tests.support.forked_runs",
]
_IS_FORKSERVER = "ROWVEC_TESTS_FORKSERVER"
_QUIET = {
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    _IS_FORKSERVER: "1",
}
_context = multiprocessing.get_context("forkserver")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended."""

    state: Literal["done", "failed", "killed"]
    error: str = ""
    """The name of the error's class."""
    message: str = ""
    report: dict[str, Any] = field(default_factory=dict[str, Any])
    """What the command would print."""

    def __str__(self) -> str:
        return self.state if self.state != "failed" else f"failed, {self.error}: {self.message}"


@dataclass(slots=True)
class Fork:
    """A run that is at work."""

    process: ForkServerProcess
    _answer: Any  # of multiprocessing's kinds of pipe, which have no type in common
    _log: Path

    @property
    def at_work(self) -> bool:
        """Whether the run has not ended yet."""
        return self.process.is_alive()

    def kill(self) -> None:
        """Send SIGKILL, unless the run has ended."""
        self.process.kill()

    def wait(self) -> Outcome:
        """Wait until the run has ended, by itself or by ``kill``; returns how."""
        outcome = None
        if self._answer.poll(PATIENCE_SECONDS):
            try:
                outcome = self._answer.recv()
            except EOFError:
                outcome = None
        else:
            self.process.kill()
        self.process.join(PATIENCE_SECONDS)
        code = self.process.exitcode
        self.process.close()
        self._answer.close()
        if outcome is None and code != -9:
            pytest.fail(f"a run ended with {code} and said nothing: {self._log.read_text()[-3000:]}")
        return outcome or Outcome(state="killed")


@dataclass(frozen=True, slots=True)
class Forks:
    """Starts runs in the environment of the test, with the changes that are given here."""

    def start(self, job: Job, by: By, pipeline: Pipeline, environment: dict[str, str], log: Path) -> Fork:
        """Start a run in its own process; what it prints goes to ``log``."""
        ours, theirs = _context.Pipe(duplex=False)
        work = (job, by, pipeline.model_dump_json(exclude_none=True), environment, str(log), theirs)
        process = _context.Process(target=_work, args=work, daemon=True)
        process.start()
        theirs.close()
        return Fork(process, ours, log)


@contextmanager
def forks(api: str) -> Generator[Forks]:
    """A process that forks runs; they report to this Prefect API."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {**_QUIET, "PREFECT_API_URL": api}.items():
            patched.setenv(name, value)
        _context.set_forkserver_preload(_PRELOAD)
        forkserver.ensure_running()
    yield Forks()


def _work(job: Job, by: By, written: str, environment: dict[str, str], log: str, answer: Connection) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    # Late: only a fork needs them, and it has them already.
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        try:
            report = _done(job, by, Pipeline.model_validate_json(written))
            answer.send(Outcome(state="done", report=report))
        except Exception as error:  # noqa: BLE001 # whatever it is, the test decides what it means
            traceback.print_exc()
            answer.send(Outcome(state="failed", error=type(error).__name__, message=str(error)))
    answer.close()


def _done(job: Job, by: By, pipeline: Pipeline) -> dict[str, Any]:
    """What the command does, and what it prints."""
    from rowvec.operations.audit import audit
    from rowvec.operations.repair import prepare_repair

    if job == "sync":
        return _sync(by, pipeline)
    if job == "audit":
        return audit(pipeline).as_json()
    found = prepare_repair(pipeline)
    if found.is_finished:
        return found.as_json()
    _sync(by, pipeline)
    left = audit(pipeline)
    return left.as_json(found.total - left.total)


def _sync(by: By, pipeline: Pipeline) -> dict[str, Any]:
    if by == "flow":
        from rowvec_flows.sync import sync as flow

        return flow(pipeline=pipeline, cause="model").as_json()
    from tests.support import paintings

    return paintings.sync(pipeline).as_json()


class CountingServer(OpenAIServer):
    """Remembers which faults hit which texts, and knows when no client is connected any more."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._guard = threading.Lock()
        self._open = 0
        self.befallen: list[tuple[Fault, tuple[str, ...]]] = []

    def fault_for(self, texts: list[str]) -> Fault | None:
        """See ``OpenAIServer``."""
        fault = super().fault_for(texts)
        if fault is not None:
            self.befallen.append((fault, tuple(texts)))
        return fault

    def process_request(self, request: Any, client_address: Any) -> None:
        """Count a new connection."""
        with self._guard:
            self._open += 1
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection until it is closed."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._guard:
                self._open -= 1

    def settle(self) -> None:
        """Return once every request of clients that have ended is recorded: connections are accepted in order."""
        with urllib.request.urlopen(f"{self.origin}/stats", timeout=30):  # noqa: S310 # our own server
            pass
        wait_for(lambda: not self._open, every=0.005)


@contextmanager
def counting_server() -> Generator[CountingServer]:
    """A server that the sequences of one session use one after the other."""
    with CountingServer(key=KEY, poison=POISON, latency=0.01) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


if os.environ.get(_IS_FORKSERVER):
    from rowvec.embedders.provider.tokens import count

    count("The vocabulary is loaded at the first use.")
