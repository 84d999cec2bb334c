"""The plan command: what a sync would do and cost, without spending anything."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rowvec.embedders import open_embedder
from rowvec.ledger import spending
from rowvec.ledger.generations import effective
from rowvec.ledger.pipelines import check_identity, check_target
from rowvec.ledger.plans import begin_dry_run, sample_texts
from rowvec.pipeline import Pipeline
from rowvec.pipeline.model import What
from rowvec.pipeline.references import resolve, without_key
from rowvec.postgres.connection import open_target, use_one_snapshot
from rowvec.postgres.migrations import has_ledger, install
from rowvec.sources.row_security import restriction
from rowvec.stages.batch_api import jobs
from rowvec.stages.batch_api.submit import price_share
from rowvec.stages.extract.request import Request
from rowvec.stages.extract.stage import extract

# Tokens are counted exactly for up to this many texts, and estimated from characters above.
_COUNTED_TEXTS = 100_000

_NEEDED = frozenset({"source", "embedder", "target"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """What a sync would do; ``as_json`` is what ``rowvec plan --json`` prints."""

    pipeline: str
    new: int
    changed: int
    metadata_only: int
    """Rows of which only the metadata changed; they cost nothing."""
    deleted: int
    unchanged: int
    rejected: int
    """Rows of the source that stay rejected."""
    what: What
    """Whether the contents are texts or images."""
    embedded: int
    """Distinct contents that the embedder would be asked for."""
    reused: int
    """Rows whose vector exists already."""
    tokens: int
    """An estimate; for images the transactions that are billed."""
    cost_usd: float
    """An estimate, in US dollars."""
    awaiting_jobs: int
    """Unfinished jobs at the provider's Batch API."""
    awaiting_texts: int
    """Texts in these jobs."""
    budget: spending.BudgetOutlook | None
    """None if the pipeline has no budget."""
    notes: tuple[str, ...]
    """Sentences about what the source did not show."""

    def as_json(self) -> dict[str, Any]:
        """The plan as one JSON object."""
        found = {name: value for name, value in asdict(self).items() if not name.startswith("awaiting_")}
        awaiting = {"jobs": self.awaiting_jobs, "texts": self.awaiting_texts}
        return {**found, "awaiting": awaiting, "notes": list(self.notes)}


def plan(pipeline: Pipeline) -> PlanReport:
    """What a sync would do, in rows, tokens and US dollars.

    One transaction, which is rolled back: nothing is created and no ledger row stays, also where there is no ledger
    yet. Nothing is embedded, so the embedder's key and the store's credential may be missing. A ledger of an older
    version is migrated first. Raises ``UsageError``, ``SourceError`` and ``TargetError`` as a sync does.
    """
    pipeline = effective(pipeline)
    resolved = resolve(without_key(pipeline), _NEEDED)
    embedder = open_embedder(resolved.embedder)
    with open_target(resolved, "rowvec plan") as connection:
        if has_ledger(connection):
            install(connection)
        with connection.transaction(force_rollback=True):
            # First of all: the snapshot is that of the transaction's first query.
            use_one_snapshot(connection)
            install(connection)
            check_target(connection, pipeline, embedder.identity)
            check_identity(connection, pipeline, embedder.identity)
            pipeline_id, run_id = begin_dry_run(connection, pipeline, embedder.identity)
            request = Request(
                pipeline=resolved,
                identity=embedder.identity,
                pipeline_id=pipeline_id,
                run_id=run_id,
                dry_run=True,
            )
            found = extract(connection, request)
            texts, count, characters = [], 0, 0
            if found.batches and embedder.paid:
                texts, count, characters = sample_texts(connection, found, _COUNTED_TEXTS)
            at_work = jobs.at_work(connection, pipeline_id)
            spent = spending.spent_by(connection, spending.account_of(resolved, run_id))
            shown_in_part = restriction(connection, resolved)
    # Counting takes seconds for many texts, and a transaction should not be open meanwhile.
    tokens = embedder.count_tokens(texts) if texts else 0
    if count > len(texts):
        tokens = round(tokens * characters / max(1, sum(map(len, texts))))
    cost = embedder.cost(tokens) * price_share(resolved, found.counts.texts - found.counts.known)
    budget = spending.outlook(spending.budget_of(resolved), spent, cost)
    counts = found.counts
    embedded = counts.texts - counts.known
    return PlanReport(
        pipeline=pipeline.name,
        new=counts.new,
        changed=counts.changed,
        metadata_only=counts.metadata_only,
        deleted=counts.deleted,
        unchanged=counts.unchanged,
        rejected=counts.rejected,
        what=pipeline.what,
        embedded=embedded,
        reused=counts.new + counts.changed - embedded,
        tokens=tokens,
        cost_usd=cost,
        awaiting_jobs=at_work[0],
        awaiting_texts=at_work[1],
        budget=budget,
        notes=(shown_in_part,) if shown_in_part else (),
    )
