"""The index part of a pipeline file: which index is built on the vectors, and from what."""

# A kind narrows its tag. That is safe because parts are frozen, which pyright does not see.
# pyright: reportIncompatibleVariableOverride=false

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rowvec.pipeline.parts import Part


class AnyIndex(Part):
    """What every kind of index has."""

    kind: str
    on: Literal["auto", "bits", "float"] = Field(
        default="auto", description="What the index is built on: auto, bits or float."
    )
    bits: Literal["auto", 1, 2, 3] = Field(
        default="auto",
        description="Bits per dimension that target.bits keeps: 1, 2 or 3. auto: those of the existing table; a new "
        "one gets 3, and 1 from 1,536 dimensions up. rowvec rebuild changes it without embedding anything.",
    )
    oversampling: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Bits: shortlist of k times this, reranked exactly; left out: 4 from 1,024 dimensions up, else 8, "
        "6 and 5 for one, two and three bits, and more if recall asks for it.",
    )


class Index(AnyIndex):
    """The index on the vectors."""

    kind: Literal["auto", "none", "hnsw", "ivfflat"] = Field(
        default="auto", description="auto (by rows and dimensions, or as tuned), none, hnsw or ivfflat."
    )
    m: int | None = Field(
        default=None,
        ge=2,
        le=100,
        description="HNSW: links per node; left out: 16, 24 over 1,000,000 rows, 32 over 10,000,000, more if recall "
        "asks for it.",
    )
    ef_construction: int | None = Field(
        default=None,
        ge=4,
        le=1000,
        description="HNSW: candidates while building; left out: 64, and 128 on bits and sparse vectors; twice and four "
        "times as many over 1,000,000 and 10,000,000 rows, and more if recall asks for it.",
    )
    lists: int | None = Field(default=None, ge=1, le=32768, description="IVFFlat: lists; left out: by rows.")


class PluginIndex(AnyIndex):
    """The keys that an index of a plug-in has at least; its own model is a subclass with more."""
