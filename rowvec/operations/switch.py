"""Switches clients from one generation of a vector table to another, and starts and drops generations.

A generation that is being built is a pipeline of its own, such as ``articles.2`` with the table ``articles__2``. It has
its own runs, rejects and journal, so that syncs of the live table continue meanwhile. All generations reuse the vectors
that one of them has paid for.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import LiteralString, cast

from psycopg import errors as pg
from psycopg import sql

from rowvec.errors import DatabaseUnavailable, TargetError, UsageError
from rowvec.ledger.generations import (
    Generation,
    as_generation,
    list_generations,
    live_of,
    same_vectors,
    url_of_target,
)
from rowvec.ledger.reuse import has_artifacts
from rowvec.ledger.runs import exclusively
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import Connection, open_target, without_blocking
from rowvec.postgres.fragments import cut_name
from rowvec.postgres.migrations import install
from rowvec.postgres.queries import query
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable, stored_table
from rowvec.search.hybrid import Hybrid
from rowvec.search.hybrid_function import install_hybrid_function
from rowvec.search.provenance_view import install_provenance
from rowvec.search.sql_function import install_search_function
from rowvec.sync.extract.chunks import chunk_table

_FUNCTIONS = ("_search", "_hybrid_search", "_provenance")


@dataclass(frozen=True, slots=True, kw_only=True)
class Switched:
    """The outcome of a switch."""

    live: Generation
    """The generation that is live now, as it was before the switch."""
    retired: Generation
    """The generation that was live before, as it was then."""
    retired_table: str
    """The name, with the schema, of the table that keeps the retired generation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Next:
    """The generation that a rebuild would build, or continue to build."""

    pipeline: Pipeline
    """The pipeline that builds it."""
    begun: Generation | None
    """The existing generation with the same settings, unfinished or retired; None if a new one is needed."""
    given_up: tuple[Generation, ...]
    """Unfinished generations with other settings: they are dropped when this one is begun."""


def next_generation(pipeline: Pipeline) -> Next:
    """Find the next generation; changes nothing.

    Raises ``UsageError`` if there is no vector table yet or the settings are those of the live one, and ``TargetError``
    if an object of the user is bound to the table.
    """
    with open_target(resolve(pipeline), "rowvec rebuild") as connection:
        install(connection)
        known = list_generations(connection, pipeline.name)
        live = live_of(known, pipeline)
        if not _exists(connection, live.schema, live.table):
            raise UsageError(f"there is no vector table {live.schema}.{live.table} to rebuild; run rowvec sync first")
        if live.settings is not None and same_vectors(live.settings, pipeline):
            raise UsageError(
                f"{live.schema}.{live.table} already has these settings: change the pipeline file to build "
                "another generation, or run rowvec index --rebuild if only the index is worn"
            )
        check_in_the_way(connection, live)
        kept = [g for g in known if g.state in ("building", "retired")]
        begun = next((g for g in kept if g.settings is not None and same_vectors(g.settings, pipeline)), None)
        if begun is not None:
            following = as_generation(pipeline, begun.name, begun.schema, begun.table)
        else:
            # A generation that was only planned does not use up its number.
            planned = known[0].state == "dropped" and not has_artifacts(connection, known[0].pipeline_id)
            number = known[0].number + (0 if planned else 1)
            following = as_generation(
                pipeline, f"{pipeline.name}.{number}", live.schema, cut_name(live.table, f"__{number}")
            )
        given_up = tuple(g for g in kept if g.state == "building" and g is not begun)
        return Next(pipeline=following, begun=begun, given_up=given_up)


def begin(pipeline: Pipeline, following: Next) -> None:
    """Drop the unfinished generations with other settings, and mark this one as being built.

    Raises ``PipelineBusy`` if another process is building one of them at this moment.
    """
    with open_target(resolve(pipeline), "rowvec rebuild") as connection:
        for old in following.given_up:
            with exclusively(url_of_target(pipeline), old.name, old.pipeline_id):
                drop(connection, old)
        connection.execute(query("switch", "build"), {"name": following.pipeline.name})


def check_in_the_way(connection: Connection, live: Generation) -> None:
    """Raise ``TargetError`` if an object of the user is bound to the live table, and would stay with the old one."""
    values = {"table": _written(connection, live.schema, live.table)}
    found = [row[0] for row in connection.execute(query("switch", "in_the_way"), values)]
    if found:
        raise TargetError(
            f"{', '.join(found[:5])} depend(s) on {live.schema}.{live.table} and would stay with the old table after a "
            f"switch; drop it before rowvec rebuild and create it again after, or let it read {live.table}_search"
        )


def copy_indexes(connection: Connection, live: Generation, following: Generation) -> list[str]:
    """Create the user's own indexes of the live table on the next one too; returns the statements that were run."""
    made: list[str] = []
    old = _qualified(connection, live.schema, live.table)
    new = _qualified(connection, following.schema, following.table)
    values = {"table": _written(connection, live.schema, live.table)}
    have = {"table": _written(connection, following.schema, following.table)}
    there = {row[0] for row in connection.execute(query("switch", "user_indexes"), have)}
    for name, definition, quoted in connection.execute(query("switch", "user_indexes"), values).fetchall():
        copy = cut_name(name, f"_{following.number}")
        head, on, tail = definition.partition(f" ON {old} ")
        if copy in there or not on:
            continue
        head = head.replace(f"INDEX {quoted}", f"INDEX {sql.Identifier(copy).as_string(connection)}")
        statement = f"{head} ON {new} {tail}"
        # The text comes from pg_get_indexdef, for an index that exists.
        connection.execute(sql.SQL(cast("LiteralString", statement)))
        made.append(statement)
    return made


@contextmanager
def both_held(pipeline: Pipeline, one: Generation, other: Generation) -> Generator[None]:
    """Lock both generations, so that neither has a run meanwhile. Raises ``PipelineBusy`` if one has a run now."""
    with ExitStack() as held:
        for generation in sorted((one, other), key=lambda g: g.pipeline_id):
            held.enter_context(exclusively(url_of_target(pipeline), generation.name, generation.pipeline_id))
        yield


def switch_tables(
    connection: Connection, pipeline: Pipeline, following: Generation, choice: IndexChoice, former: IndexChoice
) -> Switched:
    """Exchange the names of the two tables in one transaction, so that each query reads one of them.

    ``choice`` and ``former``: the indexes of the next table and of the live one. The caller must hold both generations,
    see ``both_held``. Raises ``TargetError`` if an object of the user is bound to the live table, and
    ``DatabaseUnavailable`` if queries read the table all the time.
    """
    live = live_of(list_generations(connection, pipeline.name), pipeline)
    check_in_the_way(connection, live)

    def at_once() -> Switched:
        with connection.transaction():
            return _exchange(connection, pipeline, live, following, choice, former)

    try:
        return without_blocking(at_once)
    except pg.LockNotAvailable:
        raise DatabaseUnavailable(
            f"queries kept {live.schema}.{live.table} locked all the time, so the switch was not made: see "
            "pg_locks for the query that holds it, and run again"
        ) from None


def drop(connection: Connection, generation: Generation) -> None:
    """Drop a generation's table with its functions and views; its artifacts and their cost stay in the ledger."""
    with connection.transaction():
        table = sql.Identifier(generation.schema, generation.table)
        for one in (table, chunk_table(generation.pipeline_id)):
            connection.execute(query("switch", "drop_table", table=one))
        _drop_functions(connection, generation.schema, generation.table)
        state = {"state": "dropped", "pipeline_id": generation.pipeline_id}
        connection.execute(query("switch", "set_state"), state)
        connection.execute(query("switch", "forget_tunings"), {"schema": generation.schema, "table": generation.table})


def retire_for_good(pipeline: Pipeline) -> list[str]:
    """Drop the retired and the unfinished generations; returns the names of their tables.

    Raises ``PipelineBusy`` if one of them has a run under way.
    """
    with open_target(resolve(pipeline), "rowvec rebuild") as connection:
        install(connection)
        old = [g for g in list_generations(connection, pipeline.name) if g.state in ("building", "retired")]
        for generation in old:
            with exclusively(url_of_target(pipeline), generation.name, generation.pipeline_id):
                drop(connection, generation)
    return [f"{g.schema}.{g.table}" for g in old]


def table_of(connection: Connection, pipeline: Pipeline, generation: Generation) -> VectorTable:
    """A generation's table as it is in the database."""
    settings = generation.settings or pipeline
    named = as_generation(settings, generation.name, generation.schema, generation.table)
    return stored_table(connection, resolve(named, frozenset({"target"})))


def _exchange(
    connection: Connection,
    pipeline: Pipeline,
    live: Generation,
    following: Generation,
    choice: IndexChoice,
    former: IndexChoice,
) -> Switched:
    tables = {"live": table_of(connection, pipeline, live), "next": table_of(connection, pipeline, following)}
    for statement in ("keep", "lock"):
        names = {name: table.identifier for name, table in tables.items()}
        connection.execute(query("switch", statement, **names))
    _copy_privileges(connection, live, following)
    away = cut_name(live.table, f"__{live.number}")
    _drop_functions(connection, following.schema, following.table)
    for old, name in ((live.table, away), (following.table, live.table)):
        renamed = query("switch", "rename", table=sql.Identifier(live.schema, old), name=sql.Identifier(name))
        connection.execute(renamed)
        for block in ("move_builds", "move_tunings"):
            connection.execute(query("switch", block), {"schema": live.schema, "from": old, "to": name})
    moves = ((live, f"{pipeline.name}.{live.number}", away, "retired"), (following, pipeline.name, live.table, "live"))
    for generation, name, table, state in moves:
        target = _qualified(connection, live.schema, table)
        values = {"pipeline_id": generation.pipeline_id, "name": name, "table": table, "state": state}
        connection.execute(query("switch", "move_row"), {**values, "target": target})
    retired, now = replace(tables["live"], name=away), replace(tables["next"], name=live.table)
    for table, index in ((retired, former), (now, choice)):
        if pipeline.search.hybrid:
            install_hybrid_function(connection, table, index, Hybrid(language=pipeline.search.language))
        else:
            install_search_function(connection, table, index)
        install_provenance(connection, table)
    return Switched(live=following, retired=live, retired_table=f"{live.schema}.{away}")


def _copy_privileges(connection: Connection, live: Generation, following: Generation) -> None:
    """Give the next table the owner, the privileges and the comment of the live one."""
    values = {"table": _written(connection, live.schema, live.table)}
    table = sql.Identifier(following.schema, following.table)
    for privilege, grantable, role in connection.execute(query("switch", "grants"), values).fetchall():
        grant = query(
            "switch",
            "grant",
            # The keyword comes from the database's own list.
            privilege=sql.SQL(cast("LiteralString", privilege)),
            table=table,
            grantee=sql.Identifier(role) if role else sql.SQL("PUBLIC"),
            with_option=sql.SQL("WITH GRANT OPTION" if grantable else ""),
        )
        connection.execute(grant)
    owner, comment = connection.execute(query("switch", "owner"), values).fetchone() or (None, None)
    others = {"table": _written(connection, following.schema, following.table)}
    builder, _ = connection.execute(query("switch", "owner"), others).fetchone() or (None, None)
    if owner is not None and owner != builder:
        connection.execute(query("switch", "own", table=table, owner=sql.Identifier(owner)))
    if comment:
        connection.execute(query("switch", "comment", table=table, text=sql.Literal(comment)))


def _drop_functions(connection: Connection, schema: str, table: str) -> None:
    """Drop the functions and the views that rowvec made for a table."""
    values = {"schema": schema, "names": [cut_name(table, suffix) for suffix in _FUNCTIONS]}
    # Views first: they depend on functions.
    for block in ("drop_views", "drop_functions"):
        for (statement,) in connection.execute(query("switch", block), values).fetchall():
            connection.execute(sql.SQL(cast("LiteralString", statement)))


def _exists(connection: Connection, schema: str, table: str) -> bool:
    row = connection.execute(query("switch", "is_there"), {"table": _written(connection, schema, table)})
    return bool((row.fetchone() or (False,))[0])


def _written(connection: Connection, schema: str, table: str) -> str:
    return sql.Identifier(schema, table).as_string(connection)


def _qualified(connection: Connection, schema: str, table: str) -> str:
    row = connection.execute(query("switch", "qualified"), {"schema": schema, "table": table}).fetchone()
    return str(row[0]) if row else ""
