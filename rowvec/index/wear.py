"""Decides when to build an index and when to vacuum a table: pure functions, which give a reason for each build."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rowvec.index.choice import fits, is_held_alike
from rowvec.index.raised_search import search_settings
from rowvec.index.recall import RecallReport
from rowvec.postgres.vector_index import IndexChoice
from rowvec.searches.index_kinds import method_of

Why = Literal["missing", "invalid", "other choice", "outgrown", "worn", "recall", "asked", "found"]

# A build that found too little is tried again once this share of the rows has changed.
_OTHER_ROWS = 0.1

# Half of the default threshold of autovacuum, so that autovacuum does not start by itself in the middle of the day.
DEAD_SHARE = 0.1
# With fewer dead rows than this, they do not slow readers noticeably.
_DEAD_ROWS = 1_000

# HNSW builds are randomised, and many equal vectors can disconnect a part of the graph. Of five builds over the same
# 69,202 texts, two had a recall of 0.95 and three a recall of 0.97 to 0.99, at any setting of the search.
TRIES = 3
"""The most builds of one choice over nearly the same rows. After that, no further build is tried for its recall."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Churn:
    """How the vectors of a table changed since an index was built over them."""

    built_over: int
    """The number of rows at the build."""
    rows: int
    came: int
    """The number of these rows whose vector is new or was replaced since the build."""

    @property
    def went(self) -> int:
        """The number of vectors that were there at the build and are now gone or replaced."""
        return max(0, self.built_over - (self.rows - self.came))

    @property
    def share(self) -> float:
        """The changed share, from 0 (as built) to 1 (no vector of the build is left)."""
        return max(self.came, self.went) / max(self.built_over, self.rows, 1)

    def written(self) -> str:
        """The figures as a clause, for messages."""
        return f"of {self.built_over:,} vectors {self.went:,} are gone or replaced, and {self.came:,} came"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why an index is built."""

    why: Why
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """An earlier build: its choice and its measured recall@k."""

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
    """The reason to build ``choice``; None if there is no reason.

    ``serving``: the valid index that fits ``choice``, if there is one. ``others``: valid indexes that do not fit it.
    ``broken``: the names of invalid indexes. ``wear``: the changes since the build of ``serving``. ``grown``: earlier
    runs needed no index.
    """
    if choice.kind == "none":
        return None
    if serving is None:
        return _reason_for_the_first(choice, others, broken, grown=grown)
    if asked:
        return Reason(why="asked", sentence="a user asked for it")
    if wear is not None and is_worn(choice, wear):
        return Reason(why="worn", sentence=wear.written())
    return None


def is_worn(choice: IndexChoice, wear: Churn) -> bool:
    """True if so many vectors of the build are gone or replaced that a rebuild is worth its cost."""
    # Growth alone wears no kind. A grown IVFFlat index needs more lists, which is a different choice.
    return wear.went / max(wear.built_over, 1) >= method_of(choice.kind).gone_share


def too_little(recall: RecallReport) -> Reason:
    """The reason to rebuild an index whose recall is too low."""
    found = recall.recall or 0.0
    return Reason(
        why="recall", sentence=f"it finds {found:.3f} of the nearest {recall.k}, and {recall.at_least:.3f} is required"
    )


def in_vain(tried: Sequence[Tried], choice: IndexChoice, recall_k: int, at_least: float, since: Churn | None) -> bool:
    """True if the last ``TRIES`` builds of ``choice`` all had too low a recall, over nearly the same rows.

    ``tried``: earlier builds, the newest first. ``since``: the changes since the newest of them. Without this check,
    every run would build the index again, without success.
    """
    same = [one for one in tried if one.recall is not None and one.k == recall_k and _alike(one.choice, choice)]
    newest = same[:TRIES]
    if len(newest) < TRIES or (since is not None and since.share >= _OTHER_ROWS):
        return False
    return all(one.recall is not None and one.recall < at_least for one in newest)


def is_worse(new: RecallReport, old: RecallReport | None) -> bool:
    """True if the new index should be dropped and the old one kept.

    This is so if the new one misses the required recall and is worse than the old one.
    """
    if old is None or old.recall is None or new.recall is None:
        return False
    return not new.passed and new.recall < old.recall


def vacuum_due(live: int, dead: int) -> bool:
    """True if there are so many dead rows that they slow readers."""
    return dead >= _DEAD_ROWS and dead / (live + dead) >= DEAD_SHARE


def _reason_for_the_first(
    choice: IndexChoice, others: Sequence[IndexChoice], broken: Sequence[str], *, grown: bool
) -> Reason:
    alike = [other for other in others if is_held_alike(other, choice)]
    outgrown = method_of(choice.kind).outgrown(alike[-1], choice) if alike else None
    if outgrown:
        return Reason(why="outgrown", sentence=outgrown)
    if others:
        current = others[-1]
        return Reason(
            why="other choice",
            sentence=f"the index is {_written(current)}, but should be {_written(choice)}: {choice.reason}",
        )
    if broken:
        return Reason(why="invalid", sentence=f"{', '.join(broken)} is invalid: its build did not finish")
    if grown:
        return Reason(why="outgrown", sentence="the table has become too large to search without an index")
    return Reason(why="missing", sentence="the table has no index yet")


def _alike(one: IndexChoice, other: IndexChoice) -> bool:
    """True if both choices build the same index and search it with the same settings."""
    return fits(one, other) and search_settings(one) == search_settings(other)


def _written(choice: IndexChoice) -> str:
    what = f"{choice.kind} on {choice.on}"
    if choice.prefix:
        what += f" (first {choice.prefix})"
    return f"{what}{method_of(choice.kind).written(choice)}"
