"""The schema ``rowvec`` in the target database: the first run that needs it installs it or migrates it."""

from __future__ import annotations

from psycopg import errors as pg
from psycopg import sql

from rowvec.errors import TargetError
from rowvec.postgres.connection import MINIMUM_PGVECTOR, Connection
from rowvec.postgres.locks import LockSpace
from rowvec.postgres.queries import blocks, query


def install(connection: Connection) -> None:
    """Bring the database to the newest migration; does nothing, and locks nothing, if it is there already.

    Raises ``TargetError`` if pgvector is missing or older than ``MINIMUM_PGVECTOR``.
    """
    migrations = sorted(
        int(name.removeprefix("migration_")) for name in blocks("schema") if name.startswith("migration_")
    )
    if _newest_applied(connection) >= migrations[-1]:
        _check_pgvector(connection)
        return
    with connection.transaction():
        connection.execute(query("schema", "lock"), {"lock": LockSpace.MIGRATION})
        _install_pgvector(connection)
        connection.execute(blocks("schema")["version_table"])
        applied = _newest_applied(connection)
        for number in migrations:
            if number > applied:
                connection.execute(blocks("schema")[f"migration_{number}"])
                connection.execute(query("schema", "note_migration"), {"number": number})
    _check_pgvector(connection)


def _newest_applied(connection: Connection) -> int:
    """The number of the newest migration that the database has; 0 if it has none."""
    exists = connection.execute(query("schema", "has_version_table")).fetchone()
    if not (exists and exists[0]):
        return 0
    newest = connection.execute(query("schema", "newest_migration")).fetchone()
    return newest[0] if newest else 0


def _install_pgvector(connection: Connection) -> None:
    try:
        with connection.transaction():
            schema = sql.Identifier(connection.names.creation or "public")
            connection.execute(query("schema", "extension", schema=schema))
        connection.read_names()
    except (pg.InsufficientPrivilege, pg.FeatureNotSupported, pg.UndefinedFile) as error:
        raise TargetError(
            f"pgvector cannot be installed in the target database ({error.diag.message_primary}); "
            "ask its administrator for CREATE EXTENSION vector"
        ) from error


def _check_pgvector(connection: Connection) -> None:
    row = connection.execute(query("schema", "pgvector_version")).fetchone()
    version = tuple(int(part) for part in row[0].split(".")) if row else ()
    if version < MINIMUM_PGVECTOR:
        minimum = ".".join(map(str, MINIMUM_PGVECTOR))
        raise TargetError(
            f"pgvector {row[0] if row else '(none)'} is too old: rowvec needs {minimum}; ALTER EXTENSION vector UPDATE"
        )
