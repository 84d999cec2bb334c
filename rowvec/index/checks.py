"""Checks that the stored vectors are correct, and that their index is valid and used."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from rowvec.index.build import index_state
from rowvec.index.choice import fits
from rowvec.postgres.connection import Connection, lost_connections_are_retriable
from rowvec.postgres.names import PGVECTOR
from rowvec.postgres.queries import query
from rowvec.postgres.tables.partitions import tables_of
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable
from rowvec.searches.query import explain
from rowvec.searches.request import SearchRequest

MOST_ROWS = 100
"""The most keys of failing rows that a check lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorCheck:
    """One check and its result."""

    name: str
    count: int
    """The number of rows that fail the check. A check of the index has 1 if it fails."""
    rows: tuple[tuple[str, ...], ...] = ()
    """Keys of the failing rows, up to ``MOST_ROWS``, each column as text."""
    detail: str
    """What is true if the check passes; for a failed check of the index, what is wrong and what to do."""

    @property
    def passed(self) -> bool:
        """True if the check found no failure."""
        return self.count == 0


def check_vectors(
    connection: Connection, table: VectorTable, *, run_id: int | None = None, part: sql.Composable | None = None
) -> list[VectorCheck]:
    """Check all rows of the table, or only those that the run ``run_id`` wrote, in one pass over the vectors.

    ``part``: the rows to look at, as a relation; left out, the table.

    The checks are ``embedding_missing``, ``dimensions``, ``not_finite``, ``zero_norm`` (cosine only: a zero vector has
    no direction, and no index returns it) and ``bits`` (if the table stores bits). Raises ``DatabaseUnavailable``.
    """
    checks = conditions(table)
    scope = sql.SQL("true") if run_id is None else query("vector_checks", "run", run_id=sql.Literal(run_id))
    counts = sql.SQL(", ").join(query("vector_checks", "count", condition=c) for c, _ in checks.values())
    with lost_connections_are_retriable():
        found = connection.execute(
            query("vector_checks", "counts", counts=counts, table=part or table.identifier, scope=scope)
        ).fetchone()
        return [
            VectorCheck(
                name=name,
                count=count,
                rows=_offending(connection, table, scope, condition) if count else (),
                detail=detail,
            )
            for (name, (condition, detail)), count in zip(checks.items(), found or (), strict=True)
        ]


def check_index(connection: Connection, table: VectorTable, choice: IndexChoice) -> list[VectorCheck]:
    """``index_valid`` and ``index_used``: the table has the index of ``choice``, and the default search uses it.

    Of a table that is split, the partition with the largest index is searched. There are no checks if ``choice`` has no
    index. Raises ``DatabaseUnavailable``.
    """
    if choice.kind == "none":
        return []
    name = f"{table.schema}.{table.name}"
    with lost_connections_are_retriable():
        states = index_state(connection, table)
        fit = [s for s in states if s.valid and not s.partial and fits(s.present, choice)]
        valid = {s.name for s in fit}
        largest = max(fit, key=lambda s: s.bytes).table if fit else ""
        searched = next((one for one in tables_of(connection, table) if one.name == largest), table)
        row = connection.execute(query("vector_checks", "any_vector", table=searched.identifier)).fetchone()
        used: frozenset[str] = frozenset()
        if row is not None:
            used = explain(connection, searched, choice, SearchRequest(table.layout.unit(), 10)).indexes
    broken = [s.name for s in states if not s.valid]
    missing = f"{name} has no valid {choice.kind} index on {choice.on}" + (
        f" ({', '.join(broken)} is invalid: its build did not finish)" if broken else ""
    )
    unused = f"a search of {name} does not use its index: run ANALYZE on the table, or rowvec index"
    return [
        VectorCheck(
            name="index_valid",
            count=0 if valid else 1,
            detail="the index exists and is valid" if valid else f"{missing}: run rowvec index",
        ),
        VectorCheck(
            name="index_used",
            count=0 if row is None or used & valid else 1,
            detail="the search uses the index" if row is None or used & valid else unused,
        ),
    ]


def conditions(table: VectorTable) -> dict[str, tuple[sql.Composed, str]]:
    """For the name of each check: the SQL condition that a failing row meets, and what is true if no row meets it."""
    embedding = sql.SQL("t.embedding")
    norm = sql.SQL("{}.{}({})").format(PGVECTOR, table.layout.norm, embedding)
    found, wanted = table.dimensions_of(embedding), sql.Literal(table.dimensions)
    checks = {
        "embedding_missing": (query("vector_checks", "missing"), "every row has a vector"),
        "dimensions": (
            query("vector_checks", "dimensions", found=found, wanted=wanted),
            f"every vector has {table.dimensions} dimensions",
        ),
        "not_finite": (query("vector_checks", "finite", norm=norm), "every component is a finite number"),
    }
    if table.metric == "cosine":
        checks["zero_norm"] = (query("vector_checks", "zero_norm", norm=norm), "no vector is zero")
    if table.bits:
        bits = query("vector_checks", "bits", bits=table.bits_of(embedding))
        checks["bits"] = (bits, "the bits match the floats")
    return checks


def _offending(
    connection: Connection, table: VectorTable, scope: sql.Composable, condition: sql.Composable
) -> tuple[tuple[str, ...], ...]:
    names = [sql.Identifier("t", column.name) for column in table.key]
    statement = query(
        "vector_checks",
        "rows",
        key=sql.SQL(", ").join(sql.SQL("{}::text").format(name) for name in names),
        table=table.identifier,
        scope=scope,
        condition=condition,
        order=sql.SQL(", ").join(names),
        limit=sql.Literal(MOST_ROWS),
    )
    return tuple(tuple(row) for row in connection.execute(statement).fetchall())
