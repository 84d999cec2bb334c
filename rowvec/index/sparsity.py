"""How full a table's sparse vectors are: pgvector's index on them takes no vector with too many nonzeros."""

from __future__ import annotations

from psycopg import sql

from rowvec.errors import UsageError
from rowvec.index.build import drop_indexes
from rowvec.index.choice import LIMIT_NONZEROS, Sparsity
from rowvec.ledger.plans import Plan, key_json
from rowvec.pipeline.model import Index
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable


def sparsity_of(connection: Connection, table: VectorTable, *, indexed: bool) -> Sparsity | None:
    """Of a table of sparse vectors; None of any other.

    ``indexed``: it has an index on them, so none has too many nonzeros; else all are looked at.
    """
    if not table.layout.is_sparse:
        return None
    mean = table.layout.mean_elements(connection, table.identifier) / 2
    if indexed:
        return Sparsity(mean=mean)
    most, key = _widest(connection, table, table.identifier)
    return Sparsity(mean=mean, most=most, key=key)


def make_room(connection: Connection, plan: Plan, wanted: Index) -> str | None:
    """Before a merge: an index that cannot take what is staged goes, or the merge would fail; what there is to say.

    Searches are exact from then on. Raises ``UsageError`` where the pipeline insists on the index.
    """
    table = plan.table
    if not plan.batches or not table.layout.is_sparse:
        return None
    most, key = _widest(connection, table, plan.staging)
    if most <= LIMIT_NONZEROS:
        return None
    found = Sparsity(mean=0, most=most, key=key)
    if wanted.kind == "hnsw":
        raise UsageError(found.refused())
    dropped = drop_indexes(connection, table)
    return f"dropped {', '.join(dropped)}: {found.written()}" if dropped else None


def _widest(connection: Connection, table: VectorTable, relation: sql.Identifier) -> tuple[int, str]:
    statement = query("vector_layout", "widest", table=relation, key_json=key_json(table.key, "t"))
    row = connection.execute(statement).fetchone()
    return (row[0], ", ".join(map(str, row[1]))) if row else (0, "")
