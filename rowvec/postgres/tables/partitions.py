"""The partitions of a vector table: one per value, made with its first row, or a fixed number by hash.

Their names are derived by a digest, because a value of the source is no name; nothing is looked up by them. A
partition is also a ``VectorTable`` of its own, so that an index is built, measured and vacuumed there as on a table
that is not split.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import LiteralString, cast

from psycopg import errors as pg
from psycopg import sql

from rowvec.errors import TargetError
from rowvec.postgres.connection import Connection
from rowvec.postgres.fragments import cut_name
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable

logger = logging.getLogger(__name__)

MOST_PARTITIONS = 2_000
"""More are refused: each statement without a filter opens and locks every one."""

# A drop takes locks on the partition, its index and its TOAST table.
_DROPPED_AT_ONCE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One partition, from the catalog."""

    table: VectorTable
    """The partition as a table of its own."""
    value: str | None
    """The value of its rows as the server prints it; None with hash."""
    estimate: int
    """Its rows, as the last ANALYZE or the server's statistics have them."""
    analyzed: int
    """Its rows, as the last ANALYZE has them."""
    live: int
    dead: int
    """Live and dead rows by the statistics, which are lost in a crash."""
    indexed: bool
    """Whether it has an index on vectors, valid or not."""


def partitions_of(connection: Connection, table: VectorTable) -> list[Partition]:
    """The partitions of a table, by name; empty if it is not split or not there."""
    if table.partition_by is None:
        return []
    rows = connection.execute(query("partitions", "all"), {"table": _written(connection, table)}).fetchall()
    return [
        Partition(
            table=replace(table, schema=schema, name=name, partition_by=None),
            value=value,
            estimate=max(analyzed, live),
            analyzed=analyzed,
            live=live,
            dead=dead,
            indexed=indexed,
        )
        for schema, name, value, analyzed, live, dead, indexed in rows
    ]


def tables_of(connection: Connection, table: VectorTable) -> list[VectorTable]:
    """The tables that hold the rows: the partitions, or the table itself."""
    return [table] if table.partition_by is None else [each.table for each in partitions_of(connection, table)]


def count_by_partition(connection: Connection, table: VectorTable) -> dict[str, int]:
    """The number of rows of each partition that has any, by its name; one pass over the table."""
    return dict(connection.execute(query("partitions", "rows", table=table.identifier)).fetchall())


def rows_at_analyze(connection: Connection, table: VectorTable) -> int:
    """The number of rows that the last ANALYZE of the table as a whole has found."""
    row = connection.execute(query("partitions", "rows_at_analyze"), {"table": _written(connection, table)}).fetchone()
    return row[0] if row else 0


def make_remainders(connection: Connection, table: VectorTable) -> None:
    """Make all partitions of a new table that is split by hash; for the transaction that creates the table."""
    split = table.partition_by
    if split is None or split.kind != "hash" or split.partitions is None:
        return
    check_number(connection, table, split.partitions)
    free = _free_names(connection, table, [str(number) for number in range(split.partitions)])
    for number, name in enumerate(free):
        _make(connection, table, name)
        parts = {"modulus": sql.Literal(split.partitions), "remainder": sql.Literal(number)}
        partition = sql.Identifier(table.schema, name)
        connection.execute(
            query("partitions", "attach_remainder", table=table.identifier, partition=partition, **parts)
        )
    _revoke(connection, table, free)


def make_missing(connection: Connection, table: VectorTable, rows: sql.Composable) -> int:
    """Make the partitions that the rows of a relation need and the table lacks; returns how many.

    For the transaction that writes the rows, so that readers see a new partition together with them. Blocks no reader.
    Raises ``TargetError`` if there would be too many.
    """
    if table.partition_by is None or table.partition_by.kind != "list":
        return 0
    known = [each.value for each in partitions_of(connection, table) if each.value is not None]
    values = _new_values(connection, table, rows, sql.SQL("true"), known)
    check_number(connection, table, len(known) + len(values))
    free = _free_names(connection, table, values)
    (column,) = table.partition_columns
    for value, name in zip(values, free, strict=True):
        _make(connection, table, name)
        parts = {"partition": sql.Identifier(table.schema, name), "type": column.type_sql}
        statement = query("partitions", "attach_value", table=table.identifier, value=sql.Literal(value), **parts)
        connection.execute(statement)
    _revoke(connection, table, free)
    return len(values)


def check_planned(connection: Connection, table: VectorTable, rows: sql.Composable, which: sql.Composable) -> None:
    """Raise ``TargetError`` if planned rows need more partitions than there may be, before anything is paid for."""
    if table.partition_by is None or table.partition_by.kind != "list":
        return
    known = [each.value for each in partitions_of(connection, table) if each.value is not None]
    check_number(connection, table, len(known) + len(_new_values(connection, table, rows, which, known)))


def check_number(connection: Connection, table: VectorTable, wanted: int) -> None:
    """Raise ``TargetError`` if a table cannot have so many partitions."""
    (room,) = connection.execute(query("partitions", "most")).fetchone() or (0,)
    if wanted > MOST_PARTITIONS:
        limit = f"at most {MOST_PARTITIONS:,} are possible: split it by hash"
    elif wanted > room:
        limit = (
            f"the locks of this server are enough for {room:,}: raise max_locks_per_transaction, or split it by hash"
        )
    else:
        return
    columns = ", ".join(column.name for column in table.partition_columns)
    raise TargetError(
        f"{table.schema}.{table.name}, which target.partition_by splits by {columns}, would have {wanted:,} or more "
        f"partitions, and {limit}, as in {{columns: [{columns}], kind: hash, partitions: 32}}; nothing was changed"
    )


def drop_empty(connection: Connection, table: VectorTable, candidates: Sequence[VectorTable]) -> int:
    """Drop those of the candidates that have no row; returns how many are gone.

    It needs the table for itself for a moment. If readers hold it, the next run tries again: an empty partition costs
    little.
    """
    dropped = 0
    for start in range(0, len(candidates), _DROPPED_AT_ONCE):
        try:
            with connection.transaction():
                connection.execute(query("partitions", "lock", table=table.identifier))
                for each in candidates[start : start + _DROPPED_AT_ONCE]:
                    found = connection.execute(query("partitions", "has_rows", partition=each.identifier)).fetchone()
                    if found and not found[0]:
                        connection.execute(query("partitions", "drop", partition=each.identifier))
                        dropped += 1
        except pg.LockNotAvailable:
            logger.info("%s.%s is in use; its empty partitions are dropped by the next run", table.schema, table.name)
            break
    return dropped


def analyze(connection: Connection, tables: Sequence[VectorTable]) -> None:
    """Gather the statistics of tables, if any are given."""
    if tables:
        written = sql.SQL(", ").join(each.identifier for each in tables)
        connection.execute(query("partitions", "analyze", tables=written))


def _new_values(
    connection: Connection, table: VectorTable, rows: sql.Composable, which: sql.Composable, known: list[str]
) -> list[str]:
    """Values without a partition; if there are too many, so many that the number is."""
    (column,) = table.partition_columns
    statement = query(
        "partitions",
        "new_values",
        column=sql.Identifier(column.name),
        type=column.type_sql,
        rows=rows,
        which=which,
        known=sql.SQL("{}::text[]").format(sql.Literal(known)),
        most=sql.Literal(MOST_PARTITIONS + 1),
    )
    return sorted(value for (value,) in connection.execute(statement).fetchall())


def _make(connection: Connection, table: VectorTable, name: str) -> None:
    partition = sql.Identifier(table.schema, name)
    connection.execute(query("partitions", "create", partition=partition, table=table.identifier))
    connection.execute(query("partitions", "hide", partition=partition))


def _revoke(connection: Connection, table: VectorTable, made: list[str]) -> None:
    values = {"schema": table.schema, "names": made}
    for (statement,) in connection.execute(query("partitions", "revocations"), values).fetchall():
        # The database itself wrote and quoted it.
        connection.execute(sql.SQL(cast("LiteralString", statement)))


def _free_names(connection: Connection, table: VectorTable, values: Sequence[str]) -> list[str]:
    """A free name per value, with a number if an earlier generation's partition has the plain one."""
    found = connection.execute(query("index", "names"), {"schema": table.schema}).fetchall()
    taken = {str(row[0]) for row in found}
    chosen: list[str] = []
    for value in values:
        stem = "_part_" + hashlib.sha256(value.encode()).hexdigest()[:12]
        numbered = (cut_name(table.name, f"{stem}_{number}") for number in itertools.count(2))
        chosen.append(next(n for n in itertools.chain([cut_name(table.name, stem)], numbered) if n not in taken))
        taken.add(chosen[-1])
    return chosen


def _written(connection: Connection, table: VectorTable) -> str:
    return table.identifier.as_string(connection)
