"""The next generation of a vector table: built next to the live one, compared, switched to and back, paid for once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator
from datetime import timedelta
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from rowvec.errors import CostLimitExceeded, PipelineBusy, TargetError, UsageError
from rowvec.ledger.runs import running
from rowvec.operations.audit import audit
from rowvec.operations.prune import prune
from rowvec.operations.rebuild import begin_rebuild, plan_rebuild, rollback, switch
from rowvec.operations.search import search
from rowvec.operations.switch import retire_for_good
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.postgres.vector_table import stored_columns
from rowvec.stages.dry_run import plan
from tests.support import paintings as gallery
from tests.support.fault_outcomes import paid
from tests.support.servers.openai_server import KEY, OpenAIServer, serve
from tests.support.waiting import wait_for


def changed(pipeline: Pipeline, **parts: dict[str, Any]) -> Pipeline:
    """The pipeline with other settings."""
    written = pipeline.model_dump(mode="json", exclude_none=True)
    for part, values in parts.items():
        written[part] |= values
    return Pipeline.model_validate(written)


def dimensions(connection: Connection, table: str = "paintings") -> set[int]:
    """The dimensions of a table's vectors."""
    statement = sql.SQL("SELECT DISTINCT vector_dims(embedding) FROM {}").format(sql.Identifier("vectors", table))
    return {d for (d,) in connection.execute(statement).fetchall()}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Generator[OpenAIServer]:
    """An embedder that costs money."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve() as opened:
        yield opened


def test_another_dimension_is_built_next_to_the_old_and_switched_to(source: Connection, paintings: Pipeline) -> None:
    gallery.sync(paintings)
    source.execute("CREATE INDEX by_year ON vectors.paintings (year)")
    source.execute("COMMENT ON TABLE vectors.paintings IS 'what we search'")
    longer = changed(paintings, embedder={"dimensions": 128})
    with pytest.raises(UsageError, match="rowvec rebuild"):
        gallery.sync(longer)
    assert dimensions(source) == {64}
    report = gallery.rebuild(longer)
    assert (report.generation, report.switched, report.retired_table) == (2, True, "vectors.paintings__1")
    assert (report.rows, report.embedded, report.consistent) == (50, 50, True)
    assert (dimensions(source), dimensions(source, "paintings__1")) == ({128}, {64})
    gallery.assert_in_step(source)
    indexes = source.execute("SELECT indexdef FROM pg_indexes WHERE tablename = 'paintings' AND indexdef ~ 'year'")
    assert len(indexes.fetchall()) == 1
    assert source.execute("SELECT obj_description('vectors.paintings'::regclass)").fetchone() == ("what we search",)
    gallery.fill(source, 3, start=51)
    again = gallery.sync(longer)
    assert (again.new, again.embedded, again.unchanged) == (3, 3, 50)
    with pytest.raises(UsageError, match="rowvec rebuild"):
        gallery.sync(paintings)


def test_rolled_back_and_forward_again_without_paying(
    source: Connection, server: OpenAIServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    old = paid(server, str(tmp_path_factory.mktemp("artifacts")))
    new = changed(old, embedder={"model": "another-model"})
    gallery.sync(old)
    gallery.rebuild(new)
    assert server.paid.total() == 100
    source.execute("UPDATE paintings SET title = 'New' WHERE id = 1")
    assert rollback(new) == "vectors.paintings__2"
    back = gallery.sync(old)
    assert (back.changed, back.embedded) == (1, 1)
    gallery.assert_in_step(source)
    forward = gallery.rebuild(new)
    assert (forward.generation, forward.embedded) == (2, 1)
    assert server.paid.total() == 102
    gallery.assert_in_step(source)


def test_a_shorter_vector_another_precision_and_no_bits_cost_nothing(
    source: Connection, server: OpenAIServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    old = paid(server, str(tmp_path_factory.mktemp("artifacts")))
    old = changed(old, embedder={"model": "text-embedding-3-large", "dimensions": 96})
    gallery.sync(old)
    before = server.paid.total()
    long = {id_: vector for id_, (_, _, vector) in gallery.vectors(source).items()}
    short = changed(old, embedder={"dimensions": 32}, target={"precision": "float16", "bits": False})
    planned = plan_rebuild(short)
    assert (planned["new"], planned["embedded"], planned["reused"], planned["cost_usd"]) == (50, 0, 50, 0)
    report = gallery.rebuild(short, max_cost=0.0)
    assert (report.embedded, report.reused, server.paid.total()) == (0, 50, before)
    assert report.comparison.questions == 50
    for id_, (_, _, vector) in gallery.vectors(source).items():
        head = np.array(long[id_][1:-1].split(","), np.float64)[:32]
        cut = np.array(vector[1:-1].split(","), np.float64)
        np.testing.assert_allclose(cut, head / np.linalg.norm(head), atol=1e-3)
    gallery.assert_in_step(source)


def test_another_number_of_bits_is_built_from_artifacts_and_auto_keeps_it(
    source: Connection, paintings: Pipeline
) -> None:
    def bits() -> str:
        return next(t for name, t, _ in stored_columns(source, "vectors", "paintings") if name == "embedding_bits")

    gallery.sync(paintings)
    assert bits() == "bit(192)"
    two = changed(paintings, index={"bits": 2})
    with pytest.raises(
        TargetError, match=r"has embedding_bits as bit\(192\), the pipeline wants bit\(128\): rowvec re"
    ):
        gallery.sync(two)
    assert gallery.rebuild(two, to_switch=False).switched is False
    # While the next generation is built, a sync with the new file keeps the live table as it is.
    assert gallery.sync(two).unchanged == 50
    assert bits() == "bit(192)"
    report = gallery.rebuild(two)
    assert (report.embedded, report.consistent, bits()) == (0, True, "bit(128)")
    # Left to rowvec again, the table keeps what it has.
    gallery.fill(source, 3, start=51)
    assert gallery.sync(paintings).new == 3
    assert bits() == "bit(128)"
    assert audit(paintings).consistent
    (hit,) = search(paintings, "Painting 52\nIt shows the number 52", 1, mode="bits")
    assert hit.distance == 0


def test_the_cost_is_reported_first_and_limited(
    source: Connection, server: OpenAIServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    old = paid(server, str(tmp_path_factory.mktemp("artifacts")))
    gallery.sync(old)
    before = server.paid.total()
    new = changed(old, embedder={"model": "dear", "cost_per_million_tokens": 1_000_000.0})
    planned = plan_rebuild(new)
    assert (planned["generation"], planned["embedded"]) == (2, 50)
    assert planned["cost_usd"] > 1
    with pytest.raises(CostLimitExceeded, match="nothing was spent"):
        begin_rebuild(new, max_cost=1.0)
    unpriced = changed(old, embedder={"model": "unpriced"})
    with pytest.raises(UsageError, match="cost_per_million_tokens"):
        begin_rebuild(unpriced, max_cost=1.0)
    assert server.paid.total() == before


def test_the_live_generation_is_synced_while_the_next_is_built(source: Connection, paintings: Pipeline) -> None:
    gallery.sync(paintings)
    longer = changed(paintings, embedder={"dimensions": 128})
    gallery.rebuild(longer, to_switch=False)
    gallery.fill(source, 5, start=51)
    source.execute("DELETE FROM paintings WHERE id <= 5")
    # The schedule has the new file; the live table is synced with its own settings all the same.
    scheduled = gallery.sync(longer)
    assert (scheduled.new, scheduled.deleted, dimensions(source)) == (5, 5, {64})
    gallery.assert_in_step(source)
    report = gallery.rebuild(longer)
    assert (report.generation, report.switched) == (2, True)
    assert dimensions(source) == {128}
    gallery.assert_in_step(source)


def test_no_switch_while_a_run_is_under_way(source: Connection, paintings: Pipeline) -> None:
    gallery.sync(paintings)
    longer = changed(paintings, embedder={"dimensions": 128})
    gallery.rebuild(longer, to_switch=False)
    following = begin_rebuild(longer)
    with running(paintings, "test"), pytest.raises(PipelineBusy):
        switch(longer, following)
    assert dimensions(source) == {64}
    assert switch(longer, following) == "vectors.paintings__1"
    # If the answer to a switch is lost and the switch is tried again, it is not done twice.
    assert switch(longer, following) == "vectors.paintings__1"


def test_objects_bound_to_the_table_are_named_before_anything_is_built(source: Connection, paintings: Pipeline) -> None:
    gallery.sync(paintings)
    source.execute("CREATE VIEW public.recent AS SELECT id FROM vectors.paintings WHERE year > 1940")
    with pytest.raises(TargetError, match=r"the view public\.recent"):
        begin_rebuild(changed(paintings, embedder={"dimensions": 128}))


def test_readers_keep_their_privileges(source: Connection, paintings: Pipeline, direct_url: str) -> None:
    gallery.sync(paintings)
    source.execute("DROP ROLE IF EXISTS reads_paintings")
    source.execute("CREATE ROLE reads_paintings LOGIN")
    source.execute("GRANT USAGE ON SCHEMA vectors TO reads_paintings")
    source.execute("GRANT SELECT ON vectors.paintings TO reads_paintings")
    gallery.rebuild(changed(paintings, target={"precision": "float16"}))
    try:
        with psycopg.connect(direct_url, user="reads_paintings") as reader:
            assert reader.execute("SELECT count(*) FROM vectors.paintings").fetchone() == (50,)
    finally:
        source.execute("DROP OWNED BY reads_paintings")
        source.execute("DROP ROLE reads_paintings")


def test_a_pipeline_that_has_no_table_has_nothing_to_rebuild(source: Connection, paintings: Pipeline) -> None:
    with pytest.raises(UsageError, match="rowvec sync first"):
        begin_rebuild(paintings)
    with pytest.raises(UsageError, match="no generation to go back to"):
        rollback(paintings)


def test_the_function_answers_vectors_of_either_length(source: Connection, paintings: Pipeline) -> None:
    gallery.sync(paintings)
    longer = changed(paintings, embedder={"dimensions": 128})
    old, new = b"vectors.paintings__1", b"vectors.paintings"
    ask = b"SELECT id FROM vectors.paintings_search((SELECT embedding FROM {} WHERE id = 7), 1)"
    assert source.execute(ask.replace(b"{}", new)).fetchall() == [(7,)]
    gallery.rebuild(longer)
    for table in (old, new):
        assert source.execute(ask.replace(b"{}", table)).fetchall() == [(7,)]
    # Only the new generation has the new rows: a query with the old dimensions gets the old rows.
    source.execute("DELETE FROM vectors.paintings__1 WHERE id = 8")
    count = b"SELECT count(*) FROM vectors.paintings_search((SELECT embedding FROM {} WHERE id = 7), 100)"
    assert source.execute(count.replace(b"{}", old)).fetchone() == (49,)
    assert source.execute(count.replace(b"{}", new)).fetchone() == (50,)
    query = source.execute("SELECT embedding::text FROM vectors.paintings__1 WHERE id = 7").fetchone()
    assert query is not None
    assert retire_for_good(longer) == ["vectors.paintings__1"]
    with pytest.raises(psycopg.errors.DataException, match="dimensions"):
        source.execute("SELECT id FROM vectors.paintings_search(%s, 1)", query)


@pytest.mark.parametrize("switches", [2, pytest.param(20, marks=pytest.mark.soak)])
def test_readers_in_a_loop_see_no_error_and_no_mixture(
    source: Connection, paintings: Pipeline, direct_url: str, switches: int
) -> None:
    old = changed(paintings, search={"hybrid": True})
    new = changed(old, embedder={"dimensions": 128})
    gallery.sync(old)
    source.execute("UPDATE vectors.paintings SET author = 'old'")  # marks the rows of the old generation
    vectors = [source.execute("SELECT embedding::text FROM vectors.paintings WHERE id = 7").fetchone()]
    following = begin_rebuild(new)
    gallery.sync(following)
    vectors.append(source.execute("SELECT embedding::text FROM vectors.paintings__2 WHERE id = 7").fetchone())
    source.execute("UPDATE vectors.paintings__2 SET author = 'new'")
    over, failures, seen = threading.Event(), list[str](), [Counter[str](), Counter[str]()]

    search = b"SELECT author FROM vectors.paintings_search(%s, 50)"
    hybrid = b"SELECT author FROM vectors.paintings_hybrid_search(%s, 'number', 50)"

    def read(generation: int, asked: bytes) -> None:
        with psycopg.connect(direct_url, autocommit=True) as reader:
            while not over.is_set():
                try:
                    rows = reader.execute(asked, vectors[generation]).fetchall()
                    (authors, count) = ({author for (author,) in rows}, len(rows))
                    if len(authors) != 1 or count != 50:
                        failures.append(f"{authors}, {count} rows")
                    seen[generation].update(authors)
                except psycopg.Error as error:
                    # Before the switch no function accepts the new dimensions.
                    if generation == 0 or "different vector dimensions" not in str(error):
                        failures.append(str(error))

    asking = [(0, search), (0, hybrid), (1, search), (1, hybrid)]
    readers = [threading.Thread(target=read, args=one) for one in asking]
    for reader in readers:
        reader.start()
    try:
        for _ in range(switches):
            wait_for(lambda: seen[0]["old"] > 20)
            switch(new, following)
            wait_for(lambda: seen[1]["new"] > 20)
            seen[0].clear()
            rollback(old)
            seen[1].clear()
            following = begin_rebuild(new)
    finally:
        over.set()
        for reader in readers:
            reader.join()
    assert failures == []


def test_artifacts_of_a_dropped_generation_are_pruned_when_they_are_old(
    source: Connection, server: OpenAIServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("artifacts")
    old = paid(server, str(folder))
    new = changed(old, embedder={"model": "another-model"})

    def kept() -> int:
        return len(list((folder / "artifacts").rglob("*.parquet")))

    gallery.sync(old)
    gallery.rebuild(new)
    assert kept() == 2
    # As long as the generation is kept for a rollback, none of its artifacts is deleted.
    prune(new, timedelta(0), apply=True)
    assert kept() == 2
    retire_for_good(new)
    source.execute("UPDATE rowvec.artifacts SET created_at = now() - interval '40 days'")
    assert prune(new, timedelta(days=30)).artifacts == 1
    prune(new, timedelta(days=30), apply=True)
    assert kept() == 1
    assert gallery.sync(new).embedded == 0
    assert audit(new).consistent


def test_a_prune_does_not_change_the_stored_settings(source: Connection, paintings: Pipeline) -> None:
    gallery.sync(paintings)
    longer = changed(paintings, embedder={"dimensions": 128})
    prune(longer, timedelta(0), apply=True)
    gallery.rebuild(longer, to_switch=False)
    assert gallery.sync(longer).consistent
    assert dimensions(source) == {64}


def test_no_search_compares_vectors_of_two_models(
    source: Connection, server: OpenAIServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    old = paid(server, str(tmp_path_factory.mktemp("artifacts")))
    new = changed(old, embedder={"model": "another-model"})
    gallery.sync(old)
    for refused in (lambda: search(new, "x", 3, mode="exact"), lambda: audit(new), lambda: plan(new)):
        with pytest.raises(UsageError, match="rowvec rebuild"):
            refused()
    # While it is being built, a search with the new file reads the live generation.
    gallery.rebuild(new, to_switch=False)
    assert len(search(new, "x", 3, mode="exact")) == 3
    assert audit(new).consistent
    assert plan(new).changed == 0
    assert server.requests[-1].model == old.embedder.model


def test_a_role_that_only_searches_needs_nothing_of_the_ledger(
    source: Connection, paintings: Pipeline, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery.sync(paintings)
    source.execute("DROP ROLE IF EXISTS only_searches")
    source.execute("CREATE ROLE only_searches LOGIN")
    schemas = sql.SQL(", ").join(map(sql.Identifier, ("vectors", str(source.names.pgvector))))
    source.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO only_searches").format(schemas))
    source.execute("GRANT SELECT ON vectors.paintings TO only_searches")
    try:
        monkeypatch.setenv("ROWVEC_DATABASE_URL", make_conninfo(database_url, user="only_searches"))
        assert len(search(paintings, "the number 7", 3)) == 3
    finally:
        source.execute("DROP OWNED BY only_searches")
        source.execute("DROP ROLE only_searches")


def test_a_plan_changes_nothing(source: Connection, paintings: Pipeline) -> None:
    gallery.sync(paintings)
    first = changed(paintings, embedder={"dimensions": 128})
    second = changed(paintings, embedder={"dimensions": 256})

    def known() -> list[tuple[str, str]]:
        rows = "SELECT name, state FROM rowvec.pipelines WHERE state <> 'dropped' ORDER BY name"
        return [(name, state) for name, state in source.execute(rows).fetchall()]

    gallery.rebuild(first, to_switch=False)
    built = known()
    assert built == [("paintings", "live"), ("paintings.2", "building")]
    for _ in range(2):
        assert plan_rebuild(second)["generation"] == 3
        assert known() == built
    again = plan_rebuild(first)
    assert (again["generation"], again["begun"], again["unchanged"]) == (2, True, 50)
    with pytest.raises(UsageError, match="already has these settings"):
        plan_rebuild(paintings)
    # A rebuild does not drop a generation that another process is building.
    with running(begin_rebuild(first), "test"), pytest.raises(PipelineBusy):
        begin_rebuild(second)
    assert known() == built
    assert gallery.rebuild(second).generation == 3
    plan_rebuild(paintings)
    assert rollback(second) == "vectors.paintings__3"


@pytest.mark.soak
def test_a_rollback_takes_the_generation_that_was_read_last_whatever_the_clock_says(
    source: Connection, paintings: Pipeline
) -> None:
    gallery.sync(paintings)
    second, third = (
        paintings.model_copy(update={"embedder": paintings.embedder.model_copy(update={"dimensions": dimensions})})
        for dimensions in (128, 256)
    )
    gallery.rebuild(second)
    rollback(second)
    gallery.sync(paintings)
    gallery.rebuild(third)
    # The first one was read after the second. The clock was an hour ahead when the second was retired, and a standby
    # with another one has taken over since.
    source.execute("UPDATE rowvec.pipelines SET switched_at = now() + interval '1 hour' WHERE generation = 2")
    rollback(third)
    assert source.execute("SELECT vector_dims(embedding) FROM vectors.paintings LIMIT 1").fetchone() == (64,)
