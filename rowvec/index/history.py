"""The history of index builds: why each index was built, over which rows, and what changed since."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from rowvec.index.build import IndexReport
from rowvec.index.recall import RecallReport
from rowvec.index.wear import Churn, Reason, Tried
from rowvec.pipeline.model import Recall
from rowvec.postgres.connection import Connection, lost_connections_are_retriable
from rowvec.postgres.queries import query
from rowvec.postgres.vector_index import IndexChoice, stored_choice
from rowvec.postgres.vector_table import VectorTable

# PostgreSQL 15 added pg_stat_force_next_flush. Older versions report statistics up to half a second late.
_CAN_FLUSH = 15_00_00


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One index build, as stored in ``rowvec.index_builds``."""

    build_id: int
    name: str
    oid: int
    rows: int
    newest_run: int
    outcome: str
    tried: Tried


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """The rows of a vector table, and how they changed since two of its index builds."""

    rows: int
    oldest_run: int
    newest_run: int
    served: Build | None
    """The newest build whose index still exists."""
    served_wear: Churn | None
    tried: tuple[Build, ...]
    """The latest 100 builds, the newest first."""
    tried_wear: Churn | None
    """The changes since the newest build of ``tried``."""


def look(connection: Connection, table: VectorTable) -> Looked:
    """Count the table's rows, and the rows that got their vector after its builds, in one pass.

    Each row stores the number of the run that gave it its vector. So the table itself shows what changed after a
    build, even if a run was killed, the table was restored, or statistics were reset.
    ``docs/explanation/indexes.md`` explains why the statistics are not used for this. A row that changed more than once
    counts once. Raises ``DatabaseUnavailable``.
    """
    with lost_connections_are_retriable():
        connection.execute(query("index_builds", "ended"), {**_name_of(table), "outcome": "gone"})
        builds = recorded_builds(connection, table)
        served = next((build for build in builds if build.outcome == "serves"), None)
        newest = next(iter(builds), None)
        statement = query(
            "index_builds",
            "rows",
            table=table.identifier,
            served_since=sql.Literal(served.newest_run if served else 0),
            tried_since=sql.Literal(newest.newest_run if newest else 0),
        )
        count, since_served, since_tried, oldest_run, newest_run = connection.execute(statement).fetchone() or (0,) * 5
    return Looked(
        rows=count,
        oldest_run=oldest_run,
        newest_run=newest_run,
        served=served,
        served_wear=Churn(built_over=served.rows, rows=count, came=since_served) if served else None,
        tried=builds,
        tried_wear=Churn(built_over=newest.rows, rows=count, came=since_tried) if newest else None,
    )


def recorded_builds(connection: Connection, table: VectorTable) -> tuple[Build, ...]:
    """The latest 100 builds of a table's indexes, the newest first. Reads no row of the table."""
    with lost_connections_are_retriable():
        rows = connection.execute(query("index_builds", "recorded"), _name_of(table)).fetchall()
    return tuple(_build(row) for row in rows)


def note_build(
    connection: Connection,
    table: VectorTable,
    name: str,
    choice: IndexChoice,
    reason: Reason,
    looked: Looked,
    report: IndexReport | None,
) -> int:
    """Record an index and return the build's id; ``report`` is None for an index that no run built.

    Raises ``DatabaseUnavailable``.
    """
    memory = report.memory if report else None
    values = {
        "table_schema": table.schema,
        "table_name": table.name,
        "index_name": name,
        "qualified": sql.Identifier(table.schema, name).as_string(connection),
        "choice": Jsonb(asdict(choice)),
        "why": reason.why,
        "reason": reason.sentence,
        "rows": looked.rows,
        "newest_run": looked.newest_run,
        "seconds": report.seconds if report else None,
        "memory_needed": memory.needed if memory else None,
        "memory_given": memory.given if memory else None,
        "spilled_after": report.spilled_after if report else None,
        "outcome": "refused" if report and report.refused else "serves",
    }
    with lost_connections_are_retriable(), connection.transaction():
        connection.execute(query("index_builds", "ended"), {**_name_of(table), "outcome": "replaced"})
        row = connection.execute(query("index_builds", "add"), values).fetchone()
    return row[0] if row else 0


def note_wear(connection: Connection, build_id: int, wear: Churn) -> None:
    """Record how many vectors came and went since the build. Raises ``DatabaseUnavailable``."""
    with lost_connections_are_retriable():
        values = {"build_id": build_id, "came": wear.came, "went": wear.went}
        connection.execute(query("index_builds", "looked"), values)


def measured_over(
    connection: Connection, table: VectorTable, choice: IndexChoice, looked: Looked
) -> dict[str, Any] | None:
    """The state that a recall depends on: while this value is unchanged, the recall is unchanged too.

    Read it before the measurement. The number of rows and the newest run show what runs have written. The server's
    statistics show what any session has written, and each VACUUM, which repairs a graph. After a reset or a crash the
    statistics start again from zero, so the value differs. None if the statistics show no writes to this table,
    because its rows are on another server (Citus). Raises ``DatabaseUnavailable``.
    """
    with lost_connections_are_retriable():
        if connection.info.server_version >= _CAN_FLUSH:
            connection.execute(query("index_builds", "flush"))
        found = connection.execute(query("index_builds", "activity"), _name_of(table)).fetchone()
    writes, vacuums = found or (0, 0)
    if not writes:
        return None
    return {
        "search": _search_of(choice),
        "rows": looked.rows,
        "newest_run": looked.newest_run,
        "writes": writes,
        "vacuums": vacuums,
    }


def searched_as(over: dict[str, Any] | None, choice: IndexChoice) -> dict[str, Any] | None:
    """The same state of a table, searched as another choice says."""
    return None if over is None else {**over, "search": _search_of(choice)}


def standing_recall(
    connection: Connection, build: Build, over: dict[str, Any] | None, wanted: Recall
) -> RecallReport | None:
    """An earlier recall that is still valid and high enough; None if recall must be measured again.

    It is valid if it was measured in the same state ``over``. Raises ``DatabaseUnavailable``.
    """
    if over is None:
        return None
    values = {"build_id": build.build_id, "over": Jsonb(over), **wanted.model_dump()}
    with lost_connections_are_retriable():
        found = connection.execute(query("index_builds", "standing"), values).fetchone()
    if found is None:
        return None
    recall, low, high, k, queries, at = found
    return RecallReport(
        recall=recall,
        low=low,
        high=high,
        k=k,
        queries=queries,
        at_least=wanted.at_least,
        index=build.name,
        note=f"measured on {at:%Y-%m-%d} at {at:%H:%M} UTC, and nothing was written or vacuumed since",
    )


def note_recall(
    connection: Connection, build_id: int, recall: RecallReport | None, over: dict[str, Any] | None
) -> None:
    """Record a measured recall and the state ``over`` in which it was measured; does nothing without a recall.

    Raises ``DatabaseUnavailable``.
    """
    if recall is None or recall.recall is None:
        return
    values = {
        "build_id": build_id,
        "recall": recall.recall,
        "low": recall.low,
        "high": recall.high,
        "k": recall.k,
        "queries": recall.queries,
        "over": Jsonb(over) if over else None,
    }
    with lost_connections_are_retriable():
        connection.execute(query("index_builds", "recalled"), values)


def _search_of(choice: IndexChoice) -> dict[str, Any]:
    return {name: value for name, value in asdict(choice).items() if name != "reason"}


def _build(row: tuple[Any, ...]) -> Build:
    build_id, name, oid, choice, rows, newest_run, recall, k, outcome = row
    return Build(
        build_id=build_id,
        name=name,
        oid=oid,
        rows=rows,
        newest_run=newest_run,
        outcome=outcome,
        tried=Tried(choice=stored_choice(choice), recall=recall, k=k),
    )


def _name_of(table: VectorTable) -> dict[str, str]:
    return {"schema": table.schema, "table": table.name}
