"""The layout of a vector table: which columns it has, in which order, with which types."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa
from psycopg import errors as pg
from psycopg import sql

from rowvec.errors import TargetError, UsageError
from rowvec.pipeline import Pipeline
from rowvec.pipeline.partitioning import PartitionBy
from rowvec.pipeline.parts import table_identifier
from rowvec.pipeline.sources import CHUNK
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.postgres.copy_encoder import can_encode
from rowvec.postgres.queries import query
from rowvec.vectors.bits import MOST_BITS, thresholds
from rowvec.vectors.layout import Layout, Precision

Metric = Literal["cosine", "l2", "inner_product"]

_BIT_TYPE = re.compile(r"bit\((\d+)\)")

# Equal values of these types print alike, so the text of a value tells its partition.
_SPLIT_TYPES = frozenset({"smallint", "integer", "bigint", "text", "character varying", "uuid"})
_LENGTH = re.compile(r"\(\d+\)$")
_SPLIT_KINDS = {"l": "list", "h": "hash", "r": "range"}


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorTable:
    """A vector table, its name and its columns."""

    schema: str
    name: str
    key: tuple[PgColumn, ...]
    metadata: tuple[PgColumn, ...]
    dimensions: int
    precision: Precision = "float32"
    bits: int = 1
    """Bits per dimension in ``embedding_bits``; 0: the table has no such column."""
    metric: Metric = "cosine"
    distribution: str | None = None
    """The key column by which Citus spreads the table over its nodes; None: the table is not spread."""
    partition_by: PartitionBy | None = None
    """How the table is split into partitions; None: it is not, or it is itself a partition."""

    @staticmethod
    def of(pipeline: Pipeline, key: tuple[PgColumn, ...], metadata: tuple[PgColumn, ...]) -> VectorTable:
        """The table of a pipeline, with the column types of its source.

        If the pipeline does not say how many bits it wants, a new table has those of its dimensions. An existing one
        may have others, see ``opened_table``.
        """
        schema, name = table_identifier(pipeline.target.table)
        return VectorTable(
            schema=schema,
            name=name,
            key=key,
            metadata=metadata,
            dimensions=pipeline.embedder.dimensions,
            precision=pipeline.target.precision,
            bits=pipeline.bits,
            metric=pipeline.target.metric,
            distribution=pipeline.target.distribution_column,
            partition_by=pipeline.target.partition_by,
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
    def partition_columns(self) -> tuple[PgColumn, ...]:
        """The columns of the key that the table is split by; empty if it is not split."""
        named = self.partition_by.columns if self.partition_by else ()
        return tuple(column for name in named for column in self.key if column.name == name)

    @property
    def layout(self) -> Layout:
        """How its vectors are laid out."""
        return Layout(self.precision, self.dimensions)

    @property
    def embedding_type(self) -> str:
        """``vector(n)``, ``halfvec(n)`` or ``sparsevec(n)``."""
        return f"{self.layout.type_name}({self.dimensions})"

    def bits_of(self, vector: sql.Composable, bits: int | None = None) -> sql.Composed:
        """The bits of a vector of this table's type, as SQL: what ``binarize`` makes of it, ``bits`` per dimension.

        ``bits``: those of the table, if left out. Every statement must have them in the same words, because the planner
        uses an index on this expression only then.
        """
        bits = bits or self.bits
        width = sql.Literal(bits * self.dimensions)
        if bits == 1:
            return query("vector_layout", "signs", vector=vector, width=width)
        parts = {"vector": vector, "dimensions": sql.Literal(self.dimensions)}
        codes = [
            query("vector_layout", "above_threshold", threshold=sql.Literal(threshold), **parts)
            for threshold in thresholds(bits, self.dimensions)
        ]
        return query("vector_layout", "several_bits", codes=sql.SQL(" || ").join(codes), width=width)

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
        bits = (PgColumn("embedding_bits", f"bit({self.bits * self.dimensions})"),) if self.bits else ()
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
        width = (self.bits * self.dimensions + 7) // 8
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
    key, metadata = (
        tuple(PgColumn(column, types[column]) for column in columns)
        for columns in (pipeline.source.vector_key, pipeline.source.metadata)
    )
    table = VectorTable.of(pipeline, key, metadata)
    split = stored_split(connection, schema, name)
    known = split if split and split.kind in ("list", "hash") else None
    return replace(table, bits=table.bits and _stored_bits(types, table), partition_by=known)


def stored_columns(connection: Connection, schema: str, name: str) -> list[tuple[str, str, bool]]:
    """Name and type of each column, and whether it is in the primary key; empty if there is no such table."""
    with connection.types_with_schemas():
        rows = connection.execute(query("vector_table", "columns"), {"schema": schema, "table": name}).fetchall()
    return [(column, connection.names.without_schema(pg_type), in_key) for column, pg_type, in_key in rows]


def stored_split(connection: Connection, schema: str, name: str) -> PartitionBy | None:
    """How an existing table is split; None if it is not. Its kind may be ``range``, which rowvec does not make."""
    written = sql.Identifier(schema, name).as_string(connection)
    row = connection.execute(query("partitions", "key"), {"table": written}).fetchone()
    if row is None:
        return None
    kind, columns, number = _SPLIT_KINDS[row[0]], tuple(row[1]), row[2] if row[0] == "h" else None
    return PartitionBy.model_construct(kind=kind, columns=columns, partitions=number)


def is_there(connection: Connection, schema: str, name: str) -> bool:
    """Whether a table of this name exists, whatever its columns."""
    return bool(stored_columns(connection, schema, name))


def opened_table(
    connection: Connection, pipeline: Pipeline, key: tuple[PgColumn, ...], metadata: tuple[PgColumn, ...]
) -> tuple[VectorTable, bool]:
    """The vector table that a run of the pipeline writes to, and whether it exists.

    If the pipeline leaves the number of bits to rowvec, an existing table keeps the number that it has. Raises
    ``TargetError`` as ``find_table``, and ``UsageError`` if the table cannot be split as the pipeline says.
    """
    table = VectorTable.of(pipeline, key, metadata)
    _check_split_types(table)
    if table.bits and pipeline.index.bits == "auto":
        rows = stored_columns(connection, table.schema, table.name)
        table = replace(table, bits=_stored_bits({name: pg_type for name, pg_type, _ in rows}, table) or table.bits)
    return table, find_table(connection, table)


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
    _check_split(stored_split(connection, table.schema, table.name), table)
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


def count_rows(connection: Connection, table: VectorTable) -> int:
    """The number of rows in the table."""
    row = connection.execute(query("vector_table", "count", table=table.identifier)).fetchone()
    return row[0] if row else 0


def _stored_bits(types: dict[str, str], table: VectorTable) -> int:
    """Bits per dimension of an existing table; 0 if it has no column of them that rowvec could have made."""
    found = _BIT_TYPE.fullmatch(types.get("embedding_bits", ""))
    bits, rest = divmod(int(found[1]), table.dimensions) if found else (0, 0)
    return bits if not rest and bits <= MOST_BITS else 0


def _check_split_types(table: VectorTable) -> None:
    for column in table.partition_columns:
        if _LENGTH.sub("", column.pg_type) not in _SPLIT_TYPES:
            raise UsageError(
                f"target.partition_by names {column.name}, which is {column.pg_type}: a table is split by whole "
                "numbers, text, varchar or uuid; choose another column"
            )


def _check_split(found: PartitionBy | None, table: VectorTable) -> None:
    """Raise ``TargetError`` if a table is split in another way than the pipeline wants."""
    there, wanted = (split and (split.kind, split.columns, split.partitions) for split in (found, table.partition_by))
    if there != wanted:
        name = f"{table.schema}.{table.name}"
        raise TargetError(
            f"the table {name} is {_split_in_words(found)}, the pipeline wants one that is "
            f"{_split_in_words(table.partition_by)}: {_other_layout(name)}"
        )


def _split_in_words(split: PartitionBy | None) -> str:
    if split is None:
        return "not partitioned"
    number = f" into {split.partitions:,}" if split.partitions else ""
    return f"partitioned by {split.kind} of {', '.join(split.columns)}{number}"


def _other_layout(name: str) -> str:
    return f"rowvec rebuild builds {name} again next to the table that is read, from its artifacts if they fit"


def direct_possible(table: VectorTable) -> bool:
    """Whether COPY can write all columns in their own types, so that staging can become the vector table.

    A vector or a bit string of the source's own travels as text, which is not what their binary form is made of.
    """
    own = (*table.key, *table.metadata)
    return all(can_encode(c.pg_type, from_text=c in own and c.travels_as == "text") for c in table.columns)
