"""Upkeep of the index: each build has a reason, is compared with the index it replaces, and is recorded."""

from __future__ import annotations

import logging
import re
import threading
import time
from dataclasses import replace
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from rowvec.index.build import ensure_index, index_state
from rowvec.index.effort import search_efforts
from rowvec.index.history import look
from rowvec.index.recall import Found, measure, measured_recall
from rowvec.index.tuning.results import present_index
from rowvec.index.upkeep import Kept, keep_fit
from rowvec.index.vacuum import vacuum_if_due
from rowvec.index.wear import TRIES
from rowvec.pipeline.indexes import Index
from rowvec.pipeline.model import Recall, Validation
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable
from rowvec.stages.index import Indexed, serve, serve_as_it_is
from rowvec.stages.validate import check_serving
from tests.support import paintings as gallery
from tests.support.row_counts import hand_in_counts
from tests.support.vector_tables import clustered, fill, filled, vector_table

NONE = IndexChoice(kind="none", reason="Small.")
BITS = IndexChoice(kind="hnsw", on="bits", opclass="bit_hamming_ops", oversampling=64, reason="")
FLOAT = IndexChoice(kind="hnsw", on="float", opclass="vector_cosine_ops", reason="")
LISTS = IndexChoice(kind="ivfflat", on="float", opclass="vector_cosine_ops", lists=4, lists_by_rows=True, reason="")
WANTED = Recall(k=10, at_least=0.9, queries=20)


@pytest.fixture(autouse=True)
def decided_by_few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few queries are enough here: the tables of these tests are made to have a clearly good or bad recall."""
    monkeypatch.setattr("rowvec.index.recall._DECIDING_QUERIES", 20)


def kept(connection: Connection, table: VectorTable, choice: IndexChoice, wanted: Recall = WANTED, **how: Any) -> Kept:
    return keep_fit(connection, table, choice, look(connection, table), wanted, **how)


def why(outcome: Kept) -> str | None:
    return outcome.reason and outcome.reason.why


def recorded(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute("SELECT why, outcome FROM rowvec.index_builds ORDER BY build_id").fetchall()


def names(connection: Connection, table: VectorTable) -> list[str]:
    return [state.name for state in index_state(connection, table)]


def test_an_index_is_built_once_and_then_only_for_a_reason(connection: Connection) -> None:
    table = vector_table(16)
    filled(connection, table, 500)
    first = kept(connection, table, FLOAT)
    assert why(first) == "missing"
    assert first.recall is not None
    assert first.recall.passed
    (name,) = names(connection, table)
    again = kept(connection, table, FLOAT)
    assert (why(again), again.notes) == (
        None,
        (f"{name} was left alone: of 500 vectors 0 are gone or replaced, and 0 came",),
    )
    # New rows do not wear an index. Rows whose vectors later runs replaced wear it, and so do deleted rows.
    fill(connection, table, clustered(250, 16, seed=8), first=500)
    connection.execute("UPDATE items SET run_id = 2 WHERE id >= 500 OR id < 25")
    grown = kept(connection, table, FLOAT)
    assert why(grown) is None
    assert grown.notes[0].endswith("of 500 vectors 25 are gone or replaced, and 275 came")
    connection.execute("DELETE FROM items WHERE id BETWEEN 100 AND 124")
    worn = kept(connection, table, FLOAT)
    assert why(worn) == "worn"
    assert "(worn: of 500 vectors 50 are gone or replaced, and 275 came)" in worn.notes[0]
    assert why(kept(connection, table, FLOAT)) is None
    assert why(kept(connection, table, FLOAT, asked=True)) == "asked"
    assert why(kept(connection, table, BITS)) == "other choice"
    connection.execute(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", names(connection, table)
    )
    assert why(kept(connection, table, BITS)) == "invalid"
    assert why(kept(connection, table, LISTS)) == "other choice"
    assert why(kept(connection, table, replace(LISTS, lists=9))) == "outgrown"
    dropped = kept(connection, table, NONE)
    assert (dropped.recall, names(connection, table)) == (None, [])
    assert dropped.notes[0].endswith(": Small.")
    assert [row[0] for row in recorded(connection)] == [
        "missing", "worn", "asked", "other choice", "invalid", "other choice", "outgrown",
    ]  # fmt: skip


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Recall]:
    """The requested recall of each real measurement."""
    requested: list[Recall] = []

    def counted(*arguments: Any, **how: Any) -> Found | None:
        requested.append(arguments[3])
        return measured_recall(*arguments, **how)

    monkeypatch.setattr("rowvec.index.upkeep.measured_recall", counted)
    return requested


CHANGES: list[tuple[LiteralString | None, dict[str, Any]]] = [
    ("UPDATE items SET embedding = (SELECT embedding FROM items WHERE id = 5) WHERE id = 7", {}),
    ("UPDATE items SET content = content WHERE id = 7", {}),
    ("WITH gone AS (DELETE FROM items WHERE id = 7 RETURNING *) INSERT INTO items SELECT * FROM gone", {}),
    ("DELETE FROM items WHERE id = 7", {}),
    ("VACUUM public.items", {}),
    ("VACUUM (FULL) public.items", {}),
    ("REINDEX TABLE items", {}),
    (None, {"wanted": WANTED.model_copy(update={"k": 5})}),
    (None, {"wanted": WANTED.model_copy(update={"queries": 21})}),
    (None, {"choice": replace(FLOAT, ef_search=300)}),
    (None, {"measure": True}),
]


def test_a_recall_stands_until_something_has_changed(connection: Connection, measured: list[Recall]) -> None:
    table = vector_table(16)
    filled(connection, table, 500)
    first = kept(connection, table, FLOAT).recall
    assert len(measured) == 1
    stands = kept(connection, table, FLOAT, WANTED.model_copy(update={"queries": 10})).recall
    assert first is not None
    assert stands is not None
    assert len(measured) == 1
    assert stands.recall == pytest.approx(first.recall)
    assert (stands.k, stands.queries, stands.passed) == (first.k, first.queries, True)
    (*_, check) = check_serving(connection, table, FLOAT, stands)
    assert "nothing was written or vacuumed since" in check.detail
    for change, how in CHANGES:
        kept(connection, table, FLOAT)
        before = len(measured)
        kept(connection, table, FLOAT)
        assert len(measured) == before
        if change and change.startswith("VACUUM"):
            connection.execute_alone(change, {})
        elif change:
            connection.execute(change)
        again = dict[str, Any](choice=FLOAT, wanted=WANTED) | how
        kept(connection, table, **again)
        assert len(measured) == before + 1, (change, how)
        again["measure"] = False
        kept(connection, table, **again)
        assert len(measured) == before + 1, (change, how)


def test_a_recall_that_was_too_little_does_not_stand(connection: Connection, measured: list[Recall]) -> None:
    table = vector_table(16)
    filled(connection, table, 500)
    kept(connection, table, FLOAT)
    connection.execute("UPDATE rowvec.index_builds SET recall = 0.5")
    again = kept(connection, table, FLOAT)
    assert len(measured) == 2
    assert again.recall is not None
    assert again.recall.passed
    # The measurement is good, so nothing is built because of the poor recall in the ledger.
    assert recorded(connection) == [("missing", "serves")]


def test_without_statistics_no_recall_stands(connection: Connection, measured: list[Recall]) -> None:
    table = vector_table(16)
    filled(connection, table, 500)
    kept(connection, table, FLOAT)
    connection.execute("SELECT pg_stat_reset_single_table_counters('items'::regclass)")
    for times in (2, 3):
        kept(connection, table, FLOAT)
        assert len(measured) == times


def test_what_another_session_writes_ends_a_recall(
    connection: Connection, direct_url: str, measured: list[Recall]
) -> None:
    table = vector_table(16)
    filled(connection, table, 500)
    kept(connection, table, FLOAT)
    with connect(direct_url) as other:
        other.execute("UPDATE items SET embedding = (SELECT embedding FROM items WHERE id = 5) WHERE id = 7")
    kept(connection, table, FLOAT)
    assert len(measured) == 2


def test_a_table_that_outgrows_exact_search_says_so(connection: Connection) -> None:
    table = vector_table(8)
    filled(connection, table, 200)
    assert kept(connection, table, NONE).reason is None
    connection.execute("UPDATE items SET run_id = 2 WHERE id > 100")
    assert why(kept(connection, table, FLOAT)) == "outgrown"


def test_an_index_that_rowvec_did_not_build_is_watched_once_it_is_found(connection: Connection) -> None:
    table = vector_table(8)
    filled(connection, table, 200)
    connection.execute("CREATE INDEX by_hand ON items USING hnsw (embedding vector_cosine_ops)")
    assert why(kept(connection, table, FLOAT)) is None
    connection.execute("UPDATE items SET run_id = 2 WHERE id < 40")
    assert why(kept(connection, table, FLOAT)) == "worn"
    # The newer index serves. The older one is no reason to drop it.
    assert why(kept(connection, table, FLOAT)) is None
    assert recorded(connection) == [("found", "serves"), ("worn", "serves")]
    assert len(names(connection, table)) == 2


def test_an_index_that_lacks_rows_is_rebuilt_for_its_recall(connection: Connection) -> None:
    table = vector_table(16)
    filled(connection, table, 600)
    kept(connection, table, FLOAT)
    (poor,) = names(connection, table)
    ready = sql.SQL("UPDATE pg_index SET indisready = {} WHERE indexrelid = {}::regclass")
    connection.execute(ready.format(False, poor))
    # Each vector comes a second time, so half of all neighbours are in no index.
    fill(connection, table, clustered(600, 16), first=600)
    connection.execute(ready.format(True, poor))
    strict = WANTED.model_copy(update={"at_least": 0.99})
    rebuilt = kept(connection, table, FLOAT, strict)
    assert why(rebuilt) == "recall"
    assert rebuilt.recall is not None
    assert rebuilt.recall.passed
    assert poor not in names(connection, table)
    assert recorded(connection) == [("missing", "replaced"), ("recall", "serves")]


def test_a_new_index_that_finds_less_is_dropped_and_the_old_one_stays(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    table = vector_table(32)
    filled(connection, table, 500)
    kept(connection, table, FLOAT)
    before = names(connection, table)
    poor = replace(BITS, oversampling=1, oversampling_given=True)
    with caplog.at_level(logging.WARNING, "rowvec.index.upkeep"):
        outcome = kept(connection, table, poor)
    assert names(connection, table) == before
    assert (outcome.choice.on, outcome.recall and outcome.recall.passed) == ("float", True)
    assert len(outcome.notes) == TRIES
    assert re.search(r"was dropped again: \w+ finds \d\.\d{3} and stays", outcome.notes[0])
    assert "was dropped again" in caplog.text
    assert recorded(connection) == [("missing", "serves"), *[("other choice", "refused"), *[("recall", "refused")] * 2]]
    # The report of the run says so, and the index that serves is sound.
    checks = check_serving(connection, table, outcome.choice, outcome.recall, outcome.notes)
    assert all(check.ok for check in checks)
    assert "was dropped again" in next(check.detail for check in checks if check.name == "index_kept_fit")
    # The next run remembers this until enough rows have changed.
    again = kept(connection, table, poor)
    assert len(recorded(connection)) == 1 + TRIES
    assert "the last 3 builds over nearly the same rows found too little" in again.notes[0]
    connection.execute("UPDATE items SET run_id = 2 WHERE id < 75")
    kept(connection, table, poor)
    assert len(recorded(connection)) > 1 + TRIES


def test_a_recall_that_is_too_little_is_met_by_a_wider_search_which_the_ledger_keeps(
    connection: Connection, measured: list[Recall]
) -> None:
    table = vector_table(32)
    filled(connection, table, 1_000)
    few = replace(BITS, oversampling=2)
    built = kept(connection, table, few, WANTED.model_copy(update={"at_least": 0.0}))
    assert built.choice == few
    at = [measure(connection, table, replace(few, oversampling=n), WANTED).recall or 0.0 for n in (4, 8)]
    assert at[0] < at[1]
    strict = WANTED.model_copy(update={"at_least": sum(at) / 2})
    raised = kept(connection, table, few, strict)
    assert (why(raised), raised.choice.oversampling) == (None, 8)
    assert raised.recall is not None
    assert raised.recall.passed
    assert "it is searched with an oversampling of 8 instead of 2 and an ef_search of 160" in raised.notes[0]
    assert recorded(connection) == [("missing", "serves")]
    # Every search of this index uses it, and the next run, which need not measure again.
    assert present_index(connection, table, Index(on="bits", oversampling=2)).oversampling == 8
    assert present_index(connection, table, Index(on="bits", oversampling=3)).oversampling == 3
    times = len(measured)
    assert kept(connection, table, few, strict).choice == raised.choice
    assert len(measured) == times
    # With a setting that the pipeline file names, and a graph that it names, a run can only build it again.
    named = kept(connection, table, replace(few, oversampling_given=True), strict)
    assert (why(named), named.choice.oversampling, named.recall and named.recall.passed) == ("recall", 2, False)


def test_the_search_function_has_what_was_raised_and_a_run_of_a_part_keeps_it(connection: Connection) -> None:
    table = vector_table(32)
    filled(connection, table, 1_000)
    written = gallery.pipeline("artifacts", index={"kind": "hnsw", "on": "bits", "bits": 1})

    def served(at_least: float) -> tuple[Indexed, str]:
        recall = WANTED.model_copy(update={"at_least": at_least})
        pipeline = written.model_copy(update={"validation": Validation(recall=recall)})
        indexed = serve(connection, table, pipeline)
        # A run that has compared a part of the table looks at no row, and must not undo it.
        of_part = serve_as_it_is(connection, table, pipeline, 1_000)
        assert of_part is not None
        assert of_part.choice == indexed.choice
        arguments = connection.execute("SELECT pg_get_function_arguments('items_search'::regproc)").fetchone()
        return indexed, str(arguments and arguments[0])

    first, arguments = served(0.0)
    assert f"oversampling integer DEFAULT {first.choice.oversampling}," in arguments
    few = first.choice.oversampling
    ways = (replace(first.choice, oversampling=n) for n in (few, 2 * few))
    found = [measure(connection, table, way, WANTED).recall or 0.0 for way in ways]
    assert found[0] < found[1]
    raised, arguments = served(sum(found) / 2)
    assert raised.choice.oversampling == 2 * few
    assert f"oversampling integer DEFAULT {2 * few}," in arguments


def test_auto_takes_floats_where_no_index_on_bits_finds_enough(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rowvec.index.choice.SEVERAL_BITS_FROM_DIMENSIONS", 1)
    monkeypatch.setattr("rowvec.index.choice.EXACT_ELEMENTS", 1)
    monkeypatch.setattr("rowvec.index.choice._OVERSAMPLING_BITS", {2: 1})
    table = vector_table(16, bits=2)
    filled(connection, table, 600)
    recall = WANTED.model_copy(update={"at_least": 0.99})
    pipeline = gallery.pipeline("artifacts").model_copy(update={"validation": Validation(recall=recall)})
    indexed = serve(connection, table, pipeline)
    assert (indexed.choice.on, indexed.recall and indexed.recall.passed) == ("float", True)
    assert [why for why, _ in recorded(connection)] == ["missing", "recall", "recall", "other choice"]
    assert [state.on for state in index_state(connection, table)] == ["float"]
    # The next runs remember it.
    assert serve(connection, table, pipeline).reason is None
    of_part = serve_as_it_is(connection, table, pipeline, 600)
    assert of_part is not None
    assert of_part.choice.on == "float"
    # A file that insists on bits gets none that find less than what is there.
    insisting = pipeline.model_copy(update={"index": Index(on="bits")})
    assert serve(connection, table, insisting).choice.on == "float"


def test_a_graph_that_no_search_helps_is_built_again_with_more_effort(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rowvec.searches.index_kinds.hnsw._GRAPHS", ((0, 2, 1),))
    monkeypatch.setattr("rowvec.searches.index_kinds.hnsw._EFFORT", (4, 4))
    table = vector_table(32)
    filled(connection, table, 1_000)
    weak = replace(FLOAT, m=2, ef_construction=4, graph_by_rows=True)
    kept(connection, table, weak, WANTED.model_copy(update={"at_least": 0.0}))
    widest = search_efforts(weak, WANTED.k)[-1]
    found = measure(connection, table, widest, WANTED).recall or 0.0
    strict = WANTED.model_copy(update={"at_least": (1 + found) / 2})
    rebuilt = kept(connection, table, weak, strict)
    assert why(rebuilt) == "recall"
    assert rebuilt.recall is not None
    assert rebuilt.recall.recall is not None
    assert rebuilt.recall.recall > found
    (state,) = index_state(connection, table)
    assert state.present.m >= 3
    assert state.present.ef_construction >= 8
    # The stronger graph is as good as the one by rows, and stays.
    assert why(kept(connection, table, weak, WANTED)) is None


@pytest.mark.parametrize("other", [FLOAT, replace(FLOAT, m=32), replace(FLOAT, m=4, ef_construction=8)])
def test_a_new_index_is_measured_while_the_old_one_serves(connection: Connection, other: IndexChoice) -> None:
    """Of two similar indexes the planner takes the cheaper one: the old index, if the new one has more links."""
    table = vector_table(16)
    filled(connection, table, 400)
    kept(connection, table, FLOAT)
    (old,) = names(connection, table)
    measured: list[str | None] = []

    def approve(new: Any) -> bool:
        assert names(connection, table) == [old, new.name]
        assert all(state.valid for state in index_state(connection, table))
        measured.append(measure(connection, table, other, WANTED, newest=True).index)
        measured.append(new.name)
        return False

    report = ensure_index(connection, table, other, rebuild=True, approve=approve)
    assert measured[0] == measured[1]
    assert (report.refused, report.index and report.index.name) == (True, old)
    assert names(connection, table) == [old]
    assert connection.execute("SHOW random_page_cost").fetchone() == ("4",)


def test_vacuum_runs_after_many_rows_died_and_waits_for_no_lock(connection: Connection, direct_url: str) -> None:
    table = vector_table(8)
    filled(connection, table, 3_000)
    connection.execute("ALTER TABLE items SET (autovacuum_enabled = false)")
    kept(connection, table, FLOAT)
    assert vacuum_if_due(connection, table) is None
    connection.execute("DELETE FROM items WHERE id < 1200")
    hand_in_counts(connection)
    with psycopg.connect(direct_url, autocommit=True) as other:
        other.execute("BEGIN")
        other.execute("LOCK TABLE items IN SHARE UPDATE EXCLUSIVE MODE")
        note = vacuum_if_due(connection, table)
        assert note is not None
        assert note.startswith("1,200 dead rows were not vacuumed: skipping vacuum of")
        other.execute("ROLLBACK")
    note = vacuum_if_due(connection, table)
    assert note is not None
    assert note.startswith("vacuumed 1,200 dead rows in ")
    assert vacuum_if_due(connection, table) is None


def test_a_build_that_will_spill_is_predicted_and_one_that_did_is_reported(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rowvec.index.build_memory._SMALLEST_MEMORY", 2**20)
    monkeypatch.setattr("rowvec.index.build_memory.memory_here", lambda _: 4 * 2**20)  # pyright: ignore[reportUnknownLambdaType] # a machine of 4 MiB
    table = vector_table(64, bits=0)
    filled(connection, table, 2_000)
    connection.execute("SET maintenance_work_mem = '1MB'")
    with caplog.at_level(logging.WARNING, "rowvec.index.build"):
        outcome = kept(connection, table, FLOAT)
    note = " ".join(outcome.notes)
    assert "to be built in memory it needs about 3 MiB and has 1 MiB" in note
    assert re.search(r"it ran out of memory after [\d,]+ vectors", note)
    assert "the index on public.items will not fit" in caplog.messages[0]
    row = connection.execute("SELECT memory_needed, memory_given, spilled_after FROM rowvec.index_builds").fetchone()
    assert row is not None
    assert row[0] > row[1] == 2**20
    assert 0 < row[2] < 2_000
    assert outcome.recall is not None
    assert outcome.recall.passed
    assert connection.execute("SHOW client_min_messages").fetchone() == ("warning",)


def test_readers_are_served_by_a_valid_index_while_it_is_kept_fit(connection: Connection, direct_url: str) -> None:
    table = vector_table(16)
    filled(connection, table, 500)
    kept(connection, table, FLOAT)
    stop, valid = threading.Event(), list[int]()

    def read() -> None:
        with connect(direct_url) as reader:
            while not stop.is_set():
                row = reader.execute(
                    "SELECT count(*) FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid"
                    " JOIN pg_am AS a ON a.oid = c.relam"
                    " WHERE i.indrelid = 'items'::regclass AND a.amname = 'hnsw' AND i.indisvalid AND i.indisready"
                ).fetchone()
                valid.append(row[0] if row else 0)
                time.sleep(0.001)

    reading = threading.Thread(target=read)
    reading.start()
    try:
        connection.execute("UPDATE items SET run_id = 2 WHERE id < 75")
        assert why(kept(connection, table, FLOAT)) == "worn"
        assert why(kept(connection, table, replace(FLOAT, m=8))) == "other choice"
        kept(connection, table, replace(BITS, oversampling=1))  # refused
    finally:
        stop.set()
        reading.join()
    assert min(valid) >= 1
