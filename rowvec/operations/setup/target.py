"""Checks of the target database: the server, pgvector, the role's privileges, settings, and a pooler in the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from psycopg import sql

from rowvec.errors import TargetError, UsageError
from rowvec.index.build import operator_class
from rowvec.index.build_memory import foresee
from rowvec.index.choice import Facts, choose
from rowvec.ledger.pipelines import is_readable
from rowvec.operations.setup.finding import Finding, fault, ok, warning
from rowvec.pipeline import Pipeline
from rowvec.pipeline.index_kinds import INDEXES
from rowvec.pipeline.parts import table_identifier
from rowvec.postgres.connection import Connection
from rowvec.postgres.migrations import MINIMUM_PGVECTOR
from rowvec.postgres.queries import query
from rowvec.runtime.figures import counted
from rowvec.searches.index_kinds import method_of
from rowvec.searches.index_kinds.hnsw import SOUND_PGVECTOR
from rowvec.stages.report import MEMORY

# docs/reference/compatibility.md: the versions that rowvec is made for.
_OLDEST_SERVER, _NEWEST_SERVER = 15, 18

# A sync holds a connection for its lease, one for each stage at work, and two for what is paid.
_CONNECTIONS = 8
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Role:
    """Who is connected, and what the database allows this role; names are quoted as SQL needs them."""

    name: str
    database: str
    may_create: bool
    may_use_temporary: bool
    limit: int
    """The most connections of the role; -1 if there is no limit."""
    database_limit: int


def role_of(connection: Connection) -> Role:
    """The role of a connection."""
    row = connection.execute(query("setup", "role")).fetchone()
    return Role(*row) if row else Role("", "", False, False, -1, -1)


def server(connection: Connection) -> Iterator[Finding]:
    """The server's version, whether it takes writes, and what stands between it and us."""
    version, number, read_only = connection.execute(query("setup", "server")).fetchone() or ("unknown", 0, False)
    major, said = number // 10_000, f"PostgreSQL {version.split()[0]}"
    if major < _OLDEST_SERVER:
        yield fault("server", f"{said} is too old", f"use PostgreSQL {_OLDEST_SERVER} to {_NEWEST_SERVER}")
    elif major > _NEWEST_SERVER:
        yield warning(
            "server",
            f"{said} is newer than {_NEWEST_SERVER}, the newest that rowvec was tried on",
            "try it on a copy of the table first; docs/reference/compatibility.md lists what was tried",
        )
    else:
        yield ok("server", said)
    if read_only:
        yield fault(
            "server",
            "the target database takes no writes",
            "it is a standby, or default_transaction_read_only is set: name the primary in target.url",
        )
    if connection.open_direct is None and connection.is_pooled:
        yield warning(
            "pooler",
            "a pooler stands between rowvec and the server; all commands work, and index builds have the server's own "
            "maintenance_work_mem",
            "name the server itself in target.direct_url if you build large indexes",
        )


def pgvector(connection: Connection, role: Role) -> Iterator[Finding]:
    """Whether pgvector is there, usable, and new enough."""
    version, schema, usable, available = connection.execute(query("setup", "pgvector")).fetchone() or (None,) * 4
    minimum = ".".join(map(str, MINIMUM_PGVECTOR))
    if version is None:
        trusted, superuser = connection.execute(query("setup", "may_install_pgvector")).fetchone() or (False, False)
        if available is None:
            yield fault(
                "pgvector",
                "the server does not have pgvector",
                f"install pgvector {minimum} or later on the server, then CREATE EXTENSION vector",
            )
        elif superuser or (trusted and role.may_create):
            yield ok("pgvector", f"{available}, which the first sync installs")
        else:
            yield fault(
                "pgvector",
                f"it is not installed in the database {role.database}, and {role.name} may not install it",
                "an administrator runs: CREATE EXTENSION vector;",
            )
        return
    found = tuple(int(part) for part in version.split("."))
    if not usable:
        yield fault(
            "pgvector",
            f"{role.name} may not use the schema {schema}, where pgvector is",
            f"an administrator runs: GRANT USAGE ON SCHEMA {schema} TO {role.name};",
        )
    if found < MINIMUM_PGVECTOR:
        yield fault(
            "pgvector",
            f"pgvector {version} is too old; rowvec needs {minimum}",
            "install a newer one on the server, then an administrator runs: ALTER EXTENSION vector UPDATE;",
        )
    elif found < SOUND_PGVECTOR:
        yield warning(
            "pgvector",
            f"pgvector {version} has faults in HNSW that 0.8.4 fixes, so indexes are built without parallel workers",
            "install 0.8.4 or later on the server, then an administrator runs: ALTER EXTENSION vector UPDATE;",
        )
    elif usable:
        yield ok("pgvector", f"{version} in the schema {schema}")


def privileges(connection: Connection, pipeline: Pipeline, role: Role) -> Iterator[Finding]:
    """Whether the role may do in the target database what a sync does."""
    missing: list[Finding] = []
    if not role.may_use_temporary:
        missing.append(
            fault(
                "privileges",
                f"{role.name} may not create temporary tables, in which rows are compared",
                f"an administrator runs: GRANT TEMPORARY ON DATABASE {role.database} TO {role.name};",
            )
        )
    schema, table = table_identifier(pipeline.target.table)
    for name, only in (("rowvec", None), (schema, table)):
        missing += _schema_faults(connection, role, name, only)
    yield from missing or [ok("privileges", f"{role.name} may do in {role.database} all that a sync does there")]


def _schema_faults(connection: Connection, role: Role, schema: str, table: str | None) -> Iterator[Finding]:
    quoted = sql.Identifier(schema).as_string(connection)
    row = connection.execute(query("setup", "schema", schema=sql.Literal(schema))).fetchone()
    if row is None:
        if not role.may_create:
            yield fault(
                "privileges",
                f"there is no schema {quoted}, and {role.name} may not create one in the database {role.database}",
                f"an administrator runs: CREATE SCHEMA {quoted} AUTHORIZATION {role.name};",
            )
        return
    lacking = [right for right, held in zip(("USAGE", "CREATE"), row, strict=True) if not held]
    if lacking:
        yield fault(
            "privileges",
            f"{role.name} lacks {' and '.join(lacking)} on the schema {quoted}",
            f"an administrator runs: GRANT {', '.join(lacking)} ON SCHEMA {quoted} TO {role.name};",
        )
    others = connection.execute(
        query("setup", "not_ours", schema=sql.Literal(schema), table=sql.Literal(table))
    ).fetchall()
    if others:
        statements = " ".join(f"ALTER TABLE {name} OWNER TO {role.name};" for (name,) in others)
        yield fault(
            "privileges",
            f"{counted(len(others), 'tables that rowvec writes do', 'table that rowvec writes does')} not belong to "
            f"{role.name}: {others[0][0]}" + (" and others" if len(others) > 1 else ""),
            f"an administrator runs: {statements}",
        )


def connections(connection: Connection, role: Role) -> Iterator[Finding]:
    """Whether there are connections enough for a sync."""
    _, most, reserved, taken = connection.execute(query("setup", "settings")).fetchone() or (0, 0, 0, 0)
    limits = {"max_connections of the server": most - reserved - taken + 1}
    if role.limit >= 0:
        limits[f"the connection limit of the role {role.name}"] = role.limit
    if role.database_limit >= 0:
        limits[f"the connection limit of the database {role.database}"] = role.database_limit
    name, least = min(limits.items(), key=lambda item: item[1])
    if least >= _CONNECTIONS:
        yield ok("connections", f"{least:,} are free")
    else:
        yield warning(
            "connections",
            f"{name} leaves {max(0, least):,} connections, and a sync opens up to {_CONNECTIONS}",
            f"raise {name}, or end sessions that nobody uses",
        )


def memory(connection: Connection, pipeline: Pipeline, rows: int) -> Iterator[Finding]:
    """Whether the server's memory suits the index over ``rows`` vectors, by an estimate."""
    target, dimensions = pipeline.target, pipeline.embedder.dimensions
    bits = pipeline.bits
    facts = Facts(rows=rows, dimensions=dimensions, precision=target.precision, bits=bits, metric=target.metric)
    try:
        choice = choose(facts, pipeline.index)
    except UsageError as error:
        yield fault("index", str(error))
        return
    if choice.kind == "none":
        yield ok("index", f"none is needed: {choice.reason}")
        return
    try:
        operator_class(connection, choice)
    except TargetError as error:
        if choice.kind not in INDEXES.built_in:  # without pgvector, its own finding says so
            yield fault("index", str(error))
            return
    build = foresee(connection, rows, dimensions, choice)
    shared_buffers, *_ = connection.execute(query("setup", "settings")).fetchone() or (0,)
    size = method_of(choice.kind).index_bytes(rows, dimensions, choice)
    what = f"{choice.kind} on {choice.on} over about {rows:,} rows, about {size / _MIB:,.0f} MiB"
    if build.is_refused:
        yield fault("index", f"{what}: {build.written()}")
    elif build.spills:
        yield warning(
            "index",
            f"{what}; its build takes about {build.needed / _MIB:,.0f} MiB and gets {build.given / _MIB:,.0f} MiB, "
            "which makes it many times slower",
            f"set maintenance_work_mem of the server to {_rounded(build.needed)}, or index.on to bits",
        )
    if size > shared_buffers:
        cost = _insert_ms(connection, pipeline)
        measured = "" if cost is None else f"; the last run took {cost:,.1f} ms for each vector that it wrote"
        yield warning(
            "index",
            f"{what}, is larger than shared_buffers, {shared_buffers / _MIB:,.0f} MiB: searches and merges read the "
            f"disk{measured}",
            f"set shared_buffers of the server to {_rounded(size * 4 // 3)} or more, or index.on to bits",
        )
    elif not build.spills and not build.is_refused:
        yield ok("index", f"{what}; it fits into maintenance_work_mem and shared_buffers")


def _insert_ms(connection: Connection, pipeline: Pipeline) -> float | None:
    """What the last run that had an index too large for the server measured for each vector that it wrote."""
    if not is_readable(connection, "runs", "checks"):
        return None
    values = {"pipeline": pipeline.name, "check": MEMORY}
    row = connection.execute(query("setup", "insert_ms"), values).fetchone()
    return row[0] if row else None


def _rounded(size: int) -> str:
    """A size as a setting of Postgres, rounded up."""
    return f"{-(-size // 2**30)}GB" if size >= 2**30 else f"{-(-size // _MIB)}MB"
