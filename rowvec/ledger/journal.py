"""The journal: what each run did to the vector table, by key and without the vectors, kept beside the artifacts.

An artifact says which vector a fingerprint has; the journal says which fingerprint a key has, with its metadata. A
manifest links an entry to the one before, so that from the newest manifest the whole table follows, and from nothing
else: no database, no source, no embedder.

Which keys changed is written down in the merge's own transaction (``rowvec.unrecorded_<pipeline>``), and forgotten only
once a manifest in the store tells of them: a run that is killed in between leaves them to the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
from psycopg import sql
from psycopg.types.json import Jsonb

from rowvec.errors import TargetError
from rowvec.ledger.pipelines import PipelineId
from rowvec.ledger.runs import RunId
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable
from rowvec.store.artifact import Artifact
from rowvec.store.manifest import JournalEntry, Layout, Link, Manifest, RunRecord, write_manifest
from rowvec.store.protocol import Store, file_checksum
from rowvec.vectors.fingerprint import Identity

# What a journal entry's rows end with, after key and metadata.
FACTS = (
    PgColumn("fingerprint", "bytea"),
    PgColumn("metadata_hash", "bytea"),
    PgColumn("run_id", "bigint"),
    PgColumn("embedded_at", "timestamp with time zone"),
    PgColumn("rowvec_paid_by", "bigint"),
    PgColumn("rowvec_cost_usd", "real"),
)
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A manifest that is in the store and that the ledger has not been told of yet."""

    name: str
    sha256: str
    pipeline_id: PipelineId
    manifest: Manifest

    def tell(self, connection: Connection) -> None:
        """Let the ledger know; in the transaction that ends the run."""
        runs = [run.run_id for run in self.manifest.runs]
        listed = {
            "pipeline_id": self.pipeline_id,
            "names": [artifact.name for artifact in self.manifest.artifacts],
            # One that holds nothing any more is not named, and is no news for the next manifest either.
            "whole": self.manifest.previous is None,
        }
        connection.execute(query("journal", "list_artifacts"), listed)
        connection.execute(query("journal", "list_runs"), {"runs": runs})
        layout = Jsonb(asdict(self.manifest.layout))
        connection.execute(query("journal", "told"), {"pipeline_id": self.pipeline_id, "layout": layout})
        connection.execute(query("journal", "forget_table", unrecorded=unrecorded(self.pipeline_id)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """A run at its end: what its manifest is to say."""

    run_id: RunId
    pipeline_id: PipelineId
    pipeline: str
    table: VectorTable
    identity: Identity
    counts: dict[str, int]
    checksum: str
    embedded: int
    tokens: int
    cost_usd: float


def unrecorded(pipeline_id: PipelineId) -> sql.Identifier:
    """The table of the keys that changed and that no manifest tells of yet."""
    return sql.Identifier("rowvec", f"unrecorded_{pipeline_id}")


def begin_anew(connection: Connection, pipeline_id: PipelineId) -> None:
    """The vector table is made anew: the next manifest holds every row of it."""
    connection.execute(query("journal", "whole"), {"pipeline_id": pipeline_id})
    connection.execute(query("journal", "forget_table", unrecorded=unrecorded(pipeline_id)))


def record(
    connection: Connection, store: Store, closing: Closing, folder: Path, *, whole: bool = False
) -> Recorded | None:
    """Put what no manifest tells of yet into the store; None where there is nothing to tell.

    ``whole``: every row of the table, all artifacts, and no manifest before. ``folder`` holds what is on its way.
    """
    layout = _layout(closing.table)
    values = {
        "pipeline_id": closing.pipeline_id,
        "unrecorded": unrecorded(closing.pipeline_id).as_string(connection),
    }
    row = connection.execute(query("journal", "due"), values).fetchone()
    if row is None:
        raise TargetError(
            f"the ledger has no pipeline {closing.pipeline}; somebody removed it while this run was at work"
        )
    # The database's clock, for manifests are in the order of time whichever machine writes them.
    due, written_layout, new_artifacts, previous, remembered, now = row
    whole = whole or due or previous is None or written_layout != _as_json(layout)
    changed = remembered and _any_change(connection, closing.pipeline_id)
    if not (whole or new_artifacts or changed):
        return None
    parts = {"pipeline_id": closing.pipeline_id}
    found = connection.execute(query("journal", "all_artifacts" if whole else "new_artifacts"), parts).fetchall()
    manifest = Manifest(
        run_id=closing.run_id,
        pipeline=closing.pipeline,
        table=f"{closing.table.schema}.{closing.table.name}",
        identity=closing.identity,
        layout=layout,
        previous=None if whole else previous,
        journal=_export(connection, store, closing, folder, whole=whole, changed=changed),
        artifacts=tuple(Artifact(name=name, sha256=sha256, rows=n, bytes=size) for name, sha256, n, size in found),
        runs=_runs(connection, closing, whole=whole),
        counts=closing.counts,
        checksum=closing.checksum,
        created_at=now,
    )
    name, sha256 = write_manifest(store, manifest, folder)
    return Recorded(name=name, sha256=sha256, pipeline_id=closing.pipeline_id, manifest=manifest)


def replay(connection: Connection, store: Store, chain: list[Link], folder: Path) -> None:
    """Make the temporary table ``journal_state``: each key's facts as of the last manifest of the chain.

    Its columns are those of the layout, then ``FACTS``. Raises ``ArtifactCorrupt`` where an entry is lost or spoilt.
    """
    layout = chain[-1].manifest.layout
    columns = tuple(PgColumn(name, pg_type) for name, pg_type in (*layout.key, *layout.metadata))
    key = sql.SQL(", ").join(sql.Identifier(name) for name, _ in layout.key)
    typed = (sql.SQL("{} {}").format(sql.Identifier(c.name), c.type_sql) for c in (*columns, *FACTS))
    assigned = (
        # The key too: it may have been written anew as an equal value that reads otherwise, as 1.0 and 1.00 do.
        sql.SQL("{0} = excluded.{0}").format(sql.Identifier(c.name))
        for c in (*columns, *FACTS)
    )
    connection.execute(query("journal", "drop_state"))
    connection.execute(query("journal", "state_table", columns=sql.SQL(", ").join(typed), key=key))
    connection.execute(query("journal", "entry_table"))
    apply = query("journal", "apply_entry", key=key, assignments=sql.SQL(", ").join(assigned))
    for manifest in (link.manifest for link in chain):
        if manifest.previous is None:
            copy_entry(connection, store, manifest.journal, query("journal", "copy_whole"), folder)
            continue
        copy_entry(connection, store, manifest.journal, query("journal", "copy_entry"), folder)
        connection.execute(apply)
        connection.execute(query("journal", "empty_entry"))
    connection.execute(query("journal", "forget_deleted"))
    connection.execute(query("journal", "analyze_state"))


def _export(
    connection: Connection, store: Store, closing: Closing, folder: Path, *, whole: bool, changed: bool
) -> JournalEntry:
    """Rows as Postgres itself writes them, so that every type comes back as it was; compressed, in constant memory."""
    table, named = closing.table, sql.SQL(", ").join(sql.Identifier(c.name) for c in closing.table.key)
    rows = query("journal", "every_row", table=table.identifier)
    if not whole:
        same = sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(sql.Identifier("t", c.name), sql.Identifier("k", c.name)) for c in table.key
        )
        changes = unrecorded(closing.pipeline_id)
        rows = query("journal", "changed_rows", key=named, unrecorded=changes, table=table.identifier, same_key=same)
    key_of = "t" if whole else "k"
    columns = [sql.Identifier(key_of, c.name) for c in table.key] + [
        sql.Identifier("t", c.name) for c in table.metadata
    ]
    statement = query(
        "journal",
        "export",
        columns=sql.SQL("").join(sql.SQL("{}, ").format(column) for column in columns),
        rows=rows,
        pipeline_id=sql.Literal(closing.pipeline_id),
    )
    local = folder / f"{uuid4().hex}.csv.zst"
    try:
        count = 0
        with pa.CompressedOutputStream(str(local), "zstd") as out:
            if whole or changed:
                count = _copy_out(connection, statement, out)
        sha256 = file_checksum(local)
        name = f"journal/{closing.pipeline}/{sha256[:2]}/{sha256}.csv.zst"
        store.put(name, local, sha256)
        return JournalEntry(name=name, sha256=sha256, rows=count, bytes=local.stat().st_size)
    finally:
        local.unlink(missing_ok=True)


def _any_change(connection: Connection, pipeline_id: PipelineId) -> bool:
    row = connection.execute(query("journal", "any_change", unrecorded=unrecorded(pipeline_id))).fetchone()
    return bool(row and row[0])


def _copy_out(connection: Connection, statement: sql.Composed, out: pa.NativeFile) -> int:
    with connection.cursor() as cursor:
        with cursor.copy(statement) as copy:
            for block in copy:
                out.write(block)
        return cursor.rowcount


def copy_entry(
    connection: Connection, store: Store, entry: JournalEntry, statement: sql.Composed, folder: Path
) -> None:
    """Feed an entry's rows to a COPY. Raises ``ArtifactCorrupt`` where it is lost or spoilt."""
    local = folder / f"{uuid4().hex}.csv.zst"
    try:
        store.get(entry.name, local, entry.sha256)
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            for part in _blocks(local):
                copy.write(part)
    finally:
        local.unlink(missing_ok=True)


def _blocks(path: Path) -> Iterator[bytes]:
    with pa.CompressedInputStream(str(path), "zstd") as stream:
        while block := stream.read(_BLOCK):
            yield block


def _runs(connection: Connection, closing: Closing, *, whole: bool) -> tuple[RunRecord, ...]:
    if whole:
        parts = {"pipeline_id": sql.Literal(closing.pipeline_id), "run_id": sql.Literal(closing.run_id)}
        rows = connection.execute(query("journal", "all_runs", table=closing.table.identifier, **parts)).fetchall()
    else:
        rows = connection.execute(query("journal", "new_runs"), {"pipeline_id": closing.pipeline_id}).fetchall()
    own = (closing.embedded, closing.tokens, closing.cost_usd)
    return tuple(
        RunRecord(
            run_id=run_id,
            cause=cause,
            state=state,
            started_at=started,
            finished_at=finished,
            embedded=embedded,
            tokens=tokens,
            cost_usd=cost,
        )
        for run_id, cause, state, started, finished, embedded, tokens, cost in (
            (*row[:5], *own) if row[0] == closing.run_id else row for row in rows
        )
    )


def _layout(table: VectorTable) -> Layout:
    return Layout(
        key=tuple((c.name, c.pg_type) for c in table.key), metadata=tuple((c.name, c.pg_type) for c in table.metadata)
    )


def _as_json(layout: Layout) -> dict[str, list[list[str]]]:
    return {"key": [list(pair) for pair in layout.key], "metadata": [list(pair) for pair in layout.metadata]}
