"""The load stage: a batch's artifact goes into the staging table by binary COPY, once, in constant memory."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from psycopg import sql
from psycopg.copy import LibpqWriter

from rowvec.errors import DatabaseUnavailable
from rowvec.ledger.runs import RunId
from rowvec.pipeline import Pipeline
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection, lost_connections_are_retriable
from rowvec.postgres.copy_encoder import HEADER, TRAILER, Encoder
from rowvec.postgres.fragments import names
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable
from rowvec.runtime.progress import tell
from rowvec.runtime.telemetry import traced
from rowvec.store.artifact import Artifact, read_artifact
from rowvec.store.protocol import file_checksum
from rowvec.sync.batch import Batch
from rowvec.sync.staging import staged_columns
from rowvec.sync.work import Work, open_stage

SEND_BUFFER_BYTES = 4 * 1024 * 1024
"""Lets the server work while we read and encode the next rows; docs/decisions/0002-binary-copy.md has the figures."""


def load_batch(
    connection: Connection,
    run_id: RunId,
    batch: int,
    artifact: Path,
    table: VectorTable,
    into: sql.Identifier,
    *,
    direct: bool,
) -> int:
    """COPY an artifact into staging and mark the batch as loaded, in one transaction; returns its rows.

    A batch that is already marked is not loaded again.
    """
    values = {"run_id": run_id, "batch": batch}
    with lost_connections_are_retriable(), connection.transaction():
        claimed = connection.execute(query("load", "claim"), values).fetchone()
        if claimed is None:
            row = connection.execute(query("load", "loaded_rows"), values).fetchone()
            return row[0] if row else 0
        constants = {"run_id": run_id, "embedded_at": claimed[0]} if direct else {}
        columns = staged_columns(table, direct=direct)
        rows = copy_rows(connection, into, columns, _with_progress(artifact, batch), constants)
        connection.execute(query("load", "mark"), {**values, "rows": rows})
        return rows


def copy_rows(
    connection: Connection,
    table: sql.Identifier,
    columns: Sequence[PgColumn],
    batches: Iterable[pa.RecordBatch],
    constants: Mapping[str, int] | None = None,
) -> int:
    """COPY record batches into a table; returns the number of rows.

    Memory is that of one batch. See ``Encoder`` for ``constants``. Raises ``DatabaseUnavailable`` if the server took
    another number of rows, because Postgres accepts a stream that is cut between two rows; ``TargetError`` if it
    refuses a value. In both cases, and if ``batches`` raises, no row is kept.
    """
    encoder = Encoder(columns, constants)
    statement = query("load", "copy", table=table, columns=names(encoder.columns))
    given = 0
    _widen_socket(connection)
    with lost_connections_are_retriable(), connection.transaction(), connection.cursor() as cursor:
        with cursor.copy(statement, writer=LibpqWriter(cursor)) as copy:
            copy.write(HEADER)
            for batch in batches:
                for block in encoder.encode(batch):
                    copy.write(block)
                given += batch.num_rows
            copy.write(TRAILER)
        if cursor.rowcount != given:
            raise DatabaseUnavailable(
                f"the database took {cursor.rowcount:,} of {given:,} rows; the batch is loaded again"
            )
    return given


def _with_progress(artifact: Path, batch: int) -> Iterator[pa.RecordBatch]:
    """The artifact's record batches; each one that was taken is reported as progress."""
    total, done = pq.read_metadata(artifact).num_rows, 0
    for block in read_artifact(artifact):
        yield block
        done += block.num_rows
        tell("load", f"batch {batch}", done, total)


def _widen_socket(connection: Connection) -> None:
    """Buffer up to ``SEND_BUFFER_BYTES`` for the server while we read and encode; the system may allow less."""
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as wire:
        # TCP adapts its buffer, and would stop if we set it; a Unix socket keeps the 200 KB that it starts with.
        if wire.family == socket.AF_UNIX:
            with suppress(OSError):
                wire.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)


@traced("load")
def run(pipeline: Pipeline, batch: Batch) -> Batch:
    """COPY the artifact into staging, from this machine's copy if it still exists, else from the store."""
    started = time.monotonic()
    if batch.artifact is not None:
        with open_stage(pipeline, batch.run_id, f"load {batch.number}") as work:
            parquet = _local_copy(work, batch.artifact, batch.folder)
            load_batch(
                work.connection,
                batch.run_id,
                batch.number,
                parquet,
                work.plan.table,
                work.plan.staging,
                direct=work.plan.direct,
            )
    shutil.rmtree(batch.folder, ignore_errors=True)
    return batch.after("load", started)


def _local_copy(work: Work, artifact: Artifact, folder: Path) -> Path:
    """The artifact on this machine's disk, fetched from the store if another machine has written it."""
    parquet = folder / "artifact.parquet"
    if not parquet.exists() or file_checksum(parquet) != artifact.sha256:
        folder.mkdir(parents=True, exist_ok=True)
        work.store.get(artifact.name, parquet, artifact.sha256)
    return parquet
