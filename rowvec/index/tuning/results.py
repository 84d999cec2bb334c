"""Stores the results of tunings in ``rowvec.tunings``, where the next sync reads them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from rowvec.index.build import index_state
from rowvec.index.choice import fits, oversampling_for
from rowvec.index.raised_search import raised_search
from rowvec.index.tuning.candidates import Measured
from rowvec.ledger import pipelines
from rowvec.pipeline.indexes import AnyIndex
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query
from rowvec.postgres.vector_index import IndexChoice, stored_choice
from rowvec.postgres.vector_table import VectorTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """The stored choice of the last tuning of a vector table."""

    choice: IndexChoice
    rows: int
    """The number of rows of the table when it was tuned."""
    at_least: float
    """The recall that the tuning required."""
    tuned_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """The result of a tuning: the choice, and everything that was measured for it."""

    choice: IndexChoice
    reason: str
    measured: tuple[Measured, ...]
    skipped: tuple[tuple[str, str], ...]
    """Names of candidates that were not measured, and why."""
    rows: int
    sampled_rows: int
    queries: int
    k: int
    at_least: float
    exact_ms: float
    """Milliseconds of an exact search of the whole table, estimated from the sample."""
    seconds: float
    kept: str | None = None
    """Why syncs still use the choice of the previous tuning; None if they use this one."""

    def is_choice(self, measured: Measured) -> bool:
        """True if ``measured`` has the chosen index and search settings; reasons are not compared."""
        return replace(measured.choice, reason=self.choice.reason) == self.choice

    def verdict(self) -> str:
        """One sentence: the reason for the index that syncs use now."""
        return self.kept or self.reason

    def as_json(self) -> dict[str, Any]:
        """What ``rowvec index --tune --json`` prints."""
        return asdict(self)


def keeps_former(former: Tuned, tuning: Tuning) -> str | None:
    """Why a tuning does not replace the previous one: it had no time to measure what the previous one chose.

    None if it does replace it.
    """
    chosen = _build(former.choice)
    if not tuning.skipped or chosen.kind == "none" or any(_build(m.choice) == chosen for m in tuning.measured):
        return None
    return (
        f"The choice of {former.tuned_at:%Y-%m-%d %H:%M} ({former.choice.kind} on {former.choice.on}) stays, "
        "because this tuning had no time to measure it. Allow more seconds."
    )


def _build(choice: IndexChoice) -> IndexChoice:
    """The choice without its search settings: what a build depends on."""
    return replace(choice, reason="", oversampling=1, ef_search=None, probes=None, lists=None)


def store_tuning(connection: Connection, table: VectorTable, tuning: Tuning) -> Tuning:
    """Store the tuning in place of the previous one. If the previous one stays, ``kept`` of the result says why."""
    former = find_tuning(connection, table)
    kept = keeps_former(former, tuning) if former else None
    if kept:
        return replace(tuning, kept=kept)
    values = {
        **_of(table),
        "chosen": Jsonb(asdict(tuning.choice)),
        "measured": Jsonb([asdict(m) for m in tuning.measured]),
        "skipped": Jsonb([list(pair) for pair in tuning.skipped]),
        "rows": tuning.rows,
        "sampled": tuning.sampled_rows,
        "queries": tuning.queries,
        "k": tuning.k,
        "at_least": tuning.at_least,
        "seconds": tuning.seconds,
    }
    connection.execute(query("tuner", "store"), values)
    return tuning


def find_tuning(connection: Connection, table: VectorTable) -> Tuned | None:
    """The last tuning of this table.

    None if there is none, if this role may not read it, or if it was for vectors of another layout.
    """
    if not pipelines.is_readable(connection, "tunings", "chosen"):
        return None
    row = connection.execute(query("tuner", "find"), _of(table)).fetchone()
    if row is None:
        return None
    chosen, rows, at_least, tuned_at = row
    return Tuned(choice=stored_choice(chosen), rows=rows, at_least=at_least, tuned_at=tuned_at)


def _of(table: VectorTable) -> dict[str, object]:
    layout = {
        "dimensions": table.dimensions,
        "precision": table.precision,
        # A tuning of an earlier release has true or false.
        "bits": table.bits if table.bits > 1 else bool(table.bits),
        "metric": table.metric,
    }
    return {"schema": table.schema, "table": table.name, "layout": Jsonb(layout)}


def present_index(connection: Connection, table: VectorTable, wanted: AnyIndex) -> IndexChoice:
    """The valid index that a search can use, with the search settings that were tuned or raised for it.

    Its kind is ``none`` if there is no valid index.
    """
    base = IndexChoice(
        kind="none",
        oversampling=oversampling_for(wanted, table.dimensions, table.bits),
        oversampling_given=wanted.oversampling is not None,
        reason="There is no index.",
    )
    tuned = find_tuning(connection, table) if wanted.kind == "auto" and wanted.on == "auto" else None
    # Of partitions, the largest has the most lists and links; of one table, the newest index serves.
    states = sorted(index_state(connection, table), key=lambda state: state.bytes if table.partition_by else 0)
    for state in reversed(states):
        if state.valid and not state.partial:
            found = replace(state.present, oversampling=base.oversampling, oversampling_given=base.oversampling_given)
            if tuned and fits(state.present, tuned.choice):
                found = tuned.choice
            return raised_search(connection, table, state.name, found)
    return base
