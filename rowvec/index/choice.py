"""Which index a vector table should have: decided from its size alone, so that the reasons can be read and tested."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from rowvec.errors import UsageError
from rowvec.pipeline.model import Index
from rowvec.postgres.vector_index import IndexChoice, Kind, On
from rowvec.postgres.vector_table import Metric
from rowvec.vectors.layout import Layout, Precision

# What pgvector can index, in dimensions.
LIMIT_VECTOR = 2_000
LIMIT_HALFVEC = 4_000
LIMIT_BITS = 64_000
# And in nonzeros of a sparse vector, of whatever length: pgvector's HNSW_MAX_NNZ.
LIMIT_NONZEROS = 1_000

# Measured on two busy cores: an exact search of this many elements takes 20 ms where vectors stand with their rows
# (33,000 x 256), 53 ms where they are TOASTed (10,600 x 1,024; 7,300 x 1,536). Below that an index would cost recall,
# room and build time to save what nobody notices. A row itself costs what about 100 elements do.
EXACT_ELEMENTS = 12_000_000
_ROW_ELEMENTS = 100
# Measured on two busy cores: a nonzero of a sparse vector costs what six to eight elements do (20,000 rows of 110
# nonzeros, 34 ms); and how many a vector has when nobody looked.
_NONZERO_ELEMENTS = 6
_NONZEROS = 128

# At 3,072 dimensions bits gave twice the speed of halfvec at equal recall, in a twelfth of the room and a fifth of the
# build time; at 256 dimensions they need 32 times oversampling to reach what floats have at once. From 1,536 up every
# real model measured was past 0.97 at 4 times. 1,024 lies between and is not measured: the recall check decides.
BITS_FROM_DIMENSIONS = 1_024

# At 3,072 dimensions four times find 0.96 to 1.00 on every real model measured.
_OVERSAMPLING_LONG, _OVERSAMPLING = 4, 8

# ef_construction on floats, and on bits: Hamming distances tie, and over 100,000 x 3,072 a graph of 64 found 0.92 where
# one of 128 found 0.953 by the same search. Comparing bits is cheap, so it is still built several times as fast.
_EFFORT = (64, 128)
# On sparse vectors: over 20,000 of 58 nonzeros a graph of 64 found 0.85 and one of 128 0.98, by the same search.
EFFORT_SPARSE = 128

# pgvector's advice for IVFFlat: a list per thousand rows up to a million rows, the square root of the rows above.
_ROWS_A_LIST = 1_000
_MANY_ROWS = 1_000_000

# A tuner's choice holds until the table has so many times the rows: recall falls slowly, an exact search slows at once.
_OUTGROWN = 10
_OUTGROWN_NONE = 2

_OPERATORS: dict[Metric, str] = {"cosine": "cosine", "l2": "l2", "inner_product": "ip"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparsity:
    """How many nonzeros a table's sparse vectors have."""

    mean: float
    most: int = 0
    """Of the vector that has most; 0 where none can have too many for an index."""
    key: str = ""
    """Of its row."""

    def written(self) -> str:
        """Why there is no index."""
        return (
            f"the vector of the row ({self.key}) has {self.most:,} nonzeros, and pgvector indexes sparse vectors of at "
            f"most {LIMIT_NONZEROS:,}"
        )

    def refused(self) -> str:
        """What to tell who insists on one."""
        return (
            f"index.kind is hnsw, but {self.written()}: set index.kind to auto, which searches exactly then, or keep "
            "fewer of its nonzeros"
        )


def choose(
    rows: int,
    dimensions: int,
    precision: Precision,
    bits: bool,
    wanted: Index,
    *,
    metric: Metric = "cosine",
    indexed: bool = False,
    tuned: IndexChoice | None = None,
    tuned_rows: int = 0,
    sparsity: Sparsity | None = None,
) -> IndexChoice:
    """The index for a table of ``rows`` vectors of ``dimensions``.

    ``tuned``: what a tuner chose when the table had ``tuned_rows``; where the pipeline leaves all to us, it is taken
    as long as the table has not outgrown it.

    ``bits``: the table keeps ``embedding_bits``. ``indexed``: it has an index by now; then ``auto`` gives it up only
    at half the rows at which it would have made one, so that a table at the threshold does not build and drop in turn.
    Raises ``UsageError`` where the pipeline asks for an index that pgvector cannot build.
    """
    if wanted.kind == "none":
        return IndexChoice(
            kind="none", oversampling=oversampling_for(wanted, dimensions), reason="The pipeline wants no index."
        )
    if precision == "sparse":
        return _for_sparse(rows, wanted, sparsity, tuned, tuned_rows, metric=metric, indexed=indexed)
    _check_asked(dimensions, bits, wanted)
    if tuned is not None and wanted.kind == "auto" and wanted.on == "auto":
        held = _still_tuned(rows, tuned, tuned_rows)
        if held is not None:
            return held
    if wanted.kind == "auto":
        few = _few(rows, dimensions, f"{dimensions:,} dimensions", indexed=indexed)
        if few:
            return IndexChoice(kind="none", oversampling=oversampling_for(wanted, dimensions), reason=few)
    on, why = _on(dimensions, precision, bits, wanted)
    if on is None:
        if wanted.kind != "auto":
            raise UsageError(
                f"index.kind is {wanted.kind}, but pgvector indexes no float vectors over {LIMIT_HALFVEC:,} "
                f"dimensions, and these have {dimensions:,}: set target.bits to true"
            )
        return IndexChoice(kind="none", oversampling=oversampling_for(wanted, dimensions), reason=why)
    kind: Kind = "hnsw" if wanted.kind == "auto" else wanted.kind
    return IndexChoice(
        kind=kind,
        on=on,
        opclass=opclass(on, precision, metric),
        m=wanted.m,
        # pgvector refuses fewer candidates than twice the links.
        ef_construction=max(wanted.ef_construction or _EFFORT[on == "bits"], 2 * wanted.m),
        lists=(wanted.lists or lists_for(rows)) if kind == "ivfflat" else 0,
        lists_by_rows=wanted.lists is None,
        oversampling=oversampling_for(wanted, dimensions),
        reason=why,
    )


def fits(present: IndexChoice, choice: IndexChoice) -> bool:
    """Whether an index built as ``present`` is as good as one built as ``choice``."""
    if (present.kind, present.on, present.opclass, present.prefix) != (
        choice.kind,
        choice.on,
        choice.opclass,
        choice.prefix,
    ):
        return False
    if choice.kind == "hnsw":
        return (present.m, present.ef_construction) == (choice.m, choice.ef_construction)
    if choice.lists_by_rows:
        return choice.lists <= 2 * present.lists and present.lists <= 2 * choice.lists
    return present.lists == choice.lists


def _check_asked(dimensions: int, bits: bool, wanted: Index) -> None:
    """Raises ``UsageError`` for an index that cannot be, whatever the rows."""
    if wanted.on == "bits" and not bits:
        raise UsageError("index.on is bits, but the vector table keeps none: set target.bits to true")
    if wanted.on == "float" and dimensions > LIMIT_HALFVEC:
        raise UsageError(
            f"index.on is float, but pgvector indexes no float vectors over {LIMIT_HALFVEC:,} dimensions, and these "
            f"have {dimensions:,}: set index.on to bits (with target.bits true), or index.kind to none"
        )


def _still_tuned(rows: int, tuned: IndexChoice, tuned_rows: int) -> IndexChoice | None:
    """The tuner's choice for the rows there are now; None where they are too many for it to say anything."""
    if rows > tuned_rows * (_OUTGROWN_NONE if tuned.kind == "none" else _OUTGROWN):
        return None
    if tuned.kind != "ivfflat" or rows <= 2 * tuned_rows:
        return tuned
    lists = lists_for(rows)
    # As many of a hundred lists as before: the same share of the table is read.
    return replace(tuned, lists=lists, probes=max(1, round(tuned.probes * lists / max(1, tuned.lists))))


def _for_sparse(
    rows: int,
    wanted: Index,
    sparsity: Sparsity | None,
    tuned: IndexChoice | None,
    tuned_rows: int,
    *,
    metric: Metric,
    indexed: bool,
) -> IndexChoice:
    """HNSW or nothing: pgvector has no other index on sparse vectors, and no bits of them."""
    none = IndexChoice(kind="none", reason="")
    sparsity = sparsity or Sparsity(mean=_NONZEROS)
    if wanted.kind == "ivfflat":
        raise UsageError("index.kind is ivfflat, which pgvector cannot build on sparse vectors: set it to auto")
    if sparsity.most > LIMIT_NONZEROS:
        if wanted.kind == "hnsw":
            raise UsageError(sparsity.refused())
        said = sparsity.written()
        return replace(none, reason=f"{said[0].upper()}{said[1:]}: searches are exact.")
    if wanted.kind == "auto":
        held = _still_tuned(rows, tuned, tuned_rows) if tuned is not None else None
        if held is not None:
            return held
        elements = round(sparsity.mean * _NONZERO_ELEMENTS)
        few = _few(rows, elements, f"{sparsity.mean:,.0f} nonzeros", indexed=indexed)
        if few:
            return replace(none, reason=few)
    return IndexChoice(
        kind="hnsw",
        on="float",
        opclass=opclass("float", "sparse", metric),
        m=wanted.m,
        ef_construction=max(wanted.ef_construction or EFFORT_SPARSE, 2 * wanted.m),
        oversampling=wanted.oversampling or _OVERSAMPLING,
        reason="The one index that pgvector has on sparse vectors is HNSW.",
    )


def _few(rows: int, elements: int, what: str, *, indexed: bool) -> str | None:
    enough = EXACT_ELEMENTS // (elements + _ROW_ELEMENTS)
    if indexed:
        enough //= 2
    if rows > enough:
        return None
    return f"{rows:,} rows of {what} are searched exactly in a few hundredths of a second."


def _on(dimensions: int, precision: Precision, bits: bool, wanted: Index) -> tuple[On | None, str]:
    if wanted.on == "bits":
        return "bits", "The pipeline wants the index on bits."
    floats: On = "halfvec" if precision == "float32" and dimensions > LIMIT_VECTOR else "float"
    if wanted.on == "float":
        return floats, "The pipeline wants the index on float vectors."
    if bits and dimensions >= BITS_FROM_DIMENSIONS:
        return "bits", f"At {dimensions:,} dimensions bits with exact rerank are the faster and far smaller index."
    if dimensions > LIMIT_HALFVEC:
        return None, (
            f"pgvector indexes no float vectors over {LIMIT_HALFVEC:,} dimensions, and these have {dimensions:,}: "
            "with target.bits true there would be an index on bits."
        )
    if floats == "halfvec":
        return floats, f"Over {LIMIT_VECTOR:,} dimensions floats are indexed as halfvec; target.bits would be smaller."
    return floats, f"At {dimensions:,} dimensions an index on the float vectors has the better recall for its speed."


def opclass(on: On, precision: Precision, metric: Metric) -> str:
    if on == "bits":
        return "bit_hamming_ops"
    stored = "halfvec" if on == "halfvec" else Layout(precision, 1).type_name
    return f"{stored}_{_OPERATORS[metric]}_ops"


def oversampling_for(wanted: Index, dimensions: int) -> int:
    """Candidates reranked for each row wanted: the pipeline's word, else as many as vectors of that length need."""
    return wanted.oversampling or (_OVERSAMPLING_LONG if dimensions >= BITS_FROM_DIMENSIONS else _OVERSAMPLING)


def lists_for(rows: int) -> int:
    lists = rows // _ROWS_A_LIST if rows <= _MANY_ROWS else math.isqrt(rows)
    return min(max(lists, 1), 32_768)
