"""What each stage of a sync did, in one line for the run's log: figures and reasons, and no text of a row."""

from __future__ import annotations

from collections.abc import Sequence

from rowvec.ledger.plans import Plan
from rowvec.pipeline.model import BILLED, What
from rowvec.runtime.figures import counted, dollars
from rowvec.stages.batch import Batch
from rowvec.stages.index import Indexed
from rowvec.stages.merge import Merged
from rowvec.stages.report import SyncReport


def of_extract(plan: Plan, what: What) -> str:
    """Rows by kind, and what of them has to be embedded."""
    counts = plan.counts
    rows = (
        f"{counts.new:,} new, {counts.changed:,} changed, {counts.metadata_only:,} with other metadata alone, "
        f"{counts.deleted:,} deleted, {counts.unchanged:,} unchanged, {counts.rejected:,} rejected"
    )
    known = f", {counts.known:,} of them known" if counts.known else ""
    return f"extract: {rows}; {counted(counts.texts, f'distinct {what}')} to embed{known}; {plan.seconds:.1f} s"


def of_batches(batches: Sequence[Batch], stages: Sequence[str], what: What) -> list[str]:
    """One line per stage of a batch, over all batches of a round; none if there was no batch."""
    if not batches:
        return []
    rows, embedded, tokens = (sum(getattr(one, name) for one in batches) for name in ("rows", "embedded", "tokens"))
    billed = f"; {tokens:,} {BILLED[what]}" if tokens else ""
    did = {
        "images": f"{sum(one.images for one in batches):,} put into the store",
        "embed": f"{counted(embedded, what)} embedded, {counted(max(0, rows - embedded), 'vectors')} reused, "
        f"{counted(sum(one.rejected for one in batches), 'rows')} rejected{billed}",
        "binarize": counted(rows, "vectors"),
        "upload": counted(sum(one.artifact is not None for one in batches), "artifacts"),
        "load": f"{counted(rows, 'rows')} into staging",
    }
    return [f"{stage}: {did[stage]}; {_seconds(batches, stage):.1f} s" for stage in stages]


def of_merge(merged: Merged) -> str:
    """What the merge wrote, and what it left to the next run."""
    pending = f"; {merged.pending:,} changed since they were read" if merged.pending else ""
    return (
        f"merge: {counted(merged.upserted, 'vectors')} written, {merged.updated:,} with new metadata alone, "
        f"{merged.deleted:,} deleted; the vector table has {counted(merged.table_rows, 'rows')}{pending}; "
        f"{merged.seconds:.1f} s"
    )


def of_index(indexed: Indexed) -> str:
    """Which index there is, and why one was built or not."""
    choice, reason = indexed.choice, indexed.reason
    if reason is not None:
        told = f"{choice.kind} on {choice.on} built: {reason.sentence}"
    elif choice.kind == "none":
        told = f"none: {choice.reason}"
    else:
        told = f"{choice.kind} on {choice.on} kept, because nothing is wrong with it"
    notes = "".join(f"; {note}" for note in indexed.notes)
    return f"index: {told.rstrip('.')}{notes}; {indexed.seconds:.1f} s"


def of_validate(report: SyncReport) -> str:
    """The verdict, what was paid, and the recall."""
    billed = f"{counted(report.embedded, report.what)} embedded for {dollars(report.cost_usd)}"
    recall = "" if report.recall_at_k is None else f"; recall@{report.k} {report.recall_at_k:.3f}"
    total = report.seconds.get("total", 0.0)
    return f"validate: {report.verdict().rstrip('.')}; {billed}{recall}; {total:.1f} s in all"


def of_unchanged(report: SyncReport) -> str:
    """The verdict of a run that had nothing to do."""
    return f"unchanged: {report.verdict().rstrip('.')}; {report.seconds['total']:.1f} s in all"


def _seconds(batches: Sequence[Batch], stage: str) -> float:
    return sum(spent for one in batches for name, spent in one.seconds if name == stage)
