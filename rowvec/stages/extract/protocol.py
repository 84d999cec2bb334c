"""What extract, merge and audit ask of a source, whatever way the source is compared with its vector table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from psycopg import sql

from rowvec.ledger.changes import Known, Waiting
from rowvec.ledger.plans import Plan
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.vector_table import VectorTable
from rowvec.sources.postgres import SourceQuery
from rowvec.stages.extract.request import Request


class Rows(Protocol):
    """What a vector table is joined with: a source's rows, or their chunks."""

    @property
    def key(self) -> tuple[PgColumn, ...]:
        """The vector table's key."""
        ...

    @property
    def metadata(self) -> tuple[PgColumn, ...]:
        """The metadata columns."""
        ...

    def within(self, keys: sql.Composable) -> Rows:
        """Those whose keys are in ``keys``."""
        ...

    @property
    def whole(self) -> SourceQuery:
        """The source's rows before they are split."""
        ...

    @property
    def rows(self) -> sql.Composed:
        """``SELECT`` key, metadata, content, rowvec_vector, fingerprint and metadata_hash."""
        ...

    @property
    def changed_rows(self) -> sql.Composed:
        """The same of at least the rows in the temporary table ``diff``."""
        ...

    @property
    def unsplit(self) -> sql.Composed:
        """``SELECT`` the keys of rows whose present content is not split yet."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """How the source and the merged vector table agree."""

    pending: int = 0
    """Rows of the source that changed after the plan read them; the next sync embeds them."""
    missing: tuple[str, ...] = ()
    """Keys of rows that were planned and have no vector. There should be none."""
    source: tuple[int, str] | None = None
    """Number and checksum of the source's rows that must have a vector; None if they were not all read again."""
    table: tuple[int, str] | None = None
    """The same of the vector table, if it was read again after the merge."""


class LiveRows(Protocol):
    """The temporary table ``live`` of a merge: key, fingerprint and metadata hash of the rows that are still valid.

    Every method runs inside the merge's transaction.
    """

    @property
    def leftovers(self) -> tuple[sql.Identifier, ...]:
        """The tables of the run that nothing reads after the merge."""
        ...

    def make(self) -> None:
        """Fill ``live``."""
        ...

    def agrees(self) -> bool:
        """Whether source and vector table are known to agree already, so that nothing has to be written."""
        ...

    def drop_moved(self) -> None:
        """Delete staged rows whose source row has changed since it was read."""
        ...

    def check_deletes(self) -> None:
        """Raise ``DeleteLimitExceeded`` if the merge would delete more vectors than the pipeline allows."""
        ...

    def delete_gone(self) -> int:
        """Delete the vectors that the source no longer has, and return their number."""
        ...

    def gone(self) -> sql.Composed:
        """``SELECT`` the keys of the vectors that ``delete_gone`` deletes because the source has no such row."""
        ...

    def outdated(self) -> sql.Composed:
        """``SELECT`` the keys of the vectors that ``delete_gone`` deletes because their row has other content."""
        ...

    def release(self) -> None:
        """Remove from the queue of changes, if there is one, what the plan has read of it."""
        ...

    def account(self, *, settled: bool) -> Evidence:
        """Compare ``live`` with the merged table. ``settled``: ``agrees`` returned true, and nothing was written."""
        ...


class SourceStrategy(Protocol):
    """A pipeline's source and the one way in which it is compared with the vector table.

    ``open_source`` chooses the implementation; nothing else asks where the source is.
    """

    def at_rest(self, request: Request, before: Known) -> Waiting | None:
        """The queue of changes, if it is empty and everything is as the last run that merged found it, ``before``.

        None if there is no queue, or if anything has changed, is in doubt, or is due. Raises ``SourceError``.
        """
        ...

    def extract(self, request: Request) -> Plan:
        """Compare source and vector table, and store the plan.

        Raises ``SourceError`` or ``TargetError`` if one of them is not as the pipeline says.
        """
        ...

    def count_lost(self, plan: Plan) -> int:
        """How many vectors the plan deletes because their row is gone."""
        ...

    def read_again(self, plan: Plan) -> LiveRows:
        """Before the merge's transaction: find what has changed in the source since the plan was made.

        Raises ``DeleteLimitExceeded`` if the source has lost more rows than the pipeline allows.
        """
        ...

    def compare_merged(self, plan: Plan) -> Evidence | None:
        """After the merge: read the source again and compare; None if the merge's own transaction has done so."""
        ...

    def release(self, plan: Plan, table: tuple[int, str], *, agrees: bool) -> None:
        """After the merge and its comparison: settle what the merge's own transaction could not.

        ``table``: the totals of the vector table. ``agrees``: whether source and table agree.
        """
        ...

    def compare_for_audit(self, table: VectorTable) -> Callable[[], None]:
        """For an audit: read what can be read of the source before the audit's transaction begins.

        Returns a function that adds the differences to the audit's temporary table ``findings``; call it in the
        audit's transaction.
        """
        ...
