"""The pipelines in the ledger (the schema ``rowvec``): their tables, their embedders and their settings."""

from __future__ import annotations

from collections.abc import Mapping
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
    """Whether the ledger has this column and the role may read it: a role that only searches needs no such grant."""
    row = connection.execute(query("pipelines", "readable"), {"table": table, "column": column}).fetchone()
    return bool(row and row[0])


def find(connection: Connection, pipeline: Pipeline) -> PipelineId:
    """The id of a pipeline that has run before. Raises ``UsageError`` if it has never run."""
    row = connection.execute(query("pipelines", "find"), {"name": pipeline.name}).fetchone()
    if row is None:
        raise UsageError(f"the pipeline {pipeline.name} has never run against this database; run rowvec sync first")
    return PipelineId(row[0])


def identity_of(connection: Connection, pipeline_id: PipelineId) -> Identity:
    """The identity of the embedder that the pipeline's last run used.

    Raises ``LookupError`` if the ledger has no such pipeline; an id from ``find`` or ``register`` is always there.
    """
    row = connection.execute(query("pipelines", "identity"), {"pipeline_id": pipeline_id}).fetchone()
    if row is None:
        raise LookupError(f"the ledger has no pipeline with the id {pipeline_id}")
    return Identity(**row[0])


def register(connection: Connection, pipeline: Pipeline, identity: Identity, *, settled: bool = True) -> PipelineId:
    """Record the pipeline with its present table and embedder, and return its id.

    ``settled``: store this file's settings as the pipeline's current ones, if none are stored; False for commands that
    only read or prune.

    Raises ``UsageError`` if the table has vectors of another embedder, or belongs to another pipeline.
    """
    check_identity(connection, pipeline, identity)
    schema, table = table_identifier(pipeline.target.table)
    named = {"name": pipeline.name, "schema": schema, "table": table}
    settings = Jsonb(pipeline.model_dump(mode="json", exclude_none=True)) if settled else None
    values = {**named, "identity": Jsonb(asdict(identity)), "settings": settings}
    try:
        return PipelineId(written_id(connection, query("pipelines", "register"), values))
    except pg.UniqueViolation:
        raise UsageError(
            f"the table {schema}.{table} belongs to another pipeline in this database; give {pipeline.name} its own"
        ) from None


def check_identity(connection: Connection, pipeline: Pipeline, identity: Identity) -> None:
    """Raise ``UsageError`` if the pipeline's table exists and has vectors of another embedder."""
    schema, table = table_identifier(pipeline.target.table)
    regclass = sql.Identifier(schema, table).as_string(connection)
    values = {"name": pipeline.name, "schema": schema, "table": table, "regclass": regclass}
    row = connection.execute(query("pipelines", "registered"), values).fetchone()
    if row is not None and (before := Identity(**row[0])) != identity:
        wanted = f"{identity}" if str(identity) != str(before) else "the same model with other preprocessing"
        raise UsageError(
            f"{pipeline.target.table} holds vectors of {before}, and the pipeline asks for {wanted}: rowvec rebuild "
            "builds those next to the live ones and then switches; rowvec rebuild --plan reports what that costs"
        )


def keep_settings(connection: Connection, pipeline_id: PipelineId, pipeline: Pipeline) -> None:
    """Store the settings that the vector table is synced with; the references of ``pipeline`` must be unresolved.

    Call it only once the table is known to match them: during a rebuild, the live table is synced with these settings.
    """
    settings = pipeline.model_dump(mode="json", exclude_none=True)
    connection.execute(query("pipelines", "keep_settings"), {"pipeline_id": pipeline_id, "settings": Jsonb(settings)})


def written_id(connection: Connection, statement: sql.Composed, values: Mapping[str, object]) -> int:
    """Run an ``INSERT … RETURNING`` and return the first column of its row."""
    row = connection.execute(statement, values).fetchone()
    if row is None:
        raise LookupError("INSERT … RETURNING returned no row")  # without a DO NOTHING it always returns one
    return row[0]
