"""The queue of changes from outside a run: its command, and a watcher that syncs as rows change."""

from __future__ import annotations

import threading
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from rowvec.errors import SourceError, UsageError
from rowvec.operations import changes
from rowvec.operations.watch import watch
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from tests.support import paintings as gallery
from tests.support.paintings import assert_in_step, sync
from tests.support.waiting import wait_for


@pytest.fixture
def queued(tmp_path: Path) -> Pipeline:
    """The paintings, with a queue of changes."""
    return gallery.pipeline(str(tmp_path / "artifacts"), source={"changes": {"by": "trigger"}})


def test_the_queue_is_installed_shown_and_removed(source: Connection, queued: Pipeline) -> None:
    assert not changes.state(queued).installed
    assert changes.install_queue(queued).installed
    source.execute("UPDATE paintings SET title = 'new' WHERE id < 4")
    assert changes.install_queue(queued).waiting == 3
    report = sync(queued)
    shown = changes.state(queued)
    assert (shown.waiting, shown.verified_run) == (0, report.run_id)
    assert not changes.remove_queue(queued).installed
    assert source.execute("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'rowvec%'").fetchone() == (0,)
    source.execute("UPDATE paintings SET title = 'newest' WHERE id < 4")


def test_an_owner_can_install_it_for_a_role_that_may_only_read(
    source: Connection, database_url: str, queued: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.execute("DROP ROLE IF EXISTS reads_only; CREATE ROLE reads_only LOGIN")
    source.execute("GRANT SELECT ON paintings TO reads_only")
    monkeypatch.setenv("ROWVEC_DATABASE_URL", make_conninfo(database_url, user="reads_only"))
    with pytest.raises(SourceError, match=r"cannot be installed on public.paintings .*rowvec changes FILE --sql"):
        changes.install_queue(queued)
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute(changes.statements(queued).encode())
    assert changes.install_queue(queued).installed


def test_a_pipeline_that_compares_has_no_queue(source: Connection, paintings: Pipeline) -> None:
    with pytest.raises(UsageError, match=r"write changes: \{by: trigger\} into its source"):
        changes.state(paintings)


def test_a_source_in_another_database_is_refused(source: Connection, tmp_path: Path) -> None:
    elsewhere = gallery.pipeline(
        str(tmp_path), source={"changes": {"by": "trigger"}, "url": "postgresql://me@nowhere/other"}
    )
    for ask in (changes.state, sync):
        with pytest.raises(UsageError, match="its source is in another database than its target"):
            ask(elsewhere)


def test_a_watcher_syncs_once_for_all_that_has_come_and_goes_on_after_a_failure(
    source: Connection, queued: Pipeline, tmp_path: Path
) -> None:
    broken = gallery.pipeline(
        str(tmp_path / "broken"), source={"changes": {"by": "trigger"}}, target={"table": "vectors.broken"}
    ).model_copy(update={"name": "broken"})
    stop, told, runs = threading.Event(), list[str](), list[str]()

    def run(pipeline: Pipeline) -> None:
        if pipeline.name == "broken":
            raise SourceError("the source is not there")
        sync(pipeline)
        runs.append(pipeline.name)

    watcher = threading.Thread(target=lambda: watch([broken, queued], run, stop, tell=told.append, every=0.1))
    watcher.start()
    try:
        wait_for(lambda: runs)
        source.execute("UPDATE paintings SET title = 'new' WHERE id < 4; DELETE FROM paintings WHERE id = 9")
        wait_for(lambda: len(runs) > 1 and not changes.state(queued).waiting)
    finally:
        stop.set()
        watcher.join()
    assert runs == ["paintings"] * 2
    assert_in_step(source)
    failed = [sentence for sentence in told if "the source is not there" in sentence]
    assert failed
    assert len(failed) <= 3
    assert "it is tried again in 2 s" in failed[0]
