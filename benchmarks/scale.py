"""What does a sync cost against rows, and what of 100,000,000?

Each size has a Postgres of its own and a table of made-up texts. The real command ``rowvec sync`` runs three times with
the local embedder: first load, nothing changed, 1 % changed. Laws are fitted to the seconds of each stage and
extrapolated. ``python -m benchmarks.scale`` takes sizes up to 2,000,000, ``--quick`` up to 20,000.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, LiteralString

import yaml

from benchmarks import plots
from benchmarks.drawn_texts import copied_texts
from benchmarks.growth import Form, Law, fit, power
from benchmarks.outcome import conclude, options
from benchmarks.servers import prefect_server
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.embedded import start_postgres

SIZES = (10_000, 50_000, 100_000, 200_000, 500_000, 2_000_000)
QUICK = (5_000, 20_000)
FAR = 100_000_000
GOALS = {"exponent first": 1.1, "client memory": 1.5}
"""Upper limits: the exponent of wall against rows, over the sizes with an index; memory at the largest size over that
at 200,000."""

_STEPS = ("first", "unchanged", "1 % changed")
_SERIAL: dict[str, Form] = {"extract": "linear", "merge": "linear", "index": "n log n", "validate": "linear"}
"""Stages that one machine does for all rows at once. The rest of the wall is the batches, whose stages overlap."""
_WORKERS = (1, 4, 16)
_EVERY_SECONDS = 0.05
_FLAT_FROM = 200_000

_TABLE: LiteralString = """
    CREATE TABLE public.texts (id bigint PRIMARY KEY, title text, body text, author text, year int)
"""
_CHANGE: LiteralString = "UPDATE public.texts SET body = body || ' revised' WHERE id % 100 = 7"
_SIZES: LiteralString = """
    SELECT
        pg_total_relation_size('public.texts'),
        pg_table_size('vectors.texts'),
        pg_indexes_size('vectors.texts'),
        (SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class
         WHERE relnamespace = 'rowvec'::regnamespace AND relkind = 'r'),
        (SELECT count(*) FROM rowvec.answers),
        (SELECT count(*) FROM pg_class
         WHERE relnamespace = 'rowvec'::regnamespace AND relname ~ '^(plan|staging)_[0-9]+$')
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One run of the command."""

    wall: float
    """Seconds from the command's start to its end, with imports and Prefect."""
    total: float
    """Seconds in the run's own report."""
    seconds: dict[str, float]
    """Seconds by stage. Batches overlap, so the seconds of their stages add up to more than the batches took."""
    peak_mb: float
    """Peak resident memory, with the pages of mapped files."""
    own_mb: float
    """Peak resident memory without mapped files: memory that no other process can use meanwhile."""
    embedded: int
    recall: float | None
    retries: dict[str, int]
    """Task runs that were tried more than once, by name. Their waits are part of the total but of no stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What a table of this many rows costs."""

    rows: int
    steps: dict[str, Step]
    bytes: dict[str, int]
    """Bytes of the source, the vector table, its indexes, the ledger and the artifacts after the three steps."""
    answers: int
    """Rows left in ``rowvec.answers``; there should be none."""
    tables_left: int
    """Plans and staging tables that were not dropped; there should be none."""
    files_left: int
    """Files left in the spool; there should be none."""


def main() -> None:
    """Measure, print tables for people and a JSON object for machines."""
    parser = options(__doc__, "5,000 and 20,000 rows")
    parser.add_argument(
        "--rows", type=int, nargs="+", default=list(SIZES), help="the sizes, ascending; a law needs two"
    )
    parser.add_argument("--dimensions", type=int, default=64, choices=[64, 128, 256])
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows = list(QUICK)
    folder = Path(tempfile.mkdtemp(prefix="rvscale", dir="/tmp"))
    try:
        with prefect_server(folder / "prefect"):
            sizes = [_measure(folder / str(rows), rows, arguments.dimensions) for rows in arguments.rows]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _tell(sizes, arguments)


def _measure(folder: Path, rows: int, dimensions: int) -> Size:
    folder.mkdir()
    server = start_postgres(folder / "pg")
    try:
        with connect(server.get_uri()) as connection:
            _fill(connection, rows)
            steps: dict[str, Step] = {}
            for name in _STEPS:
                if name == "1 % changed":
                    connection.execute(_CHANGE)
                connection.execute("CHECKPOINT")
                steps[name] = _sync(folder, server.get_uri(), dimensions)
                _progress(rows, name, steps[name])
            return _size(connection, folder, rows, steps)
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def _fill(connection: Connection, rows: int) -> None:
    """Fill the source with texts of about 145 bytes: no two are equal, twenty are of each kind."""
    connection.execute(_TABLE)
    with connection.cursor().copy("COPY public.texts FROM STDIN") as copy:
        for block in copied_texts(rows):
            copy.write(block)
    connection.execute("VACUUM (ANALYZE) public.texts")


def _sync(folder: Path, url: str, dimensions: int) -> Step:
    """Run the command in a process of its own, and watch its memory."""
    file, out = folder / "texts.yaml", folder / "out.json"
    file.write_text(yaml.safe_dump(_pipeline(dimensions)), "utf-8")
    environment = {**os.environ, "ROWVEC_DATABASE_URL": url, "ROWVEC_HOME": str(folder / "home")}
    command = [str(Path(sys.executable).parent / "rowvec"), "sync", str(file), "--json"]
    started, own = time.perf_counter(), 0
    with out.open("w") as stdout, (folder / "err.txt").open("w") as stderr:
        process = subprocess.Popen(command, env=environment, stdout=stdout, stderr=stderr)  # noqa: S603 # ours
        pid, status, used = 0, 0, None
        while not pid:
            own = max(own, _own_kb(process.pid))
            time.sleep(_EVERY_SECONDS)
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - started
    if process.returncode or used is None:
        raise SystemExit(f"rowvec sync ended with {process.returncode}: {(folder / 'err.txt').read_text()[-2000:]}")
    report: dict[str, Any] = json.loads(out.read_text())
    return Step(
        wall=round(wall, 2),
        total=report["seconds"].pop("total"),
        seconds=report["seconds"],
        peak_mb=round(used.ru_maxrss / 1024, 1),
        own_mb=round(own / 1024, 1),
        embedded=report["embedded"],
        recall=report["recall_at_k"],
        retries=_retries(),
    )


def _retries() -> dict[str, int]:
    """The task runs of the last flow run that were tried again, as Prefect's server counts them."""
    from prefect.client.orchestration import get_client  # late import: by now Prefect knows where its server is
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        (last,) = client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1)
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[last.id])))
    return {task.name: task.run_count - 1 for task in tasks if task.run_count > 1}


def _own_kb(pid: int) -> int:
    """Resident anonymous memory of a process of ours on Linux; 0 on other systems, and after the process has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1])
    return 0


def _pipeline(dimensions: int) -> dict[str, Any]:
    return {
        "name": "texts",
        "source": {
            "kind": "postgres",
            "table": "public.texts",
            "key": ["id"],
            "content": "{title}\n{body}",
            "metadata": ["author", "year"],
        },
        "embedder": {"kind": "local", "dimensions": dimensions},
        "target": {"table": "vectors.texts"},
        "artifacts": {"url": "./artifacts"},
    }


def _size(connection: Connection, folder: Path, rows: int, steps: dict[str, Step]) -> Size:
    found = connection.execute(_SIZES).fetchone()
    assert found
    source, table, indexes, ledger, answers, left = found
    artifacts = sum(file.stat().st_size for file in (folder / "artifacts").rglob("*") if file.is_file())
    spool = folder / "home" / "spool"
    return Size(
        rows=rows,
        steps=steps,
        bytes={"source": source, "vectors": table, "indexes": indexes, "ledger": ledger, "artifacts": artifacts},
        answers=answers,
        tables_left=left,
        files_left=sum(1 for file in spool.rglob("*") if file.is_file()),
    )


def _progress(rows: int, name: str, step: Step) -> None:
    print(f"{rows:,} {name}: {step}", file=sys.stderr, flush=True)


def _walls(sizes: list[Size], step: str) -> dict[str, list[float]]:
    """Seconds by part: the serial stages, and ``batches``, which is the rest of the run."""
    found = {part: [max(1e-3, one.steps[step].seconds.get(part, 0.0)) for one in sizes] for part in _SERIAL}
    found["batches"] = [
        max(1e-3, one.steps[step].total - sum(one.steps[step].seconds.get(part, 0.0) for part in _SERIAL))
        for one in sizes
    ]
    return found


def _alike(sizes: list[Size]) -> list[Size]:
    """The sizes that have an index, if there are two or more: small tables have none, and cost less."""
    indexed = [one for one in sizes if one.steps["first"].recall is not None]
    return indexed if len(indexed) > 1 else sizes


def _laws(sizes: list[Size], step: str) -> dict[str, Law]:
    rows = [one.rows for one in sizes]
    return {part: fit(_SERIAL.get(part, "linear"), rows, costs) for part, costs in _walls(sizes, step).items()}


def _far(sizes: list[Size], laws: dict[str, Law]) -> dict[str, float]:
    """Hours of a first sync of FAR rows by the number of workers like this machine; see benchmarks/README.md."""
    load = fit("linear", [one.rows for one in sizes], [one.steps["first"].seconds["load"] for one in sizes]).at(FAR)
    serial = sum(laws[part].at(FAR) for part in _SERIAL)
    batches = laws["batches"].at(FAR)
    # One server loads the rows, however many workers embed.
    walls = {workers: serial + max(batches / workers, load if workers > 1 else 0.0) for workers in _WORKERS}
    return {str(workers): round(wall / 3600, 2) for workers, wall in walls.items()}


def _tell(sizes: list[Size], arguments: argparse.Namespace) -> None:
    _print_steps(sizes)
    if len(sizes) < 2:
        conclude("scale", {}, {}, {"dimensions": arguments.dimensions, "sizes": [asdict(one) for one in sizes]})
        return
    large = _alike(sizes)
    rows = [one.rows for one in large]
    laws = {step: _laws(large, step) for step in _STEPS}
    powers = {step: power([s.rows for s in large], [s.steps[step].total for s in large]) for step in _STEPS}
    for step in _STEPS:
        print(
            f"\n{step}: seconds ~ n ** {powers[step].exponent:.2f} (R2 {powers[step].r2:.4f}, from {large[0].rows:,})"
        )
        for part, law in laws[step].items():
            print(f"  {part:<10} {law.written('s')}")
    bytes_a_row = {
        what: fit("linear", rows, [float(one.bytes[what]) for one in large]).slope for what in sizes[0].bytes
    }
    hours = _far(large, laws["first"])
    print(
        f"\n{FAR:,} rows, extrapolated: " + ", ".join(f"{what} {b:,.0f} bytes a row" for what, b in bytes_a_row.items())
    )
    print("hours of a first sync by workers: " + ", ".join(f"{w}: {h}" for w, h in hours.items()))
    flat = [one for one in sizes if one.rows >= _FLAT_FROM] or sizes
    ratios = {f"exponent {step}": round(powers[step].exponent, 3) for step in _STEPS}
    ratios["client memory"] = round(flat[-1].steps["first"].own_mb / max(1e-9, flat[0].steps["first"].own_mb), 3)
    ratios["left behind"] = float(sum(one.answers + one.tables_left + one.files_left for one in sizes))
    _plot(sizes, arguments.plot)
    figures = {
        "dimensions": arguments.dimensions,
        "quick": arguments.quick,
        "hours_of_100_million_by_workers": hours,
        "bytes_a_row": {what: round(b) for what, b in bytes_a_row.items()},
        "laws": {step: {part: asdict(law) for part, law in of.items()} for step, of in laws.items()},
        "sizes": [asdict(one) for one in sizes],
    }
    conclude("scale", ratios, GOALS, figures)


def _print_steps(sizes: list[Size]) -> None:
    stages = ["extract", "embed", "binarize", "upload", "load", "merge", "index", "validate"]
    print(
        f"{'rows':>10}  {'step':<12}{'wall s':>9}" + "".join(f"{s:>9}" for s in stages) + f"{'peak MB':>9}{'own MB':>8}"
    )
    for one in sizes:
        for name, step in one.steps.items():
            by_stage = "".join(f"{step.seconds.get(stage, 0.0):>9.2f}" for stage in stages)
            print(f"{one.rows:>10,}  {name:<12}{step.wall:>9.2f}{by_stage}{step.peak_mb:>9.0f}{step.own_mb:>8.0f}")
    print(
        f"\n{'rows':>10}" + "".join(f"{what + ' MB':>14}" for what in sizes[0].bytes) + "  left: answers, tables, files"
    )
    for one in sizes:
        sized = "".join(f"{b / 1e6:>14,.1f}" for b in one.bytes.values())
        print(f"{one.rows:>10,}{sized}  {one.answers}, {one.tables_left}, {one.files_left}")


def _plot(sizes: list[Size], into: Path | None) -> None:
    by_part = {
        part: list(zip([one.rows for one in sizes], costs, strict=True))
        for part, costs in _walls(sizes, "first").items()
    }
    panels = [
        plots.Lines(
            title="wall of a sync",
            x_label="rows",
            label="seconds",
            values={step: [(one.rows, one.steps[step].wall) for one in sizes] for step in _STEPS},
        ),
        plots.Lines(title="first sync by part", x_label="rows", label="seconds", values=by_part),
        plots.Lines(
            title="peak memory of the client",
            x_label="rows",
            label="MB",
            values={
                "with mapped files": [(one.rows, one.steps["first"].peak_mb) for one in sizes],
                "its own": [(one.rows, one.steps["first"].own_mb) for one in sizes],
            },
            log=False,
        ),
        plots.Lines(
            title="bytes",
            x_label="rows",
            label="MB",
            values={what: [(one.rows, one.bytes[what] / 1e6) for one in sizes] for what in sizes[0].bytes},
        ),
    ]
    plots.draw(into, "Cost against rows, local embedder", panels)


if __name__ == "__main__":
    main()
