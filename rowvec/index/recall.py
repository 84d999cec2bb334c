"""Recall: the share of the true nearest neighbours that a search through the index returns."""

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
from rowvec.searches.index_kinds import method_of
from rowvec.searches.query import explain, search
from rowvec.searches.request import SearchRequest
from rowvec.vectors.layout import AnyVectors, Embeddings, products, squares
from rowvec.vectors.sparse import SparseVectors

SEED = 20_240_229
"""A fixed seed: every measurement draws the same rows as queries, as long as the table is unchanged."""

# The exact answers need one pass over all vectors, for any number of queries. At 200 MB/s this takes 5 minutes.
MOST_BYTES = 64 * 2**30

_PAGES_A_QUERY = 3  # a drawn page may be empty, and rows of one page are often similar
_BLOCK_BYTES = 2**21
_COPY_HEADER = 19  # 11 bytes of signature, flags, no extension
_Z95 = 1.959964


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallReport:
    """Recall@k over sampled rows: each row is a query for its nearest neighbours other than itself."""

    recall: float | None
    """From 0 to 1; None if it was not measured."""
    low: float
    high: float
    """The 95 % interval: Wilson score interval with one trial per query.

    The interval is conservative, because the recall of one query is not just 0 or 1.
    """
    k: int
    queries: int
    at_least: float
    index: str | None
    """The index that the planner uses for the search; None if it uses none."""
    note: str = ""
    """Why nothing was measured, or when an earlier measurement was taken."""

    @property
    def passed(self) -> bool:
        """True if recall is at least what the pipeline asks for, or could not be measured."""
        return self.recall is None or self.recall >= self.at_least


def measure(
    connection: Connection,
    table: VectorTable,
    choice: IndexChoice,
    recall: Recall,
    *,
    most_bytes: int = MOST_BYTES,
    newest: bool = False,
) -> RecallReport:
    """Recall@k of ``search`` in its default mode, compared with exact distances to every vector of the table.

    A returned row counts if it is no farther than the k-th true neighbour, so ties do not reduce recall. The exact
    pass reads each vector once, for all queries together, in constant memory. A table of more than ``most_bytes`` is
    not measured, and the report says so. ``newest``: if several indexes can serve the search, measure the newest one.
    Other sessions still use the index that the planner finds cheapest. The report's ``index`` shows whether the
    planner used the newest one. Raises ``DatabaseUnavailable``.
    """
    return _measure(connection, table, (choice,), recall, most_bytes=most_bytes, newest=newest).report


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A way to search an index, and its recall."""

    choice: IndexChoice
    report: RecallReport


def _measure(
    connection: Connection,
    table: VectorTable,
    choices: tuple[IndexChoice, ...],
    recall: Recall,
    *,
    most_bytes: int = MOST_BYTES,
    newest: bool = False,
) -> Found:
    """The first of ``choices`` with enough recall, else the last; all of them search one index. See ``measure``."""
    if choices[0].kind == "none":
        report = _unmeasured(recall, "Without an index every search is exact.", exact=True)
        return Found(choice=choices[0], report=report)
    with lost_connections_are_retriable(), connection.transaction():
        connection.execute(query("recall", "begin"))
        if newest:
            connection.execute(query("recall", "indifferent"))
        size = _number(connection, query("recall", "size", table=_literal(connection, table)))
        if size > most_bytes:
            why = f"An exact pass would read {size / 2**30:,.0f} GiB, over the limit of {most_bytes / 2**30:,.0f}."
            return Found(choice=choices[0], report=_unmeasured(recall, why))
        keys, vectors = _sample(connection, table, recall.queries)
        if not keys:
            report = _unmeasured(recall, "The table has no vectors to use as queries.")
            return Found(choice=choices[0], report=report)
        nearest = _nearest(connection, table, vectors, recall.k + 1)
        sampled = Questions(keys=tuple(keys), vectors=vectors, nearest=nearest, k=recall.k)
        # One way to search after the other; they share the exact pass, which costs most.
        measured = (_of_one(connection, table, choice, recall, sampled) for choice in choices)
        return next(each for each in measured if each.report.passed or each.choice is choices[-1])


def _of_one(
    connection: Connection, table: VectorTable, choice: IndexChoice, recall: Recall, sampled: Questions
) -> Found:
    answers = [
        _neighbours(connection, table, choice, key, vector, recall.k)
        for key, vector in zip(sampled.keys, sampled.vectors, strict=True)
    ]
    plan = explain(connection, table, choice, SearchRequest(sampled.vectors[0], recall.k + 1))
    used = [state.name for state in index_state(connection, table) if state.name in plan.indexes]
    each = sampled.recalls(table, answers)
    if not each:
        return Found(choice=choice, report=_unmeasured(recall, "The table has one vector, which has no neighbours."))
    mean = float(np.mean(each))
    low, high = interval(mean, len(each))
    report = RecallReport(
        recall=mean,
        low=low,
        high=high,
        k=recall.k,
        queries=len(each),
        at_least=recall.at_least,
        index=used[-1] if used else None,
    )
    return Found(choice=choice, report=report)


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """Rows of a table that serve as queries, and the exact answers."""

    keys: tuple[tuple[Any, ...], ...]
    vectors: Embeddings
    """``(q, d)``."""
    nearest: npt.NDArray[np.float64]
    """``(q, k + 1)`` smallest distances to all rows, including the query row itself."""
    k: int

    def recalls(self, table: VectorTable, answers: list[list[float]]) -> list[float]:
        """The recall of each answer. An answer is the distances of the returned rows, without the query row itself.

        A row that is no farther than the k-th true neighbour counts. A query row without any true neighbour has no
        recall, so the list may be shorter than ``answers``.
        """
        return _recalls(table.metric, self.vectors, self.nearest, answers, self.k)


def questions(connection: Connection, table: VectorTable, queries: int, k: int) -> Questions:
    """Draw query rows from a table that no other session writes to, and find the ``k`` true neighbours of each.

    Takes one pass over all vectors. Raises ``DatabaseUnavailable``.
    """
    with lost_connections_are_retriable(), connection.transaction():
        connection.execute(query("recall", "begin"))
        keys, vectors = _sample(connection, table, queries)
        return Questions(keys=tuple(keys), vectors=vectors, nearest=_nearest(connection, table, vectors, k + 1), k=k)


def interval(mean: float, trials: int) -> tuple[float, float]:
    """The 95 % Wilson score interval for a share ``mean`` that was observed in ``trials``."""
    z2 = _Z95**2 / trials
    middle = (mean + z2 / 2) / (1 + z2)
    half = _Z95 * math.sqrt(mean * (1 - mean) / trials + z2 / (4 * trials)) / (1 + z2)
    return max(0.0, middle - half), min(1.0, middle + half)


def distances(metric: Metric, vectors: AnyVectors, queries: AnyVectors) -> npt.NDArray[np.float64]:
    """``(q, n)`` distances of ``(n, d)`` vectors to ``(q, d)`` queries, as pgvector defines them, in double precision.

    The cosine distance to a zero vector is infinite here; pgvector returns NaN, and sorts it last.
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
    """The recall of each answer; ``nearest`` is ``(q, up to k + 1)`` and includes the query row itself."""
    scale = np.sqrt(squares(queries))
    itself = {"cosine": np.zeros_like(scale), "l2": np.zeros_like(scale), "inner_product": -(scale**2)}[metric]
    recalls: list[float] = []
    for i, answer in enumerate(answers):
        # The server computes sums in single precision.
        slack = 2e-6 * {"cosine": 1.0, "l2": nearest[i, -1] + 0.1 * scale[i], "inner_product": scale[i] ** 2}[metric]
        others = nearest[i].tolist()
        # Remove the query row itself. With the inner product it may not be among its own nearest rows; then this
        # removes the last of them.
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
) -> list[float]:
    """Distances of the k nearest rows that the search returns, without the query row itself."""
    hits = search(connection, table, choice, SearchRequest(vector, k + 1))
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
    """``(q, k)`` smallest distances to all rows, ascending; filled with infinity if there are fewer rows."""
    wide = queries if isinstance(queries, SparseVectors) else queries.astype(np.float64)
    best = np.full((len(queries), k), np.inf)
    for block in (_sparse if table.layout.is_sparse else _dense)(connection, table):
        found = distances(table.metric, block, wide)
        # Most rows are not near any query. Sorting them too would take half of the time.
        near = (found < best.max(axis=1, keepdims=True)).any(axis=0)
        best = np.partition(np.concatenate([best, found[:, near]], axis=1), k - 1, axis=1)[:, :k]
    return np.sort(best, axis=1)


def _sparse(connection: Connection, table: VectorTable) -> Iterator[AnyVectors]:
    """All vectors of the table in blocks. Each row may have a different length in bytes."""
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
    """All vectors of the table in blocks of ``(n, d)``. Each row has the same length in bytes."""
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
    # The stream ends with a field count of -1, two bytes long.
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


# With this many queries, the 95 % interval is about two points wide at a recall of 0.95.
_DECIDING_QUERIES = 1000


def remedy(choice: IndexChoice) -> str:
    """Advice: how to raise the recall of an index that does not find enough with any effort that rowvec makes alone."""
    tuned = "run rowvec index --tune to find a better index, or set index.kind to none, which searches exactly"
    keys = method_of(choice.kind).keys_to_raise(choice)
    if keys is None:
        return tuned
    given = [*keys]
    if choice.on == "bits" or choice.prefix:
        given += ["index.oversampling"] if choice.oversampling_given else []
        tuned = "set index.on to float" if choice.on == "bits" else tuned
    return f"raise {' or '.join(given)}, or leave them out of the pipeline file, or {tuned}" if given else tuned


def measured_recall(
    connection: Connection,
    table: VectorTable,
    choices: tuple[IndexChoice, ...],
    wanted: Recall,
    *,
    newest: bool = False,
) -> Found | None:
    """The first of ``choices``, ways to search one index, that has the recall that is ``wanted``; else the last.

    None if there is no index. A recall that is too low is measured a second time with 1,000 queries, before another
    way is tried. ``newest``: if several indexes can serve the search, measure the newest one (see ``measure``). Raises
    ``DatabaseUnavailable``.
    """
    if choices[0].kind == "none":
        return None
    if wanted.queries < _DECIDING_QUERIES:
        found = _measure(connection, table, choices[:1], wanted, newest=newest)
        if found.report.passed:
            return found
        # A hundred queries can give a low recall by chance. A run should act only if the recall really is too low.
        wanted = wanted.model_copy(update={"queries": _DECIDING_QUERIES})
    return _measure(connection, table, choices, wanted, newest=newest)
