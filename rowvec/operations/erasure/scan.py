"""Finds the traces of the keys: in artifacts, journal entries, tables and the ledger. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
from psycopg import sql

from rowvec.errors import ArtifactCorrupt, UsageError
from rowvec.images.content import KnownImage
from rowvec.ledger.journal import FACTS, copy_entry
from rowvec.operations.erasure.history import History
from rowvec.operations.erasure.keys import has_key, is_reject
from rowvec.operations.erasure.work import Work
from rowvec.operations.prune_images import unneeded_images
from rowvec.postgres.columns import PG_TYPE, PgColumn
from rowvec.postgres.copy_encoder import HEADER, TRAILER, Encoder
from rowvec.postgres.fragments import definitions, key_digest, key_json, names
from rowvec.postgres.queries import query
from rowvec.postgres.type_names import known_columns
from rowvec.store.artifact import Artifact, read_artifact, schema_of
from rowvec.store.manifest import Link

ROW = "rowvec_row"

State = dict[str, int]
"""The rows with one of the keys that a table had after a run: what each adds to the checksum, by its key as JSON."""


@dataclass(frozen=True, slots=True)
class InArtifact:
    """What an artifact has of the keys."""

    rows: int
    shared: int
    """Vectors among them that other rows need too, as these have the same text."""


@dataclass(slots=True, kw_only=True)
class Traces:
    """Where the keys have left traces."""

    artifacts: dict[str, InArtifact] = field(default_factory=dict[str, InArtifact])
    unlisted: list[str] = field(default_factory=list[str])
    """Artifacts that nothing names, and that have traces or cannot be read."""
    entries: dict[str, dict[str, int | None]] = field(default_factory=dict[str, dict[str, int | None]])
    """Journal entries: for each row its key as JSON, and what it adds to the checksum; None for a deleted row."""
    tables: dict[str, int] = field(default_factory=dict[str, int])
    """Rows by table, of tables with the source's rows and of the ledger."""
    images: list[KnownImage] = field(default_factory=list[KnownImage])
    orphans: tuple[str, ...] = ()

    @property
    def shared(self) -> int:
        """Vectors that stay, because other rows have the same text."""
        return sum(found.shared for found in self.artifacts.values())

    @property
    def count(self) -> int:
        """Objects and rows of tables."""
        objects = len(self.artifacts) + len(self.unlisted) + len(self.entries) + len(self.images) + len(self.orphans)
        return objects + sum(self.tables.values())


def scan(work: Work, history: History) -> Traces:
    """Read every journal entry and every artifact, and search the tables; the scratch table ``erased`` has the keys.

    Leaves the scratch tables ``needed`` and ``traces`` for ``rewrite``. Raises ``ArtifactCorrupt`` if an object that
    something names cannot be read, and ``UsageError`` if it has other key columns than the pipeline.
    """
    work.connection.execute(query("erasure", "make_tables"))
    found = Traces(orphans=history.orphans)
    _scan_tables(work, found)
    for link in history.links.values():
        entry = link.manifest.journal
        if entry.name not in found.entries and (rows := _scan_entry(work, link)):
            found.entries[entry.name] = rows
    for artifact in history.artifacts.values():
        try:
            _scan_artifact(work, artifact, is_listed=True)
        except ArtifactCorrupt as error:
            if work.store.checksum(artifact.name) is not None:
                raise ArtifactCorrupt(f"{error}; nothing was erased: run rowvec audit FILE --repair first") from error
    for artifact in history.unlisted:
        try:
            _scan_artifact(work, artifact, is_listed=False)
        except ArtifactCorrupt:
            found.unlisted.append(artifact.name)
    work.connection.execute(query("erasure", "trace_keyless"))
    for name, rows, shared in work.connection.execute(query("erasure", "traced")).fetchall():
        if name in history.artifacts:
            found.artifacts[name] = InArtifact(rows, shared)
        else:
            found.unlisted.append(name)
    _scan_ledger(work, found)
    return found


def load_entry(work: Work, link: Link) -> tuple[PgColumn, ...]:
    """Copy a manifest's journal entry into the scratch table ``entry_rows``; returns the columns of its key."""
    layout = link.manifest.layout
    pairs = (PgColumn(*pair) for pair in (*layout.key, *layout.metadata))
    columns = known_columns(work.connection, pairs, link.name)
    key = columns[: len(layout.key)]
    if not {column.name for column in work.key} <= {column.name for column in key}:
        raise UsageError(
            f"{link.name} is of a time when the vector table had the key ({', '.join(c.name for c in key)}), so nobody "
            "can tell which of its rows must be erased: run rowvec rebuild FILE --drop-old, and then rowvec prune "
            "FILE --older-than 0 --apply, which deletes it; nothing was erased"
        )
    work.connection.execute(query("erasure", "entry_table", columns=definitions((*columns, *FACTS))))
    copy_entry(work.connection, work.store, link.manifest.journal, query("erasure", "copy_entry"), work.folder)
    return key


def state_after(before: State, link: Link, rows: dict[str, int | None]) -> State:
    """Which rows with one of the keys the table had after a manifest's run."""
    now = {} if link.manifest.previous is None else dict(before)
    for key, adds in rows.items():
        if adds is None:
            now.pop(key, None)
        else:
            now[key] = adds
    return now


def _scan_entry(work: Work, link: Link) -> dict[str, int | None]:
    key = load_entry(work, link)
    wanted = has_key(work.key, {column.name: column.pg_type for column in key})
    work.connection.execute(query("erasure", "need_entry", has_key=wanted))
    statement = query("erasure", "erased_of_entry", key_json=key_json(key), digest=key_digest(key), has_key=wanted)
    return dict(work.connection.execute(statement).fetchall())


def load_artifact(work: Work, artifact: Artifact) -> tuple[PgColumn, ...]:
    """Copy the keys and fingerprints of an artifact into the scratch table ``entry_rows``, with the number of each row.

    Returns the columns of the key; none if the artifact has no keys. Raises ``ArtifactCorrupt`` if it is missing or
    corrupt.
    """
    local = work.folder / "artifact.parquet"
    work.store.get(artifact.name, local, artifact.sha256, at_most=artifact.bytes)
    try:
        held = schema_of(local)
        is_keyed = all(column.name in held.names for column in work.key)
        key = tuple(_as_held(held.field(column.name)) for column in work.key) if is_keyed else ()
        columns = (*key, PgColumn("fingerprint", "bytea"), PgColumn(ROW, "bigint"))
        work.connection.execute(query("erasure", "entry_table", columns=definitions(columns)))
        _copy(work, local, columns)
    finally:
        local.unlink(missing_ok=True)
    return key


def _scan_artifact(work: Work, artifact: Artifact, *, is_listed: bool) -> None:
    """Note which rows of an artifact have one of the keys, and which fingerprints its other rows need."""
    connection, named = work.connection, sql.Literal(artifact.name)
    key = load_artifact(work, artifact)
    if not key:
        connection.execute(query("erasure", "keep_keyless", object=named))
        return
    wanted = has_key(work.key, {column.name: column.pg_type for column in key})
    if is_listed:
        connection.execute(query("erasure", "need_artifact", has_key=wanted))
    connection.execute(query("erasure", "trace_artifact", object=named, has_key=wanted))


def _copy(work: Work, local: Path, columns: tuple[PgColumn, ...]) -> None:
    encoder = Encoder(columns)
    statement = query("erasure", "copy_artifact", columns=names(encoder.columns))
    with work.connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(HEADER)
        for batch in _numbered(read_artifact(local, columns=[c.name for c in columns if c.name != ROW])):
            for block in encoder.encode(batch):
                copy.write(block)
        copy.write(TRAILER)


def _numbered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    before = 0
    for batch in batches:
        yield batch.append_column(ROW, pa.array(range(before, before + batch.num_rows), pa.int64()))
        before += batch.num_rows


def _as_held(column: pa.Field) -> PgColumn:
    """A key column as an artifact holds its values: in its own type, or as text."""
    written = (column.metadata or {}).get(PG_TYPE, b"text").decode("utf-8", "replace")
    return PgColumn(column.name, PgColumn(column.name, written).travels_as)


def _scan_tables(work: Work, found: Traces) -> None:
    for table in work.tables():
        wanted = has_key(work.key, table.types)
        if table.has_fingerprints:
            work.connection.execute(query("erasure", "need_table", table=table.name, has_key=wanted))
        _count(work, found, table.shown, query("erasure", "count_rows", table=table.name, has_key=wanted))
    rejects = {"generations": work.ids_sql, "is_reject": is_reject(work.key)}
    work.connection.execute(query("erasure", "need_rejects", **rejects))
    _count(work, found, "rowvec.rejects", query("erasure", "count_rejects", **rejects))


def _scan_ledger(work: Work, found: Traces) -> None:
    unneeded = query("erasure", "unneeded")
    answers = query("erasure", "count_answers", generations=work.ids_sql, unneeded=unneeded)
    _count(work, found, "rowvec.answers", answers)
    if work.pipeline.source.kind == "images":
        name, identity = work.pipeline.name, work.live.identity
        found.images = unneeded_images(work.connection, name, identity, timedelta(0))


def _count(work: Work, found: Traces, name: str, statement: sql.Composed) -> None:
    row = work.connection.execute(statement).fetchone()
    if row and row[0]:
        found.tables[name] = row[0]
