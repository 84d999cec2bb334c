"""The journal: what each run did to the vector table, by key and without the vectors, kept in the store.

An artifact maps a fingerprint to its vector; the journal maps a key to its fingerprint and metadata. Each manifest
names one journal entry and the manifest before. So the newest manifest is enough to rebuild the whole table from the
store, without the database, the source or the embedder.

The merge's own transaction notes which keys changed, in the table ``rowvec.unrecorded_<pipeline>``. The notes are
deleted only once a manifest in the store covers them: after a killed run, the next run records them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from uuid import uuid4

import psycopg
import pyarrow as pa
from psycopg import errors as pg
from psycopg import sql
from psycopg.types.json import Jsonb

from rowvec.errors import ArtifactCorrupt, TargetError
from rowvec.ledger.certificates import TableAfterRun, certify, note
from rowvec.ledger.marked_store import family_of, forget_superseded, own_mark, supersede, superseded_by
from rowvec.ledger.pipelines import PipelineId
from rowvec.ledger.runs import RunId
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection, expect_few_keys
from rowvec.postgres.fragments import definitions, names, same_key
from rowvec.postgres.queries import query
from rowvec.postgres.type_names import known_columns
from rowvec.postgres.vector_table import VectorTable
from rowvec.store.artifact import Artifact
from rowvec.store.manifest import JournalEntry, Layout, Link, Manifest, RunRecord, as_object, write_manifest
from rowvec.store.marks import write_mark
from rowvec.store.protocol import Store, file_checksum
from rowvec.vectors.fingerprint import Identity

# The last columns of a journal entry's rows, after key and metadata.
FACTS = (
    PgColumn("fingerprint", "bytea"),
    PgColumn("metadata_hash", "bytea"),
    PgColumn("run_id", "bigint"),
    PgColumn("embedded_at", "timestamp with time zone"),
    PgColumn("rowvec_paid_by", "bigint"),
    PgColumn("rowvec_cost_usd", "real"),
)
_BLOCK = 1 << 20
# What the database says of values that no table of rowvec's can have held.
_REFUSALS = (psycopg.DataError, psycopg.IntegrityError, pg.CardinalityViolation, pg.ProgramLimitExceeded)
_SHOWN = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A manifest that is in the store and not in the ledger yet."""

    name: str
    sha256: str
    pipeline_id: PipelineId
    manifest: Manifest

    def confirm(self, connection: Connection) -> None:
        """Mark in the ledger what the manifest covers; call it in the transaction that ends the run."""
        runs = [run.run_id for run in self.manifest.runs]
        covered = {
            "pipeline_id": self.pipeline_id,
            "names": [artifact.name for artifact in self.manifest.artifacts],
            # A manifest of every row does not name artifacts without a vector; these count as covered all the same.
            "whole": self.manifest.previous is None,
        }
        connection.execute(query("journal", "list_artifacts"), covered)
        connection.execute(query("journal", "list_runs"), {"runs": runs})
        layout = Jsonb(asdict(self.manifest.layout))
        connection.execute(query("journal", "continue"), {"pipeline_id": self.pipeline_id, "layout": layout})
        connection.execute(query("journal", "forget_table", unrecorded=unrecorded(self.pipeline_id)))
        if self.manifest.certificate:
            note(connection, self.pipeline_id, self.manifest.certificate)
        forget_superseded(connection, family_of(self.manifest.pipeline), [self.name])


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """The end of a run: the content of its manifest."""

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
    compared_all: bool = True
    """Whether the run has read the whole vector table, and not only what a queue of changes named."""


def unrecorded(pipeline_id: PipelineId) -> sql.Identifier:
    """The table of the keys that changed and that no manifest covers yet."""
    return sql.Identifier("rowvec", f"unrecorded_{pipeline_id}")


def has_changes(connection: Connection, pipeline_id: PipelineId) -> bool:
    """Whether a run has changed rows that no manifest covers yet: it is at work, or was killed."""
    name = sql.Literal(unrecorded(pipeline_id).as_string(connection))
    row = connection.execute(query("journal", "noted", unrecorded=name)).fetchone()
    return bool(row and row[0]) and _any_change(connection, pipeline_id)


def restart_journal(connection: Connection, pipeline_id: PipelineId) -> None:
    """Make the next manifest name every row, because the vector table is built again from nothing."""
    connection.execute(query("journal", "restart"), {"pipeline_id": pipeline_id})
    connection.execute(query("journal", "forget_table", unrecorded=unrecorded(pipeline_id)))


def record(
    connection: Connection, store: Store, closing: Closing, folder: Path, *, whole: bool = False
) -> Recorded | None:
    """Write what no manifest covers yet to the store, as a journal entry and a manifest; None if there is nothing.

    ``whole``: write every row of the table and all artifacts, with no link to a manifest before. ``folder`` takes the
    temporary files. Raises ``TargetError`` if the ledger has no such pipeline any more.
    """
    layout = _layout(closing.table)
    values = {
        "pipeline_id": closing.pipeline_id,
        "unrecorded": unrecorded(closing.pipeline_id).as_string(connection),
    }
    row = connection.execute(query("journal", "due"), values).fetchone()
    if row is None:
        raise TargetError(f"the pipeline {closing.pipeline} was removed from the ledger while this run was at work")
    # The time is by the database's clock, because manifests are ordered by time and several machines write them.
    due, written_layout, new_artifacts, previous, noted, now = row
    built_again = due or previous is None or written_layout != _as_json(layout)
    whole = whole or built_again
    changed = noted and _any_change(connection, closing.pipeline_id)
    if not (whole or new_artifacts or changed):
        return None
    parts = {"pipeline_id": closing.pipeline_id}
    found = connection.execute(query("journal", "all_artifacts" if whole else "new_artifacts"), parts).fetchall()
    family = family_of(closing.pipeline)
    mark = own_mark(connection, family, None)
    after = TableAfterRun(
        run_id=closing.run_id,
        pipeline_id=closing.pipeline_id,
        table=closing.table,
        rows=closing.counts["rows"],
        changes=unrecorded(closing.pipeline_id) if changed else None,
        built_again=built_again,
        compared_all=closing.compared_all,
    )
    follows = {*superseded_by(connection, closing.pipeline, closing.pipeline_id), *([previous] if previous else [])}
    manifest = Manifest(
        run_id=closing.run_id,
        pipeline=closing.pipeline,
        table=f"{closing.table.schema}.{closing.table.name}",
        identity=closing.identity,
        layout=layout,
        previous=None if whole else previous,
        follows=tuple(sorted(follows)),
        ledger=mark.ledger,
        journal=_export(connection, store, closing, folder, whole=whole, changed=changed),
        artifacts=tuple(Artifact(name=name, sha256=sha256, rows=n, bytes=size) for name, sha256, n, size in found),
        runs=_runs(connection, closing, whole=whole),
        counts=closing.counts,
        checksum=closing.checksum,
        certificate=certify(connection, after),
        created_at=now,
    )
    # If this run is killed before it ends, the next manifest must know that it replaces this one.
    supersede(connection, family, [as_object(manifest)[0]])
    name, sha256 = write_manifest(store, manifest, folder)
    if closing.pipeline == family:
        write_mark(store, family, replace(mark, manifest=name))
    return Recorded(name=name, sha256=sha256, pipeline_id=closing.pipeline_id, manifest=manifest)


def replay(connection: Connection, store: Store, chain: Sequence[Link], folder: Path) -> None:
    """Make the temporary table ``journal_state``: each key's facts as of the last manifest of the chain.

    Its columns are those of the layout, then ``FACTS``. Raises ``ArtifactCorrupt`` if an entry is missing or corrupt,
    and ``TargetError`` if the layout names a type that this database does not have.
    """
    layout = chain[-1].manifest.layout
    columns = tuple(PgColumn(name, pg_type) for name, pg_type in (*layout.key, *layout.metadata))
    # Somebody who can write to the store may have chosen these types, and they are about to become SQL.
    columns = known_columns(connection, columns, chain[-1].name)
    key = names(columns[: len(layout.key)])
    assigned = (
        # The key is assigned too: an equal key may have another text form now, such as 1.0 and 1.00.
        sql.SQL("{0} = excluded.{0}").format(sql.Identifier(c.name))
        for c in (*columns, *FACTS)
    )
    connection.execute(query("journal", "drop_state"))
    connection.execute(query("journal", "state_table", columns=definitions((*columns, *FACTS)), key=key))
    connection.execute(query("journal", "entry_table"))
    apply = query("journal", "apply_entry", key=key, assignments=sql.SQL(", ").join(assigned))
    for manifest in (link.manifest for link in chain):
        if manifest.previous is None:
            copy_entry(connection, store, manifest.journal, query("journal", "copy_whole"), folder)
            continue
        copy_entry(connection, store, manifest.journal, query("journal", "copy_entry"), folder)
        try:
            connection.execute(apply)
        except psycopg.Error as error:
            if not isinstance(error, _REFUSALS):
                raise
            raise _not_an_entry(store, manifest.journal, error) from error
        connection.execute(query("journal", "empty_entry"))
    connection.execute(query("journal", "forget_deleted"))
    connection.execute(query("journal", "analyze_state"))


def _export(
    connection: Connection, store: Store, closing: Closing, folder: Path, *, whole: bool, changed: bool
) -> JournalEntry:
    """Write the entry as Postgres writes CSV, so that every type can be read back; compressed, in constant memory."""
    table, named = closing.table, names(closing.table.key)
    rows = query("journal", "every_row", table=table.identifier)
    if not whole:
        same = same_key(table.key, "t", "k")
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
    few_keys = not closing.compared_all and not whole
    given = statement if whole or changed else None
    return export_entry(connection, store, given, closing.pipeline, folder, lambda _name: None, few_keys=few_keys)


def export_entry(
    connection: Connection,
    store: Store,
    statement: sql.Composed | None,
    pipeline_name: str,
    folder: Path,
    note: Callable[[str], None],
    *,
    few_keys: bool = False,
) -> JournalEntry:
    """Write the rows of a COPY as a journal entry; None writes an empty one.

    ``note`` is called with its name before it is in the store. ``few_keys``: whether the COPY reads those of a queue.
    """
    local = folder / f"{uuid4().hex}.csv.zst"
    try:
        count = 0
        with pa.CompressedOutputStream(str(local), "zstd") as out:
            if statement is not None:
                count = _copy_out(connection, statement, out, few_keys=few_keys)
        sha256 = file_checksum(local)
        name = f"journal/{pipeline_name}/{sha256[:2]}/{sha256}.csv.zst"
        note(name)
        store.put(name, local, sha256)
        return JournalEntry(name=name, sha256=sha256, rows=count, bytes=local.stat().st_size)
    finally:
        local.unlink(missing_ok=True)


def _any_change(connection: Connection, pipeline_id: PipelineId) -> bool:
    row = connection.execute(query("journal", "any_change", unrecorded=unrecorded(pipeline_id))).fetchone()
    return bool(row and row[0])


def _copy_out(connection: Connection, statement: sql.Composed, out: pa.NativeFile, *, few_keys: bool) -> int:
    with connection.transaction(), connection.cursor() as cursor:
        if few_keys:
            expect_few_keys(connection)
        with cursor.copy(statement) as copy:
            for block in copy:
                out.write(block)
        return cursor.rowcount


def copy_entry(
    connection: Connection, store: Store, entry: JournalEntry, statement: sql.Composed, folder: Path
) -> None:
    """Feed an entry's rows to a COPY.

    Raises ``ArtifactCorrupt`` if the entry is missing or corrupt, if the database refuses a value of it, or if it has
    another number of rows than its manifest says.
    """
    local = folder / f"{uuid4().hex}.csv.zst"
    try:
        store.get(entry.name, local, entry.sha256, at_most=entry.bytes)
        with connection.cursor() as cursor:
            with cursor.copy(statement) as copy:
                rows = CsvRows()
                for part in _blocks(local):
                    if rows.count(part) > entry.rows:
                        raise ArtifactCorrupt(
                            f"{store.location(entry.name)} has more rows than the {entry.rows:,} of its manifest"
                        )
                    copy.write(part)
            if cursor.rowcount != entry.rows:
                raise ArtifactCorrupt(
                    f"{store.location(entry.name)} has {cursor.rowcount:,} rows, and its manifest says {entry.rows:,}"
                )
    except (*_REFUSALS, pa.ArrowException, OSError) as error:
        raise _not_an_entry(store, entry, error) from error
    finally:
        local.unlink(missing_ok=True)


def _not_an_entry(store: Store, entry: JournalEntry, error: Exception) -> ArtifactCorrupt:
    reason = "it cannot be unpacked"
    if isinstance(error, psycopg.Error):
        # The database quotes the value, which somebody else may have written.
        said = (error.diag.message_primary or "the database refuses it")[:_SHOWN]
        reason = "".join(sign if sign.isprintable() else " " for sign in said)
    return ArtifactCorrupt(f"{store.location(entry.name)} is not a journal entry of rowvec: {reason}")


class CsvRows:
    """Counts the ends of CSV's rows, so that an entry that unpacks to more than it should is not read to its end."""

    def __init__(self) -> None:
        self._rows, self._is_quoted = 0, False

    def count(self, part: bytes) -> int:
        """The rows that have ended in this part and in those before."""
        pieces = part.split(b'"')
        # Every second piece stands between quotes, and its line ends belong to a value.
        self._rows += sum(piece.count(b"\n") for piece in pieces[self._is_quoted :: 2])
        self._is_quoted ^= len(pieces) % 2 == 0
        return self._rows


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
