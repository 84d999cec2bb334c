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
    """The key column by which Citus spreads the table over its nodes; None: not at all."""

    @staticmethod
    def of(pipeline: Pipeline, key: tuple[PgColumn, ...], metadata: tuple[PgColumn, ...]) -> VectorTable:
        """The table a pipeline asks for, with the types its source has."""
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
        """The source's own key: that of the table, less the chunk's number."""
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
        """The dimensions of one of this table's vectors, as SQL: pgvector's own function does not take sparse ones."""
        return query(
            "vector_layout", "dimensions_sparse" if self.layout.is_sparse else "dimensions_dense", vector=vector
        )

    def mean_elements(self, connection: Connection) -> int:
        """``layout.elements`` by a sample of the table's own vectors; for sparse ones twice the number of nonzeros."""
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
        """The Arrow schema of an artifact: what the table has, less ``run_id`` and ``embedded_at``."""
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
    """The vector table as it is in the database, for those who only read it.

    Raises ``UsageError`` where it does not exist yet.
    """
    schema, name = table_identifier(pipeline.target.table)
    rows = connection.execute(query("vector_table", "columns"), {"schema": schema, "table": name}).fetchall()
    if not rows:
        raise UsageError(f"there is no vector table {schema}.{name} yet; run rowvec sync first")
    types = {column: pg_type for column, pg_type, _ in rows}
    wanted = (*pipeline.source.vector_key, *pipeline.source.metadata)
    if unknown := [column for column in wanted if column not in types]:
        raise UsageError(f"the vector table {schema}.{name} has no column {unknown[0]!r}; rowvec rebuild adds it")
    return VectorTable.of(
        pipeline,
        tuple(PgColumn(column, types[column]) for column in pipeline.source.vector_key),
        tuple(PgColumn(column, types[column]) for column in pipeline.source.metadata),
    )


def is_there(connection: Connection, schema: str, name: str) -> bool:
    """Whether there is a table of this name, whatever it holds."""
    values = {"schema": schema, "table": name}
    return bool(connection.execute(query("vector_table", "columns"), values).fetchall())


def find_table(connection: Connection, table: VectorTable) -> bool:
    """Whether the vector table exists, and is laid out as the pipeline wants it.

    Raises ``TargetError`` where something else has its name, or it has other columns, types or key.
    """
    rows = connection.execute(
        query("vector_table", "columns"), {"schema": table.schema, "table": table.name}
    ).fetchall()
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
    """Make a schema where there is none.

    In a transaction of its own: two that make one schema wait for each other, and IF NOT EXISTS fails the second.
    """
    found = connection.execute(query("vector_table", "schema_there"), {"schema": schema}).fetchone()
    if not (found and found[0]):
        with suppress(pg.UniqueViolation):
            connection.execute(query("vector_table", "create_schema", schema=sql.Identifier(schema)))


def create_table(connection: Connection, table: VectorTable) -> None:
    """Make the vector table, empty, with its primary key, in its schema; for a load that cannot go straight into it."""
    parts = {"columns": definitions(table.columns), "key": names(table.key)}
    connection.execute(query("vector_table", "create", table=table.identifier, **parts))


def count_rows(connection: Connection, table: VectorTable) -> int:
    """How many vectors the table holds."""
    row = connection.execute(query("vector_table", "count", table=table.identifier)).fetchone()
    return row[0] if row else 0


def _other_layout(name: str) -> str:
    return f"rowvec rebuild builds {name} anew beside the one that is read, from its artifacts where they serve"


def direct_possible(table: VectorTable) -> bool:
    """Whether all columns can be written in their own types, so that staging can become the vector table."""
    return all(can_encode(column.pg_type) for column in table.columns)
