"""Whether the ledger or the store is an earlier state of itself: what one of them was set back to, the other shows.

The ledger knows the name of the last manifest that its runs wrote, and the ledger's mark in the store has the name too.
A run that went on from an earlier state would write a manifest that follows one which is missing, or a second one that
follows the same. So commands refuse before they change anything. docs/decisions/0032-set-back.md says why.
"""

from __future__ import annotations

from datetime import UTC

from rowvec.errors import ArtifactCorrupt, LedgerBehind, StoreBehind
from rowvec.ledger.known_manifests import known_manifests
from rowvec.ledger.marked_store import family_manifests, family_of, later_mark, supersede
from rowvec.ledger.pipelines import is_readable
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query
from rowvec.store.manifest import read_link
from rowvec.store.protocol import Store


def refuse_if_behind(connection: Connection, store: Store, pipeline_name: str) -> None:
    """Raise ``LedgerBehind`` or ``StoreBehind`` if one of them was set back to an earlier state than the other.

    Costs a read of the mark and a checksum per generation, and few statements; the content of no manifest is read. A
    database without a ledger has nothing to compare.
    """
    if not is_readable(connection, "stores", "ledger"):
        return
    _refuse_older_ledger(connection, store, pipeline_name)
    rows = connection.execute(query("known_manifests", "last_ones"), {"name": pipeline_name}).fetchall()
    for manifest, sha256, run_id, is_live, has_table in rows:
        found = store.checksum(manifest)
        if found is not None and found == (sha256 or found):
            continue
        if not has_table:
            # The run makes the table again, and a manifest that names every row.
            give_up_lost(connection, store, pipeline_name)
            continue
        way_out = (
            "if the URL is right, run rowvec audit FILE --repair, which writes again from the vector table what the "
            "store lacks, and pays for nothing that the table has"
        )
        if not is_live:
            way_out = (
                "it is of a generation that is being built: drop it with rowvec rebuild FILE --drop-old, and build it "
                "again"
            )
        raise StoreBehind(
            f"{store.location(manifest)}, the last manifest that the ledger knows (run {run_id}), is missing or "
            "changed: the store was restored to an earlier state, or artifacts.url names another one; the vector table "
            f"is unchanged, and nothing was paid for; {way_out}"
        )


def refuse_older_ledger(connection: Connection, store: Store, pipeline_name: str) -> None:
    """Raise ``LedgerBehind`` if the store has a later manifest of this ledger than the ledger knows."""
    if is_readable(connection, "stores", "ledger"):
        _refuse_older_ledger(connection, store, pipeline_name)


def _refuse_older_ledger(connection: Connection, store: Store, pipeline_name: str) -> None:
    family = family_of(pipeline_name)
    mark = later_mark(connection, store, family)
    if mark is not None:
        raise LedgerBehind(
            f"the store has a later manifest of the pipeline {family} than this database knows: {mark.manifest}, "
            f"written by the database {mark.database} at {mark.written_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC; this "
            "database is an earlier state or an older copy of that one, such as a backup, or a standby that lacks the "
            "last commits; nothing was changed or paid for; if it replaces that one, run rowvec adopt FILE, which "
            "takes over what the store has, so that nothing is paid for twice; if both go on, give this one an "
            "artifacts.url of its own and run rowvec audit FILE --repair"
        )


def give_up_lost(connection: Connection, store: Store, pipeline_name: str) -> None:
    """Forget the manifests that the store has lost, so that the next one replaces those that it still has.

    The next manifest must name every row.
    """
    family, known = family_of(pipeline_name), known_manifests(connection, pipeline_name).checksums
    there = known.keys() & set(family_manifests(store, family))
    lost, followed = set(known.keys() - there), set[str]()
    if not lost:
        return
    for name in sorted(there):
        try:
            link = read_link(store, name, known)
        except ArtifactCorrupt:
            lost.add(name)
        else:
            followed |= {*(link.manifest.follows or ()), link.manifest.previous or ""}
    with connection.transaction():
        connection.execute(query("known_manifests", "forget"), {"manifests": sorted(lost)})
        supersede(connection, family, sorted(lost | (there - followed)))
