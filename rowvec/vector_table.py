"""The layout of a vector table: which columns it has, in which order, with which types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
from psycopg import sql

from rowvec.columns import PgColumn
from rowvec.pipeline import Pipeline, table_identifier

Precision = Literal["float32", "float16"]
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
        )

    @property
    def identifier(self) -> sql.Identifier:
        """``"schema"."name"``."""
        return sql.Identifier(self.schema, self.name)

    @property
    def embedding_type(self) -> str:
        """``vector(n)`` or ``halfvec(n)``."""
        return f"{'vector' if self.precision == 'float32' else 'halfvec'}({self.dimensions})"

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
        """The Arrow schema of an artifact: what the table has, less ``run_id`` and ``embedded_at``.

        ``embedding`` is always float32, whatever the table's precision: what was paid for is kept whole.
        """
        width = (self.dimensions + 7) // 8
        return pa.schema(
            [
                *(column.arrow_field for column in (*self.key, *self.metadata)),
                pa.field("content", pa.string()),
                pa.field("fingerprint", pa.binary(32), nullable=False),
                pa.field("metadata_hash", pa.binary(32), nullable=False),
                pa.field("embedding", pa.list_(pa.float32(), self.dimensions), nullable=False),
                *([pa.field("embedding_bits", pa.binary(width), nullable=False)] if self.bits else []),
            ]
        )
