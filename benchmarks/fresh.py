"""How soon is a changed row found, and what does a sync cost that finds nothing, or 1,000 changed rows?

Tables of made-up texts with a queue of changes; vectors of 64 dimensions by the protocol of OpenAI. For each size: the
database's time and pages of a sync that finds nothing changed, and of one for 1,000 changed rows, both without an
index. With the largest: the same with an HNSW graph, so that its inserts are told apart, and for 100 rows beside an
UPDATE of as many vectors alone, which is what the server needs in any case; then ``rowvec watch`` in a process of its
own, 100 changed rows a second for a minute, and how long after its commit a row is found by ``texts_search``. If pgai
is installed (``make bench-rivals``), its worker does the same on the same table after it, and its rows are looked for
in its table. ``python -m benchmarks.fresh`` takes tables up to 1,000,000 rows, ``--quick`` up to 5,000.

The phases are ``tables``, ``costs``, ``graph`` and ``watch``. With ``--folder F`` tables and figures stay in F, so that
``--only`` can make the tables once, and measure again: ``--folder F --only tables graph``, then ``--folder F --only
watch``. The phase ``costs`` drops the graph of an earlier call.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import plots
from benchmarks.fresh_table import DIMENSIONS, Cost, Table
from benchmarks.outcome import conclude, options
from benchmarks.provider import KEY, MODEL, Account, serving
from benchmarks.syncers import ENVIRONMENTS, pgai_environment, prepare_pgai, syncers
from rowvec.operations.changes import remove_queue
from rowvec.operations.index import maintain
from rowvec.postgres.embedded import start_postgres
from tests.support.servers.openai_server import vector

SIZES, QUICK = (10_000, 100_000, 1_000_000), (2_000, 5_000)
CHANGED = 1_000
PER_SECOND = 100
PATIENCE_SECONDS = 120
GOALS = {"p99 seconds": 3.0, "nothing changed, ms": 20.0, "1,000 changed, largest over smallest": 1.5}
"""Upper limits."""

_ACCOUNT = Account(latency=0.02, latency_per_text=0.0, requests_per_minute=1_000_000, tokens_per_minute=1_000_000_000)
_FOUND = {
    "rowvec": "SELECT 1 FROM vectors.texts_search(%(vector)s::vector, 10) WHERE id = %(id)s AND content = %(content)s",
    "pgai": "SELECT 1 FROM public.texts_embeddings_store"
    " WHERE id = %(id)s AND embedding <-> %(vector)s::vector < 0.0001",
}
"""Whether a changed row has its new vector: for pgai without a search, because it builds no index by itself."""


@dataclass(slots=True)
class Probe:
    """A row whose change is looked for."""

    id: int
    committed: float
    vector: str
    content: str


def main() -> None:
    """Measure, print figures for people and a JSON object for machines."""
    parser = options(__doc__, "2,000 and 5,000 rows, and ten seconds")
    parser.add_argument("--rows", type=int, nargs="+", default=list(SIZES), help="the sizes, ascending")
    parser.add_argument("--seconds", type=float, default=60.0, help="for so long rows change beside the watcher")
    parser.add_argument("--folder", type=Path, help="keep tables and figures here, for the next call")
    parser.add_argument("--only", nargs="+", choices=PHASES, default=list(PHASES), help="these phases; see --folder")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.seconds = list(QUICK), 10.0
    # If a time limit ends the benchmark, the servers are stopped and the folder is deleted too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    folder = (arguments.folder or Path(tempfile.mkdtemp(prefix="rvfresh", dir="/tmp"))).resolve()
    folder.mkdir(exist_ok=True)
    os.environ |= {"OPENAI_API_KEY": KEY, "ROWVEC_HOME": str(folder / "home")}
    server = start_postgres(folder / "pg")
    try:
        with serving(_ACCOUNT) as provider:
            tables = {rows: Table(server.get_uri, folder, provider.url, rows) for rows in arguments.rows}
            kept = folder / "figures.json"
            found: dict[str, Any] = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
            for phase in arguments.only:
                found |= PHASES[phase](arguments, tables, provider.url)
                kept.write_text(json.dumps(found), "utf-8")
    finally:
        server.cleanup()
        if arguments.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    tell(arguments, found)


def make_tables(arguments: argparse.Namespace, tables: dict[int, Table], base_url: str) -> dict[str, Any]:
    """The tables with all their vectors and without an index."""
    for rows, table in tables.items():
        table.write("none")
        say(f"{rows:,} rows: first sync {table.sync().seconds:.1f} s")
    return {}


def measure_costs(arguments: argparse.Namespace, tables: dict[int, Table], base_url: str) -> dict[str, Any]:
    """A sync that finds nothing, and one for changed rows, at each size."""
    nothing, changed = dict[str, Any](), dict[str, Any]()
    for rows, table in tables.items():
        table.write("none")
        # In step with what an earlier call has left, and the connection to the server is no first one.
        table.sync()
        table.warm()
        table.sync()
        nothing[str(rows)] = asdict(cheapest([table.sync() for _ in range(3)]))
        changed[str(rows)] = asdict(cheapest([_after_changes(table) for _ in range(3)]))
        say(f"{rows:,} rows: nothing changed {nothing[str(rows)]}")
        say(f"{rows:,} rows: {CHANGED:,} changed {changed[str(rows)]}")
    return {"nothing": nothing, "changed": changed}


def build_graph(arguments: argparse.Namespace, tables: dict[int, Table], base_url: str) -> dict[str, Any]:
    """An HNSW graph on the largest table."""
    table = tables[arguments.rows[-1]]
    table.write("hnsw")
    began = time.monotonic()
    maintain(table.pipeline)
    seconds = round(time.monotonic() - began, 1)
    say(f"graph built in {seconds:.0f} s")
    return {"build_seconds": seconds}


def watch_changes(arguments: argparse.Namespace, tables: dict[int, Table], base_url: str) -> dict[str, Any]:
    """Changed rows with the graph, then beside the watchers."""
    table = tables[arguments.rows[-1]]
    table.write("hnsw")
    table.sync()
    with_graph = cheapest([_after_changes(table) for _ in range(3)])
    say(f"{CHANGED:,} changed with the graph {with_graph}")
    few = cheapest([_after_changes(table, PER_SECOND) for _ in range(3)])
    bare = min(table.bare_update(PER_SECOND) for _ in range(3))
    say(f"{PER_SECOND} changed with the graph {few}; an UPDATE of as many vectors alone: {bare:.3f} s")
    rowvec = [str(Path(sys.executable).parent / "rowvec"), "watch", str(table.file)]
    delays = {"rowvec": watched(table, "rowvec", rowvec, arguments.seconds)}
    _say_delays("rowvec", delays["rowvec"])
    (pgai,) = syncers(["pgai"])
    if pgai.installed:
        remove_queue(table.pipeline)
        prepare_pgai(table.url, base_url, DIMENSIONS, existing=False)
        worker = [str(ENVIRONMENTS / "pgai/bin/pgai"), "vectorizer", "worker", "-d", table.url, "--poll-interval", "1s"]
        delays["pgai"] = watched(table, "pgai", worker, arguments.seconds)
        _say_delays("pgai", delays["pgai"])
    return {"with_graph": asdict(with_graph), "few": asdict(few), "bare_seconds": round(bare, 3), "delays": delays}


PHASES: dict[str, Callable[[argparse.Namespace, dict[int, Table], str], dict[str, Any]]] = {
    "tables": make_tables,
    "costs": measure_costs,
    "graph": build_graph,
    "watch": watch_changes,
}


def _say_delays(name: str, delays: list[float]) -> None:
    p50, p99, longest = summary(delays)
    say(f"{name}: {len(delays)} rows found after {p50:.2f} s (p50), {p99:.2f} s (p99), {longest:.2f} s (most)")


def tell(arguments: argparse.Namespace, found: dict[str, Any]) -> None:
    """The figures of all phases; nothing, as long as one is missing."""
    if missing := {"nothing", "build_seconds", "with_graph"} - found.keys():
        say(f"not measured yet: {', '.join(sorted(missing))}")
        return
    nothing, changed, delays = found["nothing"], found["changed"], found["delays"]
    figures = {name: summary(each) for name, each in delays.items()}
    bars = [
        plots.Bars(
            title=f"seconds until found, {each}",
            label="s",
            values={name: found[place] for name, found in figures.items()},
        )
        for place, each in enumerate(("p50", "p99"))
    ]
    sizes = {f"{int(rows):,}": cost["database_ms"] for rows, cost in nothing.items()}
    bars.append(plots.Bars(title="nothing changed", label="ms of the database", values=sizes, goal=20.0))
    plots.draw(arguments.plot, "Fresh in seconds", bars)
    p50, p99, _ = figures["rowvec"]
    least, most = (str(arguments.rows[place]) for place in (0, -1))
    insert_ms = (found["with_graph"]["merge_seconds"] - changed[most]["merge_seconds"]) * 1000 / CHANGED
    conclude(
        "fresh",
        {
            "p99 seconds": round(p99, 2),
            "nothing changed, ms": nothing[most]["database_ms"],
            "1,000 changed, largest over smallest": round(
                changed[most]["database_ms"] / changed[least]["database_ms"], 2
            ),
            "1,000 changed, pages, largest over smallest": round(changed[most]["pages"] / changed[least]["pages"], 2),
        },
        GOALS,
        {
            **found,
            "quick": arguments.quick,
            "p50": round(p50, 2),
            "delays": {name: [round(one, 2) for one in sorted(each)] for name, each in delays.items()},
            "p50, p99, most": {name: [round(one, 2) for one in each] for name, each in figures.items()},
            "insert_ms": round(insert_ms, 2),
            "merge over the bare update": round(found["few"]["merge_seconds"] / found["bare_seconds"], 2),
        },
    )


def _after_changes(table: Table, rows: int = CHANGED) -> Cost:
    table.change(min(rows, table.rows // 2))
    return table.sync()


def cheapest(costs: list[Cost]) -> Cost:
    """The one that other work on the machine has disturbed least."""
    return min(costs, key=lambda cost: cost.database_ms)


def summary(delays: list[float]) -> tuple[float, float, float]:
    """p50, p99 and the longest."""
    return statistics.median(delays), statistics.quantiles(delays, n=100, method="inclusive")[98], max(delays)


def watched(table: Table, name: str, command: list[str], seconds: float) -> list[float]:
    """Seconds from commit to found, of one row each second, while a watcher syncs what a writer changes."""
    environment = {each: value for each, value in os.environ.items() if each != "PREFECT_API_URL"}
    environment |= pgai_environment()
    process = subprocess.Popen(  # noqa: S603 # our own, or the peer's
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def still() -> bool:
        if process.poll() is not None:
            raise SystemExit(f"{name} has ended by itself, with status {process.returncode}")
        return writing.is_alive() if writing else False

    writing: threading.Thread | None = None
    try:
        # Warm, and in step.
        look_for(table, name, [change_one(table, 1)], still)
        probes: list[Probe] = []
        writing = threading.Thread(target=write, args=(table, seconds, probes))
        writing.start()
        delays = look_for(table, name, probes, still)
        writing.join()
        return delays
    finally:
        process.terminate()
        process.wait()


def write(table: Table, seconds: float, probes: list[Probe]) -> None:
    """Change rows, each in a transaction of its own; one of each second is added to ``probes``."""
    with psycopg.connect(table.url, autocommit=True) as writer:
        began = time.monotonic()
        for number in range(int(seconds * PER_SECOND)):
            time.sleep(max(0.0, began + number / PER_SECOND - time.monotonic()))
            if number % PER_SECOND == PER_SECOND // 2:
                # The other half of the table: nothing changes a row that is looked for a second time.
                probes.append(change_one(table, table.rows - number, writer))
            else:
                other = 1 + number * 7 % (table.rows // 2)
                writer.execute("UPDATE public.texts SET content = content || '.' WHERE id = %s", (other,))


def change_one(table: Table, row: int, writer: psycopg.Connection[tuple[Any, ...]] | None = None) -> Probe:
    """Give a row a text that no other row has, and note when that was committed."""
    content = f"probe {row} {time.time()}"
    (writer or table.client).execute("UPDATE public.texts SET content = %s WHERE id = %s", (content, row))
    committed = time.monotonic()
    drawn = ",".join(map(str, vector(MODEL, content, DIMENSIONS)))
    return Probe(row, committed, f"[{drawn}]", content)


def look_for(table: Table, name: str, probes: list[Probe], more: Callable[[], bool]) -> list[float]:
    """Search for each probe until it is found with its new text; ends once all are and there will be no more."""
    delays = list[float]()
    with psycopg.connect(table.url, autocommit=True) as client:
        client.execute("SELECT set_config('search_path', 'vectors, public', false)")
        while more() or len(delays) < len(probes):
            for probe in probes[len(delays) :]:
                values = {"vector": probe.vector, "id": probe.id, "content": probe.content}
                if client.execute(_FOUND[name].encode(), values).fetchone() is None:
                    if time.monotonic() > probe.committed + PATIENCE_SECONDS:
                        raise SystemExit(f"{name} has not found the row {probe.id} after {PATIENCE_SECONDS} s")
                    break
                delays.append(time.monotonic() - probe.committed)
            time.sleep(0.01)
    return delays


def say(sentence: str) -> None:
    """Print a line for people."""
    sys.stdout.write(sentence + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
