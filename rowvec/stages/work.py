"""An opened stage: the values that every stage of a run starts with."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rowvec.ledger.held_lease import Ownership
from rowvec.ledger.lease import Lease, check_owner, open_owned
from rowvec.ledger.owned_store import OwnedStore
from rowvec.ledger.plans import Plan, open_plan
from rowvec.ledger.runs import RunId
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import Connection
from rowvec.store.open import open_store
from rowvec.store.protocol import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a stage works with."""

    pipeline: Pipeline
    """With its references resolved."""
    connection: Connection
    """To the vector table's database, in autocommit mode; the stage's own. It commits nothing without the lease."""
    lease: Lease
    plan: Plan
    """The run's stored plan."""

    @property
    def store(self) -> Store:
        """The pipeline's store of artifacts; opened each time, which asks no server. It writes only for the lease."""
        return OwnedStore(open_store(self.pipeline.artifacts), Ownership(self.lease, self.pipeline.target.url))


class OfRun(Protocol):
    """A run, or a batch of it: what a process needs to work for the run."""

    @property
    def run_id(self) -> RunId:
        """The run's number."""
        ...

    @property
    def lease(self) -> Lease:
        """The run's lease."""
        ...


@contextmanager
def open_stage(pipeline: Pipeline, run: OfRun, stage: str) -> Generator[Work]:
    """Resolve the pipeline, connect to the vector table's database, and open the run's plan.

    ``stage`` names the session, as in ``rowvec embed 3``. Raises ``UsageError`` for a reference that does not resolve,
    ``LeaseLost`` if another run has taken over, and ``TargetError`` if the plan is gone. What the database raises
    meanwhile becomes one of our errors.
    """
    resolved = resolve(pipeline)
    with open_owned(resolved, run.lease, f"rowvec {stage}") as connection:
        with connection.transaction():
            check_owner(connection, run.lease)
            plan = open_plan(connection, resolved, run.run_id)
        yield Work(pipeline=resolved, connection=connection, lease=run.lease, plan=plan)
