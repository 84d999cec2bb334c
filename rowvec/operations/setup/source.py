"""Checks of the source: it can be reached and read, it has the columns that the file names, and its key is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

from psycopg import sql

from rowvec.errors import SourceError
from rowvec.operations.setup.finding import Finding, fault, ok, warning
from rowvec.operations.setup.target import Role, role_of
from rowvec.pipeline import Pipeline, template
from rowvec.pipeline.parts import table_identifier
from rowvec.pipeline.sources import PostgresSource
from rowvec.postgres.columns import listed
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query
from rowvec.runtime.home import home_folder
from rowvec.runtime.suggestion import did_you_mean
from rowvec.sources.other_database import connected
from rowvec.sources.postgres import describe, is_in_target_database, table_not_there
from rowvec.sources.row_security import restriction
from rowvec.sources.target_overlap import check_source_is_not_target
from rowvec.vectors.fingerprint import Identity


@dataclass(slots=True)
class Learned:
    """What the checks learn of a source for the checks after them."""

    rows: int | None = None
    """About how many rows it has; None if that is not known."""


def table(target: Connection, pipeline: Pipeline, learned: Learned) -> Iterator[Finding]:
    """A table or a query of Postgres; ``target`` is a connection to the vector table's database."""
    source, here = pipeline.source, is_in_target_database(pipeline)
    if source.kind != "postgres":
        return
    with nullcontext(target) if here else connected(source.url or "") as connection:
        faults = list(_of_table(connection, source, learned)) if source.table else []
        yield from faults
        if faults:
            return
        with connection.transaction(force_rollback=True):
            described = describe(connection, pipeline, source, b"")
    read = len({*source.key, *source.metadata, *template.parse(source.content or "").columns})
    yield ok("source", f"{_named(source)} has the {read} columns that the file names{_about(learned.rows)}")
    if not described.unique:
        yield warning(
            "source key",
            f"the database does not guarantee that {', '.join(source.key)} is unique and not NULL; rows that share a "
            "key, or have none, are rejected, and each run looks for them",
            "put a primary key or a unique index over NOT NULL columns on it, if it is meant to be the key"
            if source.table
            else "nothing, if the query gives each key once",
        )
    check_source_is_not_target(target, pipeline)
    if hidden := restriction(target, pipeline):
        yield warning("source", hidden.partition("; ")[0], hidden.partition("; ")[2])


def _of_table(connection: Connection, source: PostgresSource, learned: Learned) -> Iterator[Finding]:
    schema, name = table_identifier(source.table or "")
    row = connection.execute(query("setup", "relation", schema=sql.Literal(schema), table=sql.Literal(name))).fetchone()
    if row is None:
        yield fault(
            "source",
            table_not_there(connection, (schema, name)),
            "correct source.table, or the database in source.url",
        )
        return
    usable, rows, _, unreadable = row
    role = role_of(connection)
    # A table that was never analyzed has -1.
    learned.rows = int(rows) if rows >= 0 else None
    yield from _unreadable(role, source, (schema, name), usable=usable, columns=unreadable or [])


def _unreadable(
    role: Role, source: PostgresSource, table: tuple[str, str], *, usable: bool, columns: list[str]
) -> Iterator[Finding]:
    schema, name = (sql.Identifier(part).as_string() for part in table)
    if not usable:
        yield fault(
            "source",
            f"{role.name} lacks USAGE on the schema {schema}",
            f"an administrator runs: GRANT USAGE ON SCHEMA {schema} TO {role.name};",
        )
    wanted = {*source.key, *source.metadata, *template.parse(source.content or "").columns}
    if lacking := sorted(wanted.intersection(columns)):
        yield fault(
            "source",
            f"{role.name} may not read {', '.join(lacking)} of {schema}.{name}",
            f"an administrator runs: GRANT SELECT ON {schema}.{name} TO {role.name};",
        )


def files(pipeline: Pipeline) -> Iterator[Finding]:
    """CSV or Parquet files, or images: only names, headers and schemas are read, of blobs the whole file."""
    source = pipeline.source
    if source.kind == "postgres":
        return
    # The imports are late: pyarrow's readers, and Azure's client.
    from rowvec.runtime.home import temporary_folder
    from rowvec.sources.files.download import fetcher
    from rowvec.sources.files.source import file_format, local_paths, open_files
    from rowvec.sources.images.file import is_url

    fetch, spool = fetcher(source.credential), home_folder("spool")
    if source.kind == "images":
        with temporary_folder(spool) as place:
            paths = fetch(source.path, place) if is_url(source.path) else local_paths(source)
            known = file_format(source).schema(paths[0]).names
        wanted = (*source.key, *source.metadata, source.content.image)
        for name in wanted:
            if name not in known:
                raise SourceError(
                    f"{source.path} has no column {name!r}; it has {listed(known)}{did_you_mean(name, known)}"
                )
    else:
        embedder = pipeline.embedder
        identity = Identity(
            provider=embedder.kind, model=embedder.model, dimensions=embedder.dimensions, preprocessing=0
        )
        wanted = (*source.key, *source.metadata, *template.parse(source.content or "").columns)
        with open_files(pipeline, source, identity, spool, fetch):
            pass
    yield ok("source", f"{source.path} has the {len(set(wanted))} columns that the file names")


def _named(source: PostgresSource) -> str:
    return f"the table {source.table}" if source.table else "the query"


def _about(rows: int | None) -> str:
    return "" if rows is None else f", and about {rows:,} rows"
