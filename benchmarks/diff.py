"""What does it cost to learn that nothing has changed? A plan over unchanged rows, against a bare full outer join.

Source and vector table in one database; the peer is the join of keys and content hashes that any such diff must do.
``python -m benchmarks.diff`` takes 1,000,000 rows, ``--quick`` 100,000.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rowvec.database import Connection, connect
from rowvec.embedders import open_embedder
from rowvec.home import start_postgres
from rowvec.pipeline import Pipeline

GOAL = 2.0
REPEATS = 5

_BARE = """
    SELECT count(*)
    FROM (SELECT id, sha256(convert_to(title || E'\\n' || body, 'UTF8')) AS hash FROM articles) AS s
    FULL JOIN (SELECT id, fingerprint FROM vectors.articles) AS t ON s.id = t.id
    WHERE s.hash IS NULL OR t.fingerprint IS NULL
"""


def main() -> None:
    """Measure, print a line for people and a JSON object for machines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100,000 rows instead of 1,000,000")
    rows = 100_000 if parser.parse_args().quick else 1_000_000
    folder = Path(tempfile.mkdtemp(prefix="rvb"))
    server = start_postgres(folder / "pg")
    os.environ["ROWVEC_DATABASE_URL"] = server.get_uri()
    try:
        measure(rows)
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def measure(rows: int) -> None:
    """Bare join and plan in turns, on the same rows."""
    from rowvec.commands import plan  # late: the address of the database is set by now

    pipeline = Pipeline.model_validate(
        {
            "name": "articles",
            "source": {
                "kind": "postgres",
                "table": "public.articles",
                "key": ["id"],
                "content": "{title}\n{body}",
                "metadata": ["author", "year"],
            },
            "embedder": {"kind": "local", "dimensions": 64},
            "target": {"table": "vectors.articles"},
        }
    )
    with connect(os.environ["ROWVEC_DATABASE_URL"]) as connection:
        fill(connection, rows)
        first = plan(pipeline)  # its rows are what a sync would have loaded
        in_step(connection, pipeline, first["run_id"])
        # What a plan costs whatever the size: connecting, describing, recording.
        bare = [timed(lambda: connection.execute(_BARE)) for _ in range(1)]
        ours: list[float] = []
        for _ in range(REPEATS):
            bare.append(timed(lambda: connection.execute(_BARE)))
            ours.append(timed(lambda: unchanged(plan(pipeline), rows)))
    ratio = statistics.median(ours) / statistics.median(bare[1:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(
        f"{rows:,} unchanged rows: bare join {statistics.median(bare[1:]):.2f} s, plan {statistics.median(ours):.2f} s,"
        f" ratio {ratio:.2f} (goal {GOAL}), client's peak {peak:.0f} MB\n"
    )
    result = {"benchmark": "diff", "rows": rows, "busy": os.getloadavg()[0], "ratios": {"plan": round(ratio, 3)}}
    sys.stdout.write(json.dumps({**result, "peak_rss_mb": round(peak)}) + "\n")


def fill(connection: Connection, rows: int) -> None:
    """Texts of about 145 bytes, as in the design's own measurement."""
    connection.execute(
        "CREATE TABLE articles (id bigint PRIMARY KEY, title text, body text, author text, year int);"
        "CREATE SCHEMA vectors"
    )
    connection.execute(
        "INSERT INTO articles SELECT i, 'title ' || i, repeat('lorem ipsum dolor ' || i || ' ', 5), "
        " 'author ' || i %% 100, 1900 + i %% 100 FROM generate_series(1, %s) AS i",
        (rows,),
    )
    connection.execute("ANALYZE articles")


def in_step(connection: Connection, pipeline: Pipeline, run_id: int) -> None:
    """Make the vector table from the plan's rows: what the vectors are is nothing to the diff."""
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


def unchanged(found: dict[str, int], rows: int) -> None:
    """A plan that found something else would be fast for the wrong reason."""
    if found["unchanged"] != rows:
        raise SystemExit(f"the plan found {found}")


def timed(work: Callable[[], object]) -> float:
    """Seconds it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
