"""Puts what was written again in the place of what has traces: the ledger in one transaction, then the store."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict

from psycopg import sql

from rowvec.ledger import marked_store
from rowvec.ledger.journal import unrecorded
from rowvec.ledger.runs import RunId
from rowvec.operations.erasure.history import History
from rowvec.operations.erasure.keys import has_key, is_reject
from rowvec.operations.erasure.record import Record, note_removed
from rowvec.operations.erasure.rewrite import Removed, Rewritten
from rowvec.operations.erasure.scan import Traces
from rowvec.operations.erasure.work import Work
from rowvec.postgres.queries import query
from rowvec.store.manifest import is_manifest

_LEDGER = ("rejects", "runs", "plans", "images")


def obsolete_of(history: History, traces: Traces, rewritten: Rewritten) -> list[str]:
    """The objects that nothing uses once the ledger names the new ones."""
    used = {name for name, _ in rewritten.manifests.values()} | (history.links.keys() - rewritten.manifests.keys())
    used |= {entry.name for entry in rewritten.entries.values()} | (history.entries - rewritten.entries.keys())
    used |= {artifact.name for artifact in rewritten.artifacts.values() if artifact}
    gone = [*rewritten.artifacts, *rewritten.entries, *rewritten.manifests, *traces.unlisted, *traces.orphans]
    return [name for name in gone if name not in used]


def switch_ledger(
    work: Work, run_id: RunId, record: Record, rewritten: Rewritten, obsolete: Collection[str], removed: list[Removed]
) -> None:
    """One transaction: the ledger names the new objects, and the tables lose the rows.

    Call it after ``scan`` and ``rewrite``, on the same connection.
    """
    connection, ids = work.connection, {"generations": work.ids}
    with connection.transaction():
        for old, new in rewritten.artifacts.items():
            if new is not None:
                connection.execute(query("erasure", "replace_artifact"), {**asdict(new), "old": old, **ids})
                named = {"old": sql.Literal(old), "new": sql.Literal(new.name)}
                connection.execute(query("erasure", "point_to_new", generations=work.ids_sql, **named))
            connection.execute(query("erasure", "forget_artifact"), {"old": old, **ids})
        for old, (name, sha256) in rewritten.manifests.items():
            connection.execute(query("erasure", "rename_manifest"), {"old": old, "name": name, "sha256": sha256, **ids})
        _supersede(work, rewritten)
        _delete_rows(work, run_id)
        note_removed(connection, record, list(obsolete), removed)


def delete_obsolete(work: Work, names: Iterable[str], in_use: Collection[str]) -> None:
    """Delete from the store what nothing uses any more; the mark of the ledger is moved first."""
    marked_store.renew_mark(work.connection, work.store, work.pipeline.name)
    gone = [name for name in names if name not in in_use]
    for name in gone:
        work.store.delete(name)
    manifests = [name for name in gone if is_manifest(name)]
    marked_store.forget_superseded(work.connection, work.pipeline.name, manifests)


def analyze(work: Work) -> None:
    """Renew the statistics of the tables: ``pg_stats`` shows values of rows that are gone until then."""
    for table in work.tables():
        work.connection.execute(query("erasure", "analyze", table=table.name))
    for name in _LEDGER:
        work.connection.execute(query("erasure", "analyze", table=sql.Identifier("rowvec", name)))


def analyze_record(work: Work) -> None:
    """The same of the table with the keys, once they are gone from it."""
    work.connection.execute(query("erasure", "analyze", table=sql.Identifier("rowvec", "erasures")))


def _supersede(work: Work, rewritten: Rewritten) -> None:
    """Let the ledger know the old manifests until they are deleted, and the new ones of those that are superseded."""
    connection, family = work.connection, work.pipeline.name
    given_up = [name for name in marked_store.superseded(connection, family) if name in rewritten.manifests]
    names = [*rewritten.manifests, *(rewritten.manifests[name][0] for name in given_up)]
    if names:
        marked_store.supersede(connection, family, names)


def _delete_rows(work: Work, run_id: RunId) -> None:
    connection, parts = work.connection, {"generations": work.ids_sql}
    for table in work.tables():
        if not table.is_live:
            wanted = has_key(work.key, table.types)
            connection.execute(query("erasure", "delete_rows", table=table.name, has_key=wanted))
    for generation in work.generations:
        if generation.state != "live":
            # It has digests of the keys; a switch back to the generation computes it again.
            connection.execute(query("certificates", "forget", pipeline_id=sql.Literal(generation.pipeline_id)))
        changed = unrecorded(generation.pipeline_id)
        row = connection.execute(
            query("erasure", "is_there", table=sql.Literal(changed.as_string(connection)))
        ).fetchone()
        if row and row[0]:
            connection.execute(query("erasure", "delete_rows", table=changed, has_key=has_key(work.key)))
    connection.execute(query("erasure", "delete_rejects", is_reject=is_reject(work.key), **parts))
    unneeded = query("erasure", "unneeded")
    connection.execute(query("erasure", "delete_answers", unneeded=unneeded, **parts))
    connection.execute(query("erasure", "delete_job_texts", unneeded=unneeded, **parts))
    connection.execute(query("erasure", "clear_plans", **parts))
    said = sql.Literal(f"removed by run {run_id}, an erasure: sentences of failed runs may name rows")
    without_rows = query("erasure", "without_rows")
    connection.execute(
        query("erasure", "clear_runs", removed=said, without_rows=without_rows, run_id=sql.Literal(run_id), **parts)
    )
