"""The queue of changes from outside a run: its command, and a watcher that syncs as rows change."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from rowvec.errors import SourceError, UsageError
from rowvec.ledger.runs import running
from rowvec.operations import changes
from rowvec.operations.watch import Watched, watch
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.stages.alarms import Alarm
from rowvec.stages.report import SyncReport
from tests.support import paintings as gallery
from tests.support.paintings import assert_in_step, sync
from tests.support.waiting import wait_for


@pytest.fixture
def queued(tmp_path: Path) -> Pipeline:
    """The paintings, with a queue of changes."""
    return gallery.pipeline(str(tmp_path / "artifacts"), source={"changes": {"by": "trigger"}})


@pytest.mark.needs("a superuser", "only the owner of the source's table can make triggers on it")
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
    source: Connection, direct_url: str, queued: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.execute("DROP ROLE IF EXISTS reads_only; CREATE ROLE reads_only LOGIN")
    source.execute("GRANT SELECT ON paintings TO reads_only")
    monkeypatch.setenv("ROWVEC_DATABASE_URL", make_conninfo(direct_url, user="reads_only"))
    with pytest.raises(SourceError, match=r"cannot be installed on public.paintings .*rowvec changes FILE --sql"):
        changes.install_queue(queued)
    with psycopg.connect(direct_url, autocommit=True) as owner:
        owner.execute(changes.statements(queued).encode())
    assert changes.install_queue(queued).installed


def test_a_pipeline_that_compares_has_no_queue(source: Connection, paintings: Pipeline) -> None:
    with pytest.raises(UsageError, match=r"write changes: \{by: trigger\} into its source"):
        changes.state(paintings)


class Watcher:
    """A watcher in a thread of its own; what it says is in ``told``, its alarms in ``alarms``."""

    def __init__(self, *watched: Watched) -> None:
        self.told: list[str] = []
        self.alarms: list[Alarm] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(watched,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def about(self, words: str) -> list[str]:
        """The sentences with these words."""
        return [sentence for sentence in self.told if words in sentence]

    def _watch(self, watched: Iterable[Watched]) -> None:
        watch(watched, self._stop, tell=self.told.append, alarm=lambda _, found: self.alarms.extend(found), every=0.1)


@pytest.mark.needs("a superuser", "only the owner of the source's table can make triggers on it")
def test_a_watcher_syncs_once_for_all_that_has_come_and_goes_on_after_failures(
    source: Connection, queued: Pipeline, tmp_path: Path
) -> None:
    broken = named("broken", tmp_path, freshness={"alarm_after": "1s"})
    defective = named("defective", tmp_path)

    def fail(_pipeline: Pipeline) -> SyncReport:
        raise SourceError("the source is not there")

    def break_down(_pipeline: Pipeline) -> SyncReport:
        raise ZeroDivisionError("a defect")

    changes.install_queue(broken)
    with Watcher(
        Watched(read=lambda: broken, sync=fail),
        Watched(read=lambda: defective, sync=break_down),
        Watched(read=lambda: queued, sync=sync),
    ) as watcher:
        wait_for(lambda: watcher.about("run 1, "))
        source.execute("UPDATE paintings SET title = 'new' WHERE id < 4; DELETE FROM paintings WHERE id = 9")
        wait_for(lambda: watcher.about("run 2, ") and watcher.alarms)
    assert_in_step(source)
    first, second = watcher.about("paintings: ")
    assert first.startswith("paintings: the whole source was never compared; run 1, ")
    assert second.startswith("paintings: 4 changes wait; run 2, ")
    failed = watcher.about("the source is not there")
    assert failed[0] == "broken: the source is not there; it is tried again in 2 s"
    assert len(failed) <= 3
    assert watcher.about("defective: a defect; it is tried again in 2 s")
    # Its queue is looked at while its syncs pause.
    (alarm,) = watcher.alarms[:1]
    assert (alarm.name, alarm.payload["waiting"]) == ("rowvec.changes.late", 4)
    assert len(watcher.alarms) <= 3


class OneWait(threading.Event):
    """Ends a watcher at its first pause, and knows how long that would have been."""

    seconds: float | None = None

    def wait(self, timeout: float | None = None) -> bool:
        """The pause between two looks."""
        self.seconds = timeout
        self.set()
        return True


@pytest.mark.needs("a superuser", "only the owner of the source's table can make triggers on it")
def test_what_has_come_during_a_sync_does_not_wait_for_the_next_look(source: Connection, queued: Pipeline) -> None:
    def pause(every: float) -> float | None:
        stop = OneWait()
        watch(
            [Watched(read=lambda: queued, sync=sync)],
            stop,
            tell=print,
            alarm=lambda _pipeline, _alarms: None,
            every=every,
        )
        return stop.seconds

    assert pause(0.01) == 0.0  # a sync takes longer
    assert pause(0.01) == 0.01  # nothing has come


def test_a_watcher_leaves_a_pipeline_to_the_run_that_has_it(source: Connection, queued: Pipeline) -> None:
    with running(queued, "test"):
        assert changes.look(queued).reason is None
    assert changes.look(queued).reason == "the whole source was never compared"


@pytest.mark.needs("a superuser", "only the owner of the source's table can make triggers on it")
def test_a_watcher_outlives_the_server_and_follows_the_file(
    source: Connection, queued: Pipeline, direct_url: str
) -> None:
    files = [queued]
    with Watcher(Watched(read=lambda: files[0], sync=sync)) as watcher:
        wait_for(lambda: watcher.about("run 1, "))
        files[0] = gallery.pipeline(
            queued.artifacts.url, source={"changes": {"by": "trigger"}, "content": "by {author}: {title}"}
        )
        with psycopg.connect(direct_url, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'rowvec%'"
            )
            other.execute("UPDATE paintings SET title = 'new' WHERE id = 4")
        wait_for(lambda: watcher.about("run 2, "))
    written = source.execute("SELECT content FROM vectors.paintings WHERE id = 4").fetchone()
    assert written == ("by Author 4: new",)


def test_a_pipeline_without_a_queue_is_refused_before_anything_is_watched(
    source: Connection, queued: Pipeline, paintings: Pipeline
) -> None:
    with pytest.raises(UsageError, match=r"write changes: \{by: trigger\} into its source"):
        watch(
            [Watched(read=lambda: queued, sync=sync), Watched(read=lambda: paintings, sync=sync)],
            threading.Event(),
            tell=print,
            alarm=lambda _pipeline, _alarms: None,
        )
    assert source.execute("SELECT count(*) FROM rowvec.runs").fetchone() == (0,)


def named(name: str, folder: Path, **parts: dict[str, Any]) -> Pipeline:
    """The paintings with a queue, in a table of another name."""
    made = gallery.pipeline(
        str(folder / name), source={"changes": {"by": "trigger"}}, target={"table": f"vectors.{name}"}, **parts
    )
    return made.model_copy(update={"name": name})
