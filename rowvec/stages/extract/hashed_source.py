"""Reading a source outside the target's database: the hashes of all rows, then the rows that changed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
from psycopg import sql

from rowvec.ledger.plans import within_scope
from rowvec.ledger.rejects import add_rejects
from rowvec.ledger.runs import RunId
from rowvec.pipeline import Pipeline
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.postgres.copy_encoder import HEADER, TRAILER, Encoder
from rowvec.postgres.fragments import definitions, key_digest, names
from rowvec.postgres.isolation import Isolation, Refusal, halves
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable
from rowvec.runtime.home import home_folder
from rowvec.runtime.memory import SOME_ROWS, require
from rowvec.sources.diff import Block, Words, diff
from rowvec.sources.files.pg_text import pg_text
from rowvec.sources.files.source import open_files
from rowvec.sources.hash_stream import copied_pairs, unpack_digests
from rowvec.sources.images.seen import run_name
from rowvec.sources.other_database import open_remote
from rowvec.sources.postgres import fingerprint_of_content, metadata_hash
from rowvec.sources.protocol import HashedSource, Reject, SeenImage
from rowvec.stages.extract.request import Request, forget_fixed_rejects
from rowvec.vectors.fingerprint import Digested, Identity

# Rejects written in one statement, and digests copied in one record batch.
_REJECTS_AT_ONCE = 1000
_DIGESTS_AT_ONCE = 65_536

# The server encodings that take each text that a source may have.
_HOLDS_EVERY_TEXT = ("UTF8", "SQL_ASCII")


@contextmanager
def open_hashed_source(
    connection: Connection, pipeline: Pipeline, identity: Digested, run_id: RunId | None = None
) -> Generator[HashedSource]:
    """The pipeline's source, described and ready to be read.

    ``run_id``: the run that reads it, which may have read it before and then reads no unchanged image again. Raises
    ``SourceError`` if the source cannot be read as the pipeline says.
    """
    source = pipeline.source
    if source.kind == "postgres":
        with open_remote(pipeline, source, identity, connection) as remote:
            yield remote
    else:
        from rowvec.sources.files.download import fetcher  # late: Azure's client takes half a second to import

        run = None if run_id is None else run_name(run_id)
        folder = home_folder("spool")
        with open_files(pipeline, source, identity, folder, fetcher(source.credential), run) as files:
            yield files


def stored_pairs(
    connection: Connection,
    pipeline: Pipeline,
    identity: Identity,
    table: VectorTable,
    scope: sql.Identifier | None = None,
) -> Iterator[Block]:
    """The hashes of the vector table's rows, ascending by key digest; a hash that does not fit its row is zeros.

    ``scope``: a table of the only keys to read.
    """
    # With the source's own vectors, the fingerprint covers a text that the table does not keep.
    own = pipeline.embedder.kind == "column"
    pairs = query(
        "hashed_source",
        "stored_pairs",
        digest=key_digest(table.key),
        fingerprint=sql.SQL("fingerprint") if own else fingerprint_of_content(identity.digest()),
        metadata_hash=metadata_hash(table.metadata),
        table=within_scope(table, scope),
    )
    return copied_pairs(connection, pairs)


def mark_changes(source: HashedSource, wanted: Iterator[Block], stored: Iterator[Block]) -> list[Words]:
    """Mark in the source the rows that the diff found; returns the key digests of vectors whose row is gone."""
    gone: list[Words] = []
    for changes in diff(wanted, stored):
        _require_memory()
        source.mark(changes)
        if len(changes.deleted):
            gone.append(changes.deleted)
    return gone


def copy_changes(
    connection: Connection,
    source: HashedSource,
    key: tuple[PgColumn, ...],
    metadata: tuple[PgColumn, ...],
    gone: list[Words],
    refused: Callable[[pa.RecordBatch, Refusal], None] | None = None,
) -> None:
    """Copy the marked rows and the digests into two temporary tables, ``taken`` and ``gone``.

    A row that has a character which the target's encoding does not have is left out, and given to ``refused``.
    """
    columns = (
        PgColumn("rowvec_action", "text"),
        *(PgColumn(c.name, c.travels_as) for c in (*key, *metadata)),
        *(PgColumn(name, "text") for name in ("content", "rowvec_vector")),
        *(PgColumn(name, "bytea") for name in ("fingerprint", "metadata_hash")),
    )
    connection.execute(query("hashed_source", "taken", columns=definitions(columns)))
    connection.execute(query("hashed_source", "gone"))
    if connection.info.parameter_status("server_encoding") in _HOLDS_EVERY_TEXT:
        _copy(connection, "copy_taken", columns, source.rows())
    else:
        _copy_apart(connection, columns, source.rows(), refused)
    _copy(connection, "copy_gone", (PgColumn("digest", "bytea"),), _digest_batches(gone))
    connection.execute(query("hashed_source", "analyze"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What a source says besides its rows."""

    images: Iterator[list[SeenImage]]
    rejects: Iterator[Reject]


def read_out(
    connection: Connection,
    source: HashedSource,
    columns: tuple[tuple[PgColumn, ...], tuple[PgColumn, ...]],
    gone: list[Words],
    request: Request | None,
    refuse: Callable[[pa.RecordBatch, Refusal], None],
) -> Read:
    """As ``copy_changes``, with the columns of the key and of the metadata; returns what else the source has to say.

    If the request makes the ledger, that is done here, when nothing more has to be read, and ``refuse`` is called
    after it: memory then grows with the rejects and the images.
    """
    everything = request is not None and request.note_all_images
    if request is None or request.begin is None:
        copy_changes(connection, source, *columns, gone, refuse)
        return Read(images=source.images(everything=everything), rejects=source.rejects())
    refused: list[tuple[pa.RecordBatch, Refusal]] = []

    def refuse_later(row: pa.RecordBatch, refusal: Refusal) -> None:
        refused.append((row, refusal))

    copy_changes(connection, source, *columns, gone, refuse_later)
    read = Read(images=iter(list(source.images(everything=everything))), rejects=iter(list(source.rejects())))
    request.begin_ledger()
    for row, refusal in refused:
        refuse(row, refusal)
    return read


def key_of(row: pa.RecordBatch, key: tuple[PgColumn, ...]) -> list[str]:
    """The key of a record batch's only row, as the texts of its columns."""
    return [pg_text(row.column(column.name))[0].as_py() for column in key]


def _copy(
    connection: Connection, statement: str, columns: tuple[PgColumn, ...], batches: Iterable[pa.RecordBatch]
) -> None:
    encoder = Encoder(columns)
    with (
        connection.cursor() as cursor,
        cursor.copy(query("hashed_source", statement, columns=names(encoder.columns))) as copy,
    ):
        copy.write(HEADER)
        for batch in batches:
            _require_memory()
            for block in encoder.encode(batch):
                copy.write(block)
        copy.write(TRAILER)


def _require_memory() -> None:
    # How many rows there are is not known before: the system would kill the process without a word.
    require(SOME_ROWS, "the comparison with the source")


def _copy_apart(
    connection: Connection,
    columns: tuple[PgColumn, ...],
    batches: Iterable[pa.RecordBatch],
    refused: Callable[[pa.RecordBatch, Refusal], None] | None,
) -> None:
    isolation = Isolation(connection, "the plan", may_refuse_all=True)

    def copy(part: pa.RecordBatch) -> int:
        _copy(connection, "copy_taken", columns, [part])
        return part.num_rows

    for batch in batches:
        for row, refusal in isolation.isolate(batch, copy, halves):
            if refused is not None:
                refused(row, refusal)


def _digest_batches(digests: list[Words]) -> Iterator[pa.RecordBatch]:
    for words in digests:
        for start in range(0, len(words), _DIGESTS_AT_ONCE):
            part = unpack_digests(words[start : start + _DIGESTS_AT_ONCE])
            yield pa.record_batch([pa.array(part, pa.binary())], names=["digest"])


def reject_unusable(
    connection: Connection, request: Request, rejects: Iterator[Reject], key: tuple[PgColumn, ...] = ()
) -> None:
    """List the rows that cannot have a vector of their own, and forget the rejects that no longer apply."""
    while chunk := list(islice(rejects, _REJECTS_AT_ONCE)):
        # Many rows may share a key that is NULL: the rejects list the key once.
        rows = [(key, None, error) for key, error in dict(chunk).items()]
        add_rejects(connection, request.pipeline_id, request.run_id, rows)
    forget_fixed_rejects(connection, request, key)
