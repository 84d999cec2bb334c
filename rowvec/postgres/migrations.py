"""The schema ``rowvec`` in the target database: the first run that needs it installs it or migrates it."""

from __future__ import annotations

from psycopg import errors as pg
from psycopg import sql

from rowvec.errors import TargetError
from rowvec.postgres.kept import forget
from rowvec.postgres.locks import LockSpace
from rowvec.postgres.queries import blocks, query
from rowvec.postgres.session import Connection

# Iterative scans came with 0.8.0.
MINIMUM_PGVECTOR = (0, 8, 0)


def install(connection: Connection) -> None:
    """Bring the database to the newest migration; does nothing, and locks nothing, if it is there already.

    Raises ``TargetError`` if pgvector is missing or older than ``MINIMUM_PGVECTOR``.
    """
    migrations = _migrations()
    if refuse_newer(connection) >= migrations[-1]:
        if connection.names.pgvector is None:
            # Another process has installed it since this connection was opened.
            connection.read_names()
        _check_pgvector(connection)
        return
    with connection.transaction():
        connection.execute(query("schema", "lock"), {"lock": LockSpace.MIGRATION})
        _install_pgvector(connection)
        # IF NOT EXISTS asks for the right to create first, and a role may lack it where the schema exists.
        if not connection.execute(query("schema", "has_schema")).fetchone():
            connection.execute(query("schema", "create_schema"))
        connection.execute(blocks("schema")["version_table"])
        applied = refuse_newer(connection)
        for number in migrations:
            if number > applied:
                connection.execute(blocks("schema")[f"migration_{number}"])
                connection.execute(query("schema", "note_migration"), {"number": number})
    _check_pgvector(connection)


def refuse_newer(connection: Connection) -> int:
    """The number of the newest migration that the database has; 0 if it has none, or if this role may not read it.

    Raises ``TargetError`` if a newer rowvec has migrated the ledger: this one would misread what it does not know. A
    role that only searches may not be allowed to read the ledger; it writes nothing there either.
    """
    try:
        newest = _newest_applied(connection)
    except pg.InsufficientPrivilege:
        return 0
    known = _migrations()[-1]
    if newest > known:
        raise TargetError(
            f"the ledger in the target database is of a newer rowvec (its migration {newest}; this one knows {known}), "
            "and nothing was done: install the newer version here too"
        )
    return newest


def _migrations() -> list[int]:
    """The numbers of all migrations that this version knows, ascending."""
    return sorted(int(name.removeprefix("migration_")) for name in blocks("schema") if name.startswith("migration_"))


def has_ledger(connection: Connection) -> bool:
    """Whether the database has the schema ``rowvec``, of whatever version."""
    exists = connection.execute(query("schema", "has_version_table")).fetchone()
    return bool(exists and exists[0])


def _newest_applied(connection: Connection) -> int:
    """The number of the newest migration that the database has; 0 if it has none."""
    with connection.transaction():
        if not has_ledger(connection):
            return 0
        newest = connection.execute(query("schema", "newest_migration")).fetchone()
    return newest[0] if newest else 0


def _install_pgvector(connection: Connection) -> None:
    try:
        with connection.transaction():
            schema = sql.Identifier(connection.names.creation or "public")
            connection.execute(query("schema", "extension", schema=schema))
        connection.read_names()
        forget()
    except (pg.InsufficientPrivilege, pg.FeatureNotSupported, pg.UndefinedFile) as error:
        raise TargetError(
            f"pgvector cannot be installed in the target database ({error.diag.message_primary}); "
            "ask its administrator for CREATE EXTENSION vector"
        ) from error


def _check_pgvector(connection: Connection) -> None:
    version = pgvector_version(connection)
    if version < MINIMUM_PGVECTOR:
        found, minimum = (".".join(map(str, each)) for each in (version, MINIMUM_PGVECTOR))
        raise TargetError(
            f"pgvector {found or '(none)'} is too old: rowvec needs {minimum}; install a newer one on the server, then "
            "ALTER EXTENSION vector UPDATE"
        )


def pgvector_version(connection: Connection) -> tuple[int, ...]:
    """The version of pgvector in the database; empty if it has none."""
    row = connection.execute(query("schema", "pgvector_version")).fetchone()
    return tuple(int(part) for part in row[0].split(".")) if row else ()
