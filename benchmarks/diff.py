"""What does it cost to learn that nothing has changed? A plan over unchanged rows, against a bare full outer join.

The source is first in the vector table's own database (``beside``), then in another one (``apart``). The peer is the
join of keys and content hashes that any such diff must do, with both tables in one database. ``hashing`` is the least
that two databases must do: each hashes key, content and metadata of its rows, and sends nothing. Each way is measured
at a tenth of the rows and at all of them, to show whether memory grows. ``python -m benchmarks.diff`` takes 1,000,000
rows, ``--quick`` 100,000.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from psycopg import sql
from psycopg.conninfo import make_conninfo

from benchmarks import plots
from benchmarks.memory import peak_mb
from benchmarks.outcome import conclude, options
from rowvec.embedders import open_embedder
from rowvec.ledger.runs import running
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.embedded import start_postgres
from rowvec.stages.dry_run import PlanReport, plan
from rowvec.stages.extract import stage as extract

GOALS = {"beside": 2.0, "apart": 2.0, "memory beside": 1.2, "memory apart": 1.2}
"""Upper limits: seconds of a plan over those of the bare join; the client's peak at all rows over that at a tenth."""
REPEATS = 5

_APART_URL = "BENCHMARK_SOURCE_URL"
_APART = {"url": f"${{{_APART_URL}}}"}
_PLACES: dict[str, dict[str, str]] = {"beside": {}, "apart": _APART}
_BARE = """
    SELECT count(*)
    FROM (SELECT id, sha256(convert_to(title || E'\\n' || body, 'UTF8')) AS hash FROM articles) AS s
    FULL JOIN (SELECT id, fingerprint FROM vectors.articles) AS t ON s.id = t.id
    WHERE s.hash IS NULL OR t.fingerprint IS NULL
"""
_HASHES = """
    SELECT
        max(sha256(convert_to(octet_length(convert_to(id::text, 'UTF8')) || ':' || id::text, 'UTF8'))),
        max(sha256('\\x00'::bytea || convert_to({content}, 'UTF8'))),
        max(sha256(convert_to(ROW(author, year)::text, 'UTF8')))
    FROM {table}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What all turns over one number of rows measured."""

    rows: int
    seconds: dict[str, list[float]]
    """Seconds of each turn of ``bare``, ``hashing``, ``beside`` and ``apart``."""
    peak_mb: dict[str, int]

    def ratio(self, name: str, of: str = "bare") -> float:
        """The median over the turns of a plan's seconds over those of the join, or of another way."""
        return statistics.median(a / b for a, b in zip(self.seconds[name], self.seconds[of], strict=True))


def main() -> None:
    """Measure, print a line for people and a JSON object for machines."""
    arguments = options(__doc__, "100,000 rows instead of 1,000,000").parse_args()
    rows = 100_000 if arguments.quick else 1_000_000
    small, large = (_on_a_server(size) for size in (rows // 10, rows))
    ratios: dict[str, float | None] = {}
    for name in ("beside", "apart"):
        ratios[name] = round(large.ratio(name), 3)
        ratios[f"memory {name}"] = round(large.peak_mb[name] / small.peak_mb[name], 3)
    ratios["apart of hashing"] = round(large.ratio("apart", "hashing"), 3)
    ratios["hashing"] = round(large.ratio("hashing"), 3)
    for one in (small, large):
        seconds = ", ".join(f"{name} {statistics.median(times):.2f} s" for name, times in one.seconds.items())
        print(f"{one.rows:,} unchanged rows: {seconds}; ratios {one.ratio('beside'):.2f} and {one.ratio('apart'):.2f},")
        print(f"  {one.ratio('apart', 'hashing'):.2f} times the hashing alone,")
        print(f"  client's peak {one.peak_mb['beside']} and {one.peak_mb['apart']} MB")
    _plot(small, large, arguments.plot)
    conclude("diff", ratios, GOALS, {"quick": arguments.quick, "sizes": [asdict(small), asdict(large)]})


def _on_a_server(rows: int) -> Measured:
    folder = Path(tempfile.mkdtemp(prefix="rvb", dir="/tmp"))
    server = start_postgres(folder / "pg")
    try:
        os.environ["ROWVEC_DATABASE_URL"] = server.get_uri()
        os.environ[_APART_URL] = make_conninfo(server.get_uri(), dbname="elsewhere")
        return measure(rows)
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def measure(rows: int) -> Measured:
    """Run the bare join and the plans in turns on the same rows; the first turn only fills caches."""
    beside, apart = pipeline_of({}), pipeline_of(_APART)
    with connect(os.environ["ROWVEC_DATABASE_URL"]) as connection:
        connection.execute_alone(sql.SQL("CREATE DATABASE elsewhere"), {})
        with connect(os.environ[_APART_URL]) as other:
            fill(other, rows)
        fill(connection, rows)
        connection.execute("CREATE SCHEMA vectors")
        with running(beside, "benchmark") as run:
            extract.run(beside, run)  # The plan's rows are those that a sync would have loaded.
            in_step(connection, beside, run.run_id)
        ways: dict[str, Callable[[], object]] = {
            "bare": lambda: connection.execute(_BARE),
            "hashing": lambda: hash_both(connection),
            "beside": lambda: unchanged(plan(beside), rows),
            "apart": lambda: unchanged(plan(apart), rows),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(REPEATS + 1):
            for name, way in ways.items():
                took = timed(way)
                if number:
                    seconds[name].append(took)
        # Each plan runs in a process of its own: otherwise the next one reuses memory that this one left in the
        # allocator.
        with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            peaks = {name: pool.apply(peak_of, (where, rows)) for name, where in _PLACES.items()}
    return Measured(rows=rows, seconds=seconds, peak_mb=peaks)


def peak_of(where: dict[str, str], rows: int) -> int:
    """The peak memory, in MB, of a process that makes one plan."""
    unchanged(plan(pipeline_of(where)), rows)
    return peak_mb()


def hash_both(connection: Connection) -> None:
    """Both databases hash at the same time what the plan of a source in another database compares, and send nothing."""
    with connect(os.environ[_APART_URL]) as other, ThreadPoolExecutor(1) as beside:
        started = beside.submit(
            other.execute, _HASHES.format(content="title || E'\\n' || body", table="articles").encode()
        )
        connection.execute(_HASHES.format(content="content", table="vectors.articles").encode())
        started.result()


def pipeline_of(where: Mapping[str, Any]) -> Pipeline:
    """A pipeline over a table of articles; ``where`` names the table's database if it is another one."""
    return Pipeline.model_validate(
        {
            "name": "articles",
            "source": {
                "kind": "postgres",
                "table": "public.articles",
                "key": ["id"],
                "content": "{title}\n{body}",
                "metadata": ["author", "year"],
                **where,
            },
            "embedder": {"kind": "local", "dimensions": 64},
            "target": {"table": "vectors.articles"},
        }
    )


def fill(connection: Connection, rows: int) -> None:
    """Create the source table with texts of about 145 bytes, as in the design's own measurement."""
    connection.execute("CREATE TABLE articles (id bigint PRIMARY KEY, title text, body text, author text, year int)")
    connection.execute(
        "INSERT INTO articles SELECT i, 'title ' || i, repeat('lorem ipsum dolor ' || i || ' ', 5), "
        " 'author ' || i %% 100, 1900 + i %% 100 FROM generate_series(1, %s) AS i",
        (rows,),
    )
    connection.execute("VACUUM (ANALYZE) articles")


def in_step(connection: Connection, pipeline: Pipeline, run_id: int) -> None:
    """Make the vector table from the plan's rows, all with the same vector: a diff does not look at vectors."""
    dimensions = open_embedder(pipeline.embedder).identity.dimensions
    connection.execute(
        (
            "CREATE TABLE vectors.articles AS SELECT id, author, year, content,"  # noqa: S608 # numbers of our own
            f" array_fill(0.125::real, ARRAY[{dimensions}])::vector({dimensions}) AS embedding,"
            f" repeat('1', {dimensions})::bit({dimensions}) AS embedding_bits, fingerprint, metadata_hash,"
            f" {run_id}::bigint AS run_id, now() AS embedded_at FROM rowvec.plan_{run_id}"
        ).encode()
    )
    connection.execute("ALTER TABLE vectors.articles ADD PRIMARY KEY (id)")
    connection.execute("VACUUM (ANALYZE) vectors.articles")


def unchanged(found: PlanReport, rows: int) -> None:
    """Check that the plan found no change: a plan that found something else would be fast for the wrong reason."""
    if found.unchanged != rows:
        raise SystemExit(f"the plan found {found}")


def timed(work: Callable[[], object]) -> float:
    """How many seconds the call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _plot(small: Measured, large: Measured, into: Path | None) -> None:
    over_rows = {
        name: [(one.rows, statistics.median(one.seconds[name])) for one in (small, large)] for name in large.seconds
    }
    peaks = {name: [(one.rows, one.peak_mb[name]) for one in (small, large)] for name in ("beside", "apart")}
    panels = [
        plots.Bars(
            title=f"{large.rows:,} unchanged rows",
            label="seconds of a plan to those of a bare join",
            values={name: large.ratio(name) for name in ("beside", "apart")},
            goal=GOALS["beside"],
        ),
        plots.Lines(title="by rows", x_label="rows", label="seconds", values=over_rows),
        plots.Lines(title="the client's peak", x_label="rows", label="MB", values=peaks, log=False),
    ]
    plots.draw(into, "To learn that nothing has changed", panels)


if __name__ == "__main__":
    main()
