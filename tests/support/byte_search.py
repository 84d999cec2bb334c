"""Searches every byte for texts: of a store, of a folder, and of a database's files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from psycopg import sql

Needles = Iterable[bytes]


def in_folder(folder: Path, needles: Needles) -> list[str]:
    """The files with one of the needles, in their bytes or in what they unpack to: each file and the needle."""
    wanted = list(needles)
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [f"{path}: {needle!r}" for path in files for needle in wanted if any(needle in c for c in _contents(path))]


def in_database(connection: psycopg.Connection, needles: Needles) -> list[str]:
    """The same of the files of the connection's database, after VACUUM FULL and CHECKPOINT; as superuser.

    The write-ahead log is not searched: it is reused in time.
    """
    tables = connection.execute(
        "SELECT n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'm') AND (n.nspname !~ '^pg_|^information_schema$' OR c.relname = 'pg_statistic')"
    ).fetchall()
    for schema, table in tables:
        connection.execute(sql.SQL("VACUUM FULL {}").format(sql.Identifier(schema, table)))
    connection.execute("CHECKPOINT")
    row = connection.execute(
        "SELECT current_setting('data_directory') || '/base/' || oid FROM pg_database"
        " WHERE datname = current_database()"
    ).fetchone()
    assert row is not None
    return in_folder(Path(row[0]), needles)


def _contents(path: Path) -> Iterator[bytes]:
    yield path.read_bytes()
    if path.suffix == ".parquet":
        for column in pq.read_table(path, memory_map=False).columns:
            yield from (_bytes(value) for value in column.to_pylist() if isinstance(value, str | bytes))
    if path.name.endswith(".csv.zst"):
        with pa.CompressedInputStream(str(path), "zstd") as stream:
            yield stream.read()


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
