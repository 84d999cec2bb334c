"""How much longer does a first sync take than its slowest stage alone, and what does orchestration cost?

One source table gets many first syncs, each as a new pipeline with its own vector table and store, in three ways: by
the flow on a Prefect server of its own; by the same stages on the same number of threads without Prefect; and stage
after stage, each over all batches while nothing else runs. The three take turns, and ratios are medians of the rounds.
Two embedders are measured one after the other: the local model, and a provider in a process of its own that has a
latency (``--latency``) and a limit (``--tokens-per-minute``). ``--data`` is a Parquet file with a text column
(``--column``); by default rows are made up.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from benchmarks import plots
from benchmarks.outcome import conclude, options
from benchmarks.servers import prefect_server, provider
from rowvec.ledger.runs import Run
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.embedded import start_postgres
from rowvec.stages import order
from rowvec.stages.batch import Batch, embedded_at_once
from rowvec.stages.report import SyncReport

GOALS = {"of_slowest": 1.15, "orchestration": 0.03}
"""The flow's wall over that of its slowest stage alone; the time the flow adds to its stages, as a share of theirs."""

Mode = Literal["local", "paid"]
MODES: tuple[Mode, ...] = ("local", "paid")

# These stages work batch by batch, so they can overlap. All batches wait for extract; the other stages wait for all
# batches.
_BATCHED = ("embed", "binarize", "upload", "load")
_QUICK_ROWS = 8_192
# What may be used at once, in seconds of the limit: if a whole minute's limit could be, the first minute had no limit.
_BURST_SECONDS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Seconds of one round; each of the three ways has a table of its own."""

    flow: float
    stages: float
    alone: dict[str, float]
    """Seconds of each stage alone, by stage."""

    @property
    def orchestration(self) -> float:
        """The time that the flow adds to the stages, as a share of theirs."""
        return (self.flow - self.stages) / self.stages

    @property
    def of_slowest(self) -> float:
        """The flow's wall over that of the slowest stage."""
        return self.flow / max(self.alone.values())

    @property
    def of_path(self) -> float:
        """The flow's wall over the least the order allows: the slowest stage that overlaps, plus all other stages."""
        batched = max(self.alone[stage] for stage in _BATCHED)
        return self.flow / (batched + sum(s for stage, s in self.alone.items() if stage not in _BATCHED))


def main() -> None:
    """Measure and print."""
    parser = options(__doc__, f"{_QUICK_ROWS:,} rows, one round")
    parser.add_argument("--data", type=Path, help="a Parquet file of texts")
    parser.add_argument("--column", default="title", help="of the file")
    parser.add_argument("--rows", type=int, default=69_202)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mode", choices=MODES, nargs="+", default=list(MODES))
    parser.add_argument("--latency", type=float, default=0.3, help="seconds of the provider's answer")
    parser.add_argument("--tokens-per-minute", type=int, default=1_000_000, help="of the provider's limit")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.rounds = _QUICK_ROWS, 1
    folder = Path(tempfile.mkdtemp(prefix="rvoverlap", dir="/tmp"))
    os.environ |= {"ROWVEC_HOME": str(folder / "home"), "OPENAI_API_KEY": "sk-overlap"}
    found: dict[Mode, list[Round]] = {}
    try:
        (folder / "pg").mkdir(parents=True)
        server = start_postgres(folder / "pg" / "data")
        os.environ["ROWVEC_DATABASE_URL"] = server.get_uri()
        with connect(server.get_uri()) as connection, prefect_server(folder / "prefect"):
            _fill(connection, arguments)
            for mode in arguments.mode:
                with _embedder(mode, arguments) as embedder:
                    found[mode] = _measure(connection, folder, mode, embedder, arguments)
        server.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _tell(found, arguments)


def _measure(
    connection: Connection, folder: Path, mode: Mode, embedder: dict[str, Any], arguments: argparse.Namespace
) -> list[Round]:
    from rowvec_flows.sync import sync  # late: by now Prefect knows where its server is

    def by_flow(pipeline: Pipeline) -> float:
        started = time.perf_counter()
        report: SyncReport = sync(pipeline)
        took = time.perf_counter() - started
        assert report.consistent
        return took

    ways: dict[str, Callable[[Pipeline], Any]] = {"flow": by_flow, "stages": _by_stages, "alone": _one_by_one}
    rounds: list[Round] = []
    # The first run of each way loads the model and fills caches; with a provider's limit that makes no difference.
    warming = 1 if mode == "local" else 0
    for number in range(arguments.rounds + warming):
        seconds: dict[str, Any] = {}
        for name in list(ways) if number % 2 else list(ways)[::-1]:
            connection.execute("CHECKPOINT")
            seconds[name] = ways[name](_pipeline(f"{mode}_{name}{number}", folder, embedder))
            print(f"{mode}, round {number}: {name} {seconds[name]}", file=sys.stderr, flush=True)
        rounds.append(Round(**seconds))
    return rounds[warming:]


def _by_stages(pipeline: Pipeline) -> float:
    """Run the flow's stages on the same number of threads, without Prefect."""
    from rowvec_flows.sync import BATCHES_IN_FLIGHT  # late, as above

    started = time.perf_counter()
    with ThreadPoolExecutor(4 * (BATCHES_IN_FLIGHT + 1)) as threads:

        def batches(pipeline: Pipeline, run: Run, count: int) -> list[Batch]:
            chains: deque[Future[Batch]] = deque()
            done: list[Batch] = []
            embedded: list[Future[Batch]] = []
            at_once = embedded_at_once(pipeline)
            for number in range(count):
                before = embedded[-at_once] if number >= at_once else None
                embedded.append(threads.submit(_embed_after, pipeline, run, number, before))
                chains.append(threads.submit(_rest, pipeline, embedded[-1]))
                if len(chains) > BATCHES_IN_FLIGHT:
                    done.append(chains.popleft().result())
            return done + [chain.result() for chain in chains]

        report = order.sync(pipeline, "benchmark", replace(order.IN_PROCESS, batches=batches))
    assert report.consistent
    return time.perf_counter() - started


def _embed_after(pipeline: Pipeline, run: Run, number: int, before: Future[Batch] | None) -> Batch:
    if before is not None:
        before.result()
    return order.BATCH_STAGES["embed"].run(pipeline, Batch.of(run, number))


def _rest(pipeline: Pipeline, embedded: Future[Batch]) -> Batch:
    batch = embedded.result()
    names = order.batch_stages(pipeline)
    for name in names[names.index("embed") + 1 :]:
        batch = order.BATCH_STAGES[name].run(pipeline, batch)
    return batch


def _one_by_one(pipeline: Pipeline) -> dict[str, float]:
    """Seconds of each stage over all batches while nothing else runs, from the run's own report."""

    def batches(pipeline: Pipeline, run: Run, count: int) -> list[Batch]:
        done = [Batch.of(run, number) for number in range(count)]
        for name in order.batch_stages(pipeline):
            done = [order.BATCH_STAGES[name].run(pipeline, batch) for batch in done]
        return done

    report = order.sync(pipeline, "benchmark", replace(order.IN_PROCESS, batches=batches))
    assert report.consistent
    return {stage: seconds for stage, seconds in report.seconds.items() if stage != "total"}


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
def _embedder(mode: Mode, arguments: argparse.Namespace) -> Generator[dict[str, Any]]:
    """The embedder's part of the pipeline."""
    if mode == "local":
        yield {"kind": "local", "dimensions": 256}
        return
    limit = arguments.tokens_per_minute
    words = (f"--latency={arguments.latency}", f"--tokens-per-minute={limit}", f"--burst-seconds={_BURST_SECONDS}")
    # Vectors of texts, not noise: an index over noise takes more than twice as long to build.
    with provider(*words, "--meaning") as origin:
        settings = {"model": "text-embedding-3-small", "dimensions": 256, "tokens_per_minute": limit}
        yield {"kind": "openai", "base_url": f"{origin}/v1", **settings}


def _tell(found: dict[Mode, list[Round]], arguments: argparse.Namespace) -> None:
    ratios: dict[str, float] = {}
    goals: dict[str, float] = {}
    for mode, rounds in found.items():
        print(f"{mode}: flow s, stages s, and each stage alone")
        for one in rounds:
            alone = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in one.alone.items())
            print(f"  {one.flow:8.2f}{one.stages:8.2f}  {alone}")
        for name in ("orchestration", "of_slowest", "of_path"):
            ratios[f"{name} {mode}"] = round(statistics.median(getattr(one, name) for one in rounds), 4)
        goals |= {f"{name} {mode}": goal for name, goal in GOALS.items()}
        print(
            f"  orchestration {ratios[f'orchestration {mode}']:.1%} of the stages; the flow takes "
            f"{ratios[f'of_slowest {mode}']:.2f} times its slowest stage alone, {ratios[f'of_path {mode}']:.2f} times "
            "the shortest that its order allows"
        )
    _plot(found, arguments.plot)
    figures = {
        "rows": arguments.rows,
        "latency": arguments.latency,
        "tokens_per_minute": arguments.tokens_per_minute,
        "quick": arguments.quick,
        "rounds": {mode: [asdict(one) for one in rounds] for mode, rounds in found.items()},
    }
    conclude("overlap", ratios, goals, figures)


def _plot(found: dict[Mode, list[Round]], into: Path | None) -> None:
    panels: list[plots.Bars | plots.Lines] = []
    for mode, rounds in found.items():
        values = {name: statistics.median(getattr(one, name) for one in rounds) for name in ("flow", "stages")}
        values |= {f"{stage} alone": statistics.median(one.alone[stage] for one in rounds) for stage in rounds[0].alone}
        panels.append(plots.Bars(title=mode, label="seconds", values=values))
    plots.draw(into, "A first sync, and its stages", panels)


if __name__ == "__main__":
    main()
