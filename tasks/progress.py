"""Progress artifacts: how far embedding, loading and the index build are, for runs that someone may watch."""

from __future__ import annotations

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

from rowvec.runtime.beside import beside
from rowvec.runtime.display import plain
from rowvec.runtime.progress import listening
from rowvec.stages.order import WHOLE

# An update takes the API 11 ms. A run that ends before the first update has no progress artifacts, only its summary.
_EVERY_SECONDS = 2.0

# The parts of these stages are batches, and their number is known. The parts of all other stages are phases, one after
# the other.
_BATCHED = ("embed", "load")

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Progress:
    """What all parts of a run have reported so far; the stages' threads write it, the publisher's thread reads it."""

    batches: int = 0
    """Batches of all rounds that have been planned."""
    planned_before: int = 0
    """Batches of all rounds before the present one."""
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
        """Note that a round of so many batches begins."""
        with self._lock:
            self.planned_before, self.batches = self.batches, self.batches + batches

    def shares(self) -> dict[str, tuple[float, str]]:
        """Percentage done (0 to 100) and a sentence, by stage."""
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
    """Note that a round of so many batches begins in this process's run. Does nothing if no run is published."""
    if _running:
        _running[-1].expect(batches)


@contextmanager
def published(pipeline: str) -> Generator[None]:
    """Within this context, publish the progress of the stages, as one artifact per stage."""
    progress = Progress()
    _running.append(progress)
    try:
        # In a thread of its own, so that no stage waits for the API. It has the flow's context, so that the artifacts
        # belong to the flow run.
        with beside(_Publisher(pipeline, progress).publish_until), listening(progress):
            yield
    finally:
        _running.remove(progress)


class _Publisher:
    def __init__(self, pipeline: str, progress: Progress) -> None:
        self._pipeline = pipeline
        self._progress = progress
        self._artifacts: dict[str, UUID] = {}
        self._published: dict[str, tuple[float, str]] = {}

    def publish_until(self, stop: threading.Event) -> None:
        try:
            while not stop.wait(_EVERY_SECONDS):
                self._publish(create=True)
            self._publish(create=False)
        except (httpx.HTTPError, PrefectException) as error:
            # The run goes on: that its progress is not shown is no reason to fail.
            logger.warning("the UI no longer shows the progress of this run: %s", error)

    def _publish(self, *, create: bool) -> None:
        for stage, (percent, sentence) in self._progress.shares().items():
            # A run that waits for another run says so by its state, and a whole stage by that of its task.
            if stage in (WAIT, *WHOLE) or self._published.get(stage) == (percent, sentence):
                continue
            if stage in self._artifacts:
                update_progress_artifact(self._artifacts[stage], progress=percent, description=plain(sentence))
            elif create:
                made = create_progress_artifact(
                    percent, key=artifact_key(self._pipeline, stage), description=plain(sentence)
                )
                self._artifacts[stage] = made  # pyright: ignore[reportArgumentType] # a UUID, because no event loop runs here
            self._published[stage] = (percent, sentence)
