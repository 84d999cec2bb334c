"""Search settings that a run raised for one index, in the ledger: every search of that index uses them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from rowvec.ledger import pipelines
from rowvec.postgres.connection import Connection, lost_connections_are_retriable
from rowvec.postgres.queries import query
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable


def raised_search(connection: Connection, table: VectorTable, index: str, choice: IndexChoice) -> IndexChoice:
    """The choice with the settings that a run has raised for this index; itself if none did, or for other settings.

    All partitions of a table that is split are searched alike: with the most that was raised for one of their indexes.
    A role that may not read the ledger searches as the choice says; the search functions have the raised settings.
    Raises ``DatabaseUnavailable``.
    """
    if not pipelines.is_readable(connection, "index_builds", "raised"):
        return choice
    if table.partition_by is not None:
        return _raised_for_one(connection, table, choice)
    values = {
        "schema": table.schema,
        "table": table.name,
        "index": index,
        "qualified": sql.Identifier(table.schema, index).as_string(connection),
    }
    with lost_connections_are_retriable():
        row = connection.execute(query("index_builds", "raised"), values).fetchone()
    raised: dict[str, Any] = (row[0] if row else None) or {}
    # Other settings in the pipeline file, or another tuning, begin again.
    return replace(choice, **raised["to"]) if raised and raised["from"] == search_settings(choice) else choice


def _raised_for_one(connection: Connection, table: VectorTable, choice: IndexChoice) -> IndexChoice:
    values = {"table": table.identifier.as_string(connection)}
    with lost_connections_are_retriable():
        rows = connection.execute(query("index_builds", "raised_of_partitions"), values).fetchall()
    found: list[dict[str, Any]] = [raised for (raised,) in rows if raised["from"] == search_settings(choice)]
    settings = [search_settings(choice), *(raised["to"] for raised in found)]
    raised = {name: max(each.get(name, 0) for each in settings) for name in set().union(*settings)}
    return replace(choice, **raised)


def keep_raised_search(connection: Connection, build_id: int, before: IndexChoice, choice: IndexChoice) -> None:
    """Store the settings of ``choice`` for an index that was chosen with those of ``before``; none if they are equal.

    Raises ``DatabaseUnavailable``.
    """
    to, since = search_settings(choice), search_settings(before)
    raised = Jsonb({"from": since, "to": to}) if to != since else None
    with lost_connections_are_retriable():
        connection.execute(query("index_builds", "raise"), {"build_id": build_id, "raised": raised})


def search_settings(choice: IndexChoice) -> dict[str, int]:
    """What a run may raise, by the names of the choice's fields."""
    settings = {"oversampling": choice.oversampling, "ef_search": choice.ef_search, "probes": choice.probes}
    # The ledger had settings before there were kinds of plug-ins, and theirs are compared with what it keeps.
    return {**settings, "effort": choice.effort} if choice.effort else settings
