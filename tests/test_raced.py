"""Syncs that are raced: by writers, by readers, by each other, and by the other pipelines of a database (H1, H18)."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from rowvec.database import Connection
from rowvec.pipeline import Pipeline
from tests import gallery, racing
from tests.command import Ended, PrefectServer, start, write_pipeline
from tests.gallery import assert_in_step
from tests.openai_server import KEY, OpenAIServer, serve

MODEL, DIMENSIONS = "text-embedding-3-small", 32


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Generator[OpenAIServer]:
    """The embedder's server, with its key in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(key=KEY, latency=0.1) as opened:
        yield opened


@pytest.fixture
def paid(server: OpenAIServer, tmp_path: Path) -> Pipeline:
    """The gallery's pipeline with that embedder."""
    return pipeline(server, tmp_path)


def pipeline(server: OpenAIServer, folder: Path, **parts: dict[str, Any]) -> Pipeline:
    """The gallery's pipeline with an embedder that takes its time; ``parts`` as in ``gallery.pipeline``."""
    embedder = {
        "kind": "openai",
        "model": MODEL,
        "dimensions": DIMENSIONS,
        "base_url": server.url,
        "max_batch_inputs": 32,
        "concurrency": 4,
    }
    limit = {"max_delete_fraction": 1.0}
    return gallery.pipeline(str(folder / "artifacts"), **{"embedder": embedder, "validation": limit, **parts})


def succeeded(ended: Ended) -> dict[str, Any]:
    """The report of a sync that must have gone well."""
    assert ended.status == 0, (ended.stdout[-2000:], ended.stderr[-2000:])
    return ended.json


def sync_under_fire(
    source: Connection, history: Connection, api: str, file: Path, threads: racing.Threads
) -> dict[str, Any]:
    """One sync with writers at work; then nothing may be stale or orphaned by the snapshot it merged with."""
    report = succeeded(start(api, "sync", file, "--json").wait())
    threads.check()
    table = racing.stored(source)
    times = source.execute(
        "SELECT merged_at, finished_at FROM rowvec.runs WHERE run_id = %s", (report["run_id"],)
    ).fetchone()
    assert times is not None
    verdict = racing.judge(racing.commits(history), table, *times)
    assert verdict.agreeing, f"stale or orphaned: {verdict.nearest} by each of {verdict.states} states"
    assert report["pending"] in verdict.agreeing
    assert len(table) == report["rows"] > 0
    return report


def race(source: Connection, url: str, api: str, file: Path, seed: int, syncs: int) -> None:
    """Several syncs under fire, and one in peace."""
    gallery.fill(source, 350, start=51)
    racing.start_history(source)
    with racing.writers(url, seed) as threads:
        reports = [sync_under_fire(source, source, api, file, threads) for _ in range(syncs)]
    print(threads.rounds, [(r["rows"], r["pending"], r["changed"], r["deleted"], r["seconds"]) for r in reports])
    racing.assert_own_vectors(source, MODEL, DIMENSIONS)
    last = succeeded(start(api, "sync", file, "--json").wait())
    assert last["pending"] == 0
    assert_in_step(source)
    racing.assert_own_vectors(source, MODEL, DIMENSIONS)


def test_h1_writers_without_rest_leave_nothing_stale_or_orphaned(
    source: Connection, database_url: str, paid: Pipeline, tmp_path: Path, prefect_server: PrefectServer
) -> None:
    race(source, database_url, prefect_server.api, write_pipeline(paid, tmp_path), seed=1, syncs=2)
