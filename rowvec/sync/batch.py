"""The stages that each batch goes through, one after the other, on the machine that has its files."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from rowvec.ledger.runs import RunId
from rowvec.ledger.workdir import made
from rowvec.pipeline import Pipeline
from rowvec.runtime.allocators import share_arenas
from rowvec.store.artifact import Artifact

share_arenas()


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch on its way through the stages: a reference and figures, never the rows themselves."""

    run_id: RunId
    number: int
    database: str = ""
    """The one that numbers the run, as ``rowvec.spool`` calls it; known once there are files."""
    images: int = 0
    """Those that were put into the store."""
    rows: int = 0
    embedded: int = 0
    rejected: int = 0
    tokens: int = 0
    artifact: Artifact | None = None
    seconds: tuple[tuple[str, float], ...] = ()

    @property
    def folder(self) -> Path:
        """Where its files are while it is on this machine."""
        return made(self.database, self.run_id) / f"batch-{self.number}"

    def after(self, stage: str, started: float, **changes: object) -> Batch:
        """The batch with a stage behind it."""
        seconds = (*self.seconds, (stage, time.monotonic() - started))
        return replace(self, seconds=seconds, **changes)  # pyright: ignore[reportArgumentType] # checked by replace


def embedded_at_once(pipeline: Pipeline) -> int:
    """Batches that one process embeds at once.

    Two where texts go to a provider, which would have nothing to do while the last answers of a batch are awaited and
    the next one's rows are fetched: the embedder's concurrency and pace are for both together, and no text is in two
    batches. A model of this machine is kept busy by one, and images are large.
    """
    return 2 if pipeline.embedder.kind in ("openai", "azure_openai") else 1
