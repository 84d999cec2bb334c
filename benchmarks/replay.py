"""Is the table right after each of hundreds of real edits, and is no text paid for twice? A table's history, replayed.

A Parquet file of events (version, op I/U/D, key, row as JSON) is replayed into a source table, version by version.
After each step one sync runs, then plain SQL compares every row of the vector table with the source. At the end the sum
of ``embedded`` must be the number of distinct contents that any sync has seen.

``python -m benchmarks.replay --data EVENTS.parquet`` replays all of it with the local embedder; ``--every N`` takes N
versions at a time, ``--versions M`` stops after M of them, ``--paid`` embeds with a server in a process of its own that
counts the texts it receives.
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
import urllib.request
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import pyarrow.parquet as pq

from rowvec.embedders import open_embedder
from rowvec.errors import DeleteLimitExceeded
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.embedded import start_postgres
from rowvec.stages import order
from rowvec.stages.report import SyncReport

DATA = "ROWVEC_REPLAY_DATA"
"""The environment variable with the events' path."""

MAX_ROUNDS = 3

# Numbers keep their type, so that metadata of more than one type is compared.
_TABLE: LiteralString = """
    CREATE TABLE public.constituents (
        constituentid bigint PRIMARY KEY, forwarddisplayname text, displaydate text, nationality text,
        constituenttype text, beginyear int, endyear int, lastname text, preferreddisplayname text, ulanid text
    );
    CREATE SCHEMA replay;
    CREATE TABLE replay.seen (content text NOT NULL);
    CREATE UNIQUE INDEX ON replay.seen (md5(content))
"""

_PUT: LiteralString = """
    INSERT INTO public.constituents
    SELECT r.* FROM unnest(%s::text[]) AS given, jsonb_populate_record(NULL::public.constituents, given::jsonb) AS r
    ON CONFLICT (constituentid) DO UPDATE SET
        (forwarddisplayname, displaydate, nationality, constituenttype, beginyear, endyear, lastname,
         preferreddisplayname, ulanid)
        = (excluded.forwarddisplayname, excluded.displaydate, excluded.nationality, excluded.constituenttype,
           excluded.beginyear, excluded.endyear, excluded.lastname, excluded.preferreddisplayname, excluded.ulanid)
"""

_DROP: LiteralString = "DELETE FROM public.constituents WHERE constituentid = ANY (%s::bigint[])"

# The pipeline's template written again as SQL by hand. Rows without a visible character have no vector.
_WANTED: LiteralString = """
    WITH wanted AS (
        SELECT * FROM (
            SELECT constituentid, nationality, constituenttype, beginyear, endyear,
                coalesce(forwarddisplayname, '') || E'\\n' || coalesce(displaydate, '') AS content
            FROM public.constituents
        ) AS rendered
        WHERE content ~ '[^ \\t\\n\\r\\f\\v]'
    )
"""

_WRONG: LiteralString = """
    SELECT coalesce(w.constituentid, t.constituentid)
    FROM wanted AS w
    FULL JOIN vectors.constituents AS t ON w.constituentid = t.constituentid
    WHERE w.constituentid IS NULL OR t.constituentid IS NULL OR t.embedding IS NULL
        OR (w.content, w.nationality, w.constituenttype, w.beginyear, w.endyear)
        IS DISTINCT FROM (t.content, t.nationality, t.constituenttype, t.beginyear, t.endyear)
    ORDER BY 1
"""

_GOING: LiteralString = """
    SELECT count(*) FILTER (WHERE w.constituentid IS NULL), count(*)
    FROM vectors.constituents AS t LEFT JOIN wanted AS w ON w.constituentid = t.constituentid
"""

_SEE: LiteralString = "INSERT INTO replay.seen SELECT DISTINCT content FROM wanted ON CONFLICT DO NOTHING"


class ReplayFailed(Exception):
    """After a step the vector table differs from the source, or a text was paid for twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What changes between two syncs."""

    version: int
    """The last version of the step."""
    put: dict[int, str]
    """Rows as JSON, by key."""
    drop: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A replay whose every step was right."""

    steps: int
    rows: int
    embedded: int
    distinct: int
    reused: int
    deleted: int
    refused: int
    """Steps that would have deleted more than the pipeline allows, and ran with a raised limit."""
    by_queue: int
    """Steps whose sync compared only what a queue of changes named."""
    seconds: tuple[float, ...]
    """Seconds of each step's sync."""


def read_steps(path: Path, *, every: int = 1, versions: int | None = None) -> list[Step]:
    """The events in their order, ``every`` versions per step; if ``versions`` is given, only the first of them."""
    table = pq.read_table(path, columns=["version", "op", "key", "row"])
    events: list[dict[str, Any]] = table.sort_by("version").to_pylist()
    numbers = sorted({event["version"] for event in events})[:versions]
    step_of = {number: position // every for position, number in enumerate(numbers)}
    puts: list[dict[int, str]] = [{} for _ in range(0, len(numbers), every)]
    drops: list[set[int]] = [set() for _ in puts]
    for event in events:
        if event["version"] not in step_of:
            continue
        put, drop, key = puts[step_of[event["version"]]], drops[step_of[event["version"]]], int(event["key"])
        if event["op"] == "D":
            put.pop(key, None)
            drop.add(key)
        else:
            put[key] = _row(event["row"])
            drop.discard(key)
    last = [numbers[min(start + every, len(numbers)) - 1] for start in range(0, len(numbers), every)]
    return [Step(version=v, put=p, drop=frozenset(d)) for v, p, d in zip(last, puts, drops, strict=True)]


def _row(written: str) -> str:
    """The row as JSON, with NULL for the empty values of the history, which was CSV."""
    return json.dumps({name: value or None for name, value in json.loads(written).items()})


def written_pipeline(artifacts: Path, embedder: dict[str, Any], *, queued: bool = False) -> Pipeline:
    """The pipeline of the replay: names and dates are the content, the other columns of a person are metadata.

    ``queued``: with a queue of changes.
    """
    return Pipeline.model_validate(
        {
            "name": "constituents",
            "source": {
                "kind": "postgres",
                "table": "public.constituents",
                "key": ["constituentid"],
                "content": "{forwarddisplayname}\n{displaydate}",
                "metadata": ["nationality", "constituenttype", "beginyear", "endyear"],
                "changes": {"by": "trigger" if queued else "compare"},
            },
            "embedder": embedder,
            "target": {"table": "vectors.constituents"},
            "artifacts": {"url": str(artifacts)},
        }
    )


def replay(
    connection: Connection,
    pipeline: Pipeline,
    steps: Iterable[Step],
    report_step: Callable[[Step, SyncReport], None] = lambda _step, _report: None,
) -> Outcome:
    """Play the steps, with a sync and a comparison after each.

    ``connection`` is to the pipeline's own database, in autocommit. If the pipeline has a queue of changes, everything
    is compared at the end. Raises ``ReplayFailed``, which names the version.
    """
    connection.execute(_TABLE)
    seconds: list[float] = []
    reports: list[SyncReport] = []
    refused = 0
    for step in steps:
        with connection.transaction():
            connection.execute(_DROP, (list(step.drop),))
            connection.execute(_PUT, (list(step.put.values()),))
        allowed, stopped = _allowed(connection, pipeline, step)
        refused += stopped
        started = time.monotonic()
        reports.append(sync(allowed))
        seconds.append(time.monotonic() - started)
        report_step(step, reports[-1])
        _check(connection, step, reports[-1])
        connection.execute(_WANTED + _SEE)
        paid, distinct = sum(report.embedded for report in reports), _count(connection)
        if paid != distinct:
            raise ReplayFailed(
                f"version {step.version}: {paid:,} texts embedded so far, {distinct:,} distinct ones seen"
            )
    source = pipeline.source
    if reports and source.kind == "postgres" and source.changes.by == "trigger":
        connection.execute("UPDATE rowvec.changes SET verified_at = verified_at - interval '30 days'")
        missed = sync(pipeline).missed_by_queue
        if missed != 0:
            raise ReplayFailed(f"after the last version, the queue of changes had missed {missed} rows")
    return Outcome(
        steps=len(reports),
        by_queue=sum(report.compared_in_part is not None for report in reports),
        rows=reports[-1].rows if reports else 0,
        embedded=sum(report.embedded for report in reports),
        distinct=_count(connection),
        reused=sum(report.reused for report in reports),
        deleted=sum(report.deleted for report in reports),
        refused=refused,
        seconds=tuple(seconds),
    )


def _allowed(connection: Connection, pipeline: Pipeline, step: Step) -> tuple[Pipeline, bool]:
    """The pipeline that this step needs, and whether the limit of deletions first had to stop the sync, and did.

    Raises ``ReplayFailed`` if the limit did not stop it.
    """
    if connection.execute("SELECT to_regclass('vectors.constituents')").fetchone() == (None,):
        return pipeline, False
    going, stored = connection.execute(_WANTED + _GOING).fetchone() or (0, 0)
    if going <= stored * pipeline.validation.max_delete_fraction:
        return pipeline, False
    try:
        sync(pipeline)
    except DeleteLimitExceeded:
        raised = pipeline.validation.model_copy(update={"max_delete_fraction": 1.0})
        return pipeline.model_copy(update={"validation": raised}), True
    raise ReplayFailed(
        f"version {step.version}: {going:,} of {stored:,} rows were deleted, and no limit stopped the sync"
    )


def sync(pipeline: Pipeline) -> SyncReport:
    """A sync without an orchestrator. Raises ``Inconsistent`` as the flow does."""
    return order.sync(pipeline, "replay")


def wrong_rows(connection: Connection) -> list[int]:
    """The keys whose vector, content or metadata differ from the source, found by plain SQL."""
    return [key for (key,) in connection.execute(_WANTED + _WRONG)]


def _check(connection: Connection, step: Step, report: SyncReport) -> None:
    wrong = wrong_rows(connection)
    if wrong:
        raise ReplayFailed(f"version {step.version}: {len(wrong):,} rows are wrong, such as {wrong[:5]}")
    if not report.consistent or report.pending:
        raise ReplayFailed(f"version {step.version}: {report.verdict()} {report.pending} rows pending")


def _count(connection: Connection) -> int:
    return (connection.execute("SELECT count(*) FROM replay.seen").fetchone() or (0,))[0]


def ambiguous(connection: Connection) -> int:
    """How many contents have more than one vector. Whatever the embedder reports, equal texts must have equal ones."""
    row = connection.execute(
        "SELECT count(*) FROM (SELECT 1 FROM vectors.constituents GROUP BY content"
        " HAVING count(DISTINCT embedding) > 1 OR count(DISTINCT fingerprint) > 1) AS several"
    ).fetchone()
    return (row or (0,))[0]


@contextmanager
def counting_server() -> Generator[str]:
    """The address of an embeddings server in a process of its own, which counts the texts it receives."""
    command = [sys.executable, "-m", "tests.support.servers.openai_server", "--port", "0", "--key", "replayed"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 # our own test server
    try:
        line = server.stdout.readline() if server.stdout else ""
        if not line.strip().isdigit():
            raise SystemExit("the counting server did not start; run this from the repository's root")
        yield f"http://127.0.0.1:{line.strip()}"
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Replay, and print a line for people and a JSON object for machines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=f"the events' Parquet file; the default is ${DATA}")
    parser.add_argument("--every", type=int, default=1, help="versions to a step")
    parser.add_argument("--versions", type=int, help="how many versions in all; the default is every one")
    parser.add_argument("--paid", action="store_true", help="embed by a server that counts")
    parser.add_argument("--queued", action="store_true", help="with a queue of changes, which triggers fill")
    arguments = parser.parse_args()
    data = arguments.data or (Path(os.environ[DATA]) if os.environ.get(DATA) else None)
    if data is None or not data.is_file():
        parser.error(f"the events were not found ({data or 'no path'}); name their Parquet file with --data or ${DATA}")
    if arguments.every < 1:
        parser.error("--every takes one version or more")
    folder = Path(tempfile.mkdtemp(prefix="rvp"))
    postgres = start_postgres(folder / "pg")
    os.environ |= {"ROWVEC_DATABASE_URL": postgres.get_uri(), "ROWVEC_HOME": str(folder / "home")}
    os.environ["OPENAI_API_KEY"] = "replayed"
    try:
        with counting_server() if arguments.paid else nullcontext() as address:
            steps = read_steps(data, every=arguments.every, versions=arguments.versions)
            run(folder, steps, address, queued=arguments.queued)
    finally:
        postgres.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def run(folder: Path, steps: list[Step], address: str | None, *, queued: bool) -> None:
    """One replay on an empty database, with its figures."""
    embedder: dict[str, Any] = {"kind": "local", "dimensions": 64}
    if address:
        embedder = {"kind": "openai", "model": "text-embedding-3-small", "dimensions": 64, "base_url": f"{address}/v1"}
    pipeline = written_pipeline(folder / "artifacts", embedder, queued=queued)
    with connect(os.environ["ROWVEC_DATABASE_URL"]) as connection:
        open_embedder(pipeline.embedder)
        outcome = replay(connection, pipeline, steps, _progress(len(steps)))
        several = ambiguous(connection)
    if several:
        raise ReplayFailed(f"{several:,} contents have more than one vector")
    sent = _sent(address) if address else None
    if sent not in (None, outcome.distinct):
        raise ReplayFailed(f"the server received {sent:,} texts, but {outcome.distinct:,} are distinct")
    sys.stdout.write(
        f"{outcome.steps:,} steps to {outcome.rows:,} rows, each right, {outcome.by_queue:,} by the queue of changes; "
        f"{outcome.embedded:,} texts embedded, "
        f"{outcome.distinct:,} distinct ones seen; {outcome.reused:,} vectors reused, {outcome.deleted:,} deleted; "
        f"{statistics.median(outcome.seconds):.2f} s per sync (median), {max(outcome.seconds):.1f} s the longest, "
        f"{sum(outcome.seconds):.0f} s in all\n"
    )
    figures = {name: getattr(outcome, name) for name in ("steps", "rows", "embedded", "distinct", "reused", "deleted")}
    figures |= {
        "queued": queued,
        "by_queue": outcome.by_queue,
        "refused": outcome.refused,
        "sent": sent,
        "busy": os.getloadavg()[0],
    }
    timing = {"median": round(statistics.median(outcome.seconds), 3), "all": round(sum(outcome.seconds), 1)}
    sys.stdout.write(json.dumps({"benchmark": "replay", **figures, "seconds": timing}) + "\n")


def _progress(steps: int) -> Callable[[Step, SyncReport], None]:
    done = 0

    def report_step(step: Step, report: SyncReport) -> None:
        nonlocal done
        done += 1
        if done % 25 == 0 or done == steps:
            sys.stderr.write(f"{done} of {steps}: version {step.version}, {report.rows:,} rows\n")

    return report_step


def _sent(address: str) -> int:
    with urllib.request.urlopen(f"{address}/stats", timeout=10) as answer:  # noqa: S310 # our own server
        return json.loads(answer.read())["paid"]


if __name__ == "__main__":
    main()
