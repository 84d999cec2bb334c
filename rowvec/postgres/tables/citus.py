"""Azure Cosmos DB for PostgreSQL, and any Postgres with Citus: a vector table spread over the cluster's nodes."""

from __future__ import annotations

from psycopg import errors as pg

from rowvec.errors import TargetError
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable


def distribute(connection: Connection, table: VectorTable) -> bool:
    """Spread a new vector table over the nodes by the pipeline's distribution column.

    For the transaction that creates the table. Returns False, and does nothing, if the pipeline names no column or the
    database has no Citus: the same pipeline file then serves a laptop and a cluster. Raises ``TargetError`` if Citus
    refuses.
    """
    if table.distribution is None:
        return False
    row = connection.execute(query("citus", "there")).fetchone()
    if not (row and row[0]):
        return False
    values = {"table": table.identifier.as_string(connection), "column": table.distribution}
    try:
        connection.execute(query("citus", "distribute"), values)
    except (pg.FeatureNotSupported, pg.ObjectNotInPrerequisiteState, pg.InvalidTableDefinition) as error:
        raise TargetError(
            f"Citus cannot distribute {table.schema}.{table.name} by {table.distribution}: "
            f"{error.diag.message_primary}; change target.distribution_column, or leave it out"
        ) from error
    return True
