"""Extract for a source that is not in the target's database: files, and other databases. Only hashes are compared."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice

import pyarrow as pa
from psycopg import sql

from rowvec.columns import PgColumn
from rowvec.copy_binary import HEADER, TRAILER, Encoder
from rowvec.database import Connection
from rowvec.diff import Block, Changes, Words, diff, empty_block
from rowvec.errors import RowError, SourceError
from rowvec.extract import Request, store_plan
from rowvec.fingerprint import Identity
from rowvec.home import home
from rowvec.key_digest import key_digest
from rowvec.ledger import PipelineId
from rowvec.pairs import checksum, key_digest as digest_of_key, pairs_from_copy, unpack_digests, without
from rowvec.pipeline import Pipeline
from rowvec.plan import Plan, count_batches, key_json, plan_rows
from rowvec.queries import query
from rowvec.rejects import set_aside
from rowvec.sources.apart import ApartSource, Reject
from rowvec.sources.files import open_files
from rowvec.sources.postgres import fingerprint_of_content, metadata_hash, names
from rowvec.sources.remote import open_remote
from rowvec.vector_table import VectorTable, find_table

_SET_ASIDE_AT_ONCE = 1000


def extract_apart(connection: Connection, request: Request) -> Plan:
    """Compare source and vector table by hashes, read what changed, and store the plan.

    Raises ``SourceError`` or ``TargetError`` where one of them is not as the pipeline says. Memory does not grow with
    the rows, but for a byte a row of a file, or 16 bytes a changed row of a database.
    """
    pipeline = request.pipeline
    with opened(connection, pipeline, request.identity) as source, connection.transaction():
        connection.execute(query("extract", "begin"))
        table = VectorTable.of(pipeline, source.key, source.metadata)
        exists = find_table(connection, table)
        columns = _create_taken(connection, table)
        _compare(connection, request, source, table, exists=exists)
        _copy_rows(connection, source, columns)
        _set_aside(connection, request, source)
        return _store(connection, request, table, exists=exists)


@contextmanager
def opened(connection: Connection, pipeline: Pipeline, identity: Identity) -> Generator[ApartSource]:
    """The pipeline's source, described and ready to be read."""
    source = pipeline.source
    if source.kind == "postgres":
        with open_remote(pipeline, source, identity, connection) as remote:
            yield remote
    else:
        from rowvec.sources.blob import fetcher  # late: Azure's client takes half a second to import

        with open_files(pipeline, source, identity, home(), fetcher(source.credential)) as files:
            yield files
