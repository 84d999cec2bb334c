"""Adopt a store: this database replaces the others that wrote to it, so that it alone decides what is kept."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rowvec.ledger.known_manifests import known_manifests
from rowvec.ledger.marked_store import family_manifests, family_of, later_mark, settle, supersede
from rowvec.ledger.marked_store import standing as standing_in
from rowvec.ledger.pipelines import identity_of
from rowvec.ledger.runs import running
from rowvec.operations.prune import close_run, opened
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import open_target
from rowvec.postgres.migrations import install
from rowvec.store.heads import heads_in, highest_run, manifest_names
from rowvec.store.marks import delete_mark
from rowvec.store.open import open_store

NEEDED = frozenset({"target", "artifacts"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptedStore:
    """What was adopted."""

    pipeline: str
    ledgers: int
    """Other ledgers that had a mark in the store."""
    vectors: int
    """Vectors that the store had and the ledger did not know."""
    given_up: tuple[str, ...]
    """The newest manifests of the others: from now on a restore takes this database's."""

    def as_json(self) -> dict[str, Any]:
        """As one JSON object."""
        return asdict(self)


def adopt_store(pipeline: Pipeline) -> AdoptedStore | None:
    """Let this database be the only one that the pipeline's store belongs to; None if it is the only one already.

    A later state of this database counts as another one. The marks of the others are deleted, and a manifest is written
    that follows theirs; its run has a higher number than any in the store, so that no number is given twice. What only
    they need is kept until a prune finds it old. Raises ``UsageError`` if the pipeline has never run here,
    ``PipelineBusy`` if another run holds it, and ``ArtifactCorrupt`` if a manifest in the store cannot be read.
    """
    with open_target(resolve(pipeline, NEEDED), "rowvec adopt") as connection:
        install(connection)
        store, family = open_store(resolve(pipeline, NEEDED).artifacts), family_of(pipeline.name)
        is_behind = later_mark(connection, store, family) is not None
        if not is_behind and not standing_in(connection, store, pipeline.name).others:
            return None
        above = highest_run(family_manifests(store, family))
    with opened(pipeline) as work:
        identity = identity_of(work.connection, work.pipeline_id)
    with (
        running(pipeline, "adopt", needed=NEEDED, identity=identity, above=above) as run,
        opened(pipeline, run) as work,
    ):
        connection, store = work.connection, work.store
        standing = settle(connection, store, pipeline.name, work.pipeline_id, run.run_id)
        known = known_manifests(connection, pipeline.name)
        heads = heads_in(store, manifest_names(store, pipeline.name), work.known)
        given_up = [head.name for head in heads if head.name != known.newest]
        # All of them, so that a prune deletes them; the ones before a head would be heads without it.
        supersede(connection, family, known.unknown(family_manifests(store, family)))
        close_run(work, run, identity, whole=bool(given_up))
        for ledger in standing.others:
            delete_mark(store, family, ledger)
    return AdoptedStore(
        pipeline=pipeline.name, ledgers=len(standing.others), vectors=standing.found, given_up=tuple(given_up)
    )
