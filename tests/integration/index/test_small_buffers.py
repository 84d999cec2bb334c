"""A server whose buffers are smaller than the index: a run says so, and what each vector took that it wrote."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from rowvec.postgres.connection import connect
from rowvec.stages.report import MEMORY, SyncReport
from tests.support import paintings as gallery
from tests.support.paintings import fill, sync
from tests.support.servers.disposable import own_postgres

ROWS = 2_500
"""Their graph has more than a megabyte: no two texts have one vector."""


def said(report: SyncReport) -> list[tuple[str, float | None]]:
    """What the report says of the server's memory."""
    return [(check.detail, check.value) for check in report.checks if check.name == MEMORY]


@pytest.mark.soak
def test_a_run_says_what_a_vector_takes_on_a_server_whose_buffers_are_smaller_than_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
    with own_postgres() as server:
        monkeypatch.setenv("ROWVEC_DATABASE_URL", server.url)
        with psycopg.connect(server.url, autocommit=True) as admin:
            admin.execute("ALTER SYSTEM SET shared_buffers = '1MB'")
        server.kill()
        server.start()
        pipeline = gallery.pipeline(
            str(tmp_path / "artifacts"),
            source={"changes": {"by": "trigger"}},
            embedder={"kind": "local", "dimensions": 256},
            index={"kind": "hnsw", "on": "float"},
        )
        with connect(server.url) as source:
            source.execute(gallery.SOURCE)
            fill(source, ROWS)
            source.execute("UPDATE paintings SET title = md5(id::text)")
            ((first, no_inserts),) = said(sync(pipeline))
            assert "is larger than shared_buffers of the server, 1 MiB" in first
            assert no_inserts is None
            fill(source, 40, start=10_000)
            ((detail, milliseconds),) = said(report := sync(pipeline))
            assert report.new == 40
            assert milliseconds is not None
            assert 0 < milliseconds < 1000 * report.seconds["merge"]
            assert f"a merge took {milliseconds:,.1f} ms for each vector" in detail
