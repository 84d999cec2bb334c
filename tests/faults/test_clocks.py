"""Two hosts and two servers whose clocks are an hour apart: nothing is ordered by a clock, so nothing goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from rowvec.operations.audit import audit
from rowvec.operations.prune import prune
from rowvec.operations.restore import finish_restore, restore_rows, restoring
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.store.heads import newest_chain
from rowvec.store.open import open_store
from tests.faults.test_failover import CONCURRENCY, INPUTS, gallery_of
from tests.support import paintings
from tests.support.servers.openai_server import KEY, serve
from tests.support.servers.other_clock import clock_shifted
from tests.support.servers.replicated import replicated
from tests.support.waiting import wait_for

_FILL = (
    "INSERT INTO paintings SELECT i, 'Painting ' || i, 'It is blue', 'Author', 1900 FROM generate_series(1, 12) AS i"
)
_EDIT = "UPDATE paintings SET description = 'Edit {}' WHERE id <= 4"
# libfaketime shifts the end of a sleep by the clock that cannot be set, too, which is what time.sleep asks for.
_SYNC = """
import select, sys, time
time.sleep = lambda seconds: select.select([], [], [], seconds)
from rowvec.operations.sync import sync
from rowvec.pipeline import Pipeline
print(sync(Pipeline.model_validate_json(sys.stdin.read())).run_id)
"""


def _on_another_host(pipeline: Pipeline, clock: dict[str, str]) -> subprocess.Popen[str]:
    """A sync in a process with another clock."""
    started = subprocess.Popen(  # noqa: S603 # this interpreter
        [sys.executable, "-c", _SYNC],
        env={**os.environ, **clock},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stdin is not None
    started.stdin.write(pipeline.model_dump_json(exclude_none=True))
    started.stdin.close()
    started.stdin = None
    return started


@pytest.mark.soak
@pytest.mark.parametrize("hour", [3600, -3600], ids=["ahead", "behind"])
def test_hosts_and_servers_whose_clocks_are_an_hour_apart(
    hour: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        clock_shifted(hour) as clock,
        replicated(synchronous=True) as servers,
        serve(key=KEY) as embedder,
    ):
        monkeypatch.setenv("ROWVEC_DATABASE_URL", servers.primary.url)
        monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        pipeline = gallery_of(embedder, tmp_path)
        store = open_store(pipeline.artifacts)
        servers.primary.ask(paintings.SOURCE, _FILL)
        paintings.sync(pipeline)

        # The other host is killed in the middle of a run, and this one takes over.
        servers.primary.ask(_EDIT.format(1))
        paid = len(embedder.requests)
        embedder.latency = 8.0
        other = _on_another_host(pipeline, clock)
        wait_for(lambda: len(embedder.requests) > paid or other.poll() is not None)
        assert other.poll() is None, other.communicate()
        other.kill()
        other.communicate()
        embedder.latency = 0.0
        assert paintings.sync(pipeline).consistent

        # Its next run is the newest, whatever its clock says.
        servers.primary.ask(_EDIT.format(2))
        other = _on_another_host(pipeline, clock)
        said, failure = other.communicate()
        assert other.returncode == 0, failure
        assert newest_chain(store, pipeline.name)[-1].manifest.run_id == int(said)

        # A standby with the other clock takes over.
        assert servers.standby is not None
        servers.standby.kill()
        with monkeypatch.context() as shifted:
            for name, value in clock.items():
                shifted.setenv(name, value)
            servers.standby.start()
        wait_for(servers.is_caught_up)
        servers.promote()
        monkeypatch.setenv("ROWVEC_DATABASE_URL", servers.primary.url)
        ((now,),) = servers.primary.ask("SELECT extract(epoch FROM now())::float8")
        assert now - time.time() == pytest.approx(hour, abs=60)
        servers.primary.ask(_EDIT.format(3))
        last = paintings.sync(pipeline)
        assert (last.consistent, last.embedded) == (True, 4)
        assert newest_chain(store, pipeline.name)[-1].manifest.run_id == last.run_id
        assert prune(pipeline, timedelta(minutes=30), apply=True).note == ""
        assert audit(pipeline).consistent
        assert paintings.sync(pipeline).embedded == 0
        # 12 texts, 4 in each of three edits, and those in flight at the kill.
        assert embedder.paid.total() <= 12 + 3 * 4 + 4

        servers.primary.ask("DROP SCHEMA rowvec CASCADE", "DROP TABLE vectors.paintings")
        with restoring(pipeline) as under_way:
            restored = finish_restore(pipeline, under_way.run, restore_rows(pipeline, under_way))
        assert (restored.consistent, restored.rows, restored.checksum) == (True, 12, last.checksum)


@pytest.mark.soak
@pytest.mark.parametrize("hour", [3600, -3600], ids=["ahead", "behind"])
def test_two_hosts_whose_clocks_are_an_hour_apart_sync_at_once(
    hour: int, source: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them has the lease; the other is refused, or takes over what a killed one has left."""
    with clock_shifted(hour) as clock, serve(key=KEY) as embedder:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("ROWVEC_LEASE_SECONDS", "3")
        pipeline = gallery_of(embedder, tmp_path)
        store = open_store(pipeline.artifacts)
        kills = refused = succeeded = 0
        for number in range(6):
            source.execute("UPDATE paintings SET description = %s || id WHERE id <= 40", (f"Edit {number} of ",))
            before = len(embedder.requests)
            embedder.latency = 0.4
            # The first to start has the shifted clock in every second round.
            clocks = [{}, clock] if number % 2 else [clock, {}]
            hosts = [_on_another_host(pipeline, one) for one in clocks]
            if number >= 4:
                wait_for(lambda seen=before: len(embedder.requests) > seen)
                hosts[0].kill()
                kills += 1
            ended: list[int] = []
            for host in hosts:
                said, failure = host.communicate()
                assert host.returncode in (0, -9) or "PipelineBusy" in failure, failure
                refused += "PipelineBusy" in failure
                ended += [int(said)] if host.returncode == 0 else []
            succeeded += len(ended)
            embedder.latency = 0.0
            last = _on_another_host(pipeline, clocks[1])
            said, failure = last.communicate()
            assert last.returncode == 0, failure
            assert int(said) > max(ended, default=0)
            chain = [link.manifest.run_id for link in newest_chain(store, pipeline.name)]
            assert chain == sorted(chain)
            paintings.assert_in_step(source)
            assert audit(pipeline).consistent
        assert refused > 0
        assert succeeded >= 4
        # 50 texts at first, of which 40 are edited before the first sync, and 40 in each further round.
        assert embedder.paid.total() <= 50 + 5 * 40 + kills * INPUTS * CONCURRENCY
        assert prune(pipeline, timedelta(minutes=30), apply=True).note == ""
        assert audit(pipeline).consistent
