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
from rowvec.ledger.changes import forget
from rowvec.ledger.generations import (
    Generation,
    as_generation,
    list_generations,
    live_of,
    same_vectors,
    url_of_target,
)
from rowvec.ledger.held_lease import exclusively_on
from rowvec.ledger.pipelines import check_name
from rowvec.ledger.reuse import has_artifacts
from rowvec.operations.additions import check_additions, check_equal, check_free, check_no_data, exchange_names
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import Connection, open_target, without_blocking
from rowvec.postgres.fragments import cut_name
from rowvec.postgres.migrations import install
from rowvec.postgres.queries import query
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable, stored_table
from rowvec.searches.hybrid import Hybrid
from rowvec.searches.hybrid_function import install_hybrid_function
from rowvec.searches.provenance_view import install_provenance
from rowvec.searches.sql_function import install_search_function
from rowvec.stages.extract.chunks import chunk_table

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
    if something that the user added to the table cannot be carried over, or the name of the next table is taken.
    """
    with open_target(resolve(pipeline, frozenset({"target"})), "rowvec rebuild") as connection:
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
        check_free(connection, live.schema, _away(live))
        check_additions(connection, live, live.settings or pipeline, pipeline)
        kept = [g for g in known if g.state in ("building", "retired")]
        begun = next((g for g in kept if g.settings is not None and same_vectors(g.settings, pipeline)), None)
        if begun is not None:
            following = as_generation(pipeline, begun.name, begun.schema, begun.table)
        else:
            # A generation that was only planned does not use up its number.
            planned = known[0].state == "dropped" and not has_artifacts(connection, known[0].pipeline_id)
            number = known[0].number + (0 if planned else 1)
            table = cut_name(live.table, f"__{number}")
            check_free(connection, live.schema, table)
            following = as_generation(pipeline, f"{pipeline.name}.{number}", live.schema, table)
        given_up = tuple(g for g in kept if g.state == "building" and g is not begun)
        return Next(pipeline=following, begun=begun, given_up=given_up)


def begin(pipeline: Pipeline, following: Next) -> None:
    """Drop the unfinished generations with other settings, and mark this one as being built.

    Raises ``PipelineBusy`` if another process is building one of them at this moment, and ``TargetError`` if one has
    columns of the user's own.
    """
    with open_target(resolve(pipeline, frozenset({"target"})), "rowvec rebuild") as connection:
        for old in following.given_up:
            check_no_data(connection, old, pipeline)
        for old in following.given_up:
            with exclusively_on(connection, url_of_target(pipeline), old.name, old.pipeline_id):
                drop(connection, old)
        connection.execute(query("switch", "build"), {"name": following.pipeline.name})


@contextmanager
def both_held(connection: Connection, pipeline: Pipeline, one: Generation, other: Generation) -> Generator[None]:
    """Hold both generations, so that neither has a run meanwhile. Raises ``PipelineBusy`` if one has a run now.

    Within this context the connection commits nothing once one of the two leases is lost.
    """
    url = url_of_target(pipeline)
    with ExitStack() as held:
        for generation in sorted((one, other), key=lambda g: g.pipeline_id):
            held.enter_context(exclusively_on(connection, url, generation.name, generation.pipeline_id))
        yield


def switch_tables(
    connection: Connection, pipeline: Pipeline, following: Generation, choice: IndexChoice, former: IndexChoice
) -> Switched:
    """Exchange the names of the two tables in one transaction, so that each query reads one of them.

    ``choice`` and ``former``: the indexes of the next table and of the live one. The caller must hold both generations,
    see ``both_held``, and have given the next table what was added to the live one, see ``carry_additions``. Raises
    ``TargetError`` if the two tables differ by now, and ``DatabaseUnavailable`` if queries read the table all the time.
    """
    live = live_of(list_generations(connection, pipeline.name), pipeline)
    check_free(connection, live.schema, _away(live))

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
    """Drop a generation's table with its functions and views; its artifacts and their cost stay in the ledger.

    Raises ``TargetError`` if something of the user's depends on it.
    """
    with connection.transaction():
        table = sql.Identifier(generation.schema, generation.table)
        try:
            for one in (table, chunk_table(generation.pipeline_id)):
                connection.execute(query("switch", "drop_table", table=one))
        except pg.DependentObjectsStillExist as error:
            first = (error.diag.message_detail or "something depends on it").splitlines()[0]
            raise TargetError(
                f"{generation.schema}.{generation.table} was not dropped: {first}; drop that first, or change it"
            ) from error
        _drop_functions(connection, generation.schema, generation.table)
        connection.execute(query("certificates", "forget", pipeline_id=sql.Literal(generation.pipeline_id)))
        state = {"state": "dropped", "pipeline_id": generation.pipeline_id}
        connection.execute(query("switch", "set_state"), state)
        connection.execute(query("switch", "forget_tunings"), {"schema": generation.schema, "table": generation.table})


def retire_for_good(pipeline: Pipeline) -> list[str]:
    """Drop the retired and the unfinished generations; returns the names of their tables.

    Raises ``PipelineBusy`` if one of them has a run under way; ``TargetError``, before anything is dropped, if one has
    columns of the user's own.
    """
    with open_target(resolve(pipeline, frozenset({"target"})), "rowvec rebuild") as connection:
        install(connection)
        known = list_generations(connection, pipeline.name)
        check_name(connection, pipeline)
        old = [g for g in known if g.state in ("building", "retired")]
        for generation in old:
            check_no_data(connection, generation, pipeline)
        for generation in old:
            with exclusively_on(connection, url_of_target(pipeline), generation.name, generation.pipeline_id):
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
    check_equal(connection, live, following, (live.settings or pipeline, following.settings or pipeline))
    exchange_names(connection, live, following)
    away = _away(live)
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
        # The queue of changes has served only the live one.
        forget(connection, generation.pipeline_id)
    retired, now = replace(tables["live"], name=away), replace(tables["next"], name=live.table)
    for table, index in ((retired, former), (now, choice)):
        if pipeline.search.hybrid:
            install_hybrid_function(connection, table, index, Hybrid(language=pipeline.search.language))
        else:
            install_search_function(connection, table, index)
        install_provenance(connection, table)
    return Switched(live=following, retired=live, retired_table=f"{live.schema}.{away}")


def _drop_functions(connection: Connection, schema: str, table: str) -> None:
    """Drop the functions and the views that rowvec made for a table."""
    values = {"schema": schema, "names": [cut_name(table, suffix) for suffix in _FUNCTIONS]}
    # Views first: they depend on functions.
    for block in ("drop_views", "drop_functions"):
        for (statement,) in connection.execute(query("switch", block), values).fetchall():
            connection.execute(sql.SQL(cast("LiteralString", statement)))


def _away(live: Generation) -> str:
    """The name that the live table gets when another one takes its place."""
    return cut_name(live.table, f"__{live.number}")


def _exists(connection: Connection, schema: str, table: str) -> bool:
    row = connection.execute(query("switch", "is_there"), {"table": _written(connection, schema, table)})
    return bool((row.fetchone() or (False,))[0])


def _written(connection: Connection, schema: str, table: str) -> str:
    return sql.Identifier(schema, table).as_string(connection)


def _qualified(connection: Connection, schema: str, table: str) -> str:
    row = connection.execute(query("switch", "qualified"), {"schema": schema, "table": table}).fetchone()
    return str(row[0]) if row else ""
