"""pgvector's HNSW: a graph whose size rowvec decides by the rows, if the pipeline file does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from psycopg import sql

from rowvec.pipeline.indexes import AnyIndex, Index
from rowvec.postgres.vector_index import IndexChoice
from rowvec.searches.index_kinds.protocol import IndexMethod, Option, Sought, reranks, value_bytes

LIMIT_VECTOR = 2_000
LIMIT_HALFVEC = 4_000
LIMIT_BITS = 64_000
LIMIT_NONZEROS = 1_000
"""pgvector's HNSW_MAX_NNZ, for a sparse vector of any length."""

# 0.8.2 to 0.8.4 fixed HNSW: an overflow in parallel builds, corruption by vacuum, and a graph left unrepaired.
SOUND_PGVECTOR = (0, 8, 4)

# ef_construction on floats, and on bits. Hamming distances are often equal: over 100,000 x 3,072 a graph of 64 found
# 0.92 and one of 128 found 0.953 by the same search. Comparing bits is cheap, so the build is still several times as
# fast.
_EFFORT = (64, 128)
# On sparse vectors: over 20,000 of 58 nonzeros a graph of 64 found 0.85 and one of 128 0.98, by the same search.
EFFORT_SPARSE = 128

# Links, and a factor for ef_construction, of a graph over more than so many rows. The same graph finds less of a larger
# table: with m 16, ef_construction 64 and ef_search 200 recall was 0.998 over 100,000 x 64 and 0.954 over 2,000,000.
_GRAPHS = ((10_000_000, 32, 4), (1_000_000, 24, 2), (0, 16, 1))

# A build takes about m * ef_construction: these are 24 times a default graph on floats.
_MOST_M, _MOST_EF_CONSTRUCTION = 48, 512

# Candidates that the index looks at if nobody measured. On floats, 117,659 texts of 256 dimensions, 200 gave a recall
# of 0.99, 100 one of 0.97. If a shortlist is reranked, its length decides: 200 in place of 40 cost three times the
# time at 20,000 x 3,072 for a hundredth of recall.
DEFAULT_EF_SEARCH = 200
DEFAULT_EF_SHORTLIST = 40

# pgvector holds the graph in memory during the build: the fields of each element, and 16 bytes for each of its links.
# An element has 2m links at the bottom level, and m at each of the few levels above.
_ELEMENT_BYTES = 200
_LINK_BYTES = 16
# On disk a link is six bytes, and an element with its headers about 90 more than its vector. Measured over
# 117,659 x 256: 159 MB on floats, 97 MB on halfvec, 39 MB on bits.
_STORED_LINK_BYTES = 6
_STORED_ELEMENT_BYTES = 90


class Hnsw(IndexMethod):
    """``index.kind: hnsw``."""

    access_method: ClassVar[str] = "hnsw"
    extension: ClassVar[str] = "vector"
    types: ClassVar[Mapping[str, int]] = {
        "vector": LIMIT_VECTOR,
        "halfvec": LIMIT_HALFVEC,
        "bit": LIMIT_BITS,
        "sparsevec": LIMIT_NONZEROS,
    }
    prefers_bits: ClassVar[bool] = True
    # pgvector's own limit; a search that looks at more is slower than the exact search of many tables.
    most_effort: ClassVar[int] = 1_000
    # Each removed vector leaves a hole in the graph, and VACUUM repairs the holes link by link in one process. Over
    # 15,000 x 128, this repair took 0.8 (bits 0.9) times as long as a rebuild with 5 % removed, 1.5 (1.2) times with
    # 10 %, and 2.2 (1.0) times with 20 %. After a rebuild VACUUM has nothing to repair. New vectors do not wear a
    # graph, because a graph is built by inserting vectors.
    gone_share: ClassVar[float] = 0.1

    def designed(self, choice: IndexChoice, wanted: AnyIndex, rows: int) -> IndexChoice:
        """A graph as the pipeline says, else by the rows."""
        own = wanted if isinstance(wanted, Index) else Index()
        links, factor = next((m, times) for more_than, m, times in _GRAPHS if rows > more_than or not more_than)
        m = own.m or links
        # pgvector refuses fewer candidates than twice the links.
        candidates = max(own.ef_construction or _effort(choice) * factor, 2 * m)
        by_rows = own.m is None and own.ef_construction is None
        return replace(choice, m=m, ef_construction=candidates, graph_by_rows=by_rows)

    def with_options(self, choice: IndexChoice) -> Mapping[str, Option]:
        """Links and candidates while building."""
        return {"m": choice.m, "ef_construction": choice.ef_construction}

    def present(self, choice: IndexChoice, options: Mapping[str, str]) -> IndexChoice:
        """The graph that was built; without parameters pgvector's default."""
        return replace(choice, m=int(options.get("m", 16)), ef_construction=int(options.get("ef_construction", 64)))

    def fits(self, present: IndexChoice, choice: IndexChoice) -> bool:
        """A graph that was built over fewer rows stays as long as it finds enough, if rowvec decides its size."""
        if choice.graph_by_rows:
            return present.m >= _GRAPHS[-1][1] and present.ef_construction >= _effort(choice)
        return (present.m, present.ef_construction) == (choice.m, choice.ef_construction)

    def settings(
        self, choice: IndexChoice, effort: sql.Composable, sought: Sought
    ) -> Mapping[str, sql.Composable | str | int]:
        """The candidates, and how far a search goes on that has found too few rows."""
        del choice
        return {
            "hnsw.ef_search": effort,
            "hnsw.iterative_scan": "relaxed_order",
            "hnsw.max_scan_tuples": sought.most_visits,
            "hnsw.scan_mem_multiplier": 4,
        }

    def effort(self, choice: IndexChoice) -> int:
        """``hnsw.ef_search``."""
        return choice.ef_search or (DEFAULT_EF_SHORTLIST if reranks(choice) else DEFAULT_EF_SEARCH)

    def with_effort(self, choice: IndexChoice, effort: int) -> IndexChoice:
        """Searched with another ``hnsw.ef_search``."""
        return replace(choice, ef_search=effort)

    def stronger(self, choice: IndexChoice) -> IndexChoice:
        """Half as many links again and twice the candidates while building, up to 48 links and 512 candidates.

        Only for a graph whose size the pipeline leaves to rowvec.
        """
        if not choice.graph_by_rows:
            return choice
        m = max(choice.m, min(_MOST_M, choice.m * 3 // 2))
        effort = max(choice.ef_construction, min(_MOST_EF_CONSTRUCTION, choice.ef_construction * 2))
        return replace(choice, m=m, ef_construction=max(effort, 2 * m))

    def not_weaker(self, choice: IndexChoice, present: IndexChoice, *, too_weak: bool) -> IndexChoice:
        """No smaller a graph than the present one, if rowvec decides its size."""
        if not choice.graph_by_rows:
            return choice
        again = replace(choice, m=present.m, ef_construction=present.ef_construction)
        again = self.stronger(again) if too_weak else again
        return again if again.m * again.ef_construction > choice.m * choice.ef_construction else choice

    def needed_memory(self, rows: int, dimensions: int, choice: IndexChoice) -> int:
        """Of the graph, which has to fit or is built many times slower."""
        return rows * (value_bytes(dimensions, choice) + _ELEMENT_BYTES + _LINK_BYTES * 3 * choice.m) * 5 // 4

    def index_bytes(self, rows: int, dimensions: int, choice: IndexChoice) -> int:
        """Vectors and links."""
        links = _STORED_LINK_BYTES * 2 * choice.m * 17 // 16
        return rows * (value_bytes(dimensions, choice) + _STORED_ELEMENT_BYTES + links)

    def faults(self, pgvector: tuple[int, ...]) -> str | None:
        """Those that 0.8.4 fixes."""
        if pgvector >= SOUND_PGVECTOR:
            return None
        return (
            f"pgvector {'.'.join(map(str, pgvector))} has faults in HNSW that 0.8.4 fixes: VACUUM may leave a graph "
            "that finds less, and parallel builds, which rowvec does not use here, may write beyond their memory; "
            "update pgvector on the server, then ALTER EXTENSION vector UPDATE"
        )

    def written(self, choice: IndexChoice) -> str:
        """Its graph."""
        return f" with m {choice.m}, ef_construction {choice.ef_construction}"

    def searched(self, choice: IndexChoice) -> str:
        """Its candidates."""
        return f"ef {choice.ef_search}"

    def build_effort(self, choice: IndexChoice) -> float:
        """Links times candidates."""
        return choice.m / 16 * choice.ef_construction / 64

    def keys_to_raise(self, choice: IndexChoice) -> Sequence[str] | None:
        """The size of the graph, if the pipeline file names it."""
        return [] if choice.graph_by_rows else ["index.m and index.ef_construction"]


def _effort(choice: IndexChoice) -> int:
    """ef_construction over few rows."""
    return EFFORT_SPARSE if choice.opclass.startswith("sparsevec") else _EFFORT[choice.on == "bits"]
