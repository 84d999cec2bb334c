"""The load stage: a batch's artifact goes into the staging table by binary COPY, once, in constant memory."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from psycopg import sql
from psycopg.copy import LibpqWriter

from rowvec.errors import DatabaseUnavailable, UnfitValue
from rowvec.ledger.plans import plan_rows
from rowvec.ledger.rejects import add_refused
from rowvec.ledger.runs import RunId
from rowvec.pipeline import Pipeline
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection, lost_connections_are_retriable
from rowvec.postgres.copy_encoder import HEADER, TRAILER, Encoder
from rowvec.postgres.fragments import names
from rowvec.postgres.isolation import Isolation, Refusal, halves, refusal_of
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable
from rowvec.runtime.progress import tell
from rowvec.runtime.telemetry import traced
from rowvec.stages.batch import Batch
from rowvec.stages.staging import staged_columns
from rowvec.stages.work import Work, open_stage
from rowvec.store.artifact import Artifact, read_artifact
from rowvec.store.protocol import file_checksum

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
    """COPY an artifact into staging and mark the batch as loaded, in one transaction; returns the rows it loaded.

    A batch that is already marked is not loaded again. A row that the database refuses for its data, or that cannot be
    sent, goes to the rejects. Raises ``TargetError`` if that is so with all of many rows.
    """
    values = {"run_id": run_id, "batch": batch}
    with lost_connections_are_retriable(), connection.transaction():
        claimed = connection.execute(query("load", "claim"), values).fetchone()
        if claimed is None:
            row = connection.execute(query("load", "loaded_rows"), values).fetchone()
            return row[0] if row else 0
        constants = {"run_id": run_id, "embedded_at": claimed[0]} if direct else {}
        columns = staged_columns(table, direct=direct)
        into_staging = _Copy(connection, into, columns, constants)
        try:
            with connection.transaction():
                rows = into_staging.copy(_with_progress(artifact, batch))
        except (psycopg.Error, UnfitValue) as error:
            if refusal_of(error) is None:
                raise
            rows = _copy_apart(into_staging, artifact, Refused(run_id=run_id, batch=batch, key=table.key))
        connection.execute(query("load", "mark"), {**values, "rows": rows})
        return rows


def copy_rows(
    connection: Connection,
    table: sql.Composable,
    columns: Sequence[PgColumn],
    batches: Iterable[pa.RecordBatch],
    constants: Mapping[str, int] | None = None,
) -> int:
    """COPY record batches into a table; returns the number of rows.

    Memory is that of one batch. See ``Encoder`` for ``constants``. Raises ``DatabaseUnavailable`` if the server took
    another number of rows, because Postgres accepts a stream that is cut between two rows; ``TargetError`` if it
    refuses a value. In both cases, and if ``batches`` raises, no row is kept.
    """
    with lost_connections_are_retriable(), connection.transaction():
        return _Copy(connection, table, columns, constants or {}).copy(batches)


class _Copy:
    """Copies record batches into one table."""

    def __init__(
        self,
        connection: Connection,
        table: sql.Composable,
        columns: Sequence[PgColumn],
        constants: Mapping[str, int],
    ) -> None:
        self.connection = connection
        self._encoder = Encoder(columns, constants)
        self._statement = query("load", "copy", table=table, columns=names(self._encoder.columns))
        _widen_socket(connection)

    def copy(self, batches: Iterable[pa.RecordBatch]) -> int:
        """See ``copy_rows``."""
        given = 0
        with self.connection.cursor() as cursor:
            with cursor.copy(self._statement, writer=LibpqWriter(cursor)) as copy:
                copy.write(HEADER)
                for batch in batches:
                    for block in self._encoder.encode(batch):
                        copy.write(block)
                    given += batch.num_rows
                copy.write(TRAILER)
            if cursor.rowcount != given:
                raise DatabaseUnavailable(
                    f"the database took {cursor.rowcount:,} of {given:,} rows; the batch is loaded again"
                )
        return given


def _copy_apart(into: _Copy, artifact: Path, refused: Refused) -> int:
    """Copy the artifact's rows without those that are refused, which go to the rejects; returns the rows copied."""
    isolation = Isolation(into.connection, "the staging table")
    last: Refusal | None = None

    def copy(part: pa.RecordBatch) -> int:
        return into.copy([part])

    for block in _with_progress(artifact, refused.batch):
        for row, refusal in isolation.isolate(block, copy, halves):
            refused.add(into.connection, row, refusal)
            last = refusal
    if last is not None:
        isolation.check_all(last)
    return isolation.taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The rows of a batch that the database refuses."""

    run_id: RunId
    batch: int
    key: tuple[PgColumn, ...]

    def add(self, connection: Connection, row: pa.RecordBatch, refusal: Refusal) -> None:
        """Record a row, which is found in the plan by its key, its content and its metadata."""
        same = [
            query(
                "load",
                "same_value",
                column=sql.Identifier(name),
                value=sql.Literal(row.column(name)[0].as_py()),
                type=kind,
            )
            for name, kind in (
                *((c.name, sql.SQL(c.travels_as)) for c in self.key),
                ("fingerprint", sql.SQL("bytea")),
                ("metadata_hash", sql.SQL("bytea")),
            )
        ]
        which = sql.SQL("s.rowvec_batch = {} AND {}").format(sql.Literal(self.batch), sql.SQL(" AND ").join(same))
        pipeline_id = query("load", "pipeline_of_run", run_id=sql.Literal(self.run_id))
        add_refused(connection, (pipeline_id, self.run_id, self.key), (plan_rows(self.run_id), which), refusal)


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
        with open_stage(pipeline, batch, f"load {batch.number}") as work:
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
        work.store.get(artifact.name, parquet, artifact.sha256, at_most=artifact.bytes)
    return parquet
