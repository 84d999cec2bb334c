"""An opened stage: the values that every stage of a run starts with."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from rowvec.ledger.plans import Plan, open_plan
from rowvec.ledger.runs import RunId
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import Connection, open_target
from rowvec.store.open import open_store
from rowvec.store.protocol import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a stage works with."""

    pipeline: Pipeline
    """With its references resolved."""
    connection: Connection
    """To the vector table's database, in autocommit mode; the stage's own."""
    plan: Plan
    """The run's stored plan."""

    @property
    def store(self) -> Store:
        """The pipeline's store of artifacts; opened each time, which asks no server."""
        return open_store(self.pipeline.artifacts)


@contextmanager
def open_stage(pipeline: Pipeline, run_id: RunId, stage: str) -> Generator[Work]:
    """Resolve the pipeline, connect to the vector table's database, and open the run's plan.

    ``stage`` names the session, as in ``rowvec embed 3``. Raises ``UsageError`` for a reference that does not resolve
    and ``TargetError`` if the plan is gone. What the database raises meanwhile becomes one of our errors.
    """
    resolved = resolve(pipeline)
    with open_target(resolved, f"rowvec {stage}") as connection:
        yield Work(pipeline=resolved, connection=connection, plan=open_plan(connection, resolved, run_id))
