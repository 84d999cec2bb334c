"""Progress artifacts: how far embedding, loading and the index are, for runs that take long enough to be watched."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException
from rowvec_tasks.names import artifact_key
from rowvec_tasks.when_busy import WAIT

from rowvec.runtime.progress import listening

# An update costs the API 11 ms; a run that is over before the first one has its summary to look at.
_EVERY_SECONDS = 2.0

# Stages whose parts are batches of a number that is known; the parts of the others are phases, one after the other.
_BATCHED = ("embed", "load")

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Progress:
    """What all parts of a run have told so far: filled from the stages' threads, read from the publisher's."""

    batches: int = 0
    """Of all rounds that have been planned."""
    planned_before: int = 0
    """Batches of the rounds before this one."""
    _parts: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    _latest: dict[str, str] = field(default_factory=dict[str, str])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, stage: str, part: str, done: int, total: int) -> None:
        """A ``rowvec.runtime.progress.Listener``."""
        with self._lock:
            name = f"{self.planned_before} {part}" if stage in _BATCHED else part
            self._parts.setdefault(stage, {})[name] = done / total if total else 1.0
            self._latest[stage] = part

    def expect(self, batches: int) -> None:
        """A round of so many batches begins."""
        with self._lock:
            self.planned_before, self.batches = self.batches, self.batches + batches

    def shares(self) -> dict[str, tuple[float, str]]:
        """Per cent done and a sentence, by stage."""
        with self._lock:
            return {stage: self._share(stage, parts) for stage, parts in self._parts.items()}

    def _share(self, stage: str, parts: dict[str, float]) -> tuple[float, str]:
        if stage not in _BATCHED:
            return 100 * parts[self._latest[stage]], f"{stage}: {self._latest[stage]}"
        whole = max(self.batches, len(parts))
        finished = sum(share >= 1 for share in parts.values())
        return 100 * sum(parts.values()) / whole, f"{stage}: {finished} of {whole} batches done"


_running: list[Progress] = []


def expect(batches: int) -> None:
    """Tell the run that is being watched in this process that a round of so many batches begins."""
    if _running:
        _running[-1].expect(batches)


@contextmanager
def published(pipeline: str) -> Generator[None]:
    """Publish what the stages tell meanwhile, as one artifact a stage."""
    progress, stop = Progress(), threading.Event()
    publisher = _Publisher(pipeline, progress)
    # A thread of its own, in the flow's context: the artifacts are the flow run's, and no stage waits for the API.
    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(publisher.publish_until, stop), daemon=True)
    _running.append(progress)
    thread.start()
    try:
        with listening(progress):
            yield
    finally:
        _running.remove(progress)
        stop.set()
        thread.join()


class _Publisher:
    def __init__(self, pipeline: str, progress: Progress) -> None:
        self._pipeline = pipeline
        self._progress = progress
        self._artifacts: dict[str, UUID] = {}
        self._said: dict[str, tuple[float, str]] = {}

    def publish_until(self, stop: threading.Event) -> None:
        try:
            while not stop.wait(_EVERY_SECONDS):
                self._publish(create=True)
            self._publish(create=False)
        except (httpx.HTTPError, PrefectException) as error:
            # A run does not fail because nobody can watch it.
            logger.warning("progress is no longer shown: %s", error)

    def _publish(self, *, create: bool) -> None:
        for stage, (percent, sentence) in self._progress.shares().items():
            # Of a run that waits for another one the state says so.
            if stage == WAIT or self._said.get(stage) == (percent, sentence):
                continue
            if stage in self._artifacts:
                update_progress_artifact(self._artifacts[stage], progress=percent, description=sentence)
            elif create:
                made = create_progress_artifact(percent, key=artifact_key(self._pipeline, stage), description=sentence)
                self._artifacts[stage] = made  # pyright: ignore[reportArgumentType] # a UUID where no loop runs
            self._said[stage] = (percent, sentence)
