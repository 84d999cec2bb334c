"""The schema ``rowvec`` in the target database: installed and migrated by whichever run comes first."""

from __future__ import annotations

from psycopg import errors as pg
from psycopg import sql

from rowvec.errors import TargetError
from rowvec.postgres.connection import MINIMUM_PGVECTOR, Connection
from rowvec.postgres.queries import blocks

_LOCK = 0x726F7776  # "rowv": one installer at a time, whatever the pipeline


def install(connection: Connection) -> None:
    """Bring the database to the newest migration; does nothing, and locks nothing, where that is already so.

    Raises ``TargetError`` where pgvector is missing or older than ``MINIMUM_PGVECTOR``.
    """
    migrations = sorted(
        int(name.removeprefix("migration_")) for name in blocks("schema") if name.startswith("migration_")
    )
    if _applied(connection) >= migrations[-1]:
        _check_pgvector(connection)
        return
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        _install_pgvector(connection)
        connection.execute(blocks("schema")["version_table"])
        done = _applied(connection)
        for number in migrations:
            if number > done:
                connection.execute(blocks("schema")[f"migration_{number}"])
                connection.execute("INSERT INTO rowvec.migrations (number) VALUES (%s)", (number,))
    _check_pgvector(connection)


def _applied(connection: Connection) -> int:
    exists = connection.execute("SELECT to_regclass('rowvec.migrations')").fetchone()
    if exists is None or exists[0] is None:
        return 0
    newest = connection.execute("SELECT coalesce(max(number), 0) FROM rowvec.migrations").fetchone()
    return newest[0] if newest else 0


def _install_pgvector(connection: Connection) -> None:
    try:
        with connection.transaction():
            connection.execute(sql.SQL(blocks("schema")["extension"]))
    except (pg.InsufficientPrivilege, pg.FeatureNotSupported, pg.UndefinedFile) as error:
        raise TargetError(
            f"pgvector cannot be installed in the target database ({error.diag.message_primary}); "
            "ask its administrator for CREATE EXTENSION vector"
        ) from error


def _check_pgvector(connection: Connection) -> None:
    row = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    version = tuple(int(part) for part in row[0].split(".")) if row else ()
    if version < MINIMUM_PGVECTOR:
        wanted = ".".join(map(str, MINIMUM_PGVECTOR))
        raise TargetError(
            f"pgvector {row[0] if row else '(none)'} is too old: rowvec needs {wanted}; ALTER EXTENSION vector UPDATE"
        )
