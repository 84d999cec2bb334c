"""The tuner measures on a copy, within its budget, and does not disturb readers or writers."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from psycopg import sql

from rowvec.errors import DatabaseUnavailable, UsageError
from rowvec.index.build import index_state
from rowvec.index.tuning.results import find_tuning, store_tuning
from rowvec.index.tuning.tuner import Budget, tune
from rowvec.pipeline.model import Recall
from rowvec.postgres.connection import Connection, connect
from rowvec.runtime.progress import listening
from tests.support.vector_tables import create, empty_unlogged_tables, filled, vector_table

# Enough time for a busy machine; the tuner does not use what is left over.
SMALL = Budget(seconds=600, memory=2**30, rows=1_200)


def samples(connection: Connection) -> list[str]:
    """Copies that tuners have made."""
    rows = connection.execute("SELECT relname FROM pg_class WHERE relname ~ '^scratch_.*_tuning$'").fetchall()
    return [name for (name,) in rows]


@pytest.mark.parametrize("bits", [2, pytest.param(0, marks=pytest.mark.soak)])
def test_the_tuner_measures_a_copy_and_keeps_the_choice(connection: Connection, bits: int) -> None:
    table = vector_table(128, bits=bits)
    filled(connection, table, 1_600)
    found = tune(connection, table, Recall(k=5, queries=40), SMALL)
    assert (found.rows, found.k) == (1_600, 5)
    assert 1_000 <= found.sampled_rows <= 1_200
    names = {m.name.partition(",")[0] for m in found.measured}
    graphs = {f"{what} hnsw" for what in ("1 bit", "2 bits", "3 bits", "halfvec", "float", "first 64")}
    assert {*graphs, "halfvec ivfflat"} <= names
    for m in found.measured:
        assert 0 <= m.low <= m.recall <= m.high <= 1
        assert m.bytes > 0
        assert m.per_second > 0
    # More effort finds more, or nearly as much, because index builds are randomised.
    for number in (1, 2, 3):
        of_bits = [m for m in found.measured if m.choice.on == "bits" and m.choice.bits == number]
        assert of_bits[-1].recall >= of_bits[0].recall
    # Only what the table keeps can be chosen.
    assert found.choice.on != "bits" or found.choice.bits == bits
    assert index_state(connection, table) == []
    assert samples(connection) == []
    assert find_tuning(connection, table) is None
    store_tuning(connection, table, found)
    kept = find_tuning(connection, table)
    assert kept is not None
    assert (kept.choice, kept.rows) == (found.choice, 1_600)
    # The tuned choice does not apply to vectors of another kind.
    assert find_tuning(connection, vector_table(64, bits=bits)) is None


def test_tuners_have_samples_of_their_own_and_what_a_killed_one_left_is_dropped(
    connection: Connection, direct_url: str
) -> None:
    table = vector_table(64)
    filled(connection, table, 1_200)
    long_ago, just_now = "scratch_1600000000_0123abcd_tuning", f"scratch_{int(time.time())}_0123abcd_tuning"
    for name in (long_ago, just_now):
        connection.execute(sql.SQL("CREATE TABLE {} (left_behind int)").format(sql.Identifier("rowvec", name)))
    with connect(direct_url) as other:
        assert tune(other, table, Recall(), replace(SMALL, seconds=0.001)).sampled_rows >= 1_000
    assert samples(connection) == [just_now]


def test_a_tuning_ends_if_the_server_has_lost_the_sample(connection: Connection, direct_url: str) -> None:
    table = vector_table(64)
    filled(connection, table, 1_200)

    def crash(stage: str, part: str, done: int, total: int) -> None:
        if part.startswith("copying") and done == total:
            empty_unlogged_tables(connection)

    with (
        connect(direct_url) as other,
        listening(crash),
        pytest.raises(DatabaseUnavailable, match="crashed or a standby has taken over"),
    ):
        tune(other, table, Recall(), replace(SMALL, seconds=0.001))


def test_a_budget_too_small_says_what_was_not_measured(connection: Connection) -> None:
    table = vector_table(64)
    filled(connection, table, 1_200)
    found = tune(connection, table, Recall(), Budget(seconds=0.001, rows=1_000))
    assert found.measured == ()
    assert len(found.skipped) >= 3
    assert {why for _, why in found.skipped} == {"no time was left for it"}
    assert found.choice.kind == "none"


@pytest.mark.usefixtures("two_candidates")
def test_a_tuning_without_time_does_not_replace_one_that_had_it(connection: Connection) -> None:
    table = vector_table(64)
    filled(connection, table, 1_200)
    thorough = tune(connection, table, Recall(queries=20), SMALL)
    graph = next(m.choice for m in thorough.measured if m.choice.kind == "hnsw")
    assert store_tuning(connection, table, replace(thorough, choice=graph)).kept is None
    hasty = store_tuning(connection, table, tune(connection, table, Recall(), Budget(seconds=0.001, rows=1_000)))
    assert "stays" in (hasty.kept or "")
    kept = find_tuning(connection, table)
    assert kept is not None
    assert kept.choice == graph
    # A tuning that had enough time does, whatever it chose.
    assert store_tuning(connection, table, thorough).kept is None
    assert find_tuning(connection, table) != kept


@pytest.mark.usefixtures("two_candidates")
def test_a_graph_that_narrowly_misses_is_built_again(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    table = vector_table(64)
    filled(connection, table, 1_200)
    drawn: list[str] = []

    def listener(stage: str, part: str, done: int, total: int) -> None:
        if stage == "tune" and done < total and part.startswith("building"):
            drawn.append(part)

    # With so little effort every index on bits misses the recall, and every miss counts as narrow.
    monkeypatch.setattr("rowvec.index.tuning.candidates._OVERSAMPLING", (1,))
    monkeypatch.setattr("rowvec.index.tuning.tuner._NEARLY", 1.0)
    with listening(listener):
        found = tune(connection, table, Recall(at_least=1.0, queries=40), SMALL)
    best = {m.name.partition(",")[0]: m.recall for m in found.measured if m.choice.kind == "hnsw"}
    missed = {name for name, recall in best.items() if recall < 1.0}
    again = {part.removeprefix("building ").partition(",")[0] for part in drawn if part.endswith("built again")}
    assert missed <= again
    assert 0 < len(again) < len(drawn)
    assert len({m.name for m in found.measured}) == len(found.measured)


def test_a_small_table_is_not_tuned(connection: Connection) -> None:
    table = vector_table(16)
    create(connection, table)
    with pytest.raises(UsageError, match="too few"):
        tune(connection, table, Recall(), SMALL)
