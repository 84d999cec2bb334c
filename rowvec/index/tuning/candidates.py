"""Decides which indexes a tuner tries, and which of the measured ones it recommends. All functions here are pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rowvec.index.choice import BITS_FROM_DIMENSIONS, opclass
from rowvec.postgres.vector_index import IndexChoice, On
from rowvec.postgres.vector_table import VectorTable
from rowvec.searches.index_kinds import method_of
from rowvec.searches.index_kinds.hnsw import EFFORT_SPARSE, LIMIT_BITS, LIMIT_HALFVEC, LIMIT_VECTOR
from rowvec.searches.index_kinds.ivfflat import lists_for
from rowvec.vectors.bits import MOST_BITS

# pgvector's kinds call their operator classes alike.
_HNSW = method_of("hnsw")

_EF_SEARCH = (40, 64, 100, 200, 400, 800)
_OVERSAMPLING = (1, 2, 4, 8, 16, 32)
_PROBES = (1, 2, 5, 10, 20, 40, 80, 160, 320)
_LEAST_EF = 40
# A prefix of fewer dimensions than this finds too little to be worth a measurement.
_LEAST_PREFIX = 64

# Users do not notice a search that takes no longer than this. If an exact search is that fast, no index is best.
UNNOTICED_MS = 20.0

# The tuner recommends the smallest index among those that reach at least this share of the fastest one's speed. On
# 117,659 texts of 256 dimensions this selects halfvec (1,313 requests/s, 97 MB), not bits (516, 39 MB) or float (1,114,
# 159 MB).
FAST_ENOUGH = 0.7

# Build time on one core: the seconds per element, and the cost of a row in elements in addition to its vector.
# Measured: 117,659 x 256 took 26 s, 20,000 x 3,072 halfvec 15 s, and bits a fifth of that.
_SECONDS_AN_ELEMENT = 4.0e-7
_ROW_ELEMENTS = 150
# 20,000 sparse vectors of 110 nonzeros took 34 s. Each nonzero counts as two elements here.
_SPARSE = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An index to build, and the search settings to try with it, the cheapest first."""

    name: str
    index: IndexChoice
    settings: tuple[IndexChoice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The recall and speed of an index with one search setting."""

    name: str
    choice: IndexChoice
    recall: float
    low: float
    high: float
    median_ms: float
    p95_ms: float
    per_second: float
    """Requests per second on one connection, one after the other, computed from the median."""
    bytes: int
    build_seconds: float


def candidates(table: VectorTable, rows: int) -> list[Candidate]:
    """All candidates that are worth trying, in the order in which the tuner should try them.

    All numbers of bits per dimension are among them, whichever the table stores, because the tuner may find that it
    should store another one. For sparse vectors pgvector has only one kind of index.
    """
    if table.layout.is_sparse:
        return [_on_floats(table, "float", "sparse", EFFORT_SPARSE)]
    # The table's own number of bits first.
    numbers = sorted(range(1, MOST_BITS + 1), key=lambda bits: bits != table.bits)
    found = [_on_bits(table, bits) for bits in numbers if bits * table.dimensions <= LIMIT_BITS]
    half: On = "float" if table.precision == "float16" else "halfvec"
    if table.dimensions <= LIMIT_HALFVEC:
        found.append(_on_floats(table, half, "halfvec"))
    if table.precision == "float32" and table.dimensions <= LIMIT_VECTOR:
        found.append(_on_floats(table, "float", "float"))
    for share in (2, 4):
        prefix = table.dimensions // share
        if _LEAST_PREFIX <= prefix <= LIMIT_HALFVEC:
            found.append(_on_prefix(table, half, prefix))
    if table.dimensions <= LIMIT_HALFVEC:
        found.append(_in_lists(table, half, rows))
    order = [*found]
    if table.dimensions < BITS_FROM_DIMENSIONS:
        # With few dimensions one bit of each carries little information, so floats come first.
        order.sort(key=lambda c: c.index.on == "bits" and c.index.bits == 1)
    return order


def variations(best: Candidate) -> list[Candidate]:
    """The best graph with fewer links (smaller) and with more links (higher recall at less search effort)."""
    if best.index.kind != "hnsw":
        return []
    graphs = [(8, best.index.ef_construction), (24, 128)]
    if best.index.on == "bits":
        # Over 100,000 x 3,072 this graph is smaller than the default graph, and has the same recall with a walk that is
        # a sixth shorter.
        graphs.append((12, 200))
    return [
        Candidate(
            name=f"{best.name} m {m}",
            index=replace(best.index, m=m, ef_construction=effort),
            settings=tuple(replace(s, m=m, ef_construction=effort) for s in best.settings),
        )
        for m, effort in graphs
    ]


def build_estimate(rows: int, dimensions: int, choice: IndexChoice) -> float:
    """Estimated seconds of a build on one core, correct to a factor of two or three.

    The tuner corrects the estimate by the time that earlier builds took.
    """
    held = (choice.prefix or dimensions) * (choice.bits / 32 if choice.on == "bits" else 1)
    held *= _SPARSE if choice.opclass.startswith("sparsevec") else 1
    graph = method_of(choice.kind).build_effort(choice)
    return rows * (held + _ROW_ELEMENTS) * _SECONDS_AN_ELEMENT * graph * (2.2 if choice.on == "bits" else 1)


def sample_rows(rows: int, table: VectorTable, seconds: float, memory: int) -> int:
    """How many rows a tuner can afford: no build may spill, and all builds together must fit in ``seconds``."""
    links = 16 * 3 * 16 + 200
    elements = table.layout.elements
    by_memory = memory // ((elements * 4 + links) * 5 // 4)
    a_thousand = sum(build_estimate(1_000, elements, c.index) for c in candidates(table, rows))
    by_time = int(1_000 * seconds / 2 / a_thousand)
    return max(1, min(rows, by_memory, by_time))


def recommend(measured: Sequence[Measured], exact_ms: float, at_least: float) -> tuple[IndexChoice, str]:
    """The smallest of the fastest indexes that reach the recall ``at_least``, and the reason.

    ``exact_ms``: milliseconds of an exact search of the whole table.
    """
    none = IndexChoice(kind="none", reason=f"An exact search takes only {exact_ms:.0f} ms, so no index is needed.")
    if exact_ms <= UNNOTICED_MS:
        return none, none.reason
    enough = [m for m in measured if m.recall >= at_least]
    if not enough:
        best = max(measured, key=lambda m: m.recall, default=None)
        if best is None:
            return none, "No index was measured in the time limit, so searches stay exact: allow more seconds."
        why = f"No index reaches a recall of {at_least:.2f}; {best.name} comes nearest with {best.recall:.3f}."
        return replace(best.choice, reason=why), why
    fastest = max(m.per_second for m in enough)
    fast = [m for m in enough if m.per_second >= FAST_ENOUGH * fastest]
    best = min(fast, key=lambda m: (m.bytes, -m.per_second))
    why = (
        f"Measured: {best.name} finds {best.recall:.3f} at {best.per_second:,.0f} requests/s; it is the smallest "
        f"index with enough recall that is at least {FAST_ENOUGH:.0%} as fast as the fastest."
    )
    if best.per_second * exact_ms / 1000 <= 1:
        why = f"No index with enough recall is faster than the exact search, which takes {exact_ms:.0f} ms."
        return replace(none, reason=why), why
    return replace(best.choice, reason=why), why


def _on_bits(table: VectorTable, bits: int) -> Candidate:
    operators = opclass(_HNSW, "bits", table.precision, table.metric)
    index = IndexChoice(kind="hnsw", on="bits", opclass=operators, ef_construction=128, bits=bits, reason="")
    settings = tuple(replace(index, oversampling=n, ef_search=_LEAST_EF) for n in _OVERSAMPLING)
    return Candidate(name=f"{bits} bit{'s' * (bits > 1)} hnsw", index=index, settings=settings)


def _on_floats(table: VectorTable, on: On, name: str, effort: int = 64) -> Candidate:
    operators = opclass(_HNSW, on, table.precision, table.metric)
    index = IndexChoice(kind="hnsw", on=on, opclass=operators, ef_construction=effort, reason="")
    settings = tuple(replace(index, oversampling=1, ef_search=ef) for ef in _EF_SEARCH)
    return Candidate(name=f"{name} hnsw", index=index, settings=settings)


def _on_prefix(table: VectorTable, on: On, prefix: int) -> Candidate:
    index = IndexChoice(
        kind="hnsw", on=on, opclass=opclass(_HNSW, on, table.precision, table.metric), prefix=prefix, reason=""
    )
    settings = tuple(replace(index, oversampling=n, ef_search=_LEAST_EF) for n in _OVERSAMPLING)
    return Candidate(name=f"first {prefix} hnsw", index=index, settings=settings)


def _in_lists(table: VectorTable, on: On, rows: int) -> Candidate:
    lists = lists_for(rows)
    index = IndexChoice(
        kind="ivfflat",
        on=on,
        opclass=opclass(_HNSW, on, table.precision, table.metric),
        lists=lists,
        lists_by_rows=True,
        reason="",
    )
    settings = tuple(replace(index, oversampling=1, probes=n) for n in _PROBES if n <= lists)
    return Candidate(name=f"{'halfvec' if on == 'halfvec' else 'float'} ivfflat", index=index, settings=settings)
