"""The real command ``rowvec rebuild``: killed, run again, switched, rolled back, and its old table dropped."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from rowvec.postgres.connection import Connection
from tests.integration.operations.test_generations import changed, dimensions
from tests.support.cli_process import write_pipeline
from tests.support.fault_outcomes import Rowvec, paid, succeeded
from tests.support.paintings import assert_in_step
from tests.support.servers.openai_server import KEY, OpenAIServer, serve

pytestmark = pytest.mark.flow

IN_FLIGHT = 2 * 4


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Generator[OpenAIServer]:
    """An embedder that costs money."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve() as opened:
        yield opened


def test_killed_resumed_switched_back_and_cleared(
    source: Connection, server: OpenAIServer, rowvec: Rowvec, tmp_path: Path
) -> None:
    old = paid(server, str(tmp_path / "artifacts"))
    new = changed(old, embedder={"model": "another-model", "dimensions": 32})
    file = write_pipeline(old, tmp_path)
    succeeded(rowvec("sync", file))
    write_pipeline(new, tmp_path)
    refused = rowvec("sync", file)
    assert refused.status == 2
    assert "rowvec rebuild" in refused.json["error"]
    planned = rowvec("rebuild", file, "--plan").json
    assert (planned["generation"], planned["embedded"], planned["table"]) == (2, 50, "vectors.paintings__2")
    cheap = rowvec("rebuild", file, "--max-cost", "0.000000001")
    assert cheap.status in (1, 2)
    assert server.paid.total() == 50
    # Killed while requests are in flight; clients still read the live generation.
    server.latency = 0.3
    before = len(server.requests)
    command = rowvec.start("rebuild", file).when(lambda: len(server.requests) > before + 4)
    assert command.kill().status == -9
    server.latency = 0.0
    assert dimensions(source) == {96}
    # A scheduled sync still syncs the live generation, with its own settings.
    source.execute("UPDATE paintings SET title = 'Meanwhile' WHERE id = 1")
    assert succeeded(rowvec("sync", file))["changed"] == 1
    assert_in_step(source)
    report = rowvec("rebuild", file)
    assert report.status == 0, report
    done = report.json
    assert (done["generation"], done["switched"], done["consistent"]) == (done["generation"], True, True)
    assert done["comparison"]["questions"] == 50
    assert dimensions(source) == {32}
    assert_in_step(source)
    # 50 texts and one change for the old model; the same for the new one, which may have embedded the old text too.
    assert server.paid.total() <= 51 + 51 + IN_FLIGHT
    assert len(rowvec("search", file, "the number 7", "-k", "3").json["results"]) == 3
    assert rowvec("audit", file).json["consistent"]
    back = rowvec("rebuild", file, "--rollback")
    assert (back.status, back.json["rolled_back"]) == (0, True)
    assert dimensions(source) == {96}
    write_pipeline(old, tmp_path)
    assert succeeded(rowvec("sync", file))["embedded"] == 0
    dropped = rowvec("rebuild", file, "--drop-old").json["dropped"]
    assert dropped == [back.json["retired_table"]]
    tables = source.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'vectors'").fetchall()
    assert tables == [("paintings",)]
    assert rowvec("rebuild", file, "--rollback").status == 2
    assert rowvec("rebuild", file, "--plan", "--rollback").status == 2
