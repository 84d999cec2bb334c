"""How much longer does a first sync take than its slowest stage alone, and what does orchestration cost?

One source table, synced for the first time again and again, each time as a new pipeline with its own vector table and
store: by the flow on a Prefect server of its own; by the same stages on the same number of threads without Prefect;
and its embedding alone, batch after batch. The three take turns, and ratios are medians of the rounds. ``--data`` is a
Parquet file with a text column (``--column``); left out, rows are made up. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rowvec import batch_stages, stages
from rowvec.database import Connection, connect
from rowvec.home import start_postgres
from rowvec.pipeline import Pipeline
from rowvec.report import SyncReport
from rowvec.run import Run, running

KEY = "sk-overlap"
GOALS = {"of_slowest": 1.15, "orchestration": 0.03}
"""Wall of the flow to embedding alone; what the flow takes beyond the stages themselves, as a share of them."""

# As in flows/sync.py, which this is compared with.
_BATCHES_IN_FLIGHT = 2
_SERVER_SECONDS = 120

Sync = Callable[[Pipeline], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Seconds of one round, each of the three on a table of its own."""

    flow: float
    stages: float
    embed: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a Parquet file of texts")
    parser.add_argument("--column", default="title", help="of the file")
    parser.add_argument("--rows", type=int, default=69_202)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds of a provider's answer; 0: the local model")
    parser.add_argument("--tokens-per-minute", type=int, help="of the provider's limit")
    parser.add_argument("--quick", action="store_true", help="8,000 rows, one round")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.rounds = 8_000, 1
    folder = Path(tempfile.mkdtemp(prefix="rvoverlap", dir="/tmp"))
    os.environ |= {"PREFECT_HOME": str(folder / "prefect"), "ROWVEC_HOME": str(folder / "home"), "OPENAI_API_KEY": KEY}
    try:
        server = start_postgres(_made(folder / "pg"))
        os.environ["ROWVEC_DATABASE_URL"] = server.get_uri()
        with connect(server.get_uri()) as connection, _prefect(folder), _provider(arguments) as embedder:
            _fill(connection, arguments)
            rounds = _measure(connection, folder, embedder, arguments)
        server.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _tell(rounds, arguments)


def _measure(
    connection: Connection, folder: Path, embedder: dict[str, Any], arguments: argparse.Namespace
) -> list[Round]:
    from flows.sync import sync  # late: by now Prefect knows where its server is

    def by_flow(pipeline: Pipeline) -> float:
        started = time.perf_counter()
        report: SyncReport = sync(pipeline)
        took = time.perf_counter() - started
        assert report.consistent
        return took

    ways: dict[str, Sync] = {"flow": by_flow, "stages": _by_stages, "embed": _embed_alone}
    rounds: list[Round] = []
    # The first of each loads the model, and fills caches.
    for number in range(arguments.rounds + 1):
        seconds: dict[str, float] = {}
        order = list(ways) if number % 2 else list(ways)[::-1]
        for name in order:
            pipeline = _pipeline(f"{name}{number}", folder, embedder)
            connection.execute("CHECKPOINT")
            seconds[name] = ways[name](pipeline)
            print(f"round {number}: {name} {seconds[name]:.2f} s", file=sys.stderr, flush=True)
        rounds.append(Round(**seconds))
    return rounds[1:]


def _by_stages(pipeline: Pipeline) -> float:
    """What the flow does, on as many threads, without Prefect."""
    started = time.perf_counter()
    with running(pipeline, "benchmark") as run, ThreadPoolExecutor(4 * (_BATCHES_IN_FLIGHT + 1)) as threads:
        plan = stages.extract_rows(pipeline, run)
        chains: deque[Future[batch_stages.Batch]] = deque()
        done: list[batch_stages.Batch] = []
        embedded: Future[batch_stages.Batch] | None = None
        for number in range(plan.batches):
            embedded = threads.submit(_embed_after, pipeline, run, number, embedded)
            chains.append(threads.submit(_rest, pipeline, embedded))
            if len(chains) > _BATCHES_IN_FLIGHT:
                done.append(chains.popleft().result())
        done.extend(chain.result() for chain in chains)
        merged = stages.merge_rows(pipeline, run.run_id)
        one = stages.Round(plan=plan, batches=tuple(done), merged=merged)
        report = stages.validate_rows(pipeline, run, [one], stages.index_rows(pipeline, run.run_id))
    assert report.consistent
    return time.perf_counter() - started


def _embed_after(
    pipeline: Pipeline, run: Run, number: int, before: Future[batch_stages.Batch] | None
) -> batch_stages.Batch:
    if before is not None:
        before.result()
    return batch_stages.embed_rows(pipeline, run.run_id, number)


def _rest(pipeline: Pipeline, embedded: Future[batch_stages.Batch]) -> batch_stages.Batch:
    batch = batch_stages.binarize_rows(pipeline, embedded.result())
    return batch_stages.load_rows(pipeline, batch_stages.upload_rows(pipeline, batch))


def _embed_alone(pipeline: Pipeline) -> float:
    """Seconds of the embed stage of all batches, one after the other, with nothing beside them."""
    with running(pipeline, "benchmark") as run:
        plan = stages.extract_rows(pipeline, run)
        started = time.perf_counter()
        for number in range(plan.batches):
            batch_stages.embed_rows(pipeline, run.run_id, number)
        return time.perf_counter() - started


def _pipeline(name: str, folder: Path, embedder: dict[str, Any]) -> Pipeline:
    return Pipeline.model_validate(
        {
            "name": name,
            "source": {"kind": "postgres", "table": "public.texts", "key": ["id"], "content": "{content}"},
            "embedder": embedder,
            "target": {"table": f"vectors.{name}"},
            "artifacts": {"url": str(folder / "artifacts" / name)},
        }
    )


def _fill(connection: Connection, arguments: argparse.Namespace) -> None:
    connection.execute("CREATE TABLE public.texts (id bigint PRIMARY KEY, content text)")
    with connection.cursor().copy("COPY public.texts FROM STDIN") as copy:
        for number, text in enumerate(_texts(arguments)):
            copy.write_row((number, text))
    connection.execute("ANALYZE public.texts")


def _texts(arguments: argparse.Namespace) -> list[str]:
    if arguments.data is None:
        return [
            f"Painting {n}, oil on canvas, shows the number {n * 7919 % 10007} at sea" for n in range(arguments.rows)
        ]
    found: list[str | None] = pq.read_table(arguments.data, columns=[arguments.column]).column(0).to_pylist()
    return [text or "" for text in found[: arguments.rows]]


@contextmanager
def _provider(arguments: argparse.Namespace) -> Generator[dict[str, Any]]:
    """The embedder's part of the pipeline: the local model, or one of OpenAI's protocol in a process of its own."""
    if not arguments.latency:
        yield {"kind": "local", "dimensions": 256}
        return
    words = [f"--latency={arguments.latency}"]
    words += [f"--tokens-per-minute={arguments.tokens_per_minute}"] if arguments.tokens_per_minute else []
    command = [sys.executable, "-m", "tests.openai_server", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 # ours
    try:
        assert process.stdout is not None
        origin = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        limits = {"tokens_per_minute": arguments.tokens_per_minute} if arguments.tokens_per_minute else {}
        model = "text-embedding-3-small"
        yield {"kind": "openai", "model": model, "dimensions": 256, "base_url": f"{origin}/v1", **limits}
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _prefect(folder: Path) -> Generator[None]:
    """A Prefect server of its own, as it is shipped."""
    port = 4_817
    url = f"http://127.0.0.1:{port}/api"
    log = (folder / "prefect.log").open("w")
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 # ours
    os.environ |= {"PREFECT_API_URL": url, "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}
    try:
        _wait_for(f"{url}/health", process)
        yield
    finally:
        process.terminate()
        process.wait()
        log.close()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _SERVER_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()  # noqa: S310 # our own server
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
        else:
            return
    raise SystemExit(f"no Prefect server answered at {url}; is the port taken?")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder / "data"


def _tell(rounds: list[Round], arguments: argparse.Namespace) -> None:
    orchestration = statistics.median((one.flow - one.stages) / one.stages for one in rounds)
    of_slowest = statistics.median(one.flow / one.embed for one in rounds)
    print(f"{'':10}{'flow s':>10}{'stages s':>10}{'embed s':>10}")
    for number, one in enumerate(rounds, 1):
        print(f"round {number:<4}{one.flow:>10.2f}{one.stages:>10.2f}{one.embed:>10.2f}")
    print(f"orchestration {orchestration:.1%} of the stages; flow {of_slowest:.2f} times embedding alone")
    result = {
        "benchmark": "overlap",
        "rows": arguments.rows,
        "latency": arguments.latency,
        "tokens_per_minute": arguments.tokens_per_minute,
        "ratios": {"orchestration": round(orchestration, 4), "of_slowest": round(of_slowest, 3)},
        "goals": GOALS,
        "busy": os.getloadavg()[0],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
