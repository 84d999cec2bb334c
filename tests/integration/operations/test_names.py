"""A pipeline's name belongs to one vector table, and a vector table is one that rowvec made and no source."""

from __future__ import annotations

from collections.abc import Callable, Generator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from rowvec.errors import PipelineBusy, SourceError, UsageError
from rowvec.ledger.runs import running
from rowvec.operations import names
from rowvec.operations.audit import audit
from rowvec.operations.index import maintain
from rowvec.operations.names import adopt, rename
from rowvec.operations.prune import prune
from rowvec.operations.rebuild import begin_rebuild, plan_rebuild, rollback
from rowvec.operations.restore import finish_restore, restore_rows, restoring
from rowvec.operations.switch import retire_for_good
from rowvec.pipeline import Pipeline
from rowvec.pipeline.file import load
from rowvec.postgres.connection import Connection
from rowvec.stages.dry_run import plan
from tests.integration.operations.test_generations import changed
from tests.support import paintings as gallery
from tests.support.cli_process import write_pipeline
from tests.support.fault_outcomes import paid
from tests.support.servers.openai_server import KEY, OpenAIServer, serve


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Generator[OpenAIServer]:
    """An embedder that costs money."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve() as opened:
        yield opened


def named(pipeline: Pipeline, name: str) -> Pipeline:
    """The same pipeline file with another name."""
    return pipeline.model_copy(update={"name": name})


def restore(pipeline: Pipeline) -> None:
    """One restore without an orchestrator."""
    with restoring(pipeline) as started:
        finish_restore(pipeline, started.run, restore_rows(pipeline, started))


def ledger(connection: Connection) -> list[tuple[Any, ...]]:
    """Names and tables in the ledger."""
    statement = "SELECT name, family, table_schema || '.' || table_name, state FROM rowvec.pipelines ORDER BY 1"
    return connection.execute(statement).fetchall()


def rows(connection: Connection, table: str) -> int:
    """How many rows a table has."""
    statement = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(*table.split(".")))
    found = connection.execute(statement).fetchone()
    assert found is not None
    return int(found[0])


def test_a_second_table_with_the_same_name_is_refused_by_every_command(
    source: Connection, server: OpenAIServer, tmp_path: Path
) -> None:
    first = paid(server, str(tmp_path / "artifacts"))
    second = changed(first, target={"table": "vectors.others"}, embedder={"model": "another-model"})
    gallery.sync(first)
    before, artifacts = ledger(source), set((tmp_path / "artifacts").rglob("*"))
    sent = len(server.requests)
    refused = r"the name paintings belongs to the table vectors\.paintings.*vectors\.others.*rowvec adopt FILE"

    def pruned(pipeline: Pipeline) -> None:
        prune(pipeline, timedelta(0), apply=True)

    commands: list[Callable[[Pipeline], object]] = [gallery.sync, plan, plan_rebuild, begin_rebuild, rollback]
    commands += [retire_for_good, restore, audit, maintain, pruned]
    for command in commands:
        with pytest.raises(UsageError, match=refused):
            command(second)
    assert (ledger(source), set((tmp_path / "artifacts").rglob("*"))) == (before, artifacts)
    assert len(server.requests) == sent
    # While a generation is being built, the settings come from the ledger.
    gallery.rebuild(changed(first, embedder={"model": "another-model"}), to_switch=False)
    for command in (gallery.sync, plan):
        with pytest.raises(UsageError, match=refused):
            command(second)


def test_a_table_that_was_never_made_keeps_no_name(source: Connection, paintings: Pipeline) -> None:
    source.execute("ALTER TABLE paintings RENAME TO hidden")
    with pytest.raises(SourceError):
        gallery.sync(paintings)
    source.execute("ALTER TABLE hidden RENAME TO paintings")
    assert gallery.sync(changed(paintings, target={"table": "vectors.corrected"})).new == 50


@pytest.mark.parametrize("table", ["articles", '"articles"', "a-b"])
def test_a_target_without_a_schema_is_refused_when_the_file_is_loaded(
    paintings: Pipeline, tmp_path: Path, table: str
) -> None:
    wrong = paintings.model_copy(update={"target": paintings.target.model_copy(update={"table": table})})
    with pytest.raises(UsageError, match=r"target\.table: .* has no schema; write vectors\."):
        load(write_pipeline(wrong, tmp_path))


def test_a_target_that_is_the_source_is_refused_when_the_file_is_loaded(paintings: Pipeline, tmp_path: Path) -> None:
    target = paintings.target.model_copy(update={"table": '"public"."paintings"'})
    with pytest.raises(UsageError, match=r"target\.table is the source itself"):
        load(write_pipeline(paintings.model_copy(update={"target": target}), tmp_path))


MADE_BY_OTHERS: dict[str, bytes] = {
    "a table of the user": b"CREATE TABLE public.articles (id int PRIMARY KEY, content text); INSERT INTO"
    b" public.articles VALUES (1, 'x')",
    "a partition of the source": b"CREATE TABLE public.whole (id int, title text) PARTITION BY LIST (id);"
    b"CREATE TABLE public.articles PARTITION OF public.whole DEFAULT",
    "a view": b"CREATE VIEW public.articles AS SELECT * FROM public.paintings",
    "a sequence": b"CREATE SEQUENCE public.articles",
    "a foreign vector table": b"CREATE TABLE public.articles (id int PRIMARY KEY, author text, year int, content text,"
    b" embedding vector(96), fingerprint bytea, metadata_hash bytea, run_id bigint, embedded_at timestamptz)",
}


@pytest.mark.parametrize("made", MADE_BY_OTHERS.values(), ids=MADE_BY_OTHERS)
def test_a_table_that_rowvec_did_not_make_is_refused_before_anything_is_asked(
    source: Connection, server: OpenAIServer, tmp_path: Path, made: bytes
) -> None:
    source.execute(made)
    pipeline = changed(paid(server, str(tmp_path / "artifacts")), target={"table": "public.articles"})
    for command in (gallery.sync, plan, begin_rebuild, plan_rebuild):
        with pytest.raises(UsageError) as refused:
            command(pipeline)
        assert "rebuild" not in str(refused.value)
    with pytest.raises(UsageError, match=r"public\.articles .*rowvec did not make it"):
        gallery.sync(pipeline)
    assert server.requests == []
    assert ledger(source) == []
    assert source.execute("SELECT FROM pg_class WHERE relname = 'articles__2'").fetchall() == []


def test_a_source_that_reads_the_vector_table_is_refused(
    source: Connection, server: OpenAIServer, database_url: str, tmp_path: Path
) -> None:
    pipeline = paid(server, str(tmp_path / "artifacts"))
    gallery.sync(pipeline)
    sent = len(server.requests)
    source.execute(
        "CREATE VIEW public.seen AS SELECT id, content AS title, '' AS description, author, year FROM vectors.paintings"
    )
    read = (
        "select s.* from public.paintings as s where not exists (select from vectors.paintings as t where t.id = s.id)"
    )
    elsewhere = database_url + " application_name=other"
    for part in (
        {"table": "public.seen"},
        {"table": "public.seen", "url": elsewhere},
        {"query": read},
        {"query": read, "url": elsewhere},
        {"table": "vectors.paintings", "url": elsewhere, "content": "{content}"},
    ):
        written = pipeline.model_dump(mode="json", exclude_none=True)
        written["source"] = {k: v for k, v in written["source"].items() if k != "table"} | part
        wrong = Pipeline.model_validate(written)
        for command in (gallery.sync, plan):
            with pytest.raises(SourceError, match="own vector table"):
                command(wrong)
    assert len(server.requests) == sent
    assert rows(source, "vectors.paintings") == 50


@pytest.mark.needs("a superuser", "rowvec creates the schema of its ledger again")
def test_a_renamed_pipeline_keeps_what_was_paid_for(source: Connection, server: OpenAIServer, tmp_path: Path) -> None:
    old = paid(server, str(tmp_path / "artifacts"))
    gallery.sync(old)
    gallery.rebuild(changed(old, embedder={"dimensions": 32}))
    short = changed(old, embedder={"dimensions": 32})
    new = named(short, "pictures")
    with pytest.raises(UsageError, match="rowvec rename FILE paintings"):
        gallery.sync(new)
    bought = server.paid.total()
    assert rename(new, "paintings").generations == 2
    again = rename(new, "paintings")
    assert (again.already, again.table) == (True, "vectors.paintings")
    assert ledger(source) == [
        ("pictures", "pictures", "vectors.paintings", "live"),
        ("pictures.1", "pictures", "vectors.paintings__1", "retired"),
    ]
    families = source.execute("SELECT DISTINCT family FROM rowvec.spending").fetchall()
    assert families in ([], [("pictures",)])
    source.execute("UPDATE paintings SET title = 'New' WHERE id = 1")
    report = gallery.sync(new)
    assert (report.changed, report.embedded, report.unchanged) == (1, 1, 49)
    assert audit(new).consistent
    assert server.paid.total() == bought + 1
    # The store alone has all of it under the new name.
    source.execute("DROP TABLE vectors.paintings; DROP SCHEMA rowvec CASCADE")
    restore(new)
    assert rows(source, "vectors.paintings") == 50
    assert server.paid.total() == bought + 1


def test_a_rename_that_is_killed_before_its_end_changed_nothing(
    source: Connection, paintings: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery.sync(paintings)
    before = ledger(source)

    real = vars(names)["_rename"]

    def die_before_the_commit(*given: object) -> None:
        real(*given)
        raise gallery.Died

    with monkeypatch.context() as patched:
        patched.setattr(names, "_rename", die_before_the_commit)
        for command in (
            lambda: rename(named(paintings, "pictures"), "paintings"),
            lambda: adopt(changed(paintings, target={"table": "vectors.others"})),
        ):
            with pytest.raises(gallery.Died):
                command()
            assert ledger(source) == before
    assert rename(named(paintings, "pictures"), "paintings").generations == 1
    assert gallery.sync(named(paintings, "pictures")).unchanged == 50


def test_a_rename_is_refused_by_name(source: Connection, paintings: Pipeline) -> None:
    gallery.sync(paintings)
    others = changed(named(paintings, "others"), target={"table": "vectors.others"})
    gallery.sync(others)
    for wrong, old, sentence in (
        (paintings, "paintings", "has the name paintings still"),
        (named(paintings, "pictures"), "typo", "no pipeline typo: it has others, paintings"),
        (named(paintings, "others"), "paintings", "the name others is taken"),
        (named(paintings, "pictures"), "others", r"belongs to the table vectors\.others"),
    ):
        with pytest.raises(UsageError, match=sentence):
            rename(wrong, old)
    with running(paintings, "test"), pytest.raises(PipelineBusy):
        rename(named(paintings, "pictures"), "paintings")


def test_a_name_that_is_given_to_another_table(source: Connection, server: OpenAIServer, tmp_path: Path) -> None:
    first = paid(server, str(tmp_path / "artifacts"))
    second = changed(first, target={"table": "vectors.others"})
    gallery.sync(first)
    done = adopt(second)
    assert (done.former_table, done.former_name, done.taken_in) == ("vectors.paintings", "paintings-old", False)
    assert gallery.sync(second).new == 50
    again = adopt(second)
    assert (again.already, again.former_name) == (True, None)
    # The other table goes on under its new name, and pays for nothing again.
    bought = server.paid.total()
    with pytest.raises(UsageError, match="belongs to the table"):
        gallery.sync(first)
    kept = gallery.sync(named(first, "paintings-old"))
    assert (kept.unchanged, kept.embedded) == (50, 0)
    assert server.paid.total() == bought
    with pytest.raises(UsageError, match="belongs to the pipeline paintings-old"):
        adopt(named(first, "third"))


def test_a_name_whose_table_is_gone_takes_what_was_paid_for_along(
    source: Connection, server: OpenAIServer, tmp_path: Path
) -> None:
    first = paid(server, str(tmp_path / "artifacts"))
    gallery.sync(first)
    bought = server.paid.total()
    # The user renamed the vector table.
    source.execute("ALTER TABLE vectors.paintings RENAME TO moved")
    moved = changed(first, target={"table": "vectors.moved"})
    with pytest.raises(UsageError, match="rowvec adopt"):
        gallery.sync(moved)
    done = adopt(moved)
    assert (done.former_table, done.former_name, done.taken_in) == ("vectors.paintings", None, True)
    assert gallery.sync(moved).unchanged == 50
    assert audit(moved).consistent
    # The user dropped it, and wants it elsewhere.
    source.execute("DROP TABLE vectors.moved")
    elsewhere = changed(first, target={"table": "vectors.elsewhere"})
    assert adopt(elsewhere).former_name is None
    report = gallery.sync(elsewhere)
    assert (report.new, report.reused) == (50, 50)
    assert server.paid.total() == bought


@pytest.mark.needs("a superuser", "rowvec creates the schema of its ledger again")
def test_a_vector_table_whose_ledger_was_lost_is_known_by_its_fingerprints(
    source: Connection, server: OpenAIServer, tmp_path: Path
) -> None:
    pipeline = paid(server, str(tmp_path / "artifacts"))
    gallery.sync(pipeline)
    source.execute("DROP SCHEMA rowvec CASCADE")
    other = changed(pipeline, embedder={"model": "another-model"})
    with pytest.raises(UsageError, match="rowvec did not make it with this embedder"):
        gallery.sync(other)
    bought = server.paid.total()
    assert gallery.sync(pipeline).unchanged == 50
    assert server.paid.total() == bought


@pytest.mark.needs("a superuser", "the test makes the vector table")
def test_a_name_is_given_to_a_vector_table_that_the_ledger_does_not_know(
    source: Connection, server: OpenAIServer, tmp_path: Path
) -> None:
    pipeline = paid(server, str(tmp_path / "artifacts"))
    gallery.sync(pipeline)
    source.execute("CREATE TABLE public.others (id int)")
    source.execute("CREATE TABLE vectors.copied (LIKE vectors.paintings INCLUDING ALL)")
    source.execute("INSERT INTO vectors.copied SELECT * FROM vectors.paintings")
    copied = changed(pipeline, target={"table": "vectors.copied"})
    with pytest.raises(UsageError, match=r"no row of .* has a vector of"):
        adopt(changed(copied, embedder={"model": "another-model"}))
    with pytest.raises(UsageError, match="not a vector table"):
        adopt(changed(copied, target={"table": "public.others"}))
    with pytest.raises(UsageError, match=r"no table vectors\.nothing to adopt"):
        adopt(changed(named(pipeline, "nothing"), target={"table": "vectors.nothing"}))
    source.execute("UPDATE vectors.copied SET fingerprint = '\\x00' WHERE id = 1")
    done = adopt(copied)
    assert (done.taken_in, done.other_rows, done.former_name) == (True, 1, "paintings-old")
    bought = server.paid.total()
    report = gallery.sync(copied)
    assert (report.unchanged, report.changed) == (49, 1)
    assert server.paid.total() <= bought + 1
    assert rows(source, "vectors.copied") == 50
