"""A batch is in staging once and whole, or not at all. Loading it takes no more memory than one batch of rows."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from psycopg import sql

from rowvec.errors import ArtifactCorrupt, DatabaseUnavailable, RetriableError, TargetError
from rowvec.ledger import pipelines, runs
from rowvec.ledger.lease import Lease
from rowvec.ledger.runs import RunId
from rowvec.pipeline import Pipeline
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.copy_encoder import Encoder
from rowvec.postgres.vector_table import Precision, VectorTable, direct_possible
from rowvec.stages import load
from rowvec.stages.binarize import write_bits
from rowvec.stages.load import copy_rows, load_batch
from rowvec.stages.staging import create_staging
from rowvec.store.artifact import read_artifact, write_artifact
from rowvec.vectors.fingerprint import Identity

_IDENTITY = Identity(provider="local", model="wordllama", dimensions=16, preprocessing=1)
_INTO = sql.Identifier("rowvec", "waiting")

# Runs in a process of its own, so that its peak memory is that of the load alone.
_LOAD_ALONE = """
import resource, sys
from pathlib import Path
from psycopg import sql
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import connect
from rowvec.ledger.runs import RunId
from rowvec.stages.load import load_batch
from rowvec.stages.staging import create_staging
from rowvec.postgres.vector_table import VectorTable

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

url, run, small, large = sys.argv[1:]
table = VectorTable(
    schema="public", name="items", key=(PgColumn("id", "bigint"),), metadata=(PgColumn("painted", "date"),),
    dimensions=1024,
)
into = sql.Identifier("rowvec", "waiting")
with connect(url) as connection:
    create_staging(connection, RunId(int(run)), table, into, direct=True)
    load_batch(connection, RunId(int(run)), 0, Path(small), table, into, direct=True)
    before = peak_mb()
    rows = load_batch(connection, RunId(int(run)), 1, Path(large), table, into, direct=True)
    print(rows, peak_mb() - before)
"""


@pytest.fixture
def run(connection: Connection, paintings: Pipeline) -> RunId:
    """A run in the ledger, to which the marks of its batches refer."""
    pipeline_id = pipelines.register(connection, paintings, _IDENTITY)
    lease = Lease(pipeline_id=pipeline_id, number=1, seconds=20, pipeline=paintings.name)
    return runs.start_run(connection, pipeline_id, "test", lease)


def test_a_batch_that_is_marked_is_not_loaded_again(connection: Connection, run: RunId, tmp_path: Path) -> None:
    table = _table()
    first, second = _artifact(tmp_path / "a.parquet", table, 7), _artifact(tmp_path / "b.parquet", table, 5, first=7)
    create_staging(connection, run, table, _INTO, direct=True)
    assert load_batch(connection, run, 0, first, table, _INTO, direct=True) == 7
    assert load_batch(connection, run, 0, first, table, _INTO, direct=True) == 7
    assert load_batch(connection, run, 1, second, table, _INTO, direct=True) == 5
    # The file is not even read: a worker that takes over does not have it any more.
    first.unlink()
    assert load_batch(connection, run, 0, first, table, _INTO, direct=True) == 7
    assert _ids(connection) == list(range(12))
    assert _marks(connection, run) == [(0, 7), (1, 5)]


def test_of_two_who_load_a_batch_at_once_one_does(
    connection: Connection, direct_url: str, run: RunId, tmp_path: Path
) -> None:
    table = _table()
    artifact = _artifact(tmp_path / "a.parquet", table, 50)
    create_staging(connection, run, table, _INTO, direct=True)
    taken: list[int] = []

    def load_it() -> None:
        with connect(direct_url) as own:
            taken.append(load_batch(own, run, 0, artifact, table, _INTO, direct=True))

    threads = [threading.Thread(target=load_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken == [50] * 4
    assert _ids(connection) == list(range(50))


def test_a_new_plan_of_the_run_starts_from_nothing(connection: Connection, run: RunId, tmp_path: Path) -> None:
    table = _table()
    artifact = _artifact(tmp_path / "a.parquet", table, 3)
    for direct in (False, True):
        create_staging(connection, run, table, _INTO, direct=direct)
        assert load_batch(connection, run, 0, artifact, table, _INTO, direct=direct) == 3
        assert _ids(connection) == [0, 1, 2]


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("bits", [True, False])
def test_rows_as_the_vector_table_has_them(
    connection: Connection, run: RunId, tmp_path: Path, precision: Precision, bits: bool
) -> None:
    table = _table(precision=precision, bits=bits)
    artifact = _artifact(tmp_path / "a.parquet", table, 40)
    create_staging(connection, run, table, _INTO, direct=True)
    load_batch(connection, run, 0, artifact, table, _INTO, direct=True)
    whole = pa.Table.from_batches(list(read_artifact(artifact)))
    found = connection.execute(
        "SELECT id, painted::text, content, fingerprint, metadata_hash, embedding::real[] "
        "FROM rowvec.waiting ORDER BY id"
    ).fetchall()
    for name, *values in zip(("id", "painted", "content", "fingerprint", "metadata_hash"), *found, strict=False):
        assert values == whole.column(name).to_pylist()
    vectors = np.array([row[5] for row in found], np.float32)
    kind = np.float32 if precision == "float32" else np.float16
    assert (vectors == np.array(whole.column("embedding").to_pylist(), kind)).all()
    # The time of the transaction, which the merge also writes to every other row.
    times = connection.execute(
        "SELECT DISTINCT run_id, now() - embedded_at BETWEEN '0' AND '1 min'::interval FROM rowvec.waiting"
    ).fetchall()
    assert times == [(run, True)]
    if bits:
        agree = connection.execute(
            "SELECT bool_and(binary_quantize(embedding) = embedding_bits) FROM rowvec.waiting"
        ).fetchone()
        assert agree == (True,)


def test_staging_holds_text_for_what_only_the_server_can_read(
    connection: Connection, run: RunId, tmp_path: Path
) -> None:
    table = _table(metadata=PgColumn("painted", "daterange"))
    assert not direct_possible(table)
    assert direct_possible(_table())
    artifact = _artifact(tmp_path / "a.parquet", table, 4, painted="[1889-06-01,1890-01-01)")
    create_staging(connection, run, table, _INTO, direct=False)
    assert load_batch(connection, run, 0, artifact, table, _INTO, direct=False) == 4
    found = connection.execute("SELECT id, painted, painted::daterange::text FROM rowvec.waiting ORDER BY id")
    text = "[1889-06-01,1890-01-01)"
    assert found.fetchall() == [(0, text, text), (1, None, None), (2, None, None), (3, text, text)]
    columns = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'rowvec.waiting'::regclass AND attnum > 0"
    ).fetchall()
    assert {"run_id", "embedded_at"}.isdisjoint(name for (name,) in columns)


def test_staging_that_becomes_the_table_is_logged(connection: Connection, run: RunId) -> None:
    for direct, persistence in ((True, "p"), (False, "u")):
        create_staging(connection, run, _table(), _INTO, direct=direct)
        found = connection.execute(
            "SELECT relpersistence::text FROM pg_class WHERE oid = 'rowvec.waiting'::regclass"
        ).fetchone()
        assert found == (persistence,)


def test_an_artifact_that_breaks_in_the_middle_leaves_nothing(
    connection: Connection, run: RunId, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = _table()
    artifact = _artifact(tmp_path / "a.parquet", table, 6000)
    create_staging(connection, run, table, _INTO, direct=True)

    def breaks(path: Path) -> Iterator[pa.RecordBatch]:
        yield from list(read_artifact(path))[:2]
        raise ArtifactCorrupt("cut in the middle")

    with monkeypatch.context() as patched:
        patched.setattr(load, "read_artifact", breaks)
        with pytest.raises(ArtifactCorrupt, match="cut in the middle"):
            load_batch(connection, run, 0, artifact, table, _INTO, direct=True)
    assert _ids(connection) == []
    assert _marks(connection, run) == []
    # The connection can be used again, and the batch can be loaded again.
    assert load_batch(connection, run, 0, artifact, table, _INTO, direct=True) == 6000


def test_a_constraint_that_every_row_breaks_leaves_nothing(connection: Connection, run: RunId, tmp_path: Path) -> None:
    table = _table()
    artifact = _artifact(tmp_path / "a.parquet", table, 6000)
    create_staging(connection, run, table, _INTO, direct=True)
    connection.execute("ALTER TABLE rowvec.waiting ADD CHECK (id < 0)")
    with pytest.raises(TargetError, match="violates check constraint"):
        load_batch(connection, run, 0, artifact, table, _INTO, direct=True)
    assert _ids(connection) == []
    assert _marks(connection, run) == []


def test_a_server_that_goes_away_is_tried_again(
    connection: Connection, direct_url: str, run: RunId, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = _table()
    artifact = _artifact(tmp_path / "a.parquet", table, 6000)
    create_staging(connection, run, table, _INTO, direct=True)
    victim = connect(direct_url)
    process = victim.info.backend_pid

    def killed(path: Path) -> Iterator[pa.RecordBatch]:
        batches = read_artifact(path)
        yield next(batches)
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", (process,))
        yield from batches

    with monkeypatch.context() as patched:
        patched.setattr(load, "read_artifact", killed)
        with pytest.raises(RetriableError):
            load_batch(victim, run, 0, artifact, table, _INTO, direct=True)
    victim.close()
    assert _marks(connection, run) == []
    assert load_batch(connection, run, 0, artifact, table, _INTO, direct=True) == 6000


def test_rows_that_the_server_did_not_see_are_missed(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Postgres accepts a stream that is cut between two rows."""
    connection.execute("CREATE TABLE cut (id bigint)")
    whole = Encoder.encode

    def cut(self: Encoder, batch: pa.RecordBatch) -> Iterator[memoryview]:
        yield from whole(self, batch.slice(0, 2))

    monkeypatch.setattr(Encoder, "encode", cut)
    batch = pa.record_batch([pa.array([1, 2, 3])], names=["id"])
    with pytest.raises(DatabaseUnavailable, match="took 2 of 3 rows"):
        copy_rows(connection, sql.Identifier("cut"), [PgColumn("id", "bigint")], [batch])
    assert connection.execute("SELECT count(*) FROM cut").fetchone() == (0,)


@pytest.mark.parametrize("batches", [[], [pa.record_batch([pa.array([], pa.int64())], names=["id"])]])
def test_loading_no_rows_is_not_an_error(connection: Connection, batches: list[pa.RecordBatch]) -> None:
    connection.execute("CREATE TABLE none (id bigint)")
    assert copy_rows(connection, sql.Identifier("none"), [PgColumn("id", "bigint")], batches) == 0


def test_memory_does_not_grow_with_the_artifact(
    connection: Connection, database_url: str, run: RunId, tmp_path: Path
) -> None:
    table = _table(dimensions=1024)
    small = _artifact(tmp_path / "small.parquet", table, 4096)
    large = _artifact(tmp_path / "large.parquet", table, 48_000, first=4096)
    assert large.stat().st_size > 200e6
    arguments = [sys.executable, "-c", _LOAD_ALONE, database_url, str(run), str(small), str(large)]
    # How much freed memory glibc keeps depends on the number of cores.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(arguments, check=True, capture_output=True, text=True, env=environment)  # noqa: S603 - our own text
    rows, grown_mb = map(int, done.stdout.split())
    assert rows == 48_000
    assert grown_mb < 120
    assert connection.execute("SELECT count(*) FROM rowvec.waiting").fetchone() == (52_096,)


def _table(
    *,
    dimensions: int = 16,
    precision: Precision = "float32",
    bits: bool = True,
    metadata: PgColumn = PgColumn("painted", "date"),  # noqa: B008 - frozen
) -> VectorTable:
    return VectorTable(
        schema="public",
        name="items",
        key=(PgColumn("id", "bigint"),),
        metadata=(metadata,),
        dimensions=dimensions,
        precision=precision,
        bits=bits,
    )


def _artifact(path: Path, table: VectorTable, rows: int, *, first: int = 0, painted: str = "1889-06-01") -> Path:
    """An artifact as the upload stage writes it; every third row and the first have a date."""
    random = np.random.default_rng(first)
    schema = pa.schema([field for field in table.artifact_schema if field.name != "embedding_bits"])
    spool, bits = path.with_suffix(".arrow"), path.with_suffix(".bits")
    with pa.OSFile(str(spool), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for start in range(first, first + rows, 2048):
            n = min(2048, first + rows - start)
            vectors = random.standard_normal(n * table.dimensions).astype(np.float32)
            columns = {
                "id": pa.array(range(start, start + n), pa.int64()),
                "painted": pa.array([None if i % 3 else painted for i in range(n)], pa.string()),
                "content": pa.array([f"“Text” {i}, with é and 猫" for i in range(n)]),
                "fingerprint": pa.array([random.bytes(32) for _ in range(n)], pa.binary(32)),
                "metadata_hash": pa.array([random.bytes(32) for _ in range(n)], pa.binary(32)),
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors), type=table.layout.arrow),
            }
            writer.write_batch(pa.record_batch([columns[name] for name in schema.names], schema=schema))
    if table.bits:
        write_bits(spool, bits, table.dimensions, table.bits)
    write_artifact(spool, bits if table.bits else None, path, table, "paintings", _IDENTITY)
    assert pq.read_metadata(path).num_rows == rows
    return path


def _ids(connection: Connection) -> list[int]:
    return [row[0] for row in connection.execute("SELECT id FROM rowvec.waiting ORDER BY id").fetchall()]


def _marks(connection: Connection, run: RunId) -> list[tuple[int, int]]:
    found = connection.execute("SELECT batch, rows FROM rowvec.loaded WHERE run_id = %s ORDER BY batch", (run,))
    return [(row[0], row[1]) for row in found]
