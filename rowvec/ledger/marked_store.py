"""The ledger and its mark in the store: whose store it is, and what the store knows that the ledger forgot.

A ledger writes to a pipeline's store under an id of its own. It takes another id if its database is a copy, which the
server and the database's oid show, or if it is adopted after it was set back to an earlier time, which its mark shows:
the mark names a manifest that the ledger does not know. Nothing that another ledger needs is deleted, until a person
says that this database replaces the others (``rowvec adopt``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO

from psycopg.types.json import Jsonb

from rowvec.errors import ArtifactCorrupt
from rowvec.ledger.known_manifests import known_manifests
from rowvec.ledger.pipelines import PipelineId, is_readable, written_id
from rowvec.ledger.runs import RunId
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query
from rowvec.runtime.figures import counted
from rowvec.store.artifact import Artifact, stored_artifact, stored_fingerprints
from rowvec.store.manifest import is_manifest, manifests_of, read_link
from rowvec.store.marks import Mark, marked_ledgers, read_mark, write_mark
from rowvec.store.protocol import Store
from rowvec.vectors.fingerprint import Identity

# Names, and fingerprints, per statement.
_AT_ONCE, _FINGERPRINTS_AT_ONCE = 1_000, 20_000
_FINGERPRINT_BYTES = 32
# Their names are in the order of time, as far as one clock goes.
_MOST_FOLLOWED = 900

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Standing:
    """Whose a pipeline's store is."""

    ledger: str
    """The id of this ledger."""
    others: tuple[str, ...] = ()
    """The ids of the other ledgers that write to the store."""
    found: int = 0
    """Vectors that the store had and the ledger did not know."""

    def sentence(self) -> str:
        """What a person should know of it; empty if there is nothing."""
        if not self.others:
            return ""
        return (
            f"another database, or this one before it was copied or set back, also writes to this store "
            f"({len(self.others):,} in all): nothing that it needs is deleted; give this pipeline an artifacts.url of "
            "its own, or run rowvec adopt if this database replaces the other"
        )


def family_of(pipeline_name: str) -> str:
    """The name in the pipeline file, which all generations share."""
    return pipeline_name.partition(".")[0]


def settle(
    connection: Connection, store: Store, pipeline_name: str, pipeline_id: PipelineId, run_id: RunId
) -> Standing:
    """Look at the marks in the store, and take in what the store has if the ledger is behind it.

    Costs a listing of the marks and a read of its own. Only a ledger without a mark of its own, which is new, copied or
    set back, also reads the manifests that it does not know, and the fingerprints in their artifacts.
    """
    family = family_of(pipeline_name)
    ledgers = marked_ledgers(store, family)
    ledger = own_mark(connection, family, None).ledger
    mine = read_mark(store, family, ledger) if ledger in ledgers else None
    if mine is not None and mine.manifest and not _is_known(connection, mine.manifest):
        row = connection.execute(query("marked_store", "another_id"), {"family": family}).fetchone()
        ledger, mine = (row[0] if row else ledger), None
    others = tuple(sorted(ledgers - {ledger}))
    found = 0
    if mine is None:
        found = _take_in(connection, store, pipeline_name, pipeline_id, run_id)
        known = known_manifests(connection, pipeline_name)
        if others or known.checksums:
            write_mark(store, family, own_mark(connection, family, known.newest))
    standing = Standing(ledger, others, found)
    if others:
        logger.warning("%s", standing.sentence())
    elif pipeline_name != family:
        take_in_folders(connection, store, pipeline_id, run_id, forgotten_in(connection, store, [pipeline_name]))
    return standing


@dataclass(frozen=True, slots=True)
class InFolders:
    """What the folders of generations have and the ledger has forgotten, because its database was set back."""

    family: str
    artifacts: tuple[Artifact, ...]
    manifests: tuple[str, ...]

    def sentence(self) -> str:
        """What a person should know of it; empty if there is nothing."""
        if not (self.artifacts or self.manifests):
            return ""
        artifacts, manifests = counted(len(self.artifacts), "artifacts"), counted(len(self.manifests), "manifests")
        return (
            f"the store has {artifacts} and {manifests} of a generation that this database does not know, because it "
            "was set back or a rebuild was killed: a prune with --apply notes them, and deletes them when they are "
            "old; a rebuild that needs their vectors uses them again"
        )


def generation_folders(store: Store, family: str) -> set[str]:
    """The names of the generations that have a folder of their own in the store."""
    prefixes = (f"artifacts/{family}.", f"manifests/{family}.")
    return {name.split("/")[1] for prefix in prefixes for name in store.names(prefix)}


def forgotten_in(connection: Connection, store: Store, generations: Iterable[str]) -> InFolders:
    """Look for what the folders of these generations have and the ledger does not know; costs two listings each.

    Call it if no other ledger writes to the store, and no run of these generations is at work but the caller's: the
    artifact that a run has just uploaded is not in the ledger yet.
    """
    artifacts, manifests, family = list[Artifact](), list[str](), ""
    for name in generations:
        family = family_of(name)
        sizes = dict(store.sizes(f"artifacts/{name}/"))
        rows = connection.execute(query("marked_store", "artifacts_of_any"), {"names": sorted(sizes)})
        known = {one for (one,) in rows}
        unknown = (stored_artifact(store, one, sizes[one]) for one in sorted(sizes.keys() - known))
        artifacts += [artifact for artifact in unknown if artifact is not None]
        there = (one for one in store.names(manifests_of(name)) if is_manifest(one))
        manifests += [one for one in there if not _is_known(connection, one)]
    return InFolders(family, tuple(artifacts), tuple(manifests))


def take_in_folders(
    connection: Connection, store: Store, pipeline_id: PipelineId, run_id: RunId, found: InFolders
) -> None:
    """Enter what was forgotten: the next plan uses the vectors again, and a prune deletes what nothing needs."""
    for artifact, blocks in _held(store, found.artifacts):
        with connection.transaction():
            _enter(connection, pipeline_id, run_id, artifact, blocks)
    if found.manifests:
        supersede(connection, found.family, found.manifests)


def standing(connection: Connection, store: Store, pipeline_name: str) -> Standing:
    """Whose the store is, without a look at what it knows."""
    family = family_of(pipeline_name)
    ledger = own_mark(connection, family, None).ledger
    return Standing(ledger, tuple(sorted(marked_ledgers(store, family) - {ledger})))


def later_mark(connection: Connection, store: Store, family: str) -> Mark | None:
    """The mark in the store of this ledger, or of the one that it is a copy of, if it names a manifest unknown here.

    Call it before anything that gives a copy another id.
    """
    row = connection.execute(query("marked_store", "remembered"), {"family": family}).fetchone()
    mark = read_mark(store, family, row[0]) if row else None
    return mark if mark and mark.manifest and not _is_known(connection, mark.manifest) else None


def own_mark(connection: Connection, family: str, manifest: str | None) -> Mark:
    """The mark of this ledger, with ``manifest`` as its newest one."""
    values = {"family": family, "server": _server(connection)}
    row = connection.execute(query("marked_store", "own"), values).fetchone()
    if row is None:
        raise LookupError("INSERT … RETURNING returned no row")  # the current database is always in pg_database
    ledger, database, now = row
    shown = "".join(sign for sign in database if sign.isprintable())
    return Mark(ledger=ledger, manifest=manifest, database=shown, written_at=now)


def renew_mark(connection: Connection, store: Store, pipeline_name: str) -> None:
    """Let this ledger's mark name the newest manifest: a prune may have deleted the one that it named."""
    newest = known_manifests(connection, pipeline_name).newest
    if newest is not None and pipeline_name == family_of(pipeline_name):
        write_mark(store, pipeline_name, own_mark(connection, pipeline_name, newest))


def superseded_by(connection: Connection, pipeline_name: str, pipeline_id: PipelineId) -> list[str]:
    """The manifests in the pipeline's folder that its next manifest replaces, besides the one before it.

    Each manifest names them until a prune has deleted them: the one that named them first may be deleted before.
    """
    family, folder = family_of(pipeline_name), manifests_of(pipeline_name)
    values = {"pipeline_id": pipeline_id, "folder": folder}
    others = [name for (name,) in connection.execute(query("marked_store", "newest_of_others"), values)]
    own = [name for name in superseded(connection, family) if name.startswith(folder)]
    return sorted({*own, *others})[-_MOST_FOLLOWED:]


def supersede(connection: Connection, family: str, manifests: Iterable[str]) -> None:
    """Note manifests that the next one replaces."""
    connection.execute(query("marked_store", "supersede"), {"family": family, "manifests": list(manifests)})


def superseded(connection: Connection, family: str) -> list[str]:
    """The manifests that no run of this ledger ended with, and that are given up."""
    row = connection.execute(query("marked_store", "superseded"), {"family": family}).fetchone()
    return list(row[0]) if row else []


def forget_superseded(connection: Connection, family: str, manifests: Iterable[str]) -> None:
    """Forget manifests that have ended well, or that are deleted."""
    connection.execute(query("marked_store", "settle"), {"family": family, "manifests": list(manifests)})


def family_manifests(store: Store, family: str) -> Iterator[str]:
    """The names of the manifests of all generations."""
    for prefix in (manifests_of(family), f"manifests/{family}."):
        yield from (name for name in store.names(prefix) if is_manifest(name))


def _is_known(connection: Connection, manifest: str) -> bool:
    row = connection.execute(query("marked_store", "is_known"), {"manifest": manifest}).fetchone()
    return bool(row and row[0])


class Forgotten:
    """What the store has and the ledger does not know, for a plan: it reads no store while a transaction is open."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._artifacts: list[tuple[Artifact, int]] = []

    def read(self, connection: Connection, store: Store, pipeline_name: str) -> None:
        """Read what the next ``settle`` would take in; nothing is written but the file."""
        family = family_of(pipeline_name)
        if _is_behind(connection, store, family):
            row = None
            if is_readable(connection, "pipelines", "name"):
                row = connection.execute(query("pipelines", "find"), {"name": pipeline_name}).fetchone()
            held = _forgotten(connection, store, pipeline_name, row[0] if row else None)
        elif pipeline_name != family and len(marked_ledgers(store, family)) == 1:
            held = _held(store, forgotten_in(connection, store, [pipeline_name]).artifacts)
        else:
            return
        for artifact, blocks in held:
            for block in blocks:
                self._file.writelines(block)
            self._artifacts.append((artifact, sum(map(len, blocks))))

    def enter(self, connection: Connection, pipeline_name: str, identity: Identity, run_id: RunId) -> None:
        """Enter it into the ledger, in a transaction that is rolled back.

        It is entered for a generation that no other session sees, so none waits for the transaction.
        """
        if not self._artifacts:
            return
        values = {"name": pipeline_name, "identity": Jsonb(identity.as_json())}
        pipeline_id = PipelineId(written_id(connection, query("plans", "pass_pipeline"), values))
        self._file.seek(0)
        for artifact, count in self._artifacts:
            parts = (min(_FINGERPRINTS_AT_ONCE, count - start) for start in range(0, count, _FINGERPRINTS_AT_ONCE))
            blocks = ([self._file.read(_FINGERPRINT_BYTES) for _ in range(n)] for n in parts)
            _enter(connection, pipeline_id, run_id, artifact, blocks)


def _is_behind(connection: Connection, store: Store, family: str) -> bool:
    """Whether ``settle`` would find a ledger without a mark of its own, or one that was set back."""
    if not is_readable(connection, "stores", "ledger"):
        return True
    row = connection.execute(query("marked_store", "as_it_is"), {"family": family, "server": _server(connection)})
    ((ledger,),) = row.fetchall() or ((None,),)
    mark = read_mark(store, family, ledger) if ledger else None
    return mark is None or bool(mark.manifest and not _is_known(connection, mark.manifest))


def _server(connection: Connection) -> str | None:
    """The system identifier, if the role may read it."""
    row = connection.execute(query("marked_store", "may_know_server")).fetchone()
    if not (row and row[0]):
        return None
    ((identifier,),) = connection.execute(query("marked_store", "server")).fetchall()
    return identifier


def _take_in(connection: Connection, store: Store, pipeline_name: str, pipeline_id: PipelineId, run_id: RunId) -> int:
    """Enter the artifacts of manifests that the ledger does not know; returns how many vectors they add."""
    found = 0
    for artifact, blocks in _forgotten(connection, store, pipeline_name, pipeline_id):
        with connection.transaction():
            found += _enter(connection, pipeline_id, run_id, artifact, blocks)
    if found:
        logger.info("reused from the store: %s that the ledger did not know", counted(found, "vectors"))
    return found


def _forgotten(
    connection: Connection, store: Store, pipeline_name: str, pipeline_id: PipelineId | None
) -> Iterator[tuple[Artifact, list[list[bytes]]]]:
    """The artifacts of manifests that the ledger does not know, and the fingerprints of each by row group."""
    known = known_manifests(connection, pipeline_name)
    for name in known.unknown(family_manifests(store, family_of(pipeline_name))):
        try:
            artifacts = read_link(store, name, {}).manifest.artifacts
        except ArtifactCorrupt as error:
            logger.warning("%s; what it names is not looked at", error)
            continue
        yield from _held(store, _unknown(connection, pipeline_id, artifacts))


def _held(store: Store, artifacts: Iterable[Artifact]) -> Iterator[tuple[Artifact, list[list[bytes]]]]:
    """The artifacts that can be read, and the fingerprints of each by row group."""
    for artifact in artifacts:
        try:
            blocks = list(stored_fingerprints(store, artifact))
        except ArtifactCorrupt as error:
            logger.warning("%s; what it held is embedded again if it is needed", error)
        else:
            yield artifact, blocks


def _unknown(
    connection: Connection, pipeline_id: PipelineId | None, artifacts: tuple[Artifact, ...]
) -> Iterator[Artifact]:
    if pipeline_id is None:
        yield from artifacts
        return
    for start in range(0, len(artifacts), _AT_ONCE):
        some = artifacts[start : start + _AT_ONCE]
        values = {"pipeline_id": pipeline_id, "names": [artifact.name for artifact in some]}
        known = {name for (name,) in connection.execute(query("marked_store", "known_artifacts"), values)}
        yield from (artifact for artifact in some if artifact.name not in known)


def _enter(
    connection: Connection,
    pipeline_id: PipelineId,
    run_id: RunId,
    artifact: Artifact,
    blocks: Iterable[list[bytes]],
) -> int:
    found = 0
    values = {"pipeline_id": pipeline_id, "run_id": run_id}
    stated = {"name": artifact.name, "sha256": artifact.sha256, "rows": artifact.rows, "bytes": artifact.bytes}
    artifact_id = written_id(connection, query("marked_store", "take_in"), {**values, **stated})
    for block in blocks:
        entries = {**values, "artifact_id": artifact_id, "fingerprints": block}
        row = connection.execute(query("marked_store", "take_in_embeddings"), entries).fetchone()
        found += row[0] if row else 0
    return found
