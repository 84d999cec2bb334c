"""Refuses a source that reads the vector table itself: by name, through a view, as a partition, or by another DSN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any, cast

import psycopg

from rowvec.errors import SourceError
from rowvec.pipeline import Pipeline
from rowvec.pipeline.parts import table_identifier
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query
from rowvec.sources.postgres import is_in_target_database, relation_of


def check_source_is_not_target(connection: Connection, pipeline: Pipeline) -> None:
    """Raise ``SourceError`` if the source reads the pipeline's vector table.

    ``connection`` is to the target's database; the pipeline's references must be resolved.
    """
    source, target = pipeline.source, table_identifier(pipeline.target.table)
    if source.kind != "postgres":
        return
    exists = connection.execute(query("target_overlap", "exists"), {"schema": target[0], "table": target[1]}).fetchone()
    if not (exists and exists[0]):
        return
    with ExitStack() as opened:
        reader = connection
        if not is_in_target_database(pipeline):
            from rowvec.sources.other_database import connected  # late: it reads streams of hashes too

            reader = opened.enter_context(connected(source.url or ""))
            if _database(reader) != _database(connection):
                return
        # What is wrong with the source itself is reported when it is read.
        with suppress(psycopg.ProgrammingError), reader.transaction(force_rollback=True):
            rows = reader.execute(query("target_overlap", "plan_of_source", relation=relation_of(source))).fetchall()
            if target in _tables(rows[0][0]):
                raise SourceError(
                    f"the source reads {target[0]}.{target[1]}, which is the pipeline's own vector table: name another "
                    "table in target.table, or take it out of the source; nothing was changed"
                )


def _database(connection: Connection) -> object:
    row = connection.execute(query("target_overlap", "database")).fetchone()
    return row and row[0]


def _tables(plan: Any) -> Iterator[tuple[str, str]]:
    """Schema and name of each table in a plan, at any depth."""
    waiting = [plan]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += cast("list[Any]", node)
        elif isinstance(node, dict):
            found = cast("dict[str, Any]", node)
            if "Relation Name" in found:
                yield found.get("Schema", ""), found["Relation Name"]
            waiting += found.values()
