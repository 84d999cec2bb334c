"""Recall: how many of the true nearest neighbours a search through the index gives back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from psycopg import sql

from rowvec.index.build import index_state
from rowvec.pipeline.model import Recall
from rowvec.postgres.connection import Connection, lost_connections_are_retriable
from rowvec.postgres.queries import query
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import Metric, VectorTable
from rowvec.search.query import explain, search
from rowvec.search.request import SearchRequest
from rowvec.vectors.layout import AnyVectors, Embeddings, products, squares
from rowvec.vectors.sparse import SparseVectors

SEED = 20_240_229
"""The same rows are asked about every time, as long as the table is the same."""

# An exact answer needs one pass over all vectors, whatever the number of queries; at 200 MB/s this is 5 minutes.
MOST_BYTES = 64 * 2**30

_PAGES_A_QUERY = 3  # drawn pages may be empty, and rows of one page are often alike
_BLOCK_BYTES = 2**21
_COPY_HEADER = 19  # 11 bytes of signature, flags, no extension
_Z95 = 1.959964


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallReport:
    """Recall@k over sampled rows, each asked for its neighbours without itself."""

    recall: float | None
    """From 0 to 1; None where it was not measured."""
    low: float
    high: float
    """The 95 % interval: Wilson's score with a query as one trial, wider than need be as recalls are no coin tosses."""
    k: int
    queries: int
    at_least: float
    index: str | None
    """The index that the planner uses for the search; None where it uses none."""
    note: str = ""
    """Why nothing was measured, or what a reader should know."""

    @property
    def passed(self) -> bool:
        """Whether recall is what the pipeline asks for, or could not be measured."""
        return self.recall is None or self.recall >= self.at_least


def measure(
    connection: Connection,
    table: VectorTable,
    choice: IndexChoice,
    recall: Recall,
    oversampling: int | None = None,
    *,
    most_bytes: int = MOST_BYTES,
    newest: bool = False,
) -> RecallReport:
    """Recall@k of ``search`` in its default mode against exact distances to every vector of the table.

    A row that came back counts when it is no farther than the k-th true neighbour, so equal distances are as good as
    each other. The exact pass reads each vector once, for all queries together, in constant memory; a table of more
    than ``most_bytes`` is not measured, and the report says so. ``newest``: of several indexes that serve the search
    the youngest is measured, while all else in the database goes on with the one that seems cheapest; the report's
    ``index`` tells whether the planner complied. Raises ``DatabaseUnavailable``.
    """
    if choice.kind == "none":
        return _unmeasured(recall, "Without an index every search is exact.", exact=True)
    with lost_connections_are_retriable(), connection.transaction():
        connection.execute(query("recall", "begin"))
        if newest:
            connection.execute(query("recall", "indifferent"))
        size = _number(connection, query("recall", "size", table=_literal(connection, table)))
        if size > most_bytes:
            return _unmeasured(
                recall,
                f"An exact pass would read {size / 2**30:,.0f} GiB, over the limit of {most_bytes / 2**30:,.0f}.",
            )
        keys, vectors = _sample(connection, table, recall.queries)
        if not keys:
            return _unmeasured(recall, "The table has no vectors to ask about.")
        answers = [
            _neighbours(connection, table, choice, key, vector, recall.k, oversampling)
            for key, vector in zip(keys, vectors, strict=True)
        ]
        request = SearchRequest(vectors[0], recall.k + 1, oversampling=oversampling)
        plan = explain(connection, table, choice, request)
        used = [state.name for state in index_state(connection, table) if state.name in plan.indexes]
        nearest = _nearest(connection, table, vectors, recall.k + 1)
    asked = Questions(keys=tuple(keys), vectors=vectors, nearest=nearest, k=recall.k)
    each = asked.recalls(table, answers)
    if not each:
        return _unmeasured(recall, "The table has one vector, which has no neighbours.")
    mean = float(np.mean(each))
    low, high = interval(mean, len(each))
    return RecallReport(
        recall=mean,
        low=low,
        high=high,
        k=recall.k,
        queries=len(each),
        at_least=recall.at_least,
        index=used[-1] if used else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """Rows of a table that are asked for their neighbours, and the true answers."""

    keys: tuple[tuple[Any, ...], ...]
    vectors: Embeddings
    """``(q, d)``."""
    nearest: npt.NDArray[np.float64]
    """``(q, k + 1)`` smallest distances of all rows, the row itself among them."""
    k: int

    def recalls(self, table: VectorTable, answers: list[list[float]]) -> list[float]:
        """The share of the true neighbours in each answer: distances of rows that came back, without the row itself.

        A row that is no farther than the k-th true neighbour counts. Shorter than ``answers`` where a row has none.
        """
        return _recalls(table.metric, self.vectors, self.nearest, answers, self.k)


def questions(connection: Connection, table: VectorTable, queries: int, k: int) -> Questions:
    """Rows drawn from a table that nobody writes, and their ``k`` true neighbours each: one pass over all vectors."""
    with lost_connections_are_retriable(), connection.transaction():
        connection.execute(query("recall", "begin"))
        keys, vectors = _sample(connection, table, queries)
        return Questions(keys=tuple(keys), vectors=vectors, nearest=_nearest(connection, table, vectors, k + 1), k=k)


def interval(mean: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share ``mean`` seen in ``trials``."""
    z2 = _Z95**2 / trials
    middle = (mean + z2 / 2) / (1 + z2)
    half = _Z95 * math.sqrt(mean * (1 - mean) / trials + z2 / (4 * trials)) / (1 + z2)
    return max(0.0, middle - half), min(1.0, middle + half)


def distances(metric: Metric, vectors: AnyVectors, queries: AnyVectors) -> npt.NDArray[np.float64]:
    """``(q, n)`` distances of ``(n, d)`` vectors to ``(q, d)`` queries, as pgvector defines them, in double precision.

    Cosine with a zero vector is infinite here: pgvector has NaN, and sorts it last.
    """
    inner = products(vectors, queries)
    if metric == "inner_product":
        return -inner
    theirs, own = squares(vectors), squares(queries)[:, None]
    if metric == "l2":
        return np.sqrt(np.maximum(theirs - 2 * inner + own, 0.0))
    norms = np.sqrt(theirs * own)
    similarity = np.divide(inner, norms, out=np.full_like(inner, -np.inf), where=norms > 0)
    return 1 - similarity


def _recalls(
    metric: Metric,
    queries: Embeddings,
    nearest: npt.NDArray[np.float64],
    answers: list[list[float]],
    k: int,
) -> list[float]:
    """The share of true neighbours in each answer; ``nearest`` is ``(q, up to k + 1)`` with the query row itself."""
    scale = np.sqrt(squares(queries))
    itself = {"cosine": np.zeros_like(scale), "l2": np.zeros_like(scale), "inner_product": -(scale**2)}[metric]
    recalls: list[float] = []
    for i, answer in enumerate(answers):
        # The server adds up in single precision.
        slack = 2e-6 * {"cosine": 1.0, "l2": nearest[i, -1] + 0.1 * scale[i], "inner_product": scale[i] ** 2}[metric]
        others = nearest[i].tolist()
        # The row itself goes. By inner product it may not be among its own nearest: then this is the last of them.
        others.pop(int(np.argmin(np.abs(nearest[i] - itself[i]))))
        true = [d for d in others[:k] if math.isfinite(d)]
        if true:
            recalls.append(sum(d <= true[-1] + slack for d in answer[: len(true)]) / len(true))
    return recalls


def _neighbours(
    connection: Connection,
    table: VectorTable,
    choice: IndexChoice,
    key: tuple[Any, ...],
    vector: Embeddings,
    k: int,
    oversampling: int | None,
) -> list[float]:
    """Distances of the k rows that the search finds nearest, the row itself left out."""
    hits = search(connection, table, choice, SearchRequest(vector, k + 1, oversampling=oversampling))
    return [hit.distance for hit in hits if tuple(hit.key.values()) != key][:k]


def _sample(connection: Connection, table: VectorTable, queries: int) -> tuple[list[tuple[Any, ...]], Embeddings]:
    names = [sql.Identifier("t", column.name) for column in table.key]
    parts = {
        "key": sql.SQL(", ").join(names),
        "table": table.identifier,
        "norm": table.layout.norm,
        "send": table.layout.send,
        "key_text": sql.SQL(" || ' ' || ").join(sql.SQL("{}::text").format(name) for name in names),
        "seed": sql.Literal(SEED),
        "queries": sql.Literal(queries),
    }
    pages = _number(connection, query("recall", "pages", table=_literal(connection, table)))
    percent = min(100.0, 100.0 * _PAGES_A_QUERY * queries / pages)
    while True:
        rows = connection.execute(query("recall", "sample", percent=sql.Literal(percent), **parts)).fetchall()
        if len(rows) >= queries or percent >= 100:
            break
        percent = min(100.0, percent * 4)
    return [row[:-1] for row in rows], table.layout.of_wires([row[-1] for row in rows])


def _nearest(connection: Connection, table: VectorTable, queries: Embeddings, k: int) -> npt.NDArray[np.float64]:
    """``(q, k)`` smallest distances of all rows, ascending; infinite where there are fewer rows."""
    wide = queries if isinstance(queries, SparseVectors) else queries.astype(np.float64)
    best = np.full((len(queries), k), np.inf)
    for block in (_sparse if table.layout.is_sparse else _dense)(connection, table):
        found = distances(table.metric, block, wide)
        # Most rows are near no question: to order those too would take half of the time.
        near = (found < best.max(axis=1, keepdims=True)).any(axis=0)
        best = np.partition(np.concatenate([best, found[:, near]], axis=1), k - 1, axis=1)[:, :k]
    return np.sort(best, axis=1)


def _sparse(connection: Connection, table: VectorTable) -> Iterator[AnyVectors]:
    """All vectors of the table in blocks: rows are of any length."""
    statement = query("recall", "sent", table=table.identifier, send=table.layout.send)
    held: list[bytes] = []
    size = 0
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types(["bytea"])
        for (sent,) in copy.rows():
            held.append(sent)
            size += len(sent)
            if size >= _BLOCK_BYTES:
                yield table.layout.of_wires(held)
                held, size = [], 0
    if held:
        yield table.layout.of_wires(held)


def _dense(connection: Connection, table: VectorTable) -> Iterator[AnyVectors]:
    """All vectors of the table in blocks of ``(n, d)``: a row is always the same number of bytes long."""
    record = np.dtype([("head", "V10"), ("vector", ">f4", (table.dimensions,))])
    held = bytearray()
    at = _COPY_HEADER
    with connection.cursor() as cursor, cursor.copy(query("recall", "vectors", table=table.identifier)) as copy:
        for data in copy:
            held += data
            if len(held) - at >= _BLOCK_BYTES:
                rows = (len(held) - at) // record.itemsize
                yield np.frombuffer(held, record, rows, at)["vector"].astype(np.float64)
                held = bytearray(memoryview(held)[at + rows * record.itemsize :])
                at = 0
    # The stream ends with a row count of -1, two bytes.
    rows = max(len(held) - at - 2, 0) // record.itemsize
    if rows:
        yield np.frombuffer(held, record, rows, at)["vector"].astype(np.float64)


def _unmeasured(recall: Recall, note: str, *, exact: bool = False) -> RecallReport:
    return RecallReport(
        recall=1.0 if exact else None,
        low=1.0 if exact else 0.0,
        high=1.0,
        k=recall.k,
        queries=0,
        at_least=recall.at_least,
        index=None,
        note=note,
    )


def _literal(connection: Connection, table: VectorTable) -> sql.Literal:
    return sql.Literal(table.identifier.as_string(connection))


def _number(connection: Connection, statement: sql.Composed) -> int:
    row = connection.execute(statement).fetchone()
    return int(row[0]) if row else 0


# Their 95 % interval is about two points wide at a recall of 0.95.
_DECIDING_QUERIES = 1000


def remedy(choice: IndexChoice) -> str:
    """What raises the recall of an index like this one."""
    tuned = "let rowvec index --tune find the effort, or set index.kind to none, which searches exactly"
    if choice.kind == "ivfflat":
        return tuned
    if choice.on == "bits" or choice.prefix:
        return "raise index.m, index.ef_construction or index.oversampling, or set index.on to float"
    return f"raise index.m and index.ef_construction, or {tuned}"


def measured_recall(
    connection: Connection, table: VectorTable, choice: IndexChoice, wanted: Recall, *, newest: bool = False
) -> RecallReport | None:
    """What the index finds of what an exact search finds; None where there is no index.

    ``newest``: of several that serve the search, the youngest (see ``recall.measure``).
    """
    if choice.kind == "none":
        return None
    recall = measure(connection, table, choice, wanted, choice.oversampling, newest=newest)
    if recall.passed or wanted.queries >= _DECIDING_QUERIES:
        return recall
    # A hundred queries can miss by chance; a run should fail for what is so.
    more = wanted.model_copy(update={"queries": _DECIDING_QUERIES})
    return measure(connection, table, choice, more, choice.oversampling, newest=newest)
