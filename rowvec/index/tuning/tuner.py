"""The tuner: measures which index has enough recall, and at what cost, on a copy of some of a table's rows.

The tuner builds nothing on the table itself, so no reader's plan changes. It copies a sample into a scratch table of
its connection's own, so that tuners do not meet, and drops that table when it ends.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import ceil
from statistics import mean, median, quantiles

from psycopg import sql

from rowvec.errors import UsageError
from rowvec.index.build import ensure_index, index_state
from rowvec.index.build_memory import foresee
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
from rowvec.postgres.names import ScratchTable
from rowvec.postgres.queries import query
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable, count_rows
from rowvec.runtime.progress import tell
from rowvec.searches.index_kinds import method_of
from rowvec.searches.index_kinds.hnsw import LIMIT_NONZEROS
from rowvec.searches.index_kinds.protocol import reranks
from rowvec.searches.query import search
from rowvec.searches.request import SearchRequest

# Enough for an interval of two points on each side at a recall of 0.95.
_QUERIES = 400
# Recalls of two graphs over the same rows differ by up to this much, and by more if many vectors are equal.
_NEARLY = 0.03
_LEAST_ROWS = 1_000
_SAMPLE = "tuning"
_NONE = IndexChoice(kind="none", reason="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The limits of a tuning."""

    seconds: float = 600.0
    memory: int = 2 * 2**30
    """The most bytes of memory for one build."""
    rows: int = 200_000
    """The most rows that are copied into the sample."""


@dataclass(slots=True)
class _Work:
    """The state of a running tuning and its sample."""

    connection: Connection
    table: VectorTable
    rows: int
    queries: Questions
    at_least: float
    memory: int
    ends: float
    """The end of the time limit, in seconds on the monotonic clock."""
    measured: list[Measured] = field(default_factory=list[Measured])
    skipped: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    pace: float = 1.0
    """The factor by which builds on this machine take longer than estimated."""


def tune(connection: Connection, table: VectorTable, recall: Recall, budget: Budget) -> Tuning:
    """Measure the candidates within the budget, and recommend one.

    Recall@k and latency are those of ``search`` on the sample. Rows of the sample are the queries, each for its
    neighbours other than itself, and exact searches give the true answers. Raises ``UsageError`` if the table has too
    few rows, or a sparse vector with too many nonzeros for any index; ``DatabaseUnavailable``.
    """
    started = time.monotonic()
    rows = count_rows(connection, table)
    if rows < _LEAST_ROWS:
        raise UsageError(
            f"{table.schema}.{table.name} has {rows:,} rows, too few to tune an index for: "
            "an exact search of them is fast"
        )
    wanted = max(_LEAST_ROWS, min(budget.rows, sample_rows(rows, table, budget.seconds, budget.memory)))
    _check_nonzeros(connection, table)
    with lost_connections_are_retriable(), _sample(connection, table, rows, wanted) as sample:
        sampled = count_rows(connection, sample)
        with _step(f"exact answers over {sampled:,} rows"):
            sampled_queries = questions(connection, sample, min(_QUERIES, sampled // 2), recall.k)
        work = _Work(
            connection=connection,
            table=sample,
            rows=sampled,
            queries=sampled_queries,
            at_least=recall.at_least,
            memory=budget.memory,
            ends=started + budget.seconds,
        )
        exact_ms = median(_ask(work, _NONE, min(20, len(sampled_queries.keys)))[1]) * rows / sampled
        _try_all(work)
    stored = [m for m in work.measured if m.choice.on != "bits" or m.choice.bits == table.bits]
    choice, reason = recommend(stored, exact_ms, recall.at_least)
    reason += _with_other_bits(work.measured, table, exact_ms, recall.at_least)
    return Tuning(
        choice=replace(choice, reason=reason),
        reason=reason,
        measured=tuple(work.measured),
        skipped=tuple(work.skipped),
        rows=rows,
        sampled_rows=sampled,
        queries=len(sampled_queries.keys),
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


def _with_other_bits(measured: list[Measured], table: VectorTable, exact_ms: float, at_least: float) -> str:
    """Advice if an index on more or fewer bits than the table keeps would be better; empty if it would not."""
    best, _ = recommend(measured, exact_ms, at_least)
    if best.on != "bits" or best.bits == table.bits or best.kind == "none":
        return ""
    number = f"{best.bits} bit{'s' * (best.bits > 1)} per dimension"
    switch = "" if table.bits else "target.bits to true and "
    return f" An index on {number} would be better: set {switch}index.bits to {best.bits}, and run rowvec rebuild."


def _try_all(work: _Work) -> None:
    first = candidates(work.table, work.rows)
    for candidate in first:
        _try(work, candidate)
    found, _ = recommend(work.measured, float("inf"), work.at_least)
    best = next((c for c in first if _same_build(c.index, found)), None)
    for candidate in variations(best) if best else []:
        _try(work, candidate)


def _try(work: _Work, candidate: Candidate) -> None:
    """Build the candidate if the budget allows it, and raise the search effort until the recall is high enough.

    HNSW builds are randomised, so a candidate that narrowly misses the recall is built a second time. The better of
    the two builds counts.
    """
    built = _build_and_search(work, candidate)
    best = max((m.recall for m in built), default=1.0)
    if candidate.index.kind == "hnsw" and work.at_least - _NEARLY <= best < work.at_least:
        again = _build_and_search(work, candidate, f"{candidate.name}, built again")
        built = max(built, again, key=lambda build: max((m.recall for m in build), default=0.0))
    work.measured.extend(built)


def _build_and_search(work: _Work, candidate: Candidate, name: str = "") -> list[Measured]:
    """One build and its measurements; empty if the budget does not allow the build."""
    name = name or candidate.name
    left = work.ends - time.monotonic()
    elements = work.table.layout.elements
    estimated = build_estimate(work.rows, elements, candidate.index) * work.pace
    if estimated > left:
        why = f"its build takes about {ceil(estimated):,} s, and {ceil(left):,} s were left"
        work.skipped.append((name, why if left > 0 else "no time was left for it"))
        return []
    memory = foresee(work.connection, work.rows, elements, candidate.index)
    if memory.needed > work.memory or memory.is_refused:
        work.skipped.append((name, f"its build needs {memory.needed / 2**20:,.0f} MiB of memory"))
        return []
    with _step(f"building {name}"):
        report = ensure_index(work.connection, work.table, candidate.index, readers=False)
    if report.index is None:
        raise LookupError(name)  # impossible: ``ensure_index`` builds it or raises
    work.pace = max(0.2, report.seconds / max(estimated / work.pace, 0.1)) if estimated > 1 else work.pace
    measured: list[Measured] = []
    with _step(f"searching {name}"):
        for choice in candidate.settings:
            if time.monotonic() > work.ends:
                work.skipped.append((name, "the time limit passed before all its settings were tried"))
                break
            measured.append(_measure(work, candidate, choice, report.index.bytes, report.seconds))
            if measured[-1].recall >= work.at_least:
                break
    ensure_index(work.connection, work.table, _NONE, readers=False)
    return measured


def _measure(work: _Work, candidate: Candidate, choice: IndexChoice, size: int, seconds: float) -> Measured:
    # The first pass fills the caches and gives the recall; the second pass gives the times.
    answers, _ = _ask(work, choice, len(work.queries.keys))
    _, times = _ask(work, choice, len(work.queries.keys))
    each = work.queries.recalls(work.table, answers)
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
        # The median, because other work of the machine affects only the slowest requests.
        per_second=1000 / median(times),
        bytes=size,
        build_seconds=seconds,
    )


def _ask(work: _Work, choice: IndexChoice, number: int) -> tuple[list[list[float]], list[float]]:
    """For the first ``number`` query rows: distances of their neighbours other than themselves, and milliseconds."""
    k, mode = work.queries.k, "exact" if choice.kind == "none" else "adaptive"
    answers: list[list[float]] = []
    times: list[float] = []
    for key, vector in zip(work.queries.keys[:number], work.queries.vectors[:number], strict=True):
        started = time.perf_counter()
        request = SearchRequest(vector, k + 1, mode, oversampling=choice.oversampling)
        hits = search(work.connection, work.table, choice, request)
        times.append((time.perf_counter() - started) * 1000)
        answers.append([hit.distance for hit in hits if tuple(hit.key.values()) != key][:k])
    return answers, times


def _named(candidate: Candidate, choice: IndexChoice) -> str:
    if reranks(choice):
        return f"{candidate.name}, rerank {choice.oversampling}x"
    return f"{candidate.name}, {method_of(choice.kind).searched(choice)}"


def _same_build(index: IndexChoice, found: IndexChoice) -> bool:
    return _build_of(index) == _build_of(found)


def _build_of(index: IndexChoice) -> tuple[object, ...]:
    return index.kind, index.on, index.prefix, index.bits, index.m


@contextmanager
def _step(part: str) -> Generator[None]:
    tell("tune", part, 0, 1)
    yield
    tell("tune", part, 1, 1)


@contextmanager
def _sample(connection: Connection, table: VectorTable, rows: int, wanted: int) -> Generator[VectorTable]:
    """A copy of ``wanted`` rows. Candidates on other bits than the table's are indexes on an expression there."""
    name = f"scratch_{connection.names.scratch}_{_SAMPLE}"
    sample = replace(table, schema="rowvec", name=name, partition_by=None)
    try:
        with _step(f"copying {wanted:,} of {rows:,} rows"):
            _copy(connection, table, sample, rows, wanted)
        yield sample
    finally:
        if not connection.closed and not connection.broken:
            # Raises if the server has lost the sample's rows meanwhile, so that what was measured means nothing.
            connection.execute(query("tuner", "drop", sample=ScratchTable(_SAMPLE)))


def _copy(connection: Connection, table: VectorTable, sample: VectorTable, rows: int, wanted: int) -> None:
    tables: dict[str, sql.Composable] = {"sample": ScratchTable(_SAMPLE), "table": table.identifier}
    connection.execute(query("tuner", "create", **tables))
    # Draw a little more than wanted, because the sample size is random. LIMIT removes the surplus.
    percent = min(100.0, 100.0 * wanted / rows * 1.05 + 0.01)
    parts = {"columns": names(table.columns), "percent": sql.Literal(percent), "seed": sql.Literal(SEED)}
    connection.execute(query("tuner", "fill", rows=sql.Literal(wanted), **tables, **parts))
    connection.execute(query("tuner", "primary_key", sample=sample.identifier, key=names(table.key)))
    connection.execute_alone(query("tuner", "vacuum", sample=sample.identifier), {})
