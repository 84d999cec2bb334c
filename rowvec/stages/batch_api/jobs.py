"""Batch API jobs in the ledger: which jobs exist, the texts of each, and the texts it has not answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Literal, NewType
from uuid import UUID

import numpy as np
from psycopg import sql
from psycopg.rows import class_row

from rowvec.embedders.budget import BudgetHold, Reservation
from rowvec.embedders.openai.prices import BATCH_SHARE
from rowvec.embedders.protocol import Answer, Embedder
from rowvec.errors import RejectReason, RowError
from rowvec.ledger.lease import whoever_owns
from rowvec.ledger.pipelines import PipelineId
from rowvec.ledger.plans import FETCH_ROWS, Plan
from rowvec.ledger.reuse import Answers, keep_answers, paid_for, relies_on_table
from rowvec.ledger.runs import RunId
from rowvec.ledger.spending import SpendingAccount, reserve, settle
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query
from rowvec.vectors.fingerprint import Identity
from rowvec.vectors.fingerprint import fingerprint as fingerprint_of

if TYPE_CHECKING:
    from rowvec.embedders.openai.batch_api import Outcome  # it imports OpenAI's client, which a sync may not need

JobId = NewType("JobId", int)
Cost = Callable[[int], float]
"""US dollars for a number of tokens in a job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job whose answers are not collected."""

    job_id: JobId
    run_id: RunId
    mark: str
    """Our own name for the job, in its metadata at the provider."""
    state: Literal["prepared", "submitted"]
    """``prepared``: the provider may or may not have received it."""
    provider_id: str | None
    provider_state: str | None
    texts: int
    tokens: int
    reserved_usd: float
    reserved_month: date

    @property
    def hold(self) -> Reservation:
        """The money that is reserved for it."""
        return Reservation(usd=self.reserved_usd, month=self.reserved_month)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """Texts that jobs have answered, with their tokens and their cost."""

    texts: int = 0
    tokens: int = 0
    usd: float = 0.0


def prepare(
    connection: Connection,
    account: SpendingAccount,
    pipeline_id: PipelineId,
    mark: UUID,
    texts: Iterable[tuple[bytes, int]],
    usd_a_token: float,
) -> JobId:
    """Record a job, its texts (fingerprint, tokens) and its reserved money before it is sent: one transaction.

    Raises ``BudgetExceeded``.
    """
    listed = list(texts)
    tokens = sum(n for _, n in listed)
    values = {
        "pipeline_id": pipeline_id,
        "run_id": account.run_id,
        "mark": mark,
        "texts": len(listed),
        "tokens": tokens,
    }
    with connection.transaction():
        hold = reserve(connection, account, tokens * usd_a_token)
        money = {"reserved_usd": hold.usd, "reserved_month": hold.month}
        row = connection.execute(query("jobs", "prepare"), {**values, **money}).fetchone()
        job_id = JobId(row[0] if row else 0)
        with connection.cursor() as cursor, cursor.copy(query("jobs", "copy_texts")) as copy:
            copy.set_types(["int8", "int4", "bytea"])
            for fingerprint, _ in listed:
                copy.write_row((job_id, pipeline_id, fingerprint))
    return job_id


def submitted(connection: Connection, job_id: JobId, provider_id: str, provider_state: str) -> None:
    """Record that the provider has the job, under this id; even if the lease was lost meanwhile."""
    values = {"job_id": job_id, "provider_id": provider_id, "provider_state": provider_state}
    with whoever_owns(connection):
        connection.execute(query("jobs", "submitted"), values)


def seen(connection: Connection, job: Job, provider_state: str) -> None:
    """Record the state that the provider reports."""
    if provider_state != job.provider_state:
        connection.execute(query("jobs", "seen"), {"job_id": job.job_id, "provider_state": provider_state})


def unfinished(connection: Connection, pipeline_id: PipelineId) -> list[Job]:
    """The pipeline's jobs whose answers are not collected, oldest first."""
    with connection.cursor(row_factory=class_row(Job)) as cursor:
        return cursor.execute(query("jobs", "unfinished"), {"pipeline_id": pipeline_id}).fetchall()


def forget(connection: Connection, account: SpendingAccount, job: Job) -> None:
    """Delete a job that the provider does not have: its texts become eligible again, its money is released."""
    with connection.transaction():
        connection.execute(query("jobs", "forget"), {"job_id": job.job_id})
        settle(connection, account.family, job.run_id, job.hold, 0.0)


def keep(connection: Connection, job: Job, pipeline_id: PipelineId, outcomes: list[Outcome], cost: Cost) -> None:
    """Make some of a job's outcomes durable, each once even if it comes twice: one transaction.

    Vectors become answers. A refusal is kept until its row is rejected. A text that was billed without a vector becomes
    eligible again.
    """
    values = {"job_id": job.job_id}
    with connection.transaction():
        wanted = {**values, "fingerprints": [outcome.fingerprint for outcome in outcomes]}
        asked = {row[0] for row in connection.execute(query("jobs", "own_texts"), wanted)}
        own = {o.fingerprint: o for o in outcomes if o.fingerprint in asked}
        good = {f: o.vector for f, o in own.items() if o.vector is not None}
        refused = {f: o.error for f, o in own.items() if isinstance(o.error, RowError)}
        billed = [f for f, o in own.items() if o.vector is None and o.tokens]
        if good:
            answers = Answers(
                fingerprints=list(good),
                vectors=np.stack(list(good.values())),
                tokens=sum(own[f].tokens for f in good),
                price_share=BATCH_SHARE,
            )
            keep_answers(connection, pipeline_id, job.run_id, answers)
        connection.execute(query("jobs", "answered"), {**values, "fingerprints": list(good)})
        connection.execute(query("jobs", "give_back"), {**values, "fingerprints": billed})
        _refuse(connection, job, refused)
        total = sum(o.tokens for o in own.values())
        sums = {"texts": len(good), "tokens": total, "usd": cost(total)}
        connection.execute(query("jobs", "add"), {**values, **sums})


def _refuse(connection: Connection, job: Job, refused: dict[bytes, RowError]) -> None:
    values = {
        "job_id": job.job_id,
        "fingerprints": list(refused),
        "reasons": [error.reason for error in refused.values()],
        "details": [error.detail for error in refused.values()],
    }
    connection.execute(query("jobs", "refused"), values)


def close(connection: Connection, account: SpendingAccount, job: Job, provider_state: str) -> None:
    """Close a job whose answers are kept: its other texts become eligible again, and its cost is settled."""
    values = {"job_id": job.job_id}
    with connection.transaction():
        row = connection.execute(query("jobs", "collected"), {**values, "provider_state": provider_state}).fetchone()
        if row is None:
            return
        answered, usd = row
        if not answered:
            connection.execute(query("jobs", "doubt"), values)
        connection.execute(query("jobs", "returned"), values)
        # The outcome of a lost job is unknown: the provider may have billed it.
        spent = max(usd, job.reserved_usd) if provider_state == "lost" else usd
        settle(connection, account.family, job.run_id, job.hold, spent)


def eligible(connection: Connection, plan: Plan, tries: int) -> Iterator[tuple[bytes, str]]:
    """Fingerprint and content of the plan's texts that may go into a job: texts that fewer than ``tries`` jobs
    returned.

    Reads in a transaction that lasts as long as the iteration.
    """
    with connection.transaction(), connection.cursor(name="eligible", binary=True) as cursor:
        cursor.itersize = FETCH_ROWS
        cursor.execute(_eligible(connection, plan, tries))
        while rows := cursor.fetchmany(FETCH_ROWS):
            yield from rows


def count_eligible(connection: Connection, plan: Plan, tries: int, enough: int) -> int:
    """How many texts ``eligible`` would give, counted up to ``enough`` and no further."""
    counted = sql.SQL("SELECT count(*) FROM ({} LIMIT {}) AS e").format(
        _eligible(connection, plan, tries), sql.Literal(enough)
    )
    row = connection.execute(counted).fetchone()
    return row[0] if row else 0


def awaited(connection: Connection, plan: Plan) -> bool:
    """Whether an unfinished job holds texts of the plan."""
    parts = {"plan": plan.rows, "pipeline_id": sql.Literal(plan.pipeline_id)}
    row = connection.execute(query("jobs", "awaited", **parts)).fetchone()
    return bool(row and row[0])


def overdue(connection: Connection, pipeline_id: PipelineId, hours: float) -> bool:
    """Whether consecutive runs have waited for jobs for at least this many hours."""
    row = connection.execute(query("jobs", "overdue"), {"pipeline_id": pipeline_id, "hours": hours}).fetchone()
    return bool(row and row[0])


def at_work(connection: Connection, pipeline_id: PipelineId) -> tuple[int, int]:
    """The number of unfinished jobs, and of the texts in them."""
    row = connection.execute(query("jobs", "at_work"), {"pipeline_id": pipeline_id}).fetchone()
    return (row[0], int(row[1])) if row else (0, 0)


def unreported(connection: Connection, pipeline_id: PipelineId) -> Collected:
    """What jobs have answered that no run has reported yet."""
    row = connection.execute(query("jobs", "unreported"), {"pipeline_id": pipeline_id}).fetchone()
    return Collected(texts=int(row[0]), tokens=int(row[1]), usd=float(row[2])) if row else Collected()


def report(connection: Connection, pipeline_id: PipelineId, run_id: RunId) -> None:
    """Mark what jobs have answered as reported by this run, and delete the records of texts that they returned."""
    connection.execute(query("jobs", "report"), {"pipeline_id": pipeline_id, "run_id": run_id})
    connection.execute(query("jobs", "forget_texts"), {"pipeline_id": pipeline_id})


def forget_refusals(connection: Connection, pipeline_id: PipelineId) -> None:
    """Forget which texts jobs have refused, so that the next sync tries them again."""
    connection.execute(query("jobs", "forget_refusals"), {"pipeline_id": pipeline_id})


def embed_the_rest(
    connection: Connection, pipeline_id: PipelineId, embedder: Embedder, budget: BudgetHold, texts: Iterable[str]
) -> Iterator[Answer]:
    """Ask an embedder directly, except about texts that a job has refused: those are rejected at once."""
    values = {"pipeline_id": pipeline_id}
    refusals = {bytes(f): RowError(_reason(r), d) for f, r, d in connection.execute(query("jobs", "refusals"), values)}
    if not refusals:
        yield from embedder.embed(texts, budget)
        return
    sent: list[int] = []
    rejected: dict[int, RowError] = {}
    for answer in embedder.embed(_passed(texts, embedder.identity, refusals, sent, rejected), budget):
        yield Answer(
            positions=np.array([sent[position] for position in answer.positions], np.int64),
            vectors=answer.vectors,
            billed=answer.billed,
            rejected={sent[position]: error for position, error in answer.rejected.items()},
        )
    nothing = np.empty((0, embedder.identity.dimensions), np.float32)
    yield Answer(positions=np.empty(0, np.int64), vectors=nothing, rejected=rejected)


def _passed(
    texts: Iterable[str],
    identity: Identity,
    refusals: dict[bytes, RowError],
    sent: list[int],
    rejected: dict[int, RowError],
) -> Iterator[str]:
    digest = identity.digest()
    for position, text in enumerate(texts):
        refusal = refusals.get(bytes(fingerprint_of(digest, text.encode())))
        if refusal is None:
            sent.append(position)
            yield text
        else:
            rejected[position] = refusal


def _reason(text: str) -> RejectReason:
    return "too_long" if text == "too_long" else "invalid_input"


def _eligible(connection: Connection, plan: Plan, tries: int) -> sql.Composed:
    in_table: sql.Composable = sql.SQL("false")
    if not plan.direct and relies_on_table(connection, plan.pipeline_id):
        in_table = query("jobs", "in_table", table=plan.table.identifier)
    return query(
        "jobs",
        "eligible",
        plan=plan.rows,
        paid_for=paid_for(connection, plan.pipeline_id, plan.identity),
        in_table=in_table,
        pipeline_id=sql.Literal(plan.pipeline_id),
        tries=sql.Literal(tries),
    )
