"""The tuner: measures, on a copy of some of a table's own rows, which index finds enough and at what price.

Nothing is built on the table itself, so no reader's plan changes: a sample of it is copied into an unlogged table of
the schema ``rowvec``, which goes when the tuner does.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import ceil
from statistics import mean, median, quantiles

from psycopg import sql

from rowvec.errors import PipelineBusy, UsageError
from rowvec.index.build import ensure_index, index_state
from rowvec.index.build_memory import foresee
from rowvec.index.choice import LIMIT_NONZEROS
from rowvec.index.recall import SEED, Questions, interval, questions
from rowvec.index.sparsity import sparsity_of
from rowvec.index.tuning.candidates import (
    Candidate,
    Measured,
    build_estimate,
    candidates,
    recommend,
    sample_rows,
    variations,
)
from rowvec.index.tuning.results import Tuning
from rowvec.pipeline.model import Recall
from rowvec.postgres.connection import Connection, lost_connections_are_retriable
from rowvec.postgres.fragments import names
from rowvec.postgres.locks import LockSpace
from rowvec.postgres.queries import query
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable, count_rows
from rowvec.runtime.progress import tell
from rowvec.search.query import search
from rowvec.search.request import SearchRequest

# Enough for an interval of two points at a recall of 0.95.
_QUERIES = 400
# Graphs of the same rows differ by so much in what they find, more over many equal vectors.
_NEARLY = 0.03
_LEAST_ROWS = 1_000
_NONE = IndexChoice(kind="none", reason="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a tuner may spend."""

    seconds: float = 600.0
    memory: int = 2 * 2**30
    """Bytes that one build may take."""
    rows: int = 200_000
    """Copied at most."""


@dataclass(slots=True)
class _Work:
    """A tuner at work on its sample."""

    connection: Connection
    table: VectorTable
    rows: int
    asked: Questions
    at_least: float
    memory: int
    ends: float
    """On the monotonic clock."""
    measured: list[Measured] = field(default_factory=list[Measured])
    skipped: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    pace: float = 1.0
    """How much longer builds take here than reckoned."""


def tune(connection: Connection, table: VectorTable, recall: Recall, budget: Budget) -> Tuning:
    """Measure what is worth trying within the budget, and say what to choose.

    Recall@k and latency are those of ``search``, asked for rows of the sample without themselves, against exact
    answers. Raises ``UsageError`` where the table has too few rows to say anything, ``PipelineBusy`` where another
    tuner is at work on it.
    """
    started = time.monotonic()
    rows = count_rows(connection, table)
    if rows < _LEAST_ROWS:
        raise UsageError(
            f"{table.schema}.{table.name} has {rows:,} rows, too few to tune for: any search of them is exact and fast"
        )
    wanted = max(_LEAST_ROWS, min(budget.rows, sample_rows(rows, table, budget.seconds, budget.memory)))
    _check_nonzeros(connection, table)
    with lost_connections_are_retriable(), _sample(connection, table, rows, wanted) as sample:
        sampled = count_rows(connection, sample)
        with _step(f"exact answers over {sampled:,} rows"):
            asked = questions(connection, sample, min(_QUERIES, sampled // 2), recall.k)
        work = _Work(
            connection=connection,
            table=sample,
            rows=sampled,
            asked=asked,
            at_least=recall.at_least,
            memory=budget.memory,
            ends=started + budget.seconds,
        )
        exact_ms = median(_ask(work, _NONE, min(20, len(asked.keys)))[1]) * rows / sampled
        _try_all(work)
    bits_too = [m for m in work.measured if table.bits or m.choice.on != "bits"]
    choice, reason = recommend(bits_too, exact_ms, recall.at_least)
    reason += _without_bits(work.measured, choice, exact_ms, recall.at_least) if not table.bits else ""
    return Tuning(
        choice=replace(choice, reason=reason),
        reason=reason,
        measured=tuple(work.measured),
        skipped=tuple(work.skipped),
        rows=rows,
        sampled_rows=sampled,
        queries=len(asked.keys),
        k=recall.k,
        at_least=recall.at_least,
        exact_ms=exact_ms,
        seconds=time.monotonic() - started,
    )


def _check_nonzeros(connection: Connection, table: VectorTable) -> None:
    indexed = any(state.valid and not state.partial for state in index_state(connection, table))
    found = sparsity_of(connection, table, indexed=indexed)
    if found is not None and found.most > LIMIT_NONZEROS:
        raise UsageError(f"there is no index to tune for: {found.written()}")


def _without_bits(measured: list[Measured], choice: IndexChoice, exact_ms: float, at_least: float) -> str:
    """What a table that keeps no bits misses."""
    with_bits, _ = recommend(measured, exact_ms, at_least)
    if with_bits.on != "bits" or choice.on == "bits" or with_bits.kind == "none":
        return ""
    return " An index on bits would be the better one: set target.bits to true and run rowvec rebuild."


def _try_all(work: _Work) -> None:
    first = candidates(work.table, work.rows)
    for candidate in first:
        _try(work, candidate)
    found, _ = recommend(work.measured, float("inf"), work.at_least)
    best = next((c for c in first if _same_build(c.index, found)), None)
    for candidate in variations(best) if best else []:
        _try(work, candidate)


def _try(work: _Work, candidate: Candidate) -> None:
    """Build it, unless the budget forbids, and search it with more and more effort until it finds enough.

    A graph is drawn by lot, and one that just misses may be an unlucky one: it gets a second draw.
    """
    drawn = _draw(work, candidate)
    best = max((m.recall for m in drawn), default=1.0)
    if candidate.index.kind == "hnsw" and work.at_least - _NEARLY <= best < work.at_least:
        again = _draw(work, candidate, f"{candidate.name}, drawn again")
        drawn = max(drawn, again, key=lambda draw: max((m.recall for m in draw), default=0.0))
    work.measured.extend(drawn)


def _draw(work: _Work, candidate: Candidate, name: str = "") -> list[Measured]:
    """One build and what it finds; nothing where the budget forbids it."""
    name = name or candidate.name
    left = work.ends - time.monotonic()
    elements = work.table.layout.elements
    reckoned = build_estimate(work.rows, elements, candidate.index) * work.pace
    if reckoned > left:
        why = f"its build takes about {ceil(reckoned):,} s, and {ceil(left):,} s were left"
        work.skipped.append((name, why if left > 0 else "no time was left for it"))
        return []
    memory = foresee(work.connection, work.rows, elements, candidate.index)
    if memory.needed > work.memory or memory.is_refused:
        work.skipped.append((name, f"its build needs {memory.needed / 2**20:,.0f} MiB of memory"))
        return []
    with _step(f"building {name}"):
        report = ensure_index(work.connection, work.table, candidate.index, readers=False)
    if report.index is None:
        raise LookupError(name)  # it was built, or ``ensure_index`` has raised
    work.pace = max(0.2, report.seconds / max(reckoned / work.pace, 0.1)) if reckoned > 1 else work.pace
    measured: list[Measured] = []
    with _step(f"searching {name}"):
        for choice in candidate.settings:
            if time.monotonic() > work.ends:
                work.skipped.append((name, "the time was over before all its settings were tried"))
                break
            measured.append(_measure(work, candidate, choice, report.index.bytes, report.seconds))
            if measured[-1].recall >= work.at_least:
                break
    ensure_index(work.connection, work.table, _NONE, readers=False)
    return measured


def _measure(work: _Work, candidate: Candidate, choice: IndexChoice, size: int, seconds: float) -> Measured:
    # The first pass fills the caches, and tells the recall.
    answers, _ = _ask(work, choice, len(work.asked.keys))
    _, times = _ask(work, choice, len(work.asked.keys))
    each = work.asked.recalls(work.table, answers)
    recall = mean(each) if each else 1.0
    low, high = interval(recall, max(1, len(each)))
    return Measured(
        name=_named(candidate, choice),
        choice=choice,
        recall=recall,
        low=low,
        high=high,
        median_ms=median(times),
        p95_ms=quantiles(times, n=20)[-1],
        # By the median: what else a machine does in the meantime shows in the slowest.
        per_second=1000 / median(times),
        bytes=size,
        build_seconds=seconds,
    )


def _ask(work: _Work, choice: IndexChoice, number: int) -> tuple[list[list[float]], list[float]]:
    """Distances of the neighbours of the first so many rows, themselves left out, and milliseconds each took."""
    k, mode = work.asked.k, "exact" if choice.kind == "none" else "adaptive"
    answers: list[list[float]] = []
    times: list[float] = []
    for key, vector in zip(work.asked.keys[:number], work.asked.vectors[:number], strict=True):
        started = time.perf_counter()
        request = SearchRequest(vector, k + 1, mode, oversampling=choice.oversampling)
        hits = search(work.connection, work.table, choice, request)
        times.append((time.perf_counter() - started) * 1000)
        answers.append([hit.distance for hit in hits if tuple(hit.key.values()) != key][:k])
    return answers, times


def _named(candidate: Candidate, choice: IndexChoice) -> str:
    if choice.kind == "ivfflat":
        return f"{candidate.name}, {choice.probes} of {choice.lists} lists"
    if choice.on == "bits" or choice.prefix:
        return f"{candidate.name}, rerank {choice.oversampling}x"
    return f"{candidate.name}, ef {choice.ef_search}"


def _same_build(index: IndexChoice, found: IndexChoice) -> bool:
    return (index.kind, index.on, index.prefix, index.m) == (found.kind, found.on, found.prefix, found.m)


@contextmanager
def _step(part: str) -> Generator[None]:
    tell("tune", part, 0, 1)
    yield
    tell("tune", part, 1, 1)


@contextmanager
def _sample(connection: Connection, table: VectorTable, rows: int, wanted: int) -> Generator[VectorTable]:
    """A copy of ``wanted`` rows, with bits whether the table keeps them or not, if its vectors can have any."""
    lock = {"space": LockSpace.TUNER, "table": f"{table.schema}.{table.name}"}
    held = connection.execute(query("tuner", "lock"), lock).fetchone()
    if not (held and held[0]):
        raise PipelineBusy(f"another tuner is at work on {table.schema}.{table.name}; wait for it, or stop it first")
    literal = sql.Literal(table.identifier.as_string(connection))
    named = connection.execute(query("tuner", "oid", table=literal)).fetchone()
    sample = replace(table, schema="rowvec", name=f"tuning_{named[0] if named else 0}")
    sample = replace(sample, bits=not table.layout.is_sparse)
    drop = query("tuner", "drop", sample=sample.identifier)
    try:
        # What a killed tuner has left.
        connection.execute(drop)
        with _step(f"copying {wanted:,} of {rows:,} rows"):
            _copy(connection, table, sample, rows, wanted)
        yield sample
    finally:
        if not connection.closed and not connection.broken:
            connection.execute(drop)
            connection.execute(query("tuner", "unlock"), lock)


def _copy(connection: Connection, table: VectorTable, sample: VectorTable, rows: int, wanted: int) -> None:
    tables = {"sample": sample.identifier, "table": table.identifier}
    connection.execute(query("tuner", "create", **tables))
    if sample.bits and not table.bits:
        dimensions = sql.Literal(table.dimensions)
        connection.execute(query("tuner", "add_bits", sample=sample.identifier, dimensions=dimensions))
    # A little more than wanted, for the draw is by lot; the limit takes what is over.
    percent = min(100.0, 100.0 * wanted / rows * 1.05 + 0.01)
    parts = {"columns": names(table.columns), "percent": sql.Literal(percent), "seed": sql.Literal(SEED)}
    connection.execute(query("tuner", "fill", rows=sql.Literal(wanted), **tables, **parts))
    connection.execute(query("tuner", "primary_key", sample=sample.identifier, key=names(table.key)))
    connection.execute(query("tuner", "vacuum", sample=sample.identifier))
