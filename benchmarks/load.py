"""How near the load stage comes to the server's own limit: a Parquet artifact into a table, against COPY FROM a file.

Run it with ``python -m benchmarks.load [--quick]``; benchmarks/README.md says what it measures and what with.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, LiteralString

import numpy as np
import psycopg
import pyarrow as pa
from pgvector import Bit, Vector
from pgvector.psycopg import register_vector
from psycopg import sql

from rowvec.artifacts import read_artifact, write_artifact, write_bits
from rowvec.columns import PgColumn
from rowvec.database import Connection, connect
from rowvec.fingerprint import Identity
from rowvec.home import start_postgres
from rowvec.ledger import RunId
from rowvec.load import create_staging, load_batch
from rowvec.schema import install
from rowvec.vector_table import VectorTable

DIMENSIONS = (256, 1536, 3072)
GOALS = {256: 0.80, 1536: 0.90}
"""Rows/s of the load stage over those of the server's own COPY FROM."""

_SPOOLED_ROWS = 2048
_WORDS = ("dawn", "river", "oil", "canvas", "portrait", "winter", "harbour", "gold", "leaf", "study", "woman", "window")
_TABLE = sql.Identifier("public", "items")
_COLUMNS: LiteralString = (
    "id, author, content, embedding, embedding_bits, fingerprint, metadata_hash, run_id, embedded_at"
)

Loader = Callable[[Connection, VectorTable, Path, int], int]
"""Loads an artifact into the empty table and commits; the last argument tells one run from another."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller artifacts and fewer repeats: under a minute")
    parser.add_argument("--dimensions", type=int, nargs="+", default=list(DIMENSIONS))
    arguments = parser.parse_args()
    megabytes, repeats = (60, 5) if arguments.quick else (240, 9)
    # The server may run as another user: it writes the ready file itself, into a folder open to all.
    folder = Path(tempfile.mkdtemp(prefix="rvbench", dir="/tmp"))
    folder.chmod(0o755)
    (folder / "ready").mkdir()
    (folder / "ready").chmod(0o777)
    server = start_postgres(folder / "pg")
    try:
        with connect(server.get_uri()) as connection:
            install(connection)
            results = [_measure(connection, folder, d, megabytes, repeats) for d in arguments.dimensions]
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
    _print_table(results)
    ratios = {f"{name} {r['dimensions']}": one["ratio"] for r in results for name, one in r["loaders"].items()}
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "busy": os.getloadavg()[0]}
    print(json.dumps({"benchmark": "load", **machine, "ratios": ratios, "results": results}))


def _measure(connection: Connection, folder: Path, dimensions: int, megabytes: int, repeats: int) -> dict[str, Any]:
    table = VectorTable(
        schema="public",
        name="items",
        key=(PgColumn("id", "bigint"),),
        metadata=(PgColumn("author", "text"),),
        dimensions=dimensions,
    )
    rows = megabytes * 1_000_000 // (dimensions * 33 // 8 + 400)
    artifact, ready = folder / "artifact.parquet", folder / "ready" / f"{dimensions}.bin"
    run = _write_artifact(connection, table, rows, artifact)
    create_staging(connection, run, table, _TABLE, direct=True)
    load_batch(connection, run, 0, artifact, table, _TABLE, direct=True)
    connection.execute(sql.SQL("COPY {} TO {} (FORMAT binary)").format(_TABLE, sql.Literal(str(ready))))

    def server_side(connection: Connection, table: VectorTable, artifact: Path, number: int) -> int:
        return connection.execute(
            sql.SQL("COPY {} FROM {} (FORMAT binary)").format(_TABLE, sql.Literal(str(ready)))
        ).rowcount

    def load_stage(connection: Connection, table: VectorTable, artifact: Path, number: int) -> int:
        return load_batch(connection, run, number, artifact, table, _TABLE, direct=True)

    loaders: dict[str, Loader] = {"server-side COPY": server_side, "rowvec": load_stage}
    if importlib.util.find_spec("pgpq"):
        loaders["pgpq"] = _load_with_pgpq
    loaders["pgvector-python"] = _load_with_pgvector
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    cpu: dict[str, list[float]] = {name: [] for name in loaders}
    peaks: dict[str, list[int]] = {name: [] for name in loaders}
    # Number 0 warms caches and is not counted.
    for number in range(1, repeats + 2):
        # Each in turn goes first: what one leaves for the disk to write falls on the next.
        turn = number % len(loaders)
        for name, load in [*loaders.items()][turn:] + [*loaders.items()][:turn]:
            connection.execute(sql.SQL("TRUNCATE {}").format(_TABLE))
            connection.execute("CHECKPOINT")
            _forget_peak()
            started, used = time.perf_counter(), time.process_time()
            taken = load(connection, table, artifact, number)
            if number > 1:
                seconds[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - used)
                peaks[name].append(_peak_mb())
            assert taken == rows, f"{name} loaded {taken} of {rows} rows"
    _check(connection, rows)
    artifact.unlink()
    ready.unlink()
    limit = seconds["server-side COPY"]
    return {
        "dimensions": dimensions,
        "rows": rows,
        "repeats": repeats,
        "goal": GOALS.get(dimensions),
        "loaders": {
            name: {
                "rows_per_second": round(rows / statistics.median(times)),
                "client_cpu_us_per_row": round(statistics.median(cpu[name]) / rows * 1e6, 1),
                "peak_rss_mb": max(peaks[name]),
                # Each run against the limit as it was a moment before: other work on the machine falls on both.
                "ratio": round(statistics.median(a / b for a, b in zip(limit, times, strict=True)), 3),
            }
            for name, times in seconds.items()
        },
    }


def _write_artifact(connection: Connection, table: VectorTable, rows: int, path: Path) -> RunId:
    """An artifact as the upload stage writes it, with about 144 bytes of text a row; and a run to load it in."""
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
    write_bits(spool, bits, table.dimensions)
    identity = Identity(provider="benchmark", model="random", dimensions=table.dimensions, preprocessing=1)
    write_artifact(spool, bits, path, table, "benchmark", identity)
    spool.unlink()
    bits.unlink()
    pipeline = connection.execute(
        "INSERT INTO rowvec.pipelines (name, table_schema, table_name, identity) VALUES (%s, 'public', %s, '{}') "
        "RETURNING pipeline_id",
        (f"bench {table.dimensions}", f"items {table.dimensions}"),
    ).fetchone()
    assert pipeline
    run = connection.execute(
        "INSERT INTO rowvec.runs (pipeline_id, cause) VALUES (%s, 'benchmark') RETURNING run_id", pipeline
    ).fetchone()
    assert run
    return RunId(run[0])


def _load_with_pgvector(connection: Connection, table: VectorTable, artifact: Path, number: int) -> int:
    """As pgvector-python's own example of bulk loading does it: ``write_row`` with binary types."""
    register_vector(connection)
    types = ["int8", "text", "text", "vector", "bit", "bytea", "bytea", "int8", "timestamptz"]
    now = connection.execute("SELECT now()").fetchone()
    assert now
    with (
        connection.transaction(),
        connection.cursor() as cursor,
        cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(_TABLE, sql.SQL(_COLUMNS))) as copy,
    ):
        copy.set_types(types)
        rows = 0
        for batch in read_artifact(artifact):
            rows += batch.num_rows
            vectors = batch.column("embedding").flatten().to_numpy().reshape(-1, table.dimensions)
            others = (batch.column(n).to_pylist() for n in ("id", "author", "content", "embedding_bits"))
            hashes = (batch.column(n).to_pylist() for n in ("fingerprint", "metadata_hash"))
            for key, author, content, bits, fingerprint, digest, vector in zip(*others, *hashes, vectors, strict=True):
                row = (key, author, content, Vector(vector), _bit(bits, table.dimensions), fingerprint, digest)
                copy.write_row((*row, number, now[0]))
    return rows


def _bit(packed: bytes, dimensions: int) -> Bit:
    return Bit.from_binary(dimensions.to_bytes(4, "big") + packed)


def _load_with_pgpq(connection: Connection, table: VectorTable, artifact: Path, number: int) -> int:
    """Vectors and bits are handed to pgpq in wire format, as binary; it has no notion of them."""
    rows, encoder = 0, None
    with (
        connection.transaction(),
        connection.cursor() as cursor,
        cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(_TABLE, sql.SQL(_COLUMNS))) as copy,
    ):
        for batch in _in_wire_format(read_artifact(artifact), table.dimensions, number):
            if encoder is None:
                encoder = _pgpq_encoder(batch.schema)
                copy.write(encoder.write_header())
            copy.write(encoder.write_batch(batch))
            rows += batch.num_rows
        assert encoder
        copy.write(encoder.finish())
    return rows


def _pgpq_encoder(schema: pa.Schema) -> Any:
    from pgpq import ArrowToPostgresBinaryEncoder  # pyright: ignore[reportMissingImports] # a peer, not a dependency

    return ArrowToPostgresBinaryEncoder(schema)


def _in_wire_format(batches: Iterator[pa.RecordBatch], dimensions: int, number: int) -> Iterator[pa.RecordBatch]:
    """Blocks of about 0.25 MB, the size our own encoder uses, with the columns in the table's order."""
    now = time.time_ns() // 1000
    rows = max(1, 262_144 // (dimensions * 33 // 8 + 400))
    for whole in batches:
        for start in range(0, whole.num_rows, rows):
            batch = whole.slice(start, rows)
            n = batch.num_rows
            floats = batch.column("embedding").flatten().to_numpy().reshape(n, dimensions)
            bits = np.frombuffer(b"".join(batch.column("embedding_bits").to_pylist()), np.uint8).reshape(n, -1)
            columns = [
                batch.column("id"),
                batch.column("author"),
                batch.column("content"),
                _headed(dimensions << 16, floats, ">f4"),
                _headed(dimensions, bits, "u1"),
                batch.column("fingerprint").cast(pa.binary()),
                batch.column("metadata_hash").cast(pa.binary()),
                pa.array(np.full(n, number)),
                pa.array(np.full(n, now), pa.timestamp("us", "UTC")),
            ]
            yield pa.record_batch(columns, names=_COLUMNS.split(", "))


def _headed(head: int, values: Any, dtype: str) -> pa.Array:
    n, width = values.shape
    record: Any = np.zeros(n, np.dtype([("head", ">i4"), ("values", dtype, (width,))]))
    record["head"], record["values"] = head, values
    offsets = pa.py_buffer(np.arange(n + 1, dtype=np.int32) * np.int32(record.itemsize))
    return pa.Array.from_buffers(pa.binary(), n, [None, offsets, pa.py_buffer(record.view(np.uint8))])


def _check(connection: psycopg.Connection[tuple[Any, ...]], rows: int) -> None:
    """What the last loader wrote is what it should have written: bits and floats agree."""
    found = connection.execute(
        sql.SQL("SELECT count(*) FROM {} WHERE binary_quantize(embedding) = embedding_bits").format(_TABLE)
    ).fetchone()
    assert found == (rows,), f"{found} of {rows} rows have bits that agree with their floats"


def _forget_peak() -> None:
    """Linux starts the process's peak anew; elsewhere it is that of the whole run."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    found = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(found.split()[1]) >> 10


def _print_table(results: list[dict[str, Any]]) -> None:
    print(
        f"{'dimensions':>10}  {'loader':<18}{'rows/s':>10}{'client CPU us/row':>20}{'peak RSS MB':>14}"
        f"{'of the limit':>14}{'goal':>7}"
    )
    for result in results:
        for name, one in result["loaders"].items():
            goal = f"{result['goal']:.2f}" if name == "rowvec" and result["goal"] else ""
            print(
                f"{result['dimensions']:>10}  {name:<18}{one['rows_per_second']:>10,}"
                f"{one['client_cpu_us_per_row']:>20}{one['peak_rss_mb']:>14}{one['ratio']:>14.3f}{goal:>7}"
            )


if __name__ == "__main__":
    main()
