"""The plan command: what a sync would do and cost, without spending anything."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from tempfile import SpooledTemporaryFile
from typing import Any

from psycopg import errors as pg

from rowvec.embedders import open_embedder
from rowvec.embedders.protocol import Embedder
from rowvec.errors import LedgerBehind, StoreBehind, StoreRefused, StoreUnavailable, UsageError
from rowvec.ledger import spending
from rowvec.ledger.behind import refuse_if_behind
from rowvec.ledger.generations import effective
from rowvec.ledger.marked_store import Forgotten
from rowvec.ledger.pipelines import PipelineId, check_identity, check_target
from rowvec.ledger.plans import Plan, PlannedRow, begin_dry_run, planned_rows, sample_texts
from rowvec.ledger.runs import RunId
from rowvec.ledger.spending import Spent
from rowvec.pipeline import Pipeline
from rowvec.pipeline.model import What
from rowvec.pipeline.references import resolve, without_key
from rowvec.postgres.connection import Connection, open_target, use_one_snapshot
from rowvec.postgres.migrations import has_ledger, install
from rowvec.sources.row_security import restriction
from rowvec.stages.batch_api import jobs
from rowvec.stages.batch_api.submit import price_share
from rowvec.stages.extract.request import Request
from rowvec.stages.extract.stage import extract
from rowvec.store.open import open_store

# Tokens are counted exactly for up to this many texts, and estimated from characters above.
_COUNTED_TEXTS = 100_000

# Fingerprints, of 32 bytes, that are in memory; more are in a file without a name.
_SPOOLED_BYTES = 16 << 20

# The first pipeline and the first run of a ledger.
_FIRST = (PipelineId(1), RunId(1))

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
    empty: int
    """Rows of the source without content: they have no vector, and are no rejects."""
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
    rows: tuple[PlannedRow, ...] | None = None
    """Some of the rows, if they were asked for."""

    def as_json(self) -> dict[str, Any]:
        """The plan as one JSON object."""
        left_out = ("awaiting_jobs", "awaiting_texts", *(("rows",) if self.rows is None else ()))
        found = {name: value for name, value in asdict(self).items() if name not in left_out}
        awaiting = {"jobs": self.awaiting_jobs, "texts": self.awaiting_texts}
        return {**found, "awaiting": awaiting, "notes": list(self.notes)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Looked:
    """What the databases say."""

    found: Plan
    texts: list[str]
    """Some of the texts to embed, or all."""
    count: int
    """All texts to embed."""
    characters: int
    at_work: tuple[int, int]
    spent: Spent
    shown_in_part: str | None
    rows: tuple[PlannedRow, ...] | None


def plan(pipeline: Pipeline, show: int = 0) -> PlanReport:
    """What a sync would do, in rows, tokens and US dollars; ``show``: so many of the rows, with old and new texts.

    One transaction, which is rolled back: nothing is created and no ledger row stays, also where there is no ledger
    yet. Before it, the store is read if the ledger is behind it. Nothing is embedded, so the embedder's key may be
    missing, and without the store's credential a note says what is not counted. A ledger of an older
    version is migrated first. Raises ``UsageError``, ``SourceError`` and ``TargetError`` as a sync does.
    """
    pipeline = effective(pipeline)
    resolved = resolve(without_key(pipeline), _NEEDED)
    embedder = open_embedder(resolved.embedder)
    with open_target(resolved, "rowvec plan") as connection, SpooledTemporaryFile(_SPOOLED_BYTES) as file:
        there = has_ledger(connection)
        if there:
            install(connection)
        forgotten = Forgotten(file)
        unread = _read_store(connection, pipeline, forgotten)
        look = partial(_look, connection, pipeline, resolved, embedder, forgotten, show=show)
        try:
            looked = look(there=there)
        except pg.Error:
            if there or not has_ledger(connection):
                raise
            # A first run has made the ledger since this plan began.
            install(connection)
            looked = look(there=True)
    # Counting takes seconds for many texts, and a transaction should not be open meanwhile.
    texts, found = looked.texts, looked.found
    tokens = embedder.count_tokens(texts) if texts else 0
    if looked.count > len(texts):
        tokens = round(tokens * looked.characters / max(1, sum(map(len, texts))))
    cost = embedder.cost(tokens) * price_share(resolved, found.counts.texts - found.counts.known)
    budget = spending.outlook(spending.budget_of(resolved), looked.spent, cost)
    counts = found.counts
    embedded = counts.texts - counts.known
    return PlanReport(
        pipeline=pipeline.name,
        new=counts.new,
        changed=counts.changed,
        metadata_only=counts.metadata_only,
        deleted=counts.deleted,
        unchanged=counts.unchanged,
        empty=counts.empty,
        rejected=counts.rejected,
        what=pipeline.what,
        embedded=embedded,
        reused=counts.new + counts.changed - embedded,
        tokens=tokens,
        cost_usd=cost,
        awaiting_jobs=looked.at_work[0],
        awaiting_texts=looked.at_work[1],
        budget=budget,
        notes=tuple(filter(None, (looked.shown_in_part, unread))),
        rows=looked.rows,
    )


def _read_store(connection: Connection, pipeline: Pipeline, forgotten: Forgotten) -> str | None:
    """Read what only the store knows; returns a sentence if the store could not be read, or if a sync would refuse."""
    try:
        store = open_store(resolve(pipeline, frozenset({"artifacts"})).artifacts)
        forgotten.read(connection, store, pipeline.name)
        refuse_if_behind(connection, store, pipeline.name)
    except (LedgerBehind, StoreBehind) as error:
        return f"a sync refuses as long as this is so: {error}"
    except (UsageError, StoreRefused, StoreUnavailable) as error:
        return f"vectors that only the store has are not counted as reused, because it was not read: {error}"
    return None


def _look(
    connection: Connection,
    pipeline: Pipeline,
    resolved: Pipeline,
    embedder: Embedder,
    forgotten: Forgotten,
    *,
    there: bool,
    show: int,
) -> _Looked:
    """Plan in a transaction that is rolled back. ``there``: whether there is a ledger; if not, it is made in there.

    What makes the ledger locks out every first run, so it waits until a source outside the database has been read.
    """

    def begin() -> tuple[PipelineId, RunId]:
        install(connection)
        check_target(connection, pipeline, embedder.identity)
        check_identity(connection, pipeline, embedder.identity)
        pipeline_id, run_id = begin_dry_run(connection, pipeline, embedder.identity)
        forgotten.enter(connection, pipeline.name, embedder.identity, run_id)
        return pipeline_id, run_id

    def begin_anew() -> None:
        begun = begin()
        if begun != _FIRST:
            raise LookupError(f"the first rows of a new ledger have the numbers {begun}")  # its sequences are as new

    with connection.transaction(force_rollback=True):
        # First of all: the snapshot is that of the transaction's first query.
        use_one_snapshot(connection)
        pipeline_id, run_id = begin() if there else _FIRST
        request = Request(
            pipeline=resolved,
            identity=embedder.identity,
            pipeline_id=pipeline_id,
            run_id=run_id,
            dry_run=True,
            begin=None if there else begin_anew,
        )
        found = extract(connection, request)
        texts, count, characters = [], 0, 0
        if found.batches and embedder.paid:
            texts, count, characters = sample_texts(connection, found, _COUNTED_TEXTS)
        return _Looked(
            found=found,
            texts=texts,
            count=count,
            characters=characters,
            at_work=jobs.at_work(connection, pipeline_id),
            spent=spending.spent_by(connection, spending.account_of(resolved, run_id)),
            shown_in_part=restriction(connection, resolved),
            rows=planned_rows(connection, found, show) if show else None,
        )
