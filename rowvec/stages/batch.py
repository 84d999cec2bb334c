"""A batch: the unit of work that goes through the stages on one machine."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from rowvec.ledger.lease import Lease
from rowvec.ledger.runs import Run, RunId
from rowvec.ledger.workdir import make_workdir_in
from rowvec.pipeline import Pipeline
from rowvec.pipeline.embedders import PaidEmbedder
from rowvec.runtime.allocators import share_arenas
from rowvec.store.artifact import Artifact

share_arenas()


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch on its way through the stages: a reference and figures, never the rows themselves."""

    run_id: RunId
    lease: Lease
    """Of the run: a worker in another process must not pay or write once it is lost."""
    number: int
    database: str = ""
    """The name of the database that numbers the run, by ``rowvec.ledger.workdir``; set once the batch has files."""
    bits: int = 0
    """Bits per dimension that the table keeps; set once the batch has files."""
    images: int = 0
    """Images that were put into the store."""
    rows: int = 0
    embedded: int = 0
    rejected: int = 0
    tokens: int = 0
    artifact: Artifact | None = None
    seconds: tuple[tuple[str, float], ...] = ()

    @classmethod
    def of(cls, run: Run, number: int) -> Batch:
        """A batch at the beginning of its way."""
        return cls(run_id=run.run_id, lease=run.lease, number=number)

    @property
    def folder(self) -> Path:
        """The folder of its files on this machine."""
        return make_workdir_in(self.database, self.run_id) / f"batch-{self.number}"

    def after(self, stage: str, started: float, **changes: object) -> Batch:
        """The batch after a stage that began at ``started`` (monotonic seconds), with the stage's figures."""
        seconds = (*self.seconds, (stage, time.monotonic() - started))
        return replace(self, seconds=seconds, **changes)  # pyright: ignore[reportArgumentType] # checked by replace


def embedded_at_once(pipeline: Pipeline) -> int:
    """How many batches one process embeds at the same time.

    Two if texts go to a provider. With one, the provider would be idle while the last answers of a batch arrive and the
    next batch's rows are fetched. Both share the embedder's concurrency and rate limit, and no text is in two batches.
    A model on this machine is kept busy by one batch, and images are large.
    """
    return 2 if isinstance(pipeline.embedder, PaidEmbedder) else 1
