"""When an index is to be built, and when a table is to be vacuumed: pure decisions, each with the reason it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rowvec.index.choice import fits
from rowvec.index.recall import RecallReport
from rowvec.postgres.vector_index import IndexChoice

Why = Literal["missing", "invalid", "other choice", "outgrown", "worn", "recall", "asked", "found"]

# HNSW. What goes from a graph leaves holes that VACUUM mends link by link, in one process: with 5 % gone it took 0.8
# (bits 0.9) times as long as a build anew, with 10 % 1.5 (1.2) times, with 20 % 2.2 (1.0) times, over 15,000 x 128.
# After a build anew it has nothing to mend. What comes wears no graph, for inserting is how it is built.
GONE_SHARE = 0.1
# IVFFlat: the centres of its lists stay where the vectors were that it was built from.
MOVED_SHARE = 0.3

# Half of what autovacuum waits for by default: it would come at a time of its own, in the middle of the day.
DEAD_SHARE = 0.1
# Below that, a table is read in no time, dead rows and all.
_DEAD_ROWS = 1_000

# HNSW graphs are drawn by lot, and many equal vectors can cut a part of one off: of five builds over the same 69,202
# texts two found 0.95 of the neighbours and three 0.97 to 0.99, whatever the search's effort.
TRIES = 3
"""Builds of one choice over much the same rows, before it is given up that the next finds more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Churn:
    """What became of the vectors that an index was built over."""

    built_over: int
    """Rows at the build."""
    rows: int
    came: int
    """Of these rows, those whose vector is new, or another one than at the build."""

    @property
    def went(self) -> int:
        """Vectors of the build that are gone or replaced."""
        return max(0, self.built_over - (self.rows - self.came))

    @property
    def share(self) -> float:
        """From 0, as built, to 1, when nothing is left of it."""
        return max(self.came, self.went) / max(self.built_over, self.rows, 1)

    def written(self) -> str:
        """For a sentence."""
        return f"of {self.built_over:,} vectors {self.went:,} are gone or replaced, and {self.came:,} came"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why an index is built."""

    why: Why
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A build of the past."""

    choice: IndexChoice
    recall: float | None
    k: int | None


def reason_to_build(
    choice: IndexChoice,
    serving: IndexChoice | None,
    others: Sequence[IndexChoice],
    *,
    broken: Sequence[str] = (),
    wear: Churn | None = None,
    grown: bool = False,
    asked: bool = False,
) -> Reason | None:
    """Why ``choice`` is to be built; None where it is not.

    ``serving``: the valid index that fits it, if any; ``others``: valid ones that do not; ``broken``: names of invalid
    ones. ``wear`` is of ``serving``. ``grown``: earlier runs did without an index.
    """
    if choice.kind == "none":
        return None
    if serving is None:
        return _reason_for_the_first(choice, others, broken, grown=grown)
    if asked:
        return Reason(why="asked", sentence="it was asked for")
    if wear is not None and is_worn(choice, wear):
        return Reason(why="worn", sentence=wear.written())
    return None


def is_worn(choice: IndexChoice, wear: Churn) -> bool:
    """Whether so much of what the index was built over has been replaced that a build anew pays."""
    # Growth alone wears neither: IVFFlat then wants more lists, and that is another choice.
    return wear.went / max(wear.built_over, 1) >= (GONE_SHARE if choice.kind == "hnsw" else MOVED_SHARE)


def too_little(recall: RecallReport) -> Reason:
    """The reason of an index that does not find enough."""
    found = recall.recall or 0.0
    return Reason(
        why="recall", sentence=f"it finds {found:.3f} of the nearest {recall.k}, and {recall.at_least:.3f} are wanted"
    )


def in_vain(tried: Sequence[Tried], choice: IndexChoice, recall_k: int, at_least: float, since: Churn | None) -> bool:
    """Whether the newest builds of ``choice`` (``tried``, newest first) all found too little, over much the same rows.

    ``since`` is what came and went after the newest of them. Without this, each run would build in vain again.
    """
    same = [one for one in tried if one.recall is not None and one.k == recall_k and _alike(one.choice, choice)]
    newest = same[:TRIES]
    if len(newest) < TRIES or (since is not None and since.share >= GONE_SHARE):
        return False
    return all(one.recall is not None and one.recall < at_least for one in newest)


def is_worse(new: RecallReport, old: RecallReport | None) -> bool:
    """Whether a new index is to go again, and the old one to stay: it finds too little, and less than the old one."""
    if old is None or old.recall is None or new.recall is None:
        return False
    return not new.passed and new.recall < old.recall


def vacuum_due(live: int, dead: int) -> bool:
    """Whether so many rows are dead that readers pay for it."""
    return dead >= _DEAD_ROWS and dead / (live + dead) >= DEAD_SHARE


def _reason_for_the_first(
    choice: IndexChoice, others: Sequence[IndexChoice], broken: Sequence[str], *, grown: bool
) -> Reason:
    if any(fits(replace(other, lists=choice.lists), choice) for other in others if choice.lists_by_rows):
        return Reason(why="outgrown", sentence=f"{choice.lists:,} lists suit the rows there are now")
    if others:
        there = others[-1]
        return Reason(
            why="other choice", sentence=f"{_written(there)} is there, {_written(choice)} is wanted: {choice.reason}"
        )
    if broken:
        return Reason(why="invalid", sentence=f"{', '.join(broken)} is invalid, a build that did not end")
    if grown:
        return Reason(why="outgrown", sentence="the table has become too large to be searched without an index")
    return Reason(why="missing", sentence="there is none yet")


def _alike(one: IndexChoice, other: IndexChoice) -> bool:
    """Whether the same index would be built, and searched the same way."""
    return fits(one, other) and (one.oversampling, one.ef_search, one.probes) == (
        other.oversampling,
        other.ef_search,
        other.probes,
    )


def _written(choice: IndexChoice) -> str:
    what = f"{choice.kind} on {choice.on}"
    if choice.prefix:
        what += f" (first {choice.prefix})"
    if choice.kind == "ivfflat":
        return f"{what} with {choice.lists} lists"
    return f"{what} with m {choice.m}, ef_construction {choice.ef_construction}"
