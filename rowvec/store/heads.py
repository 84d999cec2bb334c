"""Which manifest of a pipeline is the newest: the one that no other one follows, whatever its name or the clock."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from rowvec.errors import ArtifactCorrupt, UsageError
from rowvec.store.manifest import Link, is_manifest, manifests_of, read_chain, read_link
from rowvec.store.protocol import Store

_LISTED = 5
# Somebody else may have chosen a name; above it there are so many numbers left that they last.
_HIGHEST = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A manifest, as far as its place among the others goes."""

    name: str
    run_id: int
    is_linked: bool
    """False: an older program wrote it, which did not record what a manifest of every row follows."""
    rows: int
    created_at: datetime

    @staticmethod
    def of(link: Link) -> Head:
        """The place of a manifest."""
        manifest = link.manifest
        return Head(
            name=link.name,
            run_id=manifest.run_id,
            is_linked=manifest.follows is not None,
            rows=manifest.counts["rows"],
            created_at=manifest.created_at,
        )

    def __str__(self) -> str:
        at = self.created_at.astimezone(UTC)
        return f"{self.name} (run {self.run_id}, {at:%Y-%m-%d %H:%M} UTC, {self.rows:,} rows)"


def heads_of(manifests: Collection[Head], followed: Collection[str]) -> list[Head]:
    """The manifests that are not among those ``followed`` by another one, the one of the latest run first.

    One that an older program wrote also counts as followed by every manifest that is later both by its run and by its
    time: such a program left the manifests of killed runs, and did not link a manifest of every row to those before.
    """
    heads = [one for one in manifests if one.name not in followed]
    newest = [
        one
        for one in heads
        if one.is_linked
        or not any(other.run_id > one.run_id and other.created_at > one.created_at for other in manifests)
    ]
    return sorted(newest, key=lambda one: (-one.run_id, one.name))


def manifest_names(store: Store, pipeline_name: str) -> Iterator[str]:
    """The names of a pipeline's manifests in the store; what else is in their folder is not looked at."""
    return (name for name in store.names(manifests_of(pipeline_name)) if is_manifest(name))


def highest_run(manifests: Iterable[str]) -> int:
    """The highest number of a run in the names of manifests; 0 if there is none."""
    numbers = (int(name.rpartition("/")[2].split("-")[1]) for name in manifests)
    return max((number for number in numbers if number <= _HIGHEST), default=0)


def heads_in(store: Store, names: Iterable[str], known: Mapping[str, str]) -> list[Head]:
    """The heads among the manifests of these names, as ``heads_of`` orders them; one manifest is in memory at a time.

    Raises ``ArtifactCorrupt`` if one cannot be read.
    """
    there = set(names)
    found, followed = list[Head](), set[str]()
    try:
        for name in sorted(there):
            link = read_link(store, name, known)
            found.append(Head.of(link))
            before = (*(link.manifest.follows or ()), link.manifest.previous or "")
            followed |= {other for other in before if other in there}
    except ArtifactCorrupt as error:
        raise ArtifactCorrupt(
            f"{error}; it may be the newest manifest: name the one to restore with --manifest, or delete this one"
        ) from error
    return heads_of(found, followed)


def newest_manifest(store: Store, pipeline_name: str) -> str | None:
    """The name of the pipeline's newest manifest; None if the store has none.

    Raises ``UsageError`` if there are several that no other manifest follows, and ``ArtifactCorrupt`` if one cannot be
    read: it may be the newest one.
    """
    heads = heads_in(store, manifest_names(store, pipeline_name), {})
    if len(heads) > 1:
        # A manifest that is missing leaves the one before it without a follower.
        read_chain(store, heads[0].name, {})
        more = f" and {len(heads) - _LISTED:,} more" if len(heads) > _LISTED else ""
        raise UsageError(
            f"the store has {len(heads):,} manifests of {pipeline_name} that no other follows, because two databases "
            f"wrote to it or one was set back to an earlier time: {', '.join(map(str, heads[:_LISTED]))}{more}; "
            "name the one to restore with --manifest"
        )
    return heads[0].name if heads else None


def newest_chain(store: Store, pipeline_name: str) -> list[Link]:
    """The manifests that together describe every row as of the newest one, oldest first; empty if there is none.

    Raises what ``newest_manifest`` and ``read_chain`` raise.
    """
    newest = newest_manifest(store, pipeline_name)
    return read_chain(store, newest, {}) if newest else []
