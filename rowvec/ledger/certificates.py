"""The certificate of a run: the root of a hash tree over every row of the vector table, chained to the root before.

The ledger keeps the tree (``rowvec.hash_tree``), so a run hashes only the rows that it changed: those whose keys no
manifest covers yet, which is what the journal records too. See docs/decisions/0030-certificates.md.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import cast

from psycopg import sql

from rowvec.errors import ArtifactCorrupt
from rowvec.ledger.pipelines import PipelineId
from rowvec.postgres.connection import Connection, expect_few_keys
from rowvec.postgres.fragments import key_digest, key_text, names, same_key
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable
from rowvec.store.manifest import Certificate
from rowvec.vectors.hash_tree import DEPTH, VectorType, chained, chained_block


@dataclass(frozen=True, slots=True, kw_only=True)
class TableAfterRun:
    """The vector table whose rows are certified."""

    run_id: int
    pipeline_id: PipelineId
    table: VectorTable
    rows: int
    """As counted by the run."""
    changes: sql.Identifier | None
    """The table of the keys that changed since the last manifest; None if none has."""
    built_again: bool
    """Whether more may have changed than these keys."""
    compared_all: bool
    """Whether the run has read the whole table anyway."""


@dataclass(frozen=True, slots=True)
class Certified:
    """The last certificate of a vector table."""

    certificate: Certificate
    is_current: bool
    """Whether it is of the table as the last run left it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """All certificates of a vector table, each of which should follow the one before it."""

    certificates: int
    gaps: tuple[int, ...]
    """Runs whose certificate does not follow the one before it: a restore has brought back runs that this ledger did
    not have, or somebody has edited the ledger."""


def certify(connection: Connection, after: TableAfterRun) -> Certificate | None:
    """Bring the tree in step with the vector table; the certificate for the run's manifest.

    If the tree does not fit the table, it is built from all vectors by a run that has compared everything; any other
    run has no certificate. The tree changes in a transaction of its own: a run that is killed afterwards leaves its
    keys noted, and the next run hashes their rows again.
    """
    with connection.transaction():
        root = None if after.built_again else _updated(connection, after)
        # An old key that is equal to a new one and prints in another way, such as 1.0 and 1.00, leaves its record.
        if root is None or root[0] != after.rows:
            connection.execute(query("certificates", "forget", pipeline_id=sql.Literal(after.pipeline_id)))
            if not after.compared_all:
                return None
            root = build_tree(connection, after.table, after.pipeline_id)
        last = newest(connection, after.pipeline_id)
    rows, digest = root
    before = last and last.certificate.chain
    return Certificate(
        run_id=after.run_id,
        rows=rows,
        vector=vector_type(after.table),
        root=digest,
        before=before,
        chain=chained(before, after.run_id, rows, digest),
    )


def build_tree(connection: Connection, table: VectorTable, pipeline_id: PipelineId) -> tuple[int, str]:
    """Build the tree from every row of a table, in a transaction of the caller's; returns its rows and its root."""
    owner = sql.Literal(pipeline_id)
    connection.execute(query("certificates", "forget", pipeline_id=owner))
    statement = query("certificates", "build", pipeline_id=owner, buckets=buckets(table))
    _add_nodes(connection, pipeline_id, [path for (path,) in connection.execute(statement).fetchall()])
    return _root(connection, pipeline_id) or (0, "")


def continue_from(
    connection: Connection, table: VectorTable, pipeline_id: PipelineId, certificate: Certificate | None
) -> bool | None:
    """After a restore, in its transaction: whether the table has the root of the manifest's certificate.

    If it has, the next certificate is chained to this one. None if the manifest has none, or one of vectors of another
    type than the table's.
    """
    connection.execute(query("certificates", "forget", pipeline_id=sql.Literal(pipeline_id)))
    if certificate is None or certificate.vector != vector_type(table):
        return None
    _, root = build_tree(connection, table, pipeline_id)
    if root == certificate.root:
        note(connection, pipeline_id, certificate)
    return root == certificate.root


def buckets(table: VectorTable) -> sql.Composed:
    """A query for the buckets of a vector table: path, rows and content of each, from one pass over the table."""
    return query("certificates", "buckets", record=_record(table), table=table.identifier)


def newest(connection: Connection, pipeline_id: PipelineId) -> Certified | None:
    """The last certificate of a pipeline's table; None if it has none."""
    row = connection.execute(query("certificates", "newest", pipeline_id=sql.Literal(pipeline_id))).fetchone()
    if row is None:
        return None
    run_id, rows, vector, root, before, chain, is_current = row
    certificate = Certificate(run_id=run_id, rows=rows, vector=vector, root=root, before=before, chain=chain)
    return Certified(certificate, is_current)


def follow_chain(connection: Connection, pipeline_id: PipelineId) -> Chain:
    """Compute the chain of all certificates again, about a million in two seconds.

    Raises ``ArtifactCorrupt`` if a root or a number in the ledger is not the one that was chained.
    """
    certificates, gaps, previous = 0, list[int](), None
    statement = query("certificates", "chain", pipeline_id=sql.Literal(pipeline_id))
    for last_run, before, chain, content in connection.execute(statement):
        found = chained_block(before, content)
        if found.chain != chain:
            raise ArtifactCorrupt(
                f"the certificates of the runs {found.first_run} to {last_run} in the ledger are not those that were "
                "chained: somebody has edited rowvec.certificates or rowvec.certificate_blocks"
            )
        if certificates and before != previous:
            gaps.append(found.first_run)
        certificates, previous = certificates + found.certificates, chain
    return Chain(certificates=certificates, gaps=tuple(gaps))


def note(connection: Connection, pipeline_id: PipelineId, certificate: Certificate) -> None:
    """Record a certificate in the ledger; its manifest is in the store already."""
    connection.execute(query("certificates", "note"), {"pipeline_id": pipeline_id, **asdict(certificate)})


def vector_type(table: VectorTable) -> VectorType:
    """The type of a table's vectors, without their length."""
    return cast("VectorType", table.layout.type_name)


def _record(table: VectorTable) -> sql.Composed:
    digest, text = key_digest(table.key, "t"), key_text(table.key, "t")
    return query("certificates", "record", digest=digest, key_text=text, send=table.layout.send)


def _updated(connection: Connection, after: TableAfterRun) -> tuple[int, str] | None:
    """Rows and root of the tree after the changed keys; None if there is no tree."""
    root = _root(connection, after.pipeline_id)
    if root is None or after.changes is None:
        return root
    if not after.compared_all:
        expect_few_keys(connection)
    table, owner = after.table, sql.Literal(after.pipeline_id)
    nodes = [sql.Identifier(f"level_{length}") for length in range(DEPTH + 1)]
    node = query("certificates", "node", pipeline_id=owner)
    levels = [
        query("certificates", "level", level=level, below=below, node=node)
        for level, below in zip(reversed(nodes[:-1]), reversed(nodes[1:]), strict=True)
    ]
    statement = query(
        "certificates",
        "update",
        pipeline_id=owner,
        node=node,
        digest=key_digest(table.key, "k"),
        record=_record(table),
        key=names(table.key),
        unrecorded=after.changes,
        table=table.identifier,
        same_key=same_key(table.key, "t", "k"),
        levels=sql.SQL(", ").join(levels),
        all_levels=sql.SQL(" UNION ALL ").join(query("certificates", "nodes_of", level=level) for level in nodes),
    )
    return connection.execute(statement).fetchone()


def _add_nodes(connection: Connection, pipeline_id: PipelineId, paths: list[str]) -> None:
    """Compute the nodes above these buckets, level by level."""
    for length in reversed(range(DEPTH)):
        # The root is there also if the table has no row.
        paths = sorted({path[:length] for path in paths} | ({""} if length == 0 else set()))
        parts = {"pipeline_id": sql.Literal(pipeline_id), "paths": sql.Literal(paths)}
        connection.execute(query("certificates", "nodes", **parts))


def _root(connection: Connection, pipeline_id: PipelineId) -> tuple[int, str] | None:
    return connection.execute(query("certificates", "root", pipeline_id=sql.Literal(pipeline_id))).fetchone()
