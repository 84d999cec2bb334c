"""The layout of a vector table: which columns it has, in which order, with which types."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
from psycopg import errors as pg
from psycopg import sql

from rowvec.errors import TargetError, UsageError
from rowvec.pipeline import Pipeline
from rowvec.pipeline.parts import table_identifier
from rowvec.pipeline.sources import CHUNK
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.postgres.copy_encoder import can_encode
from rowvec.postgres.fragments import definitions, names
from rowvec.postgres.queries import query
from rowvec.vectors.layout import Layout, Precision

Metric = Literal["cosine", "l2", "inner_product"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorTable:
    """A vector table, its name and its columns."""

    schema: str
    name: str
    key: tuple[PgColumn, ...]
    metadata: tuple[PgColumn, ...]
    dimensions: int
    precision: Precision = "float32"
    bits: bool = True
    metric: Metric = "cosine"
    distribution: str | None = None
    """The key column by which Citus spreads the table over its nodes; None: the table is not spread."""

    @staticmethod
    def of(pipeline: Pipeline, key: tuple[PgColumn, ...], metadata: tuple[PgColumn, ...]) -> VectorTable:
        """The table of a pipeline, with the column types of its source."""
        schema, name = table_identifier(pipeline.target.table)
        return VectorTable(
            schema=schema,
            name=name,
            key=key,
            metadata=metadata,
            dimensions=pipeline.embedder.dimensions,
            precision=pipeline.target.precision,
            bits=pipeline.target.bits,
            metric=pipeline.target.metric,
            distribution=pipeline.target.distribution_column,
        )

    @property
    def identifier(self) -> sql.Identifier:
        """``"schema"."name"``."""
        return sql.Identifier(self.schema, self.name)

    @property
    def row_key(self) -> tuple[PgColumn, ...]:
        """The key of the source's rows: that of the table without the chunk's number."""
        return tuple(column for column in self.key if column.name != CHUNK)

    @property
    def layout(self) -> Layout:
        """How its vectors are laid out."""
        return Layout(self.precision, self.dimensions)

    @property
    def embedding_type(self) -> str:
        """``vector(n)``, ``halfvec(n)`` or ``sparsevec(n)``."""
        return f"{self.layout.type_name}({self.dimensions})"

    def dimensions_of(self, vector: sql.Composable) -> sql.Composed:
        """The dimensions of a vector of this table's type, as SQL: pgvector's own function takes no sparse ones."""
        return query(
            "vector_layout", "dimensions_sparse" if self.layout.is_sparse else "dimensions_dense", vector=vector
        )

    def mean_elements(self, connection: Connection) -> int:
        """Numbers that a distance looks at; for sparse vectors twice the mean of nonzeros in a sample of the table."""
        if not self.layout.is_sparse:
            return self.dimensions
        row = connection.execute(query("vector_layout", "nonzeros", table=self.identifier)).fetchone()
        return max(1, round(2 * row[0])) if row and row[0] is not None else self.layout.elements

    @property
    def columns(self) -> tuple[PgColumn, ...]:
        """All columns in their order in the table.

        The first after key and metadata is ``content``, so that the columns of variable length stand together and
        those of fixed length after them: the binary COPY encoder makes one block of the latter.
        """
        bits = (PgColumn("embedding_bits", f"bit({self.dimensions})"),) if self.bits else ()
        return (
            *self.key,
            *self.metadata,
            PgColumn("content", "text"),
            PgColumn("embedding", self.embedding_type),
            *bits,
            PgColumn("fingerprint", "bytea"),
            PgColumn("metadata_hash", "bytea"),
            PgColumn("run_id", "bigint"),
            PgColumn("embedded_at", "timestamp with time zone"),
        )

    @property
    def artifact_schema(self) -> pa.Schema:
        """The Arrow schema of an artifact: the table's columns without ``run_id`` and ``embedded_at``."""
        width = (self.dimensions + 7) // 8
        return pa.schema(
            [
                *(column.arrow_field for column in (*self.key, *self.metadata)),
                pa.field("content", pa.string()),
                pa.field("fingerprint", pa.binary(32), nullable=False),
                pa.field("metadata_hash", pa.binary(32), nullable=False),
                pa.field("embedding", self.layout.arrow, nullable=False),
                *([pa.field("embedding_bits", pa.binary(width), nullable=False)] if self.bits else []),
            ]
        )


def stored_table(connection: Connection, pipeline: Pipeline) -> VectorTable:
    """The vector table with the types that it has in the database, for commands that only read it.

    Raises ``UsageError`` if the table does not exist yet, or lacks a column of the pipeline.
    """
    schema, name = table_identifier(pipeline.target.table)
    rows = stored_columns(connection, schema, name)
    if not rows:
        raise UsageError(f"there is no vector table {schema}.{name} yet; run rowvec sync first")
    types = {column: pg_type for column, pg_type, _ in rows}
    if "fingerprint" not in types:
        raise UsageError(f"{schema}.{name} is not a vector table of rowvec; name another one in target.table")
    wanted = (*pipeline.source.vector_key, *pipeline.source.metadata)
    if unknown := [column for column in wanted if column not in types]:
        raise UsageError(f"the vector table {schema}.{name} has no column {unknown[0]!r}; rowvec rebuild adds it")
    return VectorTable.of(
        pipeline,
        tuple(PgColumn(column, types[column]) for column in pipeline.source.vector_key),
        tuple(PgColumn(column, types[column]) for column in pipeline.source.metadata),
    )


def stored_columns(connection: Connection, schema: str, name: str) -> list[tuple[str, str, bool]]:
    """Name and type of each column, and whether it is in the primary key; empty if there is no such table."""
    with connection.types_with_schemas():
        rows = connection.execute(query("vector_table", "columns"), {"schema": schema, "table": name}).fetchall()
    return [(column, connection.names.without_schema(pg_type), in_key) for column, pg_type, in_key in rows]


def is_there(connection: Connection, schema: str, name: str) -> bool:
    """Whether a table of this name exists, whatever its columns."""
    return bool(stored_columns(connection, schema, name))


def find_table(connection: Connection, table: VectorTable) -> bool:
    """Whether the vector table exists with the columns, types and key of the pipeline.

    Raises ``TargetError`` if a table of its name has other columns, types or key.
    """
    rows = stored_columns(connection, table.schema, table.name)
    if not rows:
        return False
    found = {name: pg_type for name, pg_type, _ in rows}
    name = f"{table.schema}.{table.name}"
    for column in table.columns:
        if column.name not in found:
            raise TargetError(f"the table {name} has no column {column.name!r}: {_other_layout(name)}")
        if found[column.name] != column.pg_type:
            raise TargetError(
                f"the table {name} has {column.name} as {found[column.name]}, the pipeline wants {column.pg_type}: "
                + _other_layout(name)
            )
    key = {name for name, _, in_key in rows if in_key}
    if key != {column.name for column in table.key}:
        raise TargetError(f"the table {name} has the key ({', '.join(sorted(key))}): {_other_layout(name)}")
    return True


def make_schema(connection: Connection, schema: str) -> None:
    """Create a schema, unless it exists; for a transaction of its own.

    Two sessions that create the same schema wait for each other, and the second one fails despite IF NOT EXISTS.
    """
    found = connection.execute(query("vector_table", "schema_there"), {"schema": schema}).fetchone()
    if not (found and found[0]):
        with suppress(pg.UniqueViolation):
            connection.execute(query("vector_table", "create_schema", schema=sql.Identifier(schema)))


def create_table(connection: Connection, table: VectorTable) -> None:
    """Create the empty vector table with its primary key, in its schema, which must exist."""
    parts = {"columns": definitions(table.columns), "key": names(table.key)}
    connection.execute(query("vector_table", "create", table=table.identifier, **parts))


def count_rows(connection: Connection, table: VectorTable) -> int:
    """The number of rows in the table."""
    row = connection.execute(query("vector_table", "count", table=table.identifier)).fetchone()
    return row[0] if row else 0


def _other_layout(name: str) -> str:
    return f"rowvec rebuild builds {name} again next to the table that is read, from its artifacts if they fit"


def direct_possible(table: VectorTable) -> bool:
    """Whether COPY can write all columns in their own types, so that staging can become the vector table.

    A vector or a bit string of the source's own travels as text, which is not what their binary form is made of.
    """
    own = (*table.key, *table.metadata)
    return all(can_encode(c.pg_type, from_text=c in own and c.travels_as == "text") for c in table.columns)
