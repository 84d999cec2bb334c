"""Writes artifacts, journal entries and manifests again without the traces; deletes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import pyarrow as pa
from psycopg import sql

from rowvec.ledger.journal import export_entry
from rowvec.operations.erasure.history import History
from rowvec.operations.erasure.keys import has_key
from rowvec.operations.erasure.scan import InArtifact, State, Traces, load_entry, state_after
from rowvec.operations.erasure.work import Work
from rowvec.postgres.queries import query
from rowvec.store.artifact import Artifact, upload, write_again
from rowvec.store.manifest import JournalEntry, Link, Manifest, as_object, write_manifest

_MOST_FOLLOWED = 1000

Note = Callable[[str], None]
"""Called with the name of each object before it is written, so that a killed erasure's objects are found again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """One object that goes, and the one that is in its place; or a table that loses rows."""

    what: Literal["artifact", "journal entry", "manifest", "image", "table"]
    name: str
    sha256: str | None
    """None for a table."""
    rows: int
    """Rows of it that are erased; for an image, 1."""
    replaced_by: str | None = None
    sha256_after: str | None = None


@dataclass(slots=True, kw_only=True)
class Rewritten:
    """What was written, by the name of the object that it replaces."""

    artifacts: dict[str, Artifact | None] = field(default_factory=dict[str, Artifact | None])
    """None: nothing of the artifact is left."""
    entries: dict[str, JournalEntry] = field(default_factory=dict[str, JournalEntry])
    manifests: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    """Name and sha256."""
    removed: list[Removed] = field(default_factory=list[Removed])


def rewrite(work: Work, history: History, traces: Traces, note: Note) -> Rewritten:
    """Write again what has traces, and the manifests that name it, oldest first, so that each chain stays one.

    Call it after ``scan``, on the same connection.
    """
    done = Rewritten()
    for name, found in traces.artifacts.items():
        _rewrite_artifact(work, history.artifacts[name], found, note, done)
    states: dict[str, State] = {}
    for link in history.links.values():
        before = states.get(link.manifest.previous or "", {})
        rows = traces.entries.get(link.manifest.journal.name, {})
        states[link.name] = state_after(before, link, rows)
        if rows and link.manifest.journal.name not in done.entries:
            _rewrite_entry(work, link, len(rows), note, done)
        _rewrite_manifest(work, link, states[link.name], note, done)
    return done


def _rewrite_artifact(work: Work, artifact: Artifact, found: InArtifact, note: Note, done: Rewritten) -> None:
    local, into = work.folder / "traced.parquet", work.folder / "written.parquet"
    rows = work.connection.execute(query("erasure", "traces_of", object=sql.Literal(artifact.name))).fetchall()
    # A vector that another row needs stays without the key; then no key of the artifact stays, as in compaction.
    keyless = bool(found.shared) or any(row is None for row, _, _ in rows)
    unneeded = {fingerprint for _, fingerprint, is_shared in rows if not is_shared}
    keep = _once_each(unneeded) if keyless else _all_but({row for row, _, _ in rows})
    work.store.get(artifact.name, local, artifact.sha256, at_most=artifact.bytes)
    try:
        written = write_again(local, into, artifact.name.split("/")[1], keep, keyless=keyless)
        if written is not None:
            note(written.name)
            upload(work.store, into, written)
    finally:
        local.unlink(missing_ok=True)
        into.unlink(missing_ok=True)
    done.artifacts[artifact.name] = written
    done.removed.append(
        Removed(
            what="artifact",
            name=artifact.name,
            sha256=artifact.sha256,
            rows=found.rows,
            replaced_by=written and written.name,
            sha256_after=written and written.sha256,
        )
    )


def _all_but(gone: set[int]) -> Callable[[int, pa.RecordBatch], Sequence[bool]]:
    def keep(before: int, batch: pa.RecordBatch) -> Sequence[bool]:
        return [row not in gone for row in range(before, before + batch.num_rows)]

    return keep


def _once_each(gone: set[bytes]) -> Callable[[int, pa.RecordBatch], Sequence[bool]]:
    seen = set(gone)

    def keep(_before: int, batch: pa.RecordBatch) -> Sequence[bool]:
        return [not (f in seen or seen.add(f)) for f in batch.column("fingerprint").to_pylist()]

    return keep


def _rewrite_entry(work: Work, link: Link, rows: int, note: Note, done: Rewritten) -> None:
    entry = link.manifest.journal
    key = load_entry(work, link)
    wanted = has_key(work.key, {column.name: column.pg_type for column in key})
    work.connection.execute(query("erasure", "delete_of_entry", has_key=wanted))
    folder = entry.name.split("/")[1]
    written = export_entry(work.connection, work.store, query("erasure", "export_entry"), folder, work.folder, note)
    done.entries[entry.name] = written
    done.removed.append(
        Removed(
            what="journal entry",
            name=entry.name,
            sha256=entry.sha256,
            rows=rows,
            replaced_by=written.name,
            sha256_after=written.sha256,
        )
    )


def _rewrite_manifest(work: Work, link: Link, erased: State, note: Note, done: Rewritten) -> None:
    """Write the manifest again if it names something else now. It follows the old one, while both are there."""
    changed = _changed(link.manifest, erased, done)
    if changed == link.manifest:
        return
    if changed.follows is not None:
        others = [name for name in changed.follows if name != link.name]
        changed = replace(changed, follows=tuple(sorted((*others[-_MOST_FOLLOWED + 1 :], link.name))))
    note(as_object(changed)[0])
    name, sha256 = write_manifest(work.store, changed, work.folder)
    done.manifests[link.name] = name, sha256
    done.removed.append(
        Removed(
            what="manifest",
            name=link.name,
            sha256=link.sha256,
            rows=len(erased),
            replaced_by=name,
            sha256_after=sha256,
        )
    )


def _changed(manifest: Manifest, erased: State, done: Rewritten) -> Manifest:
    renamed = {old: new for old, (new, _) in done.manifests.items()}
    follows = manifest.follows
    return replace(
        manifest,
        previous=renamed.get(manifest.previous, manifest.previous) if manifest.previous else None,
        follows=None if follows is None else tuple(dict.fromkeys(renamed.get(name, name) for name in follows)),
        journal=done.entries.get(manifest.journal.name, manifest.journal),
        artifacts=tuple(
            dict.fromkeys(
                new for new in (done.artifacts.get(old.name, old) for old in manifest.artifacts) if new is not None
            )
        ),
        counts={**manifest.counts, "rows": manifest.counts["rows"] - len(erased)},
        checksum=str(int(manifest.checksum) - sum(erased.values())),
        # A root over a row that is erased can be computed by nobody any more.
        certificate=None if erased else manifest.certificate,
    )
