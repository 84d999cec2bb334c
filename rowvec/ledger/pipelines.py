"""The ledger in the schema ``rowvec``: which runs there were, who is at work now, and which artifact holds what."""

from __future__ import annotations

from dataclasses import asdict
from typing import NewType

from psycopg import errors as pg
from psycopg import sql
from psycopg.types.json import Jsonb

from rowvec.errors import UsageError
from rowvec.pipeline import Pipeline
from rowvec.pipeline.parts import table_identifier
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query
from rowvec.vectors.fingerprint import Identity

PipelineId = NewType("PipelineId", int)


def is_readable(connection: Connection, table: str, column: str) -> bool:
    """Whether the ledger has this by now, and the role may read it: searching needs no grant on the ledger."""
    row = connection.execute(query("ledger", "readable"), {"table": table, "column": column}).fetchone()
    return bool(row and row[0])


def find(connection: Connection, pipeline: Pipeline) -> PipelineId:
    """The id of a pipeline that has run before. Raises ``UsageError`` where it has not."""
    row = connection.execute(query("ledger", "find"), {"name": pipeline.name}).fetchone()
    if row is None:
        raise UsageError(f"the pipeline {pipeline.name} has never run against this database; run rowvec sync first")
    return PipelineId(row[0])


def identity_of(connection: Connection, pipeline_id: PipelineId) -> Identity:
    """The embedder that the pipeline's last run went by."""
    row = connection.execute(query("ledger", "identity"), {"pipeline_id": pipeline_id}).fetchone()
    if row is None:
        raise LookupError(pipeline_id)  # an id comes from ``find``, which has seen the row
    return Identity(**row[0])


def register(connection: Connection, pipeline: Pipeline, identity: Identity, *, settled: bool = True) -> PipelineId:
    """The pipeline's id, with its table and embedder as they are now.

    ``settled``: the run goes by the file; what only reads or prunes leaves the settings that are remembered alone.

    Raises ``UsageError`` where the table there is has vectors of another embedder, or is another pipeline's.
    """
    check_identity(connection, pipeline, identity)
    schema, table = table_identifier(pipeline.target.table)
    named = {"name": pipeline.name, "schema": schema, "table": table}
    settings = Jsonb(pipeline.model_dump(mode="json", exclude_none=True)) if settled else None
    values = {**named, "identity": Jsonb(asdict(identity)), "settings": settings}
    try:
        return PipelineId(one(connection, "register", **values))
    except pg.UniqueViolation:
        raise UsageError(
            f"the table {schema}.{table} belongs to another pipeline in this database; give {pipeline.name} its own"
        ) from None


def check_identity(connection: Connection, pipeline: Pipeline, identity: Identity) -> None:
    """Raise ``UsageError`` where the pipeline's table is there and has vectors of another embedder."""
    schema, table = table_identifier(pipeline.target.table)
    regclass = sql.Identifier(schema, table).as_string(connection)
    values = {"name": pipeline.name, "schema": schema, "table": table, "regclass": regclass}
    row = connection.execute(query("ledger", "registered"), values).fetchone()
    if row is not None and (before := Identity(**row[0])) != identity:
        asked = f"{identity}" if str(identity) != str(before) else "the same in another way"
        raise UsageError(
            f"{pipeline.target.table} holds vectors of {before}, and the pipeline asks for {asked}: rowvec rebuild "
            "builds them beside those that are read, and then switches; with --plan it tells what that costs"
        )


def keep_settings(connection: Connection, pipeline_id: PipelineId, pipeline: Pipeline) -> None:
    """Note the settings that the vector table is kept by; ``pipeline`` has its references unresolved.

    Not before the table is known to fit: a rebuild goes on keeping the table that is read by them.
    """
    settings = pipeline.model_dump(mode="json", exclude_none=True)
    connection.execute(query("ledger", "keep_settings"), {"pipeline_id": pipeline_id, "settings": Jsonb(settings)})


def one(connection: Connection, block: str, **values: object) -> int:
    row = connection.execute(query("ledger", block), values).fetchone()
    if row is None:
        raise LookupError(block)  # each of these blocks returns a row: INSERT … RETURNING
    return row[0]
