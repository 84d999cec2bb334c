"""Chooses the index of a vector table, as a pure function of the table's facts and the pipeline's settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypedDict

from rowvec.errors import UsageError
from rowvec.pipeline.model import Index
from rowvec.postgres.vector_index import IndexChoice, Kind, On
from rowvec.postgres.vector_table import Metric
from rowvec.vectors.layout import Layout, Precision

# What pgvector can index, in dimensions.
LIMIT_VECTOR = 2_000
LIMIT_HALFVEC = 4_000
LIMIT_BITS = 64_000
# And in nonzeros of a sparse vector of any length: pgvector's HNSW_MAX_NNZ.
LIMIT_NONZEROS = 1_000

# Measured on two busy cores: an exact search of this many elements takes 20 ms if vectors are stored in their rows
# (33,000 x 256), and 53 ms if they are TOASTed (10,600 x 1,024; 7,300 x 1,536). Below that an index would cost recall,
# space and build time for a gain that nobody notices. A row itself costs as much as about 100 elements.
EXACT_ELEMENTS = 12_000_000
_ROW_ELEMENTS = 100
# Measured on two busy cores: a nonzero of a sparse vector costs as much as six to eight elements (20,000 rows of 110
# nonzeros, 34 ms). The second number is the nonzeros of a vector that is assumed without a measurement.
_NONZERO_ELEMENTS = 6
_NONZEROS = 128

# At 3,072 dimensions bits had twice the speed of halfvec at equal recall, with a twelfth of the space and a fifth of
# the build time. At 256 dimensions they need 32 times oversampling for the recall that floats have without any. From
# 1,536 dimensions every real model that was measured had more than 0.97 at 4 times. 1,024 lies between and is not
# measured: the recall check decides.
BITS_FROM_DIMENSIONS = 1_024
# Two and three bits per dimension were measured from 256 dimensions: over 43,532 titles three bits need as many pages
# per search as halfvec, in half the space. With fewer dimensions links take most of an index, and bits save little.
SEVERAL_BITS_FROM_DIMENSIONS = 256

# At 3,072 dimensions 4 times oversampling finds 0.96 to 1.00 with every real model that was measured.
_OVERSAMPLING_LONG, _OVERSAMPLING = 4, 8
_OVERSAMPLING_BITS = {2: 6, 3: 5}

# ef_construction on floats, and on bits. Hamming distances are often equal: over 100,000 x 3,072 a graph of 64 found
# 0.92 and one of 128 found 0.953 by the same search. Comparing bits is cheap, so the build is still several times as
# fast.
_EFFORT = (64, 128)
# On sparse vectors: over 20,000 of 58 nonzeros a graph of 64 found 0.85 and one of 128 0.98, by the same search.
EFFORT_SPARSE = 128

# Links, and a factor for ef_construction, of a graph over more than so many rows. The same graph finds less of a larger
# table: with m 16, ef_construction 64 and ef_search 200 recall was 0.998 over 100,000 x 64 and 0.954 over 2,000,000.
_GRAPHS = ((10_000_000, 32, 4), (1_000_000, 24, 2), (0, 16, 1))

# pgvector's advice for IVFFlat: one list per thousand rows up to a million rows, above that the square root of the
# rows.
_ROWS_A_LIST = 1_000
_MANY_ROWS = 1_000_000

# A tuner's choice holds until the table has this many times the rows. Recall falls slowly, but an exact search becomes
# slower in proportion.
_OUTGROWN = 10
_OUTGROWN_NONE = 2

_OPERATORS: dict[Metric, str] = {"cosine": "cosine", "l2": "l2", "inner_product": "ip"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparsity:
    """How many nonzeros a table's sparse vectors have."""

    mean: float
    most: int = 0
    """Nonzeros of the fullest vector; 0 if none can have too many for an index."""
    key: str = ""
    """The key of that vector's row."""

    def written(self) -> str:
        """Why there is no index."""
        return (
            f"the vector of the row ({self.key}) has {self.most:,} nonzeros, and pgvector indexes sparse vectors of at "
            f"most {LIMIT_NONZEROS:,}"
        )

    def refused(self) -> str:
        """The error for a pipeline that requires an index."""
        return (
            f"index.kind is hnsw, but {self.written()}: set index.kind to auto, which then searches exactly, or keep "
            "fewer of its nonzeros"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the choice of an index depends on in a table."""

    rows: int
    dimensions: int
    precision: Precision
    bits: int
    """Bits per dimension in ``embedding_bits``; 0: the table keeps none."""
    metric: Metric = "cosine"
    indexed: bool = False
    """Whether the table has a valid index."""
    sparsity: Sparsity | None = None
    """For a table of sparse vectors; None: typical ones are assumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What a tuner chose, and for how many rows."""

    choice: IndexChoice
    rows: int


def choose(facts: Facts, wanted: Index, tuned: Tuned | None = None) -> IndexChoice:
    """The index for a table.

    ``tuned``: if the pipeline sets neither kind nor column, the tuner's choice is taken until the table has outgrown
    it. With an index present, ``auto`` gives it up only at half the rows at which it would build one, so that a table
    at the threshold does not build and drop in turn. Raises ``UsageError`` if the pipeline asks for an index that
    pgvector cannot build.
    """
    rows, dimensions = facts.rows, facts.dimensions
    oversampling = oversampling_for(wanted, dimensions, facts.bits)
    if wanted.kind == "none":
        return IndexChoice(kind="none", oversampling=oversampling, reason="The pipeline wants no index.")
    if facts.precision == "sparse":
        return _for_sparse(facts, wanted, tuned)
    _check_wanted(facts, wanted)
    if tuned is not None and wanted.kind == "auto" and wanted.on == "auto":
        held = _still_tuned(rows, tuned)
        if held is not None:
            return held
    if wanted.kind == "auto":
        few = _few(rows, dimensions, f"{dimensions:,} dimensions", indexed=facts.indexed)
        if few:
            return IndexChoice(kind="none", oversampling=oversampling, reason=few)
    on, why = _on(facts, wanted)
    if on is None:
        if wanted.kind != "auto":
            raise UsageError(
                f"index.kind is {wanted.kind}, but pgvector indexes no float vectors over {LIMIT_HALFVEC:,} "
                f"dimensions, and these have {dimensions:,}: set target.bits to true"
            )
        return IndexChoice(kind="none", oversampling=oversampling, reason=why)
    kind: Kind = "hnsw" if wanted.kind == "auto" else wanted.kind
    return IndexChoice(
        kind=kind,
        on=on,
        opclass=opclass(on, facts.precision, facts.metric),
        **_graph(wanted, rows, _EFFORT[on == "bits"]),
        lists=(wanted.lists or lists_for(rows)) if kind == "ivfflat" else 0,
        lists_by_rows=wanted.lists is None,
        bits=facts.bits if on == "bits" else 1,
        oversampling=oversampling,
        oversampling_given=wanted.oversampling is not None,
        reason=why,
    )


def fits(present: IndexChoice, choice: IndexChoice) -> bool:
    """Whether an index built as ``present`` is as good as one built as ``choice``."""
    if _held(present) != _held(choice):
        return False
    if choice.kind == "hnsw" and choice.graph_by_rows:
        # A graph that was built over fewer rows stays as long as it finds enough.
        least = EFFORT_SPARSE if choice.opclass.startswith("sparsevec") else _EFFORT[choice.on == "bits"]
        return present.m >= _GRAPHS[-1][1] and present.ef_construction >= least
    if choice.kind == "hnsw":
        return (present.m, present.ef_construction) == (choice.m, choice.ef_construction)
    if choice.lists_by_rows:
        return choice.lists <= 2 * present.lists and present.lists <= 2 * choice.lists
    return present.lists == choice.lists


class _Graph(TypedDict):
    m: int
    ef_construction: int
    graph_by_rows: bool


def _graph(wanted: Index, rows: int, effort: int) -> _Graph:
    """The size of a graph: what the pipeline says, else by the rows; ``effort``: ef_construction over few rows."""
    links, factor = next((m, times) for more_than, m, times in _GRAPHS if rows > more_than or not more_than)
    m = wanted.m or links
    # pgvector refuses fewer candidates than twice the links.
    candidates = max(wanted.ef_construction or effort * factor, 2 * m)
    by_rows = wanted.m is None and wanted.ef_construction is None
    return {"m": m, "ef_construction": candidates, "graph_by_rows": by_rows}


def _held(choice: IndexChoice) -> tuple[object, ...]:
    """What an index holds, and how."""
    return choice.kind, choice.on, choice.opclass, choice.prefix, choice.bits


def _check_wanted(facts: Facts, wanted: Index) -> None:
    """Raises ``UsageError`` for an index that cannot exist, whatever the number of rows."""
    dimensions = facts.dimensions
    if wanted.on == "bits" and not facts.bits:
        raise UsageError("index.on is bits, but the vector table keeps no bits: set target.bits to true")
    if wanted.on == "float" and dimensions > LIMIT_HALFVEC:
        raise UsageError(
            f"index.on is float, but pgvector indexes no float vectors over {LIMIT_HALFVEC:,} dimensions, and these "
            f"have {dimensions:,}: set index.on to bits (with target.bits true), or index.kind to none"
        )


def _still_tuned(rows: int, tuned: Tuned) -> IndexChoice | None:
    """The tuner's choice for the present number of rows; None if the table has outgrown it."""
    choice = tuned.choice
    if rows > tuned.rows * (_OUTGROWN_NONE if choice.kind == "none" else _OUTGROWN):
        return None
    if choice.kind != "ivfflat" or rows <= 2 * tuned.rows:
        return choice
    lists = lists_for(rows)
    # The same share of the lists is probed as before, so the same share of the table is read.
    return replace(choice, lists=lists, probes=max(1, round(choice.probes * lists / max(1, choice.lists))))


def _for_sparse(facts: Facts, wanted: Index, tuned: Tuned | None) -> IndexChoice:
    """HNSW or nothing: pgvector has no other index on sparse vectors, and no bits of them."""
    none = IndexChoice(kind="none", reason="")
    sparsity = facts.sparsity or Sparsity(mean=_NONZEROS)
    if wanted.kind == "ivfflat":
        raise UsageError("index.kind is ivfflat, which pgvector cannot build on sparse vectors: set it to auto")
    if sparsity.most > LIMIT_NONZEROS:
        if wanted.kind == "hnsw":
            raise UsageError(sparsity.refused())
        reason = sparsity.written()
        return replace(none, reason=f"{reason[0].upper()}{reason[1:]}: searches are exact.")
    if wanted.kind == "auto":
        held = _still_tuned(facts.rows, tuned) if tuned is not None else None
        if held is not None:
            return held
        elements = round(sparsity.mean * _NONZERO_ELEMENTS)
        few = _few(facts.rows, elements, f"{sparsity.mean:,.0f} nonzeros", indexed=facts.indexed)
        if few:
            return replace(none, reason=few)
    return IndexChoice(
        kind="hnsw",
        on="float",
        opclass=opclass("float", "sparse", facts.metric),
        **_graph(wanted, facts.rows, EFFORT_SPARSE),
        oversampling=wanted.oversampling or _OVERSAMPLING,
        oversampling_given=wanted.oversampling is not None,
        reason="HNSW is the only index that pgvector has on sparse vectors.",
    )


def _few(rows: int, elements: int, what: str, *, indexed: bool) -> str | None:
    enough = EXACT_ELEMENTS // (elements + _ROW_ELEMENTS)
    if indexed:
        enough //= 2
    if rows > enough:
        return None
    return f"{rows:,} rows of {what} are searched exactly in a few hundredths of a second."


def _on(facts: Facts, wanted: Index) -> tuple[On | None, str]:
    dimensions = facts.dimensions
    if wanted.on == "bits":
        return "bits", "The pipeline wants the index on bits."
    floats: On = "halfvec" if facts.precision == "float32" and dimensions > LIMIT_VECTOR else "float"
    if wanted.on == "float":
        return floats, "The pipeline wants the index on float vectors."
    if facts.bits and dimensions >= (SEVERAL_BITS_FROM_DIMENSIONS if facts.bits > 1 else BITS_FROM_DIMENSIONS):
        return "bits", f"At {dimensions:,} dimensions bits with exact rerank give the faster and far smaller index."
    if dimensions > LIMIT_HALFVEC:
        return None, (
            f"pgvector indexes no float vectors over {LIMIT_HALFVEC:,} dimensions, and these have {dimensions:,}: "
            "with target.bits true there would be an index on bits."
        )
    if floats == "halfvec":
        return floats, f"Over {LIMIT_VECTOR:,} dimensions floats are indexed as halfvec; target.bits would be smaller."
    return floats, f"At {dimensions:,} dimensions an index on the float vectors has the better recall for its speed."


def opclass(on: On, precision: Precision, metric: Metric) -> str:
    """pgvector's operator class for an index on this column."""
    if on == "bits":
        return "bit_hamming_ops"
    stored = "halfvec" if on == "halfvec" else Layout(precision, 1).type_name
    return f"{stored}_{_OPERATORS[metric]}_ops"


def oversampling_for(wanted: Index, dimensions: int, bits: int) -> int:
    """Candidates that are reranked per row wanted: the pipeline's setting, else by the dimensions and their bits."""
    if wanted.oversampling:
        return wanted.oversampling
    return _OVERSAMPLING_LONG if dimensions >= BITS_FROM_DIMENSIONS else _OVERSAMPLING_BITS.get(bits, _OVERSAMPLING)


def lists_for(rows: int) -> int:
    """IVFFlat lists for a table of this many rows."""
    lists = rows // _ROWS_A_LIST if rows <= _MANY_ROWS else math.isqrt(rows)
    return min(max(lists, 1), 32_768)
