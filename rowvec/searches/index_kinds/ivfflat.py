"""pgvector's IVFFlat: lists around centres, whose number follows from the rows if the pipeline file names none."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from psycopg import sql

from rowvec.pipeline.indexes import AnyIndex, Index
from rowvec.postgres.vector_index import IndexChoice
from rowvec.searches.index_kinds.hnsw import LIMIT_BITS, LIMIT_HALFVEC, LIMIT_VECTOR
from rowvec.searches.index_kinds.protocol import IndexMethod, Option, Sought, value_bytes

# pgvector's advice: one list per thousand rows up to a million rows, above that the square root of the rows.
_ROWS_A_LIST = 1_000
_MANY_ROWS = 1_000_000
_MOST_LISTS = 32_768

# Its k-means (Elkan's) draws fifty rows per list, and keeps a bound for each pair of a row and a centre. pgvector
# rejects the build if all of this does not fit in maintenance_work_mem (ElkanKmeans in its ivfkmeans.c).
_SAMPLES_A_LIST = 50
_LEAST_SAMPLES = 10_000
_BOUND_BYTES = 4
# Measured over 117,659 x 256 on floats: 139 MB.
_STORED_ITEM_BYTES = 40


def lists_for(rows: int) -> int:
    """Lists for a table of this many rows."""
    lists = rows // _ROWS_A_LIST if rows <= _MANY_ROWS else math.isqrt(rows)
    return min(max(lists, 1), _MOST_LISTS)


class IvfFlat(IndexMethod):
    """``index.kind: ivfflat``."""

    access_method: ClassVar[str] = "ivfflat"
    extension: ClassVar[str] = "vector"
    types: ClassVar[Mapping[str, int]] = {"vector": LIMIT_VECTOR, "halfvec": LIMIT_HALFVEC, "bit": LIMIT_BITS}
    prefers_bits: ClassVar[bool] = True
    most_effort: ClassVar[int] = _MOST_LISTS
    # The centres of its lists do not move: they fit the vectors that were there at the build.
    gone_share: ClassVar[float] = 0.3

    def designed(self, choice: IndexChoice, wanted: AnyIndex, rows: int) -> IndexChoice:
        """As many lists as the pipeline says, else by the rows."""
        lists = wanted.lists if isinstance(wanted, Index) else None
        return replace(choice, lists=lists or lists_for(rows), lists_by_rows=lists is None)

    def with_options(self, choice: IndexChoice) -> Mapping[str, Option]:
        """Its lists."""
        return {"lists": choice.lists}

    def present(self, choice: IndexChoice, options: Mapping[str, str]) -> IndexChoice:
        """The lists that were built; without a parameter pgvector's default."""
        return replace(choice, lists=int(options.get("lists", 100)))

    def fits(self, present: IndexChoice, choice: IndexChoice) -> bool:
        """Half or twice as many lists are as good, if they follow from the rows."""
        if choice.lists_by_rows:
            return choice.lists <= 2 * present.lists and present.lists <= 2 * choice.lists
        return present.lists == choice.lists

    def outgrown(self, other: IndexChoice, choice: IndexChoice) -> str | None:
        """The number of its lists."""
        del other
        return f"the present number of rows needs {choice.lists:,} lists" if choice.lists_by_rows else None

    def over_more_rows(self, choice: IndexChoice, rows: int) -> IndexChoice:
        """The same share of the lists is probed as before, so the same share of the table is read."""
        lists = lists_for(rows)
        return replace(choice, lists=lists, probes=max(1, round(choice.probes * lists / max(1, choice.lists))))

    def settings(
        self, choice: IndexChoice, effort: sql.Composable, sought: Sought
    ) -> Mapping[str, sql.Composable | str | int]:
        """The lists that a search reads first; one that has found too few rows reads more, up to all of them."""
        del sought
        return {
            "ivfflat.probes": effort,
            "ivfflat.max_probes": max(choice.lists, 1),
            "ivfflat.iterative_scan": "relaxed_order",
        }

    def effort(self, choice: IndexChoice) -> int:
        """``ivfflat.probes`` at the choice's own oversampling."""
        return choice.probes or math.ceil(math.sqrt(choice.lists) * choice.oversampling / 2)

    def with_effort(self, choice: IndexChoice, effort: int) -> IndexChoice:
        """Searched with other ``ivfflat.probes``."""
        return replace(choice, probes=effort)

    def harder(self, choice: IndexChoice, factor: int, k: int) -> IndexChoice:
        """So many times the lists, up to all of them."""
        del k
        return self.with_effort(choice, min(max(1, choice.lists), self.effort(choice) * factor))

    def effort_of(self, choice: IndexChoice, sought: Sought) -> sql.Composed:
        """The probes of the choice at its own oversampling, in proportion at another."""
        lists = sql.Literal(max(choice.lists, 1))
        if choice.probes:
            return sql.SQL("least({}, greatest(1, {} * {} / {}))").format(
                lists, sql.Literal(choice.probes), sought.oversampling, sql.Literal(choice.oversampling)
            )
        return sql.SQL("least({lists}, greatest(1, ceil(sqrt({lists}) * {over} / 2.0)::int))").format(
            lists=lists, over=sought.oversampling
        )

    def needed_memory(self, rows: int, dimensions: int, choice: IndexChoice) -> int:
        """Of the k-means."""
        lists = choice.lists
        samples = max(_SAMPLES_A_LIST * lists, _LEAST_SAMPLES)
        item = value_bytes(dimensions, choice) + 16
        bounds = _BOUND_BYTES * (min(rows, samples) * (lists + 2) + lists * (lists + 3))
        centres = lists * (2 * item + 4 * (choice.prefix or dimensions))
        return (samples * item + centres + bounds) * 21 // 20

    def index_bytes(self, rows: int, dimensions: int, choice: IndexChoice) -> int:
        """Vectors in their lists."""
        return rows * (value_bytes(dimensions, choice) + _STORED_ITEM_BYTES) * 11 // 10

    def most_parts(self, rows: int, dimensions: int, choice: IndexChoice, memory: int) -> int | None:
        """The most lists, up to the choice's, whose build fits; 0 if not even one list fits."""
        numbers = range(1, choice.lists + 1)
        return bisect_right(
            numbers, memory, key=lambda n: self.needed_memory(rows, dimensions, replace(choice, lists=n))
        )

    def written(self, choice: IndexChoice) -> str:
        """Its lists."""
        return f" with {choice.lists} lists"

    def searched(self, choice: IndexChoice) -> str:
        """The lists that a search reads."""
        return f"{choice.probes} of {choice.lists} lists"

    def build_effort(self, choice: IndexChoice) -> float:
        """A tenth of a graph."""
        del choice
        return 0.1

    def keys_to_raise(self, choice: IndexChoice) -> Sequence[str] | None:
        """None: fewer lists find more, and searches read more of them already."""
        del choice
