"""How near does the load stage come to the server's own limit? A Parquet artifact into a table, against COPY FROM.

Run it with ``python -m benchmarks.load [--quick]``; benchmarks/README.md says what it measures and against what.
"""

from __future__ import annotations

import importlib.util
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from psycopg import sql

from benchmarks import plots
from benchmarks.bulk_loaders import TABLE, load_with_pgpq, load_with_pgvector
from benchmarks.memory import forget_peak, peak_mb
from benchmarks.outcome import conclude, options
from benchmarks.peer_stores import Rows, peer_stores
from rowvec.ledger.runs import RunId
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.embedded import start_postgres
from rowvec.postgres.migrations import install
from rowvec.postgres.vector_table import VectorTable
from rowvec.stages.binarize import write_bits
from rowvec.stages.load import load_batch
from rowvec.stages.staging import create_staging
from rowvec.store.artifact import read_artifact, write_artifact
from rowvec.vectors.fingerprint import Identity

DIMENSIONS = (256, 1536, 3072)
GOALS = {256: 0.80, 1536: 0.90}
"""Rows/s of the load stage over those of the server's own COPY FROM, by dimensions."""
GOAL_OVER_SLOW = 30.0
"""Rows/s of the load stage over those of each library of ``SLOW``."""
GOAL_CPU = 0.5
"""Client CPU per row over that of pgvector-python's loader."""

LIMIT, OURS, BULK_PEER = "server-side COPY", "rowvec", "pgvector-python"
SLOW = ("SQLAlchemy", "LangChain", "LlamaIndex")

_SPOOLED_ROWS = 2048
_WORDS = ("dawn", "river", "oil", "canvas", "portrait", "winter", "harbour", "gold", "leaf", "study", "woman", "window")


def main() -> None:
    """Measure, print a table for people and a JSON object for machines."""
    parser = options(__doc__, "smaller artifacts and fewer repeats")
    parser.add_argument("--dimensions", type=int, nargs="+", default=list(DIMENSIONS))
    arguments = parser.parse_args()
    effort = _Effort(megabytes=40, repeats=3, vectors_megabytes=1) if arguments.quick else _Effort()
    # The server may run as another user: it writes the prepared file itself, into a folder that every user may write
    # to.
    folder = Path(tempfile.mkdtemp(prefix="rvbench", dir="/tmp"))
    folder.chmod(0o755)
    (folder / "ready").mkdir()
    (folder / "ready").chmod(0o777)
    server = start_postgres(folder / "pg")
    try:
        with connect(server.get_uri()) as connection:
            install(connection)
            results = [_measure(connection, server.get_uri(), folder, d, effort) for d in arguments.dimensions]
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
    _print_table(results)
    _plot(results, arguments.plot)
    conclude("load", _ratios(results), _goals(), {"quick": arguments.quick, "results": results})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Effort:
    megabytes: int = 240
    """Rows of the artifact."""
    repeats: int = 9
    vectors_megabytes: int = 4
    """How many rows the slow peers load: a small part, because only rates per row are compared."""


@dataclass(slots=True, kw_only=True)
class _Contender:
    """A loader, and what its turns cost; the first turn warms caches and is not counted."""

    rows: int
    load: Callable[[int], object]
    """Loads the rows into its empty table and commits; the argument is the number of the turn."""
    table: sql.Identifier
    seconds: list[float] = field(default_factory=list[float])
    cpu: list[float] = field(default_factory=list[float])
    peaks: list[int] = field(default_factory=list[int])

    def take_turn(self, connection: Connection, number: int) -> None:
        """Load once, and check the number of rows."""
        connection.execute(sql.SQL("TRUNCATE {}").format(self.table))
        connection.execute("CHECKPOINT")
        forget_peak()
        started, used = time.perf_counter(), time.process_time()
        self.load(number)
        if number > 1:
            self.seconds.append(time.perf_counter() - started)
            self.cpu.append(time.process_time() - used)
            self.peaks.append(peak_mb())
        found = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(self.table)).fetchone()
        assert found == (self.rows,), f"{found} of {self.rows} rows are there"

    def rates(self) -> list[float]:
        """Rows per second, turn by turn."""
        return [self.rows / seconds for seconds in self.seconds]

    def cpu_us(self) -> float:
        """Client CPU of this process per row."""
        return statistics.median(self.cpu) / self.rows * 1e6


def _measure(connection: Connection, url: str, folder: Path, dimensions: int, effort: _Effort) -> dict[str, Any]:
    table = VectorTable(
        schema="public",
        name="items",
        key=(PgColumn("id", "bigint"),),
        metadata=(PgColumn("author", "text"),),
        dimensions=dimensions,
    )
    rows = effort.megabytes * 1_000_000 // (dimensions * 33 // 8 + 400)
    artifact, ready = folder / "artifact.parquet", folder / "ready" / f"{dimensions}.bin"
    run = _write_artifact(connection, table, rows, artifact)
    create_staging(connection, run, table, TABLE, direct=True)
    load_batch(connection, run, 0, artifact, table, TABLE, direct=True)
    connection.execute(sql.SQL("COPY {} TO {} (FORMAT binary)").format(TABLE, sql.Literal(str(ready))))
    limit = sql.SQL("COPY {} FROM {} (FORMAT binary)").format(TABLE, sql.Literal(str(ready)))
    bulk: dict[str, Callable[[int], object]] = {
        LIMIT: lambda number: connection.execute(limit),
        OURS: lambda number: load_batch(connection, run, number, artifact, table, TABLE, direct=True),
    }
    if importlib.util.find_spec("pgpq"):
        bulk["pgpq"] = lambda number: load_with_pgpq(connection, table, artifact, number)
    bulk[BULK_PEER] = lambda number: load_with_pgvector(connection, table, artifact, number)
    found = {name: _Contender(rows=rows, load=load, table=TABLE) for name, load in bulk.items()}
    with peer_stores(url, _few(artifact, table, effort.vectors_megabytes), dimensions) as stores:
        for store in stores:
            add = store.add
            found[store.name] = _Contender(
                rows=store.rows, load=lambda number, add=add: add(), table=sql.Identifier(*store.table)
            )
        for number in range(1, effort.repeats + 2):
            # Loaders take turns at going first: what one leaves for the disk to write slows the next one down.
            turn = number % len(found)
            for contender in [*found.values()][turn:] + [*found.values()][:turn]:
                contender.take_turn(connection, number)
    _check(connection, rows)
    artifact.unlink()
    ready.unlink()
    return {
        "dimensions": dimensions,
        "repeats": effort.repeats,
        "loaders": {name: _told(one, found) for name, one in found.items()},
    }


def _told(one: _Contender, among: dict[str, _Contender]) -> dict[str, Any]:
    """A loader's figures. Ratios are per round, because other work on the machine affects all turns of a round."""
    own = one.rates()
    return {
        "rows": one.rows,
        "rows_per_second": round(statistics.median(own)),
        "client_cpu_us_per_row": round(one.cpu_us(), 1),
        "peak_rss_mb": max(one.peaks),
        "of_limit": round(statistics.median(a / b for a, b in zip(own, among[LIMIT].rates(), strict=True)), 4),
        "ours_over": round(statistics.median(a / b for a, b in zip(among[OURS].rates(), own, strict=True)), 2),
        "our_cpu": round(among[OURS].cpu_us() / max(1e-9, one.cpu_us()), 3),
    }


def _ratios(results: list[dict[str, Any]]) -> dict[str, float | None]:
    ratios: dict[str, float | None] = {}
    for result in results:
        d, loaders = result["dimensions"], result["loaders"]
        ratios |= {f"{name} {d}": one["of_limit"] for name, one in loaders.items() if name not in (LIMIT, *SLOW)}
        ratios |= {f"over {name} {d}": loaders[name]["ours_over"] for name in SLOW}
        ratios[f"CPU of {BULK_PEER} {d}"] = loaders[BULK_PEER]["our_cpu"]
    return ratios


def _goals() -> dict[str, float]:
    goals = {f"{OURS} {d}": goal for d, goal in GOALS.items()}
    goals |= {f"over {name} {d}": GOAL_OVER_SLOW for name in SLOW for d in DIMENSIONS}
    return goals | {f"CPU of {BULK_PEER} {d}": GOAL_CPU for d in DIMENSIONS}


def _few(artifact: Path, table: VectorTable, megabytes: int) -> Rows:
    """The first rows of the artifact, as Python's own lists."""
    wanted, batches, have = megabytes * 1_000_000 // (4 * table.dimensions), list[pa.RecordBatch](), 0
    for batch in read_artifact(artifact):
        batches.append(batch.slice(0, wanted - have))
        have += batches[-1].num_rows
        if have == wanted:
            break
    few = pa.Table.from_batches(batches)
    columns = (few.column(name).to_pylist() for name in ("id", "author", "content", "embedding"))
    keys, authors, contents, embeddings = columns
    return Rows(keys=keys, authors=authors, contents=contents, embeddings=embeddings)


def _write_artifact(connection: Connection, table: VectorTable, rows: int, path: Path) -> RunId:
    """Write an artifact as the upload stage does, with about 144 bytes of text per row, and a run that loads it."""
    random = np.random.default_rng(7)
    names = [name for name in table.artifact_schema.names if name != "embedding_bits"]
    schema = pa.schema([table.artifact_schema.field(name) for name in names])
    spool, bits = path.with_suffix(".arrow"), path.with_suffix(".bits")
    with pa.OSFile(str(spool), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for first in range(0, rows, _SPOOLED_ROWS):
            n = min(_SPOOLED_ROWS, rows - first)
            vectors = random.standard_normal((n, table.dimensions), dtype=np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            words = random.integers(len(_WORDS), size=(n, 26))
            values = {
                "id": pa.array(np.arange(first, first + n)),
                "author": pa.array([f"author {i % 977}" for i in range(first, first + n)]),
                "content": pa.array([" ".join(_WORDS[word] for word in row)[:144] for row in words.tolist()]),
                "fingerprint": pa.array([random.bytes(32) for _ in range(n)], pa.binary(32)),
                "metadata_hash": pa.array([random.bytes(32) for _ in range(n)], pa.binary(32)),
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), table.dimensions),
            }
            writer.write_batch(pa.record_batch([values[name] for name in names], schema=schema))
    write_bits(spool, bits, table.dimensions, table.bits)
    identity = Identity(provider="benchmark", model="random", dimensions=table.dimensions, preprocessing=1)
    write_artifact(spool, bits, path, table, "benchmark", identity)
    spool.unlink()
    bits.unlink()
    pipeline = connection.execute(
        "INSERT INTO rowvec.pipelines (name, family, table_schema, table_name, identity) "
        "VALUES (%(name)s, %(name)s, 'public', %(table)s, '{}') "
        "RETURNING pipeline_id",
        {"name": f"bench {table.dimensions}", "table": f"items {table.dimensions}"},
    ).fetchone()
    assert pipeline
    run = connection.execute(
        "INSERT INTO rowvec.runs (pipeline_id, cause) VALUES (%s, 'benchmark') RETURNING run_id", pipeline
    ).fetchone()
    assert run
    return RunId(run[0])


def _check(connection: Connection, rows: int) -> None:
    """Check what the last loader wrote: bits and floats must agree."""
    found = connection.execute(
        sql.SQL("SELECT count(*) FROM {} WHERE binary_quantize(embedding) = embedding_bits").format(TABLE)
    ).fetchone()
    assert found == (rows,), f"{found} of {rows} rows have bits that agree with their floats"


def _print_table(results: list[dict[str, Any]]) -> None:
    print(
        f"{'dimensions':>10}  {'loader':<18}{'rows':>9}{'rows/s':>10}{'client CPU us/row':>19}{'peak RSS MB':>13}"
        f"{'of the limit':>14}{'ours over it':>14}"
    )
    for result in results:
        for name, one in result["loaders"].items():
            print(
                f"{result['dimensions']:>10}  {name:<18}{one['rows']:>9,}{one['rows_per_second']:>10,}"
                f"{one['client_cpu_us_per_row']:>19}{one['peak_rss_mb']:>13}{one['of_limit']:>14.3f}"
                f"{one['ours_over']:>14.2f}"
            )


def _plot(results: list[dict[str, Any]], into: Path | None) -> None:
    panels = [
        plots.Bars(
            title=f"{result['dimensions']:,} dimensions",
            label="rows a second",
            values={name: one["rows_per_second"] for name, one in result["loaders"].items()},
            log=True,
        )
        for result in results
    ]
    plots.draw(into, "Rows a second into a vector table", panels)


if __name__ == "__main__":
    main()
