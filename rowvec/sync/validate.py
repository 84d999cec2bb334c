"""Validate: what must hold before a run calls itself done; each check says what it looked at."""

from __future__ import annotations

from rowvec.index.checks import VectorCheck, check_index, check_vectors
from rowvec.index.choice import IndexChoice
from rowvec.index.recall import RecallReport, measure
from rowvec.ledger import pipelines
from rowvec.ledger.plans import Plan
from rowvec.pipeline.model import Recall
from rowvec.postgres.connection import Connection
from rowvec.postgres.vector_table import VectorTable
from rowvec.store.open import Store
from rowvec.sync.merge import Merged
from rowvec.sync.report import Check

# Their 95 % interval is about two points wide at a recall of 0.95.
_DECIDING_QUERIES = 1000


def check_merge(merged: Merged, *, of_files: bool = False) -> list[Check]:
    """Does the vector table hold what the source says: by rows, by names and by checksum?

    ``of_files``: nobody writes to a source of files, but it may be replaced as a whole.
    """
    why = "the source's files were replaced while the run read them; " if of_files else ""
    checks = [
        Check(
            name="nothing missing",
            ok=not merged.missing,
            detail="every planned row has its vector"
            if not merged.missing
            else f"{len(merged.missing):,} row(s) have no vector as they are now; {why}run rowvec sync again",
            rows=merged.missing[:100],
        )
    ]
    if merged.source_rows is not None:
        same = merged.source_rows == merged.table_rows
        checks.append(
            Check(
                name="counts",
                ok=same,
                detail=f"the source has {merged.source_rows:,} rows to embed, the vector table {merged.table_rows:,}",
            )
        )
        checks.append(
            Check(
                name="checksum",
                ok=merged.source_checksum == merged.table_checksum,
                detail="keys and fingerprints of source and vector table agree: none stale, none orphaned"
                if merged.source_checksum == merged.table_checksum
                else "keys and fingerprints of source and vector table differ; rowvec audit names the rows",
            )
        )
    return checks


def check_table(connection: Connection, table: VectorTable, run_id: int | None) -> list[Check]:
    """Are the vectors themselves sound: all of them, or those that one run wrote?"""
    return [_check(found) for found in check_vectors(connection, table, run_id=run_id)]


def check_artifacts(connection: Connection, store: Store, plan: Plan) -> Check:
    """Is everything this run paid for in the store, whole?"""
    written = pipelines.artifacts_of(connection, plan.run_id)
    lost = [a.name for a in written if store.checksum(a.name) != a.sha256]
    detail = f"{len(written):,} artifact(s) of this run are in the store"
    if lost:
        detail = f"{len(lost):,} artifact(s) are not in the store as they were written: {', '.join(lost[:3])}; "
        detail += "rowvec audit --repair writes them anew"
    return Check(name="artifacts", ok=not lost, detail=detail)


def check_serving(
    connection: Connection,
    table: VectorTable,
    choice: IndexChoice,
    recall: RecallReport | None,
    said: tuple[str, ...] = (),
) -> list[Check]:
    """Is the index valid, used, and does it find what an exact search finds? ``said``: how it was kept fit."""
    kept = [Check(name="index_kept_fit", ok=True, detail="; ".join(said))] if said else []
    if recall is None:
        return [Check(name="index", ok=True, detail=f"none is needed: {choice.reason}"), *kept]
    checks = [*(_check(found) for found in check_index(connection, table, choice)), *kept]
    detail = recall.note
    if recall.recall is not None:
        detail = (
            f"recall@{recall.k} {recall.recall:.3f} (95 % interval {recall.low:.3f} to {recall.high:.3f}, "
            f"{recall.queries} queries), at least {recall.at_least} wanted"
        )
        detail += f"; {recall.note}" if recall.note else ""
    if not recall.passed:
        detail += f"; {remedy(choice)}"
    value = None if recall.recall is None else round(recall.recall, 4)
    return [*checks, Check(name="recall", ok=recall.passed, detail=detail, value=value)]


def remedy(choice: IndexChoice) -> str:
    """What raises the recall of an index like this one."""
    tuned = "let rowvec index --tune find the effort, or set index.kind to none, which searches exactly"
    if choice.kind == "ivfflat":
        return tuned
    if choice.on == "bits" or choice.prefix:
        return "raise index.m, index.ef_construction or index.oversampling, or set index.on to float"
    return f"raise index.m and index.ef_construction, or {tuned}"


def measured_recall(
    connection: Connection, table: VectorTable, choice: IndexChoice, wanted: Recall, *, newest: bool = False
) -> RecallReport | None:
    """What the index finds of what an exact search finds; None where there is no index.

    ``newest``: of several that serve the search, the youngest (see ``recall.measure``).
    """
    if choice.kind == "none":
        return None
    recall = measure(connection, table, choice, wanted, choice.oversampling, newest=newest)
    if recall.passed or wanted.queries >= _DECIDING_QUERIES:
        return recall
    # A hundred queries can miss by chance; a run should fail for what is so.
    more = wanted.model_copy(update={"queries": _DECIDING_QUERIES})
    return measure(connection, table, choice, more, choice.oversampling, newest=newest)


def _check(found: VectorCheck) -> Check:
    keys = tuple("(" + ", ".join(key) + ")" for key in found.rows)
    detail = found.detail if found.passed else f"{found.count:,} row(s) fail it: {found.detail}"
    return Check(name=found.name, ok=found.passed, detail=detail, rows=keys)
