"""The decisions to build an index and to vacuum a table depend on values alone, and each build has a reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowvec.index.recall import RecallReport
from rowvec.index.wear import (
    DEAD_SHARE,
    TRIES,
    Churn,
    Tried,
    in_vain,
    is_worn,
    is_worse,
    reason_to_build,
    too_little,
    vacuum_due,
)
from rowvec.postgres.vector_index import IndexChoice

NONE = IndexChoice(kind="none", reason="")
FLOAT = IndexChoice(kind="hnsw", on="float", opclass="vector_cosine_ops", reason="It suits.")
BITS = IndexChoice(kind="hnsw", on="bits", opclass="bit_hamming_ops", reason="It suits.")
LISTS = IndexChoice(
    kind="ivfflat", on="float", opclass="vector_cosine_ops", lists=10, lists_by_rows=True, reason="It suits."
)
CHOICES = st.sampled_from([NONE, FLOAT, BITS, LISTS])


def wear_of(built_over: int, kept: int, came: int) -> Churn:
    return Churn(built_over=built_over, rows=min(kept, built_over) + came, came=came)


WEARS = st.builds(wear_of, st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9))


def recall(value: float | None, at_least: float = 0.95) -> RecallReport:
    return RecallReport(recall=value, low=0.0, high=1.0, k=10, queries=100, at_least=at_least, index=None)


@given(built_over=st.integers(0, 10**9), kept=st.integers(0, 10**9), came=st.integers(0, 10**9))
def test_added_and_removed_rows_are_counted_from_the_rows_alone(built_over: int, kept: int, came: int) -> None:
    kept = min(kept, built_over)
    wear = Churn(built_over=built_over, rows=kept + came, came=came)
    assert wear.went == built_over - kept
    assert 0 <= wear.share <= 1
    assert (wear.share == 0) == (came == 0 and wear.went == 0)


@given(built_over=st.integers(1, 10**9), came=st.integers(0, 10**9), choice=st.sampled_from([FLOAT, BITS, LISTS]))
def test_growth_alone_wears_no_index(built_over: int, came: int, choice: IndexChoice) -> None:
    assert not is_worn(choice, Churn(built_over=built_over, rows=built_over + came, came=came))


@given(wear=WEARS, more=st.integers(1, 10**9), choice=st.sampled_from([FLOAT, BITS, LISTS]))
def test_what_is_worn_stays_worn_when_more_goes(wear: Churn, more: int, choice: IndexChoice) -> None:
    old = wear.rows - wear.came
    further = replace(wear, rows=wear.rows - min(more, old))
    assert further.went >= wear.went
    if is_worn(choice, wear):
        assert is_worn(choice, further)


@pytest.mark.parametrize(("choice", "share"), [(FLOAT, 0.1), (BITS, 0.1), (LISTS, 0.3)])
def test_worn_begins_at_a_share(choice: IndexChoice, share: float) -> None:
    gone = round(1000 * share)
    assert is_worn(choice, Churn(built_over=1000, rows=1000 - gone, came=0))
    assert is_worn(choice, Churn(built_over=1000, rows=1000, came=gone))
    assert not is_worn(choice, Churn(built_over=1000, rows=1000 - gone + 1, came=0))


@given(
    choice=CHOICES,
    serving=st.booleans(),
    others=st.lists(CHOICES.filter(lambda c: c.kind != "none"), max_size=2),
    broken=st.lists(st.just("x_rowvec_1"), max_size=1),
    wear=st.none() | WEARS,
    grown=st.booleans(),
    asked=st.booleans(),
)
def test_an_index_is_built_exactly_when_there_is_a_reason_and_it_is_reported(
    choice: IndexChoice,
    serving: bool,
    others: list[IndexChoice],
    broken: list[str],
    wear: Churn | None,
    grown: bool,
    asked: bool,
) -> None:
    others = [other for other in others if (other.kind, other.on) != (choice.kind, choice.on)]
    reason = reason_to_build(
        choice, choice if serving else None, others, broken=broken, wear=wear, grown=grown, asked=asked
    )
    if choice.kind == "none":
        assert reason is None
        return
    worn = wear is not None and is_worn(choice, wear)
    assert (reason is not None) == (not serving or asked or worn)
    if reason is not None:
        assert reason.sentence
        assert (reason.why in {"asked", "worn"}) == serving


def test_each_reason() -> None:
    doubled = replace(LISTS, lists=25)
    fixed = replace(LISTS, lists=25, lists_by_rows=False)
    worn = Churn(built_over=100, rows=80, came=0)
    whys = [
        reason_to_build(FLOAT, None, []),
        reason_to_build(FLOAT, None, [], grown=True),
        reason_to_build(FLOAT, None, [], broken=["broken"], grown=True),
        reason_to_build(FLOAT, None, [BITS], broken=["broken"]),
        reason_to_build(doubled, None, [LISTS]),
        reason_to_build(fixed, None, [LISTS]),
        reason_to_build(FLOAT, FLOAT, [], wear=worn),
        reason_to_build(FLOAT, FLOAT, [], wear=worn, asked=True),
        too_little(recall(0.5)),
    ]
    assert [reason and reason.why for reason in whys] == [
        "missing",
        "outgrown",
        "invalid",
        "other choice",
        "outgrown",
        "other choice",
        "worn",
        "asked",
        "recall",
    ]
    assert whys[3] is not None
    assert whys[3].sentence.startswith(
        "the index is hnsw on bits with m 16, ef_construction 64, but should be hnsw on float"
    )
    assert whys[8] is not None
    assert whys[8].sentence == "it finds 0.500 of the nearest 10, and 0.950 is required"


@given(new=st.none() | st.floats(0, 1), old=st.none() | st.floats(0, 1), at_least=st.floats(0, 1))
def test_a_new_index_is_dropped_only_if_it_is_below_the_threshold_and_worse(
    new: float | None, old: float | None, at_least: float
) -> None:
    goes = is_worse(recall(new, at_least), recall(old, at_least))
    assert goes == (new is not None and old is not None and new < at_least and new < old)
    assert not is_worse(recall(new, at_least), None)


@given(live=st.integers(0, 10**9), dead=st.integers(0, 10**9))
def test_vacuum_is_due_by_the_share_of_dead_rows(live: int, dead: int) -> None:
    due = vacuum_due(live, dead)
    if due:
        assert dead / (live + dead) >= DEAD_SHARE
        assert vacuum_due(live, dead + 1)
    assert not vacuum_due(live, 0)


def test_builds_in_vain_stop_until_enough_rows_have_changed() -> None:
    poor, good = Tried(choice=BITS, recall=0.8, k=10), Tried(choice=BITS, recall=0.96, k=10)
    still, changed = Churn(built_over=100, rows=100, came=1), Churn(built_over=100, rows=100, came=10)
    assert in_vain([poor] * TRIES, BITS, 10, 0.95, still)
    assert in_vain([replace(poor, choice=FLOAT), *[poor] * TRIES], BITS, 10, 0.95, still)
    assert not in_vain([poor] * TRIES, BITS, 10, 0.95, changed)
    assert not in_vain([poor] * (TRIES - 1), BITS, 10, 0.95, still)
    assert not in_vain([good, *[poor] * TRIES], BITS, 10, 0.95, still)
    assert not in_vain([poor] * TRIES, BITS, 10, 0.7, still)
    assert not in_vain([poor] * TRIES, BITS, 20, 0.95, still)
    assert not in_vain([poor] * TRIES, replace(BITS, oversampling=16), 10, 0.95, still)
    assert not in_vain([poor] * TRIES, FLOAT, 10, 0.95, still)
