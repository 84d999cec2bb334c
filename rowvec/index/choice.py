"""Chooses the index of a vector table, as a pure function of the table's facts and the pipeline's settings."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rowvec.errors import UsageError
from rowvec.pipeline.indexes import AnyIndex
from rowvec.postgres.vector_index import IndexChoice, On
from rowvec.postgres.vector_table import Metric
from rowvec.searches.index_kinds import method_of
from rowvec.searches.index_kinds.hnsw import LIMIT_NONZEROS, LIMIT_VECTOR
from rowvec.searches.index_kinds.protocol import IndexMethod
from rowvec.vectors.layout import Layout, Precision

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

# A tuner's choice holds until the table has this many times the rows. Recall falls slowly, but an exact search becomes
# slower in proportion.
_OUTGROWN = 10
_OUTGROWN_NONE = 2


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

    def refused(self, kind: str) -> str:
        """The error for a pipeline that requires an index of this kind."""
        return (
            f"index.kind is {kind}, but {self.written()}: set index.kind to auto, which then searches exactly, or keep "
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


def choose(facts: Facts, wanted: AnyIndex, tuned: Tuned | None = None) -> IndexChoice:
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
    kind = "hnsw" if wanted.kind == "auto" else wanted.kind
    method = method_of(kind)
    if facts.precision == "sparse":
        return _for_sparse(facts, wanted, tuned, kind)
    _check_wanted(facts, wanted, method)
    if tuned is not None and wanted.kind == "auto" and wanted.on == "auto":
        held = _still_tuned(rows, tuned)
        if held is not None:
            return held
    if wanted.kind == "auto":
        few = _few(rows, dimensions, f"{dimensions:,} dimensions", indexed=facts.indexed)
        if few:
            return IndexChoice(kind="none", oversampling=oversampling, reason=few)
    on, why = _on(facts, wanted, method)
    if on is None:
        if wanted.kind != "auto":
            remedy = "target.bits to true" if method.prefers_bits else "index.kind to auto"
            raise UsageError(f"index.kind is {wanted.kind}, but {_too_long(facts, method)}: set {remedy}")
        return IndexChoice(kind="none", oversampling=oversampling, reason=why)
    choice = IndexChoice(
        kind=kind,
        on=on,
        opclass=opclass(method, on, facts.precision, facts.metric),
        bits=facts.bits if on == "bits" else 1,
        oversampling=oversampling,
        oversampling_given=wanted.oversampling is not None,
        reason=why,
    )
    return method.designed(choice, wanted, rows)


def fits(present: IndexChoice, choice: IndexChoice) -> bool:
    """Whether an index built as ``present`` is as good as one built as ``choice``."""
    if not is_held_alike(present, choice):
        return False
    return choice.kind == "none" or method_of(choice.kind).fits(present, choice)


def is_held_alike(one: IndexChoice, other: IndexChoice) -> bool:
    """Whether two indexes are of one kind and hold the same."""
    return _held(one) == _held(other)


def _held(choice: IndexChoice) -> tuple[object, ...]:
    return choice.kind, choice.on, choice.opclass, choice.prefix, choice.bits


def _check_wanted(facts: Facts, wanted: AnyIndex, method: IndexMethod) -> None:
    """Raises ``UsageError`` for an index that cannot exist, whatever the number of rows."""
    if wanted.on == "bits" and "bit" not in method.types:
        raise UsageError(f"index.on is bits, and {wanted.kind} indexes floats alone: set index.on to float")
    if wanted.on == "bits" and not facts.bits:
        raise UsageError("index.on is bits, but the vector table keeps no bits: set target.bits to true")
    if wanted.on == "float" and _floats(facts, method) is None:
        other = "index.on to bits (with target.bits true)" if "bit" in method.types else "index.kind to auto"
        raise UsageError(f"index.on is float, but {_too_long(facts, method)}: set {other}, or index.kind to none")


def _still_tuned(rows: int, tuned: Tuned) -> IndexChoice | None:
    """The tuner's choice for the present number of rows; None if the table has outgrown it."""
    choice = tuned.choice
    if rows > tuned.rows * (_OUTGROWN_NONE if choice.kind == "none" else _OUTGROWN):
        return None
    if choice.kind == "none" or rows <= 2 * tuned.rows:
        return choice
    return method_of(choice.kind).over_more_rows(choice, rows)


def _for_sparse(facts: Facts, wanted: AnyIndex, tuned: Tuned | None, kind: str) -> IndexChoice:
    """An index or nothing: there are no bits of sparse vectors, and of pgvector's kinds only HNSW indexes them."""
    none = IndexChoice(kind="none", reason="")
    sparsity = facts.sparsity or Sparsity(mean=_NONZEROS)
    method = method_of(kind)
    if "sparsevec" not in method.types:
        raise UsageError(f"index.kind is {kind}, which {method.product} cannot build on sparse vectors: set it to auto")
    if sparsity.most > LIMIT_NONZEROS:
        if wanted.kind != "auto":
            raise UsageError(sparsity.refused(kind))
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
    why = "HNSW is the only index that pgvector has on sparse vectors."
    choice = IndexChoice(
        kind=kind,
        on="float",
        opclass=opclass(method, "float", "sparse", facts.metric),
        oversampling=wanted.oversampling or _OVERSAMPLING,
        oversampling_given=wanted.oversampling is not None,
        reason=why if kind == "hnsw" else "The pipeline wants an index of this kind.",
    )
    return method.designed(choice, wanted, facts.rows)


def _few(rows: int, elements: int, what: str, *, indexed: bool) -> str | None:
    enough = EXACT_ELEMENTS // (elements + _ROW_ELEMENTS)
    if indexed:
        enough //= 2
    if rows > enough:
        return None
    return f"{rows:,} rows of {what} are searched exactly in a few hundredths of a second."


def _on(facts: Facts, wanted: AnyIndex, method: IndexMethod) -> tuple[On | None, str]:
    dimensions = facts.dimensions
    if wanted.on == "bits":
        return "bits", "The pipeline wants the index on bits."
    floats = _floats(facts, method)
    if wanted.on == "float":
        return floats, "The pipeline wants the index on float vectors."
    least = SEVERAL_BITS_FROM_DIMENSIONS if facts.bits > 1 else BITS_FROM_DIMENSIONS
    if method.prefers_bits and facts.bits and dimensions >= least:
        return "bits", f"At {dimensions:,} dimensions bits with exact rerank give the faster and far smaller index."
    if floats is None:
        return None, f"{_too_long(facts, method)}: with target.bits true there would be an index on bits."
    if not method.prefers_bits:
        return floats, f"The pipeline wants an index of the kind {wanted.kind}."
    if floats == "halfvec":
        return floats, f"Over {LIMIT_VECTOR:,} dimensions floats are indexed as halfvec; target.bits would be smaller."
    return floats, f"At {dimensions:,} dimensions an index on the float vectors has the better recall for its speed."


def _floats(facts: Facts, method: IndexMethod) -> On | None:
    """How an index holds the floats of a dense vector; None if it cannot hold so many dimensions."""
    dimensions, stored = facts.dimensions, _type_name("float", facts.precision)
    if dimensions <= method.types.get(stored, 0):
        return "float"
    return "halfvec" if dimensions <= method.types.get("halfvec", 0) and stored == "vector" else None


def _too_long(facts: Facts, method: IndexMethod) -> str:
    stored = _type_name("float", facts.precision)
    most = max(method.types.get(stored, 0), method.types.get("halfvec", 0))
    if not most:
        return f"{method.product} indexes no {stored}"
    return f"{method.product} indexes no float vectors over {most:,} dimensions, and these have {facts.dimensions:,}"


def _type_name(on: On, precision: Precision) -> str:
    """pgvector's type of what an index on this holds."""
    if on == "bits":
        return "bit"
    return "halfvec" if on == "halfvec" else Layout(precision, 1).type_name


def opclass(method: IndexMethod, on: On, precision: Precision, metric: Metric) -> str:
    """The operator class for an index on this column."""
    return method.operator_class(_type_name(on, precision), metric)


def oversampling_for(wanted: AnyIndex, dimensions: int, bits: int) -> int:
    """Candidates that are reranked per row wanted: the pipeline's setting, else by the dimensions and their bits."""
    if wanted.oversampling:
        return wanted.oversampling
    return _OVERSAMPLING_LONG if dimensions >= BITS_FROM_DIMENSIONS else _OVERSAMPLING_BITS.get(bits, _OVERSAMPLING)
