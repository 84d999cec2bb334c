"""What a pipeline has in its store: the manifests in the order of their chains, and the objects that they name."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

from rowvec.errors import ArtifactCorrupt
from rowvec.ledger.known_manifests import known_manifests
from rowvec.ledger.marked_store import family_manifests
from rowvec.operations.erasure.work import Work
from rowvec.postgres.queries import query
from rowvec.store.artifact import Artifact
from rowvec.store.manifest import Link, is_manifest, read_link


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The objects of a pipeline, without those that other pipelines of the database use too."""

    links: dict[str, Link]
    """The manifests by name, each after those that it follows."""
    artifacts: dict[str, Artifact]
    """Those that a manifest or the ledger names."""
    unlisted: tuple[Artifact, ...]
    """Artifacts that neither names: a run was killed after it had uploaded them."""
    orphans: tuple[str, ...]
    """Journal entries that no manifest names: nobody can read them."""
    shared: tuple[str, ...]
    """Objects of this pipeline that another pipeline uses too; they are left alone."""

    @property
    def entries(self) -> set[str]:
        """The names of the journal entries."""
        return {link.manifest.journal.name for link in self.links.values()}


@dataclass(slots=True)
class _Others:
    """What other pipelines of this database use, by name."""

    names: set[str]
    chains: set[str] = field(default_factory=set[str])


def read_history(work: Work, leftovers: Collection[str] = ()) -> History:
    """Read every manifest of the pipeline, and list its objects.

    ``leftovers``: objects that an erasure which was killed has left, and that nothing may name any more. Raises
    ``ArtifactCorrupt`` if a manifest is corrupt: nobody knows what it names.
    """
    known = known_manifests(work.connection, work.pipeline.name).checksums
    others = _read_others(work, known)
    ours = {row[0] for row in _rows(work, "manifests")}
    names = {*ours, *(name for name in family_manifests(work.store, work.pipeline.name) if name not in leftovers)}
    links = _in_order(_read_all(work, names - others.chains, known))
    artifacts = {
        name: Artifact(name=name, sha256=sha256, rows=rows, bytes=size)
        for name, sha256, rows, size in _rows(work, "artifacts")
    }
    for link in links.values():
        artifacts |= {artifact.name: artifact for artifact in link.manifest.artifacts}
    shared = {name for name in artifacts if name in others.names}
    listed = {name: artifact for name, artifact in artifacts.items() if name not in shared}
    entries = {link.manifest.journal.name for link in links.values()} | others.names
    return History(
        links=links,
        artifacts=listed,
        unlisted=tuple(
            _as_named(name, size)
            for name, size in _stored(work, "artifacts")
            if name not in artifacts and name not in others.names
        ),
        orphans=tuple(name for name, _ in _stored(work, "journal") if name not in entries),
        shared=tuple(sorted(shared)),
    )


def _read_others(work: Work, known: dict[str, str]) -> _Others:
    """What other pipelines use under names that begin like ours, or that we use too."""
    found = _Others({row[0] for row in _rows(work, "names_of_others")})
    folders = (f"manifests/{work.pipeline.name}/", f"manifests/{work.pipeline.name}.")
    near = {name for name in found.names if name.startswith(folders)}
    for link in _read_all(work, near, known):
        found.chains.add(link.name)
        found.names.add(link.manifest.journal.name)
        found.names.update(artifact.name for artifact in link.manifest.artifacts)
    return found


def _read_all(work: Work, names: Iterable[str], known: dict[str, str]) -> list[Link]:
    """The manifests of these names, and those before them."""
    found: dict[str, Link] = {}
    todo = sorted(names)
    while todo:
        name = todo.pop()
        if name in found or not is_manifest(name):
            continue
        link = _read(work, name, known)
        if link is not None:
            found[name] = link
            todo += [link.manifest.previous] if link.manifest.previous else []
    return list(found.values())


def _read(work: Work, name: str, known: dict[str, str]) -> Link | None:
    try:
        return read_link(work.store, name, known)
    except ArtifactCorrupt as error:
        if work.store.checksum(name) is None:
            return None
        raise ArtifactCorrupt(
            f"{error}; nobody knows what it names, so nothing was erased: no restore can use it, so delete it from the "
            "store, and run again"
        ) from error


def _in_order(links: list[Link]) -> dict[str, Link]:
    found = {link.name: link for link in links}
    before = {
        link.name: {name for name in (link.manifest.previous, *(link.manifest.follows or ())) if name in found}
        for link in links
    }
    try:
        return {name: found[name] for name in TopologicalSorter(before).static_order()}
    except CycleError as error:
        raise ArtifactCorrupt(
            f"the manifests of {links[0].manifest.pipeline} follow each other in a circle, which no run writes; "
            "nothing was erased"
        ) from error


def _stored(work: Work, kind: str) -> list[tuple[str, int]]:
    """Name and size of each object of a kind, by name."""
    family = work.pipeline.name
    return sorted(one for prefix in (f"{kind}/{family}/", f"{kind}/{family}.") for one in work.store.sizes(prefix))


def _as_named(name: str, size: int) -> Artifact:
    """An artifact of which only the name and the size are known; the name has its checksum."""
    return Artifact(name=name, sha256=name.rpartition("/")[2].partition(".")[0], rows=0, bytes=size)


def _rows(work: Work, block: str) -> list[tuple[str, str, int, int]]:
    return work.connection.execute(query("erasure", block, generations=work.ids_sql)).fetchall()  # pyright: ignore[reportReturnType] # each block says what its rows are
