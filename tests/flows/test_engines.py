"""The same run in threads, on Dask and on Ray, whose workers share nothing but database, store and API."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
from psycopg import sql
from rowvec_flows.sync import sync
from rowvec_tasks.engines import Cluster, chosen_cluster, on_cluster

from rowvec.errors import ClusterUnavailable, UsageError
from rowvec.ledger.lease import Lease
from rowvec.ledger.pipelines import PipelineId
from rowvec.ledger.plans import MIN_BATCH_ROWS, count_batches
from rowvec.ledger.runs import Run, RunId
from rowvec.pipeline import Pipeline
from rowvec.pipeline.model import Artifacts
from rowvec.postgres.connection import Connection
from rowvec.stages.cluster import batch_weight, check_reachable
from rowvec.stages.report import SyncReport
from tests.support import paintings
from tests.support.paintings import assert_in_step
from tests.support.servers.azurite import Container
from tests.support.servers.dask_ray import RunningCluster, Worker, dask_cluster, ray_cluster
from tests.support.servers.openai_server import KEY, OpenAIServer
from tests.support.servers.openai_server import openai_server as openai_server
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.flow, pytest.mark.azurite]

ROWS = 300
TEXTS_A_REQUEST, CONCURRENCY, WORKERS = 4, 2, 2


@pytest.fixture
def pipeline(
    prefect_api: None,
    source: Connection,
    container: Container,
    openai_server: OpenAIServer,
    monkeypatch: pytest.MonkeyPatch,
) -> Pipeline:
    """300 paintings in several batches, an embedder that costs money, and artifacts in blob storage."""
    paintings.fill(source, ROWS - 50, start=51)
    monkeypatch.setattr("rowvec.ledger.plans.MIN_BATCH_ROWS", 40)
    monkeypatch.setenv("BLOB_KEY", container.key)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    embedder = {
        "kind": "openai",
        "model": "text-embedding-3-small",
        "dimensions": 32,
        "base_url": openai_server.url,
        "max_batch_inputs": TEXTS_A_REQUEST,
        "concurrency": CONCURRENCY,
    }
    plain = paintings.pipeline("./unused", embedder=embedder)
    return plain.model_copy(update={"artifacts": Artifacts(url=container.url, credential="${BLOB_KEY}")})


@pytest.fixture
def secrets(database_url: str, container: Container) -> dict[str, str]:
    """What a worker must have in its own environment."""
    return {"ROWVEC_DATABASE_URL": database_url, "BLOB_KEY": container.key, "OPENAI_API_KEY": KEY}


@pytest.fixture
def dask(tmp_path: Path, secrets: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Generator[RunningCluster]:
    """Two Dask workers, chosen by the environment."""
    with dask_cluster(tmp_path, WORKERS, secrets) as cluster:
        monkeypatch.setenv("ROWVEC_RUNNER", "dask")
        monkeypatch.setenv("ROWVEC_CLUSTER", cluster.address)
        yield cluster


@pytest.fixture
def dask_here(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Two Dask workers in this process, which take their batches over TCP as others do."""
    from distributed import LocalCluster  # late: it takes a second

    # Its own types know neither None nor that it is a context without `async`.
    made: Any = LocalCluster
    with made(
        n_workers=WORKERS, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address=None
    ) as cluster:
        monkeypatch.setenv("ROWVEC_RUNNER", "dask")
        monkeypatch.setenv("ROWVEC_CLUSTER", cluster.scheduler_address)
        yield


@pytest.fixture
def ray_nodes(tmp_path: Path, secrets: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Generator[RunningCluster]:
    """Two Ray nodes of one CPU each, chosen by the environment."""
    with ray_cluster(tmp_path, WORKERS, secrets) as cluster:
        monkeypatch.setenv("ROWVEC_RUNNER", "ray")
        monkeypatch.setenv("ROWVEC_CLUSTER", cluster.address)
        yield cluster


def kill_the_batch_of(node: Worker) -> None:
    """Kill the process of a Ray node that works on a batch."""
    (busy,) = [
        p for p in psutil.Process(node.process.pid).children(recursive=True) if p.cmdline()[:1] == ["ray::batch"]
    ]
    busy.kill()


def everything(connection: Connection, table: str) -> list[tuple[object, ...]]:
    """A vector table without the columns of run and time."""
    statement = sql.SQL(
        "SELECT id, content, author, year, embedding::text, embedding_bits::text, fingerprint, metadata_hash"
        " FROM vectors.{} ORDER BY id"
    )
    return connection.execute(statement.format(sql.Identifier(table))).fetchall()


def by_threads(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> SyncReport:
    """Sync the same rows in this process, as another pipeline, which has paid for nothing yet."""
    monkeypatch.setenv("ROWVEC_RUNNER", "threads")
    target = pipeline.target.model_copy(update={"table": "vectors.threads"})
    return sync(pipeline=pipeline.model_copy(update={"name": "threads", "target": target}), cause="threads")


def assert_made_by(workers: tuple[Worker, ...], run_id: int) -> None:
    """Assert that each worker had batches, in its own folder."""
    assert all(list(worker.home.glob(f"spool/*/{run_id}")) for worker in workers)


@pytest.mark.soak
def test_two_dask_workers_that_share_nothing_make_what_threads_make(
    pipeline: Pipeline,
    source: Connection,
    openai_server: OpenAIServer,
    dask: RunningCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    openai_server.latency = 0.02
    report = sync(pipeline=pipeline, cause="dask")
    assert (report.embedded, report.artifacts, report.consistent) == (ROWS, 8, True)
    assert set(openai_server.sent.values()) == {1}
    assert_in_step(source)
    assert_made_by(dask.workers, report.run_id)
    assert not [file for worker in dask.workers for file in (worker.home / "spool").rglob("*") if file.is_file()]
    threads = by_threads(pipeline, monkeypatch)
    assert threads.checksum == report.checksum
    assert everything(source, "threads") == everything(source, "paintings")


@pytest.mark.soak
def test_dask_makes_what_threads_make(
    pipeline: Pipeline,
    source: Connection,
    openai_server: OpenAIServer,
    dask_here: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = sync(pipeline=pipeline, cause="dask")
    assert (report.embedded, report.artifacts, report.consistent) == (ROWS, 8, True)
    assert set(openai_server.sent.values()) == {1}
    assert_in_step(source)
    threads = by_threads(pipeline, monkeypatch)
    assert threads.checksum == report.checksum
    assert everything(source, "threads") == everything(source, "paintings")


@pytest.mark.soak
def test_a_dask_worker_that_is_killed_costs_what_it_had_in_flight(
    pipeline: Pipeline,
    source: Connection,
    openai_server: OpenAIServer,
    dask: RunningCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pacing = list[tuple[int]]()

    def kill() -> None:
        # Each worker has a share of the account's rate limits.
        pacing.extend(source.execute("SELECT count(DISTINCT process) FROM rowvec.pace_leases").fetchall())
        dask.workers[0].kill()

    # Far above what the run needs, so that no worker waits for it.
    limited = pipeline.embedder.model_copy(update={"requests_per_minute": 100_000})
    pipeline = pipeline.model_copy(update={"embedder": limited})
    with killing(openai_server, kill):
        report = sync(pipeline=pipeline, cause="killed")
    assert pacing == [(WORKERS,)]
    # It died while it worked on a batch; the batch's files stay in its folder.
    assert list(dask.workers[0].home.glob(f"spool/*/{report.run_id}/**/rows.arrow"))
    assert_survived(report, pipeline, source, openai_server, monkeypatch)
    # A variable that only the flow's process has: the worker's message names it, and nothing is tried again.
    monkeypatch.setenv("ROWVEC_RUNNER", "dask")
    monkeypatch.setenv("OTHER_KEY", KEY)
    embedder = pipeline.embedder.model_copy(update={"api_key": "${OTHER_KEY}"})
    source.execute("UPDATE paintings SET title = 'Another' WHERE id = 7")
    with pytest.raises(UsageError, match=r"embedder\.api_key: the environment variable OTHER_KEY is not set"):
        sync(pipeline=pipeline.model_copy(update={"embedder": embedder}), cause="dask")


@pytest.mark.soak
def test_ray_makes_what_threads_make_though_a_worker_is_killed(
    pipeline: Pipeline,
    source: Connection,
    openai_server: OpenAIServer,
    ray_nodes: RunningCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with killing(openai_server, lambda: kill_the_batch_of(ray_nodes.workers[0])):
        report = sync(pipeline=pipeline, cause="killed")
    assert_made_by(ray_nodes.workers, report.run_id)
    assert_survived(report, pipeline, source, openai_server, monkeypatch)


@contextmanager
def killing(server: OpenAIServer, kill: Callable[[], None]) -> Generator[None]:
    """Kill once some answers have arrived, and each worker has as many requests in flight as it may."""

    def once_in_the_middle() -> None:
        # A worker imports Prefect before its first batch.
        wait_for(lambda: len(server.paid) >= ROWS // 4, 180)
        released = server.hold = threading.Event()
        server.most_at_once = 0
        wait_for(lambda: server.most_at_once == WORKERS * CONCURRENCY)
        kill()
        server.hold = None
        released.set()

    server.latency = 0.02
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(once_in_the_middle)
        yield
        killed.result()


def assert_survived(
    report: SyncReport,
    pipeline: Pipeline,
    source: Connection,
    server: OpenAIServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Assert the same table as by threads, and that no more is paid twice than the dead worker had in flight."""
    assert (report.new, report.artifacts, report.consistent) == (ROWS, 8, True)
    assert_in_step(source)
    sent = server.sent
    assert len(sent) == ROWS
    assert 0 < sum(sent.values()) - ROWS <= TEXTS_A_REQUEST * CONCURRENCY
    threads = by_threads(pipeline, monkeypatch)
    assert threads.checksum == report.checksum
    assert everything(source, "threads") == everything(source, "paintings")


@pytest.mark.parametrize(
    ("runner", "address", "message"),
    [
        ("spark", "", "ROWVEC_RUNNER is 'spark'; set it to threads, dask or ray"),
        ("dask", "", "ROWVEC_RUNNER is dask, and ROWVEC_CLUSTER is not set"),
    ],
)
def test_a_wrong_setting_is_one_sentence(
    runner: str, address: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROWVEC_RUNNER", runner)
    monkeypatch.setenv("ROWVEC_CLUSTER", address)
    with pytest.raises(UsageError, match=message):
        chosen_cluster()


@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_a_cluster_that_is_not_there_is_one_sentence(engine: Literal["dask", "ray"]) -> None:
    pipeline = paintings.pipeline("./unused")
    nowhere = {"dask": "tcp://127.0.0.1:9", "ray": "127.0.0.1:9"}[engine]
    lease = Lease(pipeline_id=PipelineId(1), number=1, seconds=20, pipeline="paintings")
    run = Run(run_id=RunId(1), pipeline_id=PipelineId(1), lease=lease, started=0.0)
    with pytest.raises(ClusterUnavailable, match=f"the {engine} cluster at {nowhere} does not answer"):
        on_cluster(Cluster(engine=engine, address=nowhere), pipeline, run, 1)
    with pytest.raises(UsageError, match="ROWVEC_CLUSTER is 'auto'; it must end in HOST:PORT"):
        on_cluster(Cluster(engine=engine, address="auto"), pipeline, run, 1)


def test_threads_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROWVEC_RUNNER", raising=False)
    assert chosen_cluster() is None
    monkeypatch.setenv("ROWVEC_RUNNER", "dask")
    monkeypatch.setenv("ROWVEC_CLUSTER", "tcp://host:8786")
    assert chosen_cluster() == Cluster(engine="dask", address="tcp://host:8786")


def test_what_only_one_machine_can_see_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROWVEC_DATABASE_URL", "postgresql://db/rowvec")
    in_blob = paintings.pipeline("https://account.blob.core.windows.net/vectors/prefix")
    check_reachable(in_blob)
    with pytest.raises(UsageError, match=r"artifacts\.url is a folder"):
        check_reachable(paintings.pipeline("./artifacts"))
    monkeypatch.delenv("ROWVEC_DATABASE_URL")
    with pytest.raises(UsageError, match="the embedded Postgres cannot be used"):
        check_reachable(in_blob)


@pytest.mark.parametrize("rows", [0, 1, 8192, 40_960, 40_961, 10_000_000])
def test_batches_are_larger_where_a_task_costs_more(rows: int) -> None:
    in_blob = paintings.pipeline("https://account.blob.core.windows.net/vectors")
    assert batch_weight(in_blob) == 5
    batches = count_batches(rows, batch_weight(in_blob))
    assert batches <= count_batches(rows)
    assert batches <= 1 or rows / batches >= 5 * MIN_BATCH_ROWS / 2
    paid = paintings.pipeline("./unused", embedder={"kind": "openai", "model": "any", "dimensions": 32})
    assert batch_weight(paid) == 1
