"""How many nonzeros a table's sparse vectors have: pgvector cannot index a sparse vector with too many nonzeros."""

from __future__ import annotations

from psycopg import sql

from rowvec.index.choice import Sparsity
from rowvec.postgres.connection import Connection
from rowvec.postgres.fragments import key_json
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable


def sparsity_of(connection: Connection, table: VectorTable, *, indexed: bool) -> Sparsity | None:
    """The sparsity of a table of sparse vectors; None if the table's vectors are not sparse.

    ``indexed``: the table has an index on them, so no vector has too many nonzeros. Otherwise all vectors are read.
    """
    if not table.layout.is_sparse:
        return None
    mean = table.mean_elements(connection) / 2
    if indexed:
        return Sparsity(mean=mean)
    most, key = widest(connection, table, table.identifier)
    return Sparsity(mean=mean, most=most, key=key)


def widest(connection: Connection, table: VectorTable, relation: sql.Identifier) -> tuple[int, str]:
    statement = query("vector_layout", "widest", table=relation, key_json=key_json(table.key, "t"))
    row = connection.execute(statement).fetchone()
    return (row[0], ", ".join(map(str, row[1]))) if row else (0, "")
