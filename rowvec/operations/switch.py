"""Generations: the next build of a vector table beside the one that is read, and the switch between them.

A generation that is being built is a pipeline of its own, ``articles.2`` into ``articles__2``: it has its own runs,
rejects and journal, so that the table that is read goes on being kept in step meanwhile. What one generation has paid
for serves all.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import LiteralString, cast

from psycopg import errors as pg
from psycopg import sql

from rowvec.errors import DatabaseUnavailable, TargetError, UsageError
from rowvec.ledger import reuse, runs
from rowvec.ledger.generations import Generation, as_generation, listed, live_of, same_vectors, url
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
    """Two generations that have changed places."""

    live: Generation
    """As it was before: it is read now by the table's own name."""
    retired: Generation
    retired_table: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Next:
    """The generation that a rebuild would build, or go on with."""

    pipeline: Pipeline
    """What builds it."""
    begun: Generation | None
    """It was begun, or switched away from, by the same settings; None where it is new."""
    given_up: tuple[Generation, ...]
    """Begun by other settings and never finished: they go when this one is begun."""


def next_generation(pipeline: Pipeline) -> Next:
    """Find the next generation; changes nothing.

    Raises ``UsageError`` where nothing has been built yet or nothing would differ, ``TargetError`` where something
    stands on the table.
    """
    with open_target(resolve(pipeline), "rowvec rebuild") as connection:
        install(connection)
        known = listed(connection, pipeline.name)
        live = live_of(known, pipeline)
        if not _exists(connection, live.schema, live.table):
            raise UsageError(
                f"there is no vector table {live.schema}.{live.table} to build anew; run rowvec sync first"
            )
        if live.settings is not None and same_vectors(live.settings, pipeline):
            raise UsageError(
                f"{live.schema}.{live.table} is built by these very settings: change the pipeline file to build "
                "another generation, or run rowvec index --rebuild if it is the index that is worn"
            )
        check_in_the_way(connection, live)
        kept = [g for g in known if g.state in ("building", "retired")]
        begun = next((g for g in kept if g.settings is not None and same_vectors(g.settings, pipeline)), None)
        if begun is not None:
            following = as_generation(pipeline, begun.name, begun.schema, begun.table)
        else:
            # One that was only planned leaves its number to the next.
            planned = known[0].state == "dropped" and not reuse.has_artifacts(connection, known[0].pipeline_id)
            number = known[0].number + (0 if planned else 1)
            following = as_generation(
                pipeline, f"{pipeline.name}.{number}", live.schema, cut_name(live.table, f"__{number}")
            )
        given_up = tuple(g for g in kept if g.state == "building" and g is not begun)
        return Next(pipeline=following, begun=begun, given_up=given_up)


def begin(pipeline: Pipeline, following: Next) -> None:
    """Let go of what others have begun, and mark this one as being built.

    Raises ``PipelineBusy`` where one of them is being built at this moment.
    """
    with open_target(resolve(pipeline), "rowvec rebuild") as connection:
        for old in following.given_up:
            with runs.exclusively(url(pipeline), old.name, old.pipeline_id):
                drop(connection, old)
        connection.execute(query("generations", "build"), {"name": following.pipeline.name})


def check_in_the_way(connection: Connection, live: Generation) -> None:
    """Raise ``TargetError`` where something of the user's is bound to the table itself, and would stay behind."""
    values = {"table": _written(connection, live.schema, live.table)}
    found = [row[0] for row in connection.execute(query("generations", "in_the_way"), values)]
    if found:
        raise TargetError(
            f"{', '.join(found[:5])} stand(s) on {live.schema}.{live.table} and would stay with the old table after a "
            f"switch; drop it before rowvec rebuild and make it again after, or let it read {live.table}_search"
        )


def copy_indexes(connection: Connection, live: Generation, following: Generation) -> list[str]:
    """Make the user's own indexes of the table that is read on the next one too; returns what was run."""
    made: list[str] = []
    old = _qualified(connection, live.schema, live.table)
    new = _qualified(connection, following.schema, following.table)
    values = {"table": _written(connection, live.schema, live.table)}
    have = {"table": _written(connection, following.schema, following.table)}
    there = {row[0] for row in connection.execute(query("generations", "user_indexes"), have)}
    for name, definition, quoted in connection.execute(query("generations", "user_indexes"), values).fetchall():
        copy = cut_name(name, f"_{following.number}")
        head, on, tail = definition.partition(f" ON {old} ")
        if copy in there or not on:
            continue
        head = head.replace(f"INDEX {quoted}", f"INDEX {sql.Identifier(copy).as_string(connection)}")
        statement = f"{head} ON {new} {tail}"
        # The database's own text of an index that is there.
        connection.execute(sql.SQL(cast("LiteralString", statement)))
        made.append(statement)
    return made


@contextmanager
def both_held(pipeline: Pipeline, one: Generation, other: Generation) -> Generator[None]:
    """No run of either generation meanwhile. Raises ``PipelineBusy`` where one is at work."""
    with ExitStack() as held:
        for generation in sorted((one, other), key=lambda g: g.pipeline_id):
            held.enter_context(runs.exclusively(url(pipeline), generation.name, generation.pipeline_id))
        yield


def switch(
    connection: Connection, pipeline: Pipeline, following: Generation, choice: IndexChoice, former: IndexChoice
) -> Switched:
    """Let the two tables change places, in one transaction: readers see the one or the other.

    ``choice`` and ``former``: the indexes of the next table and of the one that is read. Both generations must be held.
    Raises ``DatabaseUnavailable`` where readers leave no moment for it.
    """
    live = live_of(listed(connection, pipeline.name), pipeline)
    check_in_the_way(connection, live)

    def at_once() -> Switched:
        with connection.transaction():
            return _change_places(connection, pipeline, live, following, choice, former)

    try:
        return without_blocking(at_once)
    except pg.LockNotAvailable:
        raise DatabaseUnavailable(
            f"no moment was found in which nobody reads {live.schema}.{live.table}; a long query holds it, see pg_locks"
        ) from None


def drop(connection: Connection, generation: Generation) -> None:
    """Drop a generation's table and what stands beside it; its artifacts and what they cost stay known."""
    with connection.transaction():
        table = sql.Identifier(generation.schema, generation.table)
        for one in (table, chunk_table(generation.pipeline_id)):
            connection.execute(query("generations", "drop_table", table=one))
        _drop_beside(connection, generation.schema, generation.table)
        state = {"state": "dropped", "pipeline_id": generation.pipeline_id}
        connection.execute(query("generations", "set_state"), state)
        connection.execute(
            query("generations", "forget_tunings"), {"schema": generation.schema, "table": generation.table}
        )


def retire_for_good(pipeline: Pipeline) -> list[str]:
    """Drop the generations that were switched away from, and those that were never finished; returns their tables."""
    with open_target(resolve(pipeline), "rowvec rebuild") as connection:
        install(connection)
        old = [g for g in listed(connection, pipeline.name) if g.state in ("building", "retired")]
        for generation in old:
            with runs.exclusively(url(pipeline), generation.name, generation.pipeline_id):
                drop(connection, generation)
    return [f"{g.schema}.{g.table}" for g in old]


def table_of(connection: Connection, pipeline: Pipeline, generation: Generation) -> VectorTable:
    """A generation's table as it is in the database."""
    settings = generation.settings or pipeline
    named = as_generation(settings, generation.name, generation.schema, generation.table)
    return stored_table(connection, resolve(named, frozenset({"target"})))


def _change_places(
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
        connection.execute(query("generations", statement, **names))
    _hand_over_privileges(connection, live, following)
    away = cut_name(live.table, f"__{live.number}")
    _drop_beside(connection, following.schema, following.table)
    for old, name in ((live.table, away), (following.table, live.table)):
        renamed = query("generations", "rename", table=sql.Identifier(live.schema, old), name=sql.Identifier(name))
        connection.execute(renamed)
        for block in ("move_builds", "move_tunings"):
            connection.execute(query("generations", block), {"schema": live.schema, "from": old, "to": name})
    moves = ((live, f"{pipeline.name}.{live.number}", away, "retired"), (following, pipeline.name, live.table, "live"))
    for generation, name, table, state in moves:
        target = _qualified(connection, live.schema, table)
        values = {"pipeline_id": generation.pipeline_id, "name": name, "table": table, "state": state}
        connection.execute(query("generations", "move_row"), {**values, "target": target})
    retired, now = replace(tables["live"], name=away), replace(tables["next"], name=live.table)
    for table, index in ((retired, former), (now, choice)):
        if pipeline.search.hybrid:
            install_hybrid_function(connection, table, index, Hybrid(language=pipeline.search.language))
        else:
            install_search_function(connection, table, index)
        install_provenance(connection, table)
    return Switched(live=following, retired=live, retired_table=f"{live.schema}.{away}")


def _hand_over_privileges(connection: Connection, live: Generation, following: Generation) -> None:
    """Whoever may read the one may read the other."""
    values = {"table": _written(connection, live.schema, live.table)}
    table = sql.Identifier(following.schema, following.table)
    for privilege, grantable, role in connection.execute(query("generations", "grants"), values).fetchall():
        grant = query(
            "generations",
            "grant",
            # A keyword of the database's own list.
            privilege=sql.SQL(cast("LiteralString", privilege)),
            table=table,
            grantee=sql.Identifier(role) if role else sql.SQL("PUBLIC"),
            with_option=sql.SQL("WITH GRANT OPTION" if grantable else ""),
        )
        connection.execute(grant)
    owner, comment = connection.execute(query("generations", "owner"), values).fetchone() or (None, None)
    others = {"table": _written(connection, following.schema, following.table)}
    builder, _ = connection.execute(query("generations", "owner"), others).fetchone() or (None, None)
    if owner is not None and owner != builder:
        connection.execute(query("generations", "own", table=table, owner=sql.Identifier(owner)))
    if comment:
        connection.execute(query("generations", "comment", table=table, text=sql.Literal(comment)))


def _drop_beside(connection: Connection, schema: str, table: str) -> None:
    """The functions and views that were made beside a table."""
    values = {"schema": schema, "names": [cut_name(table, suffix) for suffix in _FUNCTIONS]}
    # Views first: they stand on functions.
    for block in ("drop_views", "drop_functions"):
        for (statement,) in connection.execute(query("generations", block), values).fetchall():
            connection.execute(sql.SQL(cast("LiteralString", statement)))


def _exists(connection: Connection, schema: str, table: str) -> bool:
    row = connection.execute(query("generations", "is_there"), {"table": _written(connection, schema, table)})
    return bool((row.fetchone() or (False,))[0])


def _written(connection: Connection, schema: str, table: str) -> str:
    return sql.Identifier(schema, table).as_string(connection)


def _qualified(connection: Connection, schema: str, table: str) -> str:
    row = connection.execute(query("generations", "qualified"), {"schema": schema, "table": table}).fetchone()
    return str(row[0]) if row else ""
