"""The ledger of index builds: what each index was built over and why, and how it has done since."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from rowvec.index.build import IndexReport
from rowvec.index.recall import RecallReport
from rowvec.index.wear import Churn, Reason, Tried
from rowvec.pipeline.model import Recall
from rowvec.postgres.connection import Connection, lost_connections_are_retriable
from rowvec.postgres.queries import query
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable

# pg_stat_force_next_flush came with PostgreSQL 15; before, statistics were late by half a second.
_CAN_FLUSH = 15_00_00

_NAMES = {field.name for field in fields(IndexChoice)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """An index build as the ledger has it."""

    build_id: int
    name: str
    oid: int
    rows: int
    newest_run: int
    outcome: str
    tried: Tried


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """The rows of a vector table, and what of them came after two builds."""

    rows: int
    oldest_run: int
    newest_run: int
    served: Build | None
    """The newest build whose index is there still."""
    served_wear: Churn | None
    tried: tuple[Build, ...]
    """All builds, the newest first."""
    tried_wear: Churn | None
    """Since the newest of them."""


def look(connection: Connection, table: VectorTable) -> Looked:
    """Count the table's rows, and those that came since its builds, in one pass.

    A row carries the number of the run that gave it its vector, so the table itself tells what came after a build,
    whatever was killed, restored or reset since; ``docs/index.md`` says why not the statistics. A row changed more than
    once counts once.
    """
    with lost_connections_are_retriable():
        connection.execute(query("index_builds", "ended"), {**_name_of(table), "outcome": "gone"})
        rows = connection.execute(query("index_builds", "recorded"), _name_of(table)).fetchall()
        builds = tuple(_build(row) for row in rows)
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


def note_build(
    connection: Connection,
    table: VectorTable,
    name: str,
    choice: IndexChoice,
    reason: Reason,
    looked: Looked,
    report: IndexReport | None,
) -> int:
    """Write down an index (``report`` is None for one that was found there); returns the build's number."""
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
    """Write down what came and went by now."""
    with lost_connections_are_retriable():
        values = {"build_id": build_id, "came": wear.came, "went": wear.went}
        connection.execute(query("index_builds", "looked"), values)


def measured_over(
    connection: Connection, table: VectorTable, choice: IndexChoice, looked: Looked
) -> dict[str, Any] | None:
    """What a recall is of: as long as this is the same, so is the recall. To be asked for before it is measured.

    Rows and their newest run tell what runs have written, the server's statistics whatever anybody has, and its
    VACUUMs, which mend a graph. Statistics that were reset, or lost in a crash, begin anew and are not the same. None
    where they say nothing of the table: it lies elsewhere (Citus).
    """
    with lost_connections_are_retriable():
        if connection.info.server_version >= _CAN_FLUSH:
            connection.execute(query("index_builds", "flush"))
        found = connection.execute(query("index_builds", "activity"), _name_of(table)).fetchone()
    writes, vacuums = found or (0, 0)
    if not writes:
        return None
    search = {name: value for name, value in asdict(choice).items() if name != "reason"}
    return {
        "search": search,
        "rows": looked.rows,
        "newest_run": looked.newest_run,
        "writes": writes,
        "vacuums": vacuums,
    }


def standing_recall(
    connection: Connection, build: Build, over: dict[str, Any] | None, wanted: Recall
) -> RecallReport | None:
    """The recall that was measured over the same, and is enough; None where it must be measured."""
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
    """Write down what was measured, if anything was, and what it is of."""
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


def _build(row: tuple[Any, ...]) -> Build:
    build_id, name, oid, choice, rows, newest_run, recall, k, outcome = row
    # Fields that another release of rowvec has, or had, say nothing here.
    known = IndexChoice(**{key: value for key, value in choice.items() if key in _NAMES})
    return Build(
        build_id=build_id,
        name=name,
        oid=oid,
        rows=rows,
        newest_run=newest_run,
        outcome=outcome,
        tried=Tried(choice=known, recall=recall, k=k),
    )


def _name_of(table: VectorTable) -> dict[str, str]:
    return {"schema": table.schema, "table": table.name}
