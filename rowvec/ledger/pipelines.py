"""The pipelines in the ledger (the schema ``rowvec``): their tables, their embedders and their settings."""

from __future__ import annotations

from collections.abc import Mapping
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

VECTOR_COLUMNS = frozenset({"content", "embedding", "fingerprint", "metadata_hash", "run_id", "embedded_at"})
"""Columns that every vector table has."""

_TABLES = ("r", "p")


def is_readable(connection: Connection, table: str, column: str) -> bool:
    """Whether the ledger has this column and the role may read it: a role that only searches needs no such grant."""
    row = connection.execute(query("pipelines", "readable"), {"table": table, "column": column}).fetchone()
    return bool(row and row[0])


def find(connection: Connection, pipeline: Pipeline) -> PipelineId:
    """The id of a pipeline that has run before.

    Raises ``UsageError`` if it has never run, or if its name belongs to another table.
    """
    row = connection.execute(query("pipelines", "find"), {"name": pipeline.name}).fetchone()
    if row is None:
        raise UsageError(f"the pipeline {pipeline.name} has never run against this database; run rowvec sync first")
    pipeline_id, schema, table = row
    check_table(pipeline, schema, table)
    return PipelineId(pipeline_id)


def identity_of(connection: Connection, pipeline_id: PipelineId) -> Identity:
    """The identity of the embedder that the pipeline's last run used.

    Raises ``LookupError`` if the ledger has no such pipeline; an id from ``find`` or ``register`` is always there.
    """
    row = connection.execute(query("pipelines", "identity"), {"pipeline_id": pipeline_id}).fetchone()
    if row is None:
        raise LookupError(f"the ledger has no pipeline with the id {pipeline_id}")
    return Identity(**row[0])


def is_under_construction(connection: Connection, pipeline_id: PipelineId) -> bool:
    """Whether this is a generation that a rebuild is making."""
    row = connection.execute(query("pipelines", "is_building"), {"pipeline_id": pipeline_id}).fetchone()
    return bool(row and row[0])


def check_table(pipeline: Pipeline, schema: str, table: str) -> None:
    """Raise ``UsageError`` if a pipeline file names another table than ``schema.table``, to which its name belongs."""
    if (schema, table) != table_identifier(pipeline.target.table):
        raise UsageError(
            f"in this database the name {pipeline.name} belongs to the table {schema}.{table}, and this pipeline file "
            f"is for {pipeline.target.table}: give this pipeline a name of its own. Or, if the name should be this "
            "table's from now on, run rowvec adopt FILE; its help says what becomes of the other table"
        )


def check_name(connection: Connection, pipeline: Pipeline) -> None:
    """Raise ``UsageError`` if the pipeline's name belongs to another table, which exists or has artifacts.

    Without a ledger, no name is known to belong to anything.
    """
    if is_readable(connection, "pipelines", "family") and is_readable(connection, "artifacts", "name"):
        owned = connection.execute(query("pipelines", "owned"), {"name": pipeline.name}).fetchone()
        if owned:
            check_table(pipeline, *owned)


def check_target(connection: Connection, pipeline: Pipeline, identity: Identity) -> None:
    """Raise ``UsageError`` unless the pipeline's name and its table belong to each other, or both are free.

    A table that exists must be one that rowvec made: the ledger knows it, or its fingerprints are of ``identity``.
    """
    check_name(connection, pipeline)
    schema, table = table_identifier(pipeline.target.table)
    owner = owner_of(connection, schema, table)
    if owner not in (None, pipeline.name):
        raise UsageError(
            f"the table {schema}.{table} belongs to the pipeline {owner} in this database: name another table in "
            f"target.table. Or, if {pipeline.name} is the new name of that pipeline, run rowvec rename FILE {owner}"
        )
    found = connection.execute(query("pipelines", "relation"), {"schema": schema, "table": table}).fetchone()
    if found is None:
        return
    kind, columns = found
    if kind not in _TABLES:
        raise UsageError(f"{schema}.{table} is no table, and rowvec did not make it: name another one in target.table")
    if owner is not None and not VECTOR_COLUMNS.isdisjoint(columns):
        # A vector table may have lost a column; then a rebuild is the way.
        return
    if not VECTOR_COLUMNS.issubset(columns) or not _has_fingerprints_of(connection, identity, schema, table):
        raise UsageError(
            f"the table {schema}.{table} exists, and rowvec did not make it with this embedder: name another one in "
            "target.table, which rowvec then creates; nothing was changed"
        )


def owner_of(connection: Connection, schema: str, table: str) -> str | None:
    """The name of the pipeline, or of its generation, that a table belongs to in the ledger."""
    if not is_readable(connection, "pipelines", "family"):
        return None
    row = connection.execute(query("pipelines", "owner"), {"schema": schema, "table": table}).fetchone()
    return row[0] if row else None


def _has_fingerprints_of(connection: Connection, identity: Identity, schema: str, table: str) -> bool:
    """Whether a table that the ledger does not know has vectors of this embedder: the ledger was lost then."""
    if identity.from_source:
        # These fingerprints cover the text of a vector that the table does not have; such vectors cost nothing.
        return True
    parts = {"identity": sql.Literal(identity.digest()), "table": sql.Identifier(schema, table)}
    row = connection.execute(query("pipelines", "has_fingerprints", **parts)).fetchone()
    return bool(row and row[0])


def register(connection: Connection, pipeline: Pipeline, identity: Identity, *, settled: bool = True) -> PipelineId:
    """Record the pipeline with its present table and embedder, and return its id.

    ``settled``: store this file's settings as the pipeline's current ones, if none are stored; False for commands that
    only read or prune.

    Raises ``UsageError`` if the table has vectors of another embedder, belongs to another pipeline, or was not made by
    rowvec, and if the name belongs to another table.
    """
    schema, table = table_identifier(pipeline.target.table)
    named = {"name": pipeline.name, "schema": schema, "table": table}
    settings = Jsonb(pipeline.model_dump(mode="json", exclude_none=True)) if settled else None
    values = {**named, "identity": Jsonb(identity.as_json()), "settings": settings}
    known = connection.execute(query("pipelines", "as_registered"), {**values, "columns": list(VECTOR_COLUMNS)})
    if (row := known.fetchone()) is not None:
        return PipelineId(row[0])
    check_target(connection, pipeline, identity)
    check_identity(connection, pipeline, identity)
    try:
        row = connection.execute(query("pipelines", "register"), values).fetchone()
    except pg.UniqueViolation:
        row = None
    if row is None:
        # Another process has just taken the name or the table.
        check_target(connection, pipeline, identity)
        raise UsageError(
            f"the table {schema}.{table} or the name {pipeline.name} belongs to a generation of another pipeline; "
            "give this pipeline its own"
        )
    return PipelineId(row[0])


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
