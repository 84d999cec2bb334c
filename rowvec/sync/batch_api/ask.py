"""Texts asked by a provider's Batch API before a run's batches are embedded: its answers are then there to be reused.

Whatever a job is asked stands in the ledger before the provider hears of it, and what it answers in ``rowvec.answers``
before it is forgotten there: a run that is killed, or that ends for its jobs are not done, is gone on with by the next.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from uuid import UUID, uuid4

from rowvec.embedders import open_batch_api
from rowvec.embedders.openai.batch_files import Entry, Limits, numbered, request_line, within
from rowvec.embedders.openai.prices import BATCH_SHARE
from rowvec.embedders.rate_limit.limiter import Clock, SystemClock
from rowvec.errors import AwaitingJobs, EmbedderRefused, FatalError, RowError
from rowvec.ledger.plans import Plan, open_plan
from rowvec.ledger.runs import Run
from rowvec.ledger.spending import Account, account_of, check_price, left, spent_by
from rowvec.ledger.workdir import spool
from rowvec.pipeline import Pipeline
from rowvec.pipeline.embedders import BatchApi, OpenAIEmbedder
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import Connection, open_target
from rowvec.sync.batch_api import jobs
from rowvec.sync.batch_api.jobs import Job

if TYPE_CHECKING:
    # Every sync imports this module, and those that ask nobody by the Batch API need no client of OpenAI's.
    from rowvec.embedders.openai.batch_api import OpenAIBatches, Outcome, Seen
    from rowvec.embedders.openai.texts import OpenAIApi

# Outcomes made durable at once: 3,072 dimensions of 4 bytes make it 6 MB.
_BLOCK = 512

# Jobs that a text is asked in before it is asked directly.
_TRIES = {"batch": 3, "direct": 1}

# Seconds between two looks at the jobs: growing, for what is not done in minutes takes hours.
_FIRST_PAUSE, _PAUSE_GROWTH, _LONGEST_PAUSE = 2.0, 1.5, 120.0

Step = Literal["submit", "wait", "leave", "go on"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What there is to decide on."""

    eligible: int
    """Texts that a job may be asked; counted no further than ``at_least``."""
    at_least: int
    unfinished: int
    """Jobs at the provider."""
    awaited: bool
    """Whether they are at work on texts that this run needs."""
    barred: bool
    """Whether no job can be made now: the provider's queue, or the budget, is full."""
    overdue: bool
    """Whether runs have waited for too long."""
    waited: float
    """Seconds, in this run."""
    wait: float
    """Seconds that a run waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """How asking ahead ended: with all that jobs are to answer, or with jobs that are left to a later run."""

    jobs: int = 0
    texts: int = 0

    def conclude(self, pipeline: Pipeline) -> None:
        """Go on. Raises ``AwaitingJobs`` where a later run is to."""
        if self.jobs:
            raise AwaitingJobs(
                f"{pipeline.name} awaits {self.jobs:,} batch job(s) of {self.texts:,} texts at the provider, which "
                "take up to 24 hours; the vector table is as it was, and the next sync goes on from here",
                jobs=self.jobs,
                texts=self.texts,
            )


def decide(now: Situation) -> Step:
    """What to do next.

    A text is submitted where that is worth the wait; a run whose texts are at the provider waits for as long as it may,
    and then leaves; what is left over is embedded directly.
    """
    wanted = now.eligible >= now.at_least and not now.overdue
    if wanted and not now.barred:
        return "submit"
    if now.unfinished and (now.awaited or wanted):
        return "wait" if now.waited < now.wait else "leave"
    return "go on"


def pauses() -> Iterator[float]:
    """Seconds between looks."""
    pause = _FIRST_PAUSE
    while True:
        yield pause
        pause = min(_LONGEST_PAUSE, pause * _PAUSE_GROWTH)


def asks_ahead(pipeline: Pipeline) -> bool:
    """Whether the pipeline may have jobs: also those of a time before its Batch API was switched off."""
    return isinstance(pipeline.embedder, OpenAIEmbedder)


def price_share(pipeline: Pipeline, texts: int) -> float:
    """Of the price of a token, what so many texts would cost."""
    how = pipeline.embedder.jobs if isinstance(pipeline.embedder, OpenAIEmbedder) else None
    return BATCH_SHARE if how is not None and texts >= how.at_least else 1.0


def run(pipeline: Pipeline, run: Run, clock: Clock | None = None) -> Ahead:
    """Collect what jobs have answered, make those that are wanted, and wait for them as long as the pipeline says.

    Raises a ``FatalError``, ``BudgetExceeded`` among them, or a ``RetriableError``: after each it can be called anew.
    """
    resolved = resolve(pipeline)
    embedder = resolved.embedder
    how = embedder.jobs if isinstance(embedder, OpenAIEmbedder) else None
    with open_target(resolved, "rowvec jobs") as connection, ExitStack() as opened:
        if how is None and not jobs.unfinished(connection, run.pipeline_id):
            return Ahead()
        api, batches = opened.enter_context(open_batch_api(embedder))
        check_price(resolved, api.cost(1_000_000))
        desk = _Desk(
            connection=connection,
            api=api,
            batches=batches,
            how=how or BatchApi(),
            makes_jobs=how is not None,
            plan=open_plan(connection, resolved, run.run_id),
            account=account_of(resolved, run.run_id),
        )
        return desk.work(clock or SystemClock())


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """A job's requests on disk, and what they are of."""

    path: Path
    mark: UUID
    texts: list[tuple[bytes, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Desk:
    """One run's dealings with the provider."""

    connection: Connection
    api: OpenAIApi
    batches: OpenAIBatches
    how: BatchApi
    makes_jobs: bool
    """Whether new ones may be made; those that there are, are taken in any case."""
    plan: Plan
    account: Account

    def work(self, clock: Clock) -> Ahead:
        started, pause = clock.now(), pauses()
        barred = False
        while True:
            ended, full = self._collect()
            barred = full or (barred and not ended)
            match decide(self._situation(barred, clock.now() - started)):
                case "submit":
                    barred = not self._submit()
                case "wait":
                    _sleep(clock, next(pause))
                case "leave":
                    count, texts = jobs.at_work(self.connection, self.plan.pipeline_id)
                    return Ahead(jobs=count, texts=texts)
                case "go on":
                    return Ahead()

    def _situation(self, barred: bool, waited: float) -> Situation:
        tries, how = _TRIES[self.how.fallback], self.how
        pipeline_id = self.plan.pipeline_id
        return Situation(
            eligible=(jobs.count_eligible(self.connection, self.plan, tries, how.at_least) if self.makes_jobs else 0),
            at_least=how.at_least,
            unfinished=len(jobs.unfinished(self.connection, pipeline_id)),
            awaited=jobs.awaited(self.connection, self.plan),
            barred=barred,
            overdue=jobs.overdue(self.connection, pipeline_id, how.patience_hours),
            waited=waited,
            wait=how.wait_minutes * 60,
        )

    def _collect(self) -> tuple[bool, bool]:
        """Look at all jobs and take what has come; whether any has ended, and whether the provider's queue is full."""
        ended = full = False
        unfinished = jobs.unfinished(self.connection, self.plan.pipeline_id)
        for job in unfinished:
            seen = self._seen(job)
            if seen is None or not seen.ended:
                continue
            ended = True
            if seen.full:
                if len(unfinished) == 1:
                    self._forget(job, seen)
                    raise EmbedderRefused(
                        f"the provider takes no job of {job.tokens:,} tokens: {seen.complaint}; set "
                        "embedder.batch.max_tokens to the account's limit, or wait for its other jobs"
                    )
                full = True
                self._forget(job, seen)
            else:
                self._take(job, seen)
        return ended, full

    def _seen(self, job: Job) -> Seen | None:
        if job.provider_id is None:
            found = self.batches.find(job.mark)
            if found is None:
                # Killed before the provider heard of it: nothing was asked, and nothing is owed.
                jobs.forget(self.connection, self.account, job)
                return None
            jobs.submitted(self.connection, job.job_id, found.provider_id, found.state)
            return found
        seen = self.batches.look(job.provider_id)
        jobs.seen(self.connection, job, seen.state)
        return seen

    def _take(self, job: Job, seen: Seen) -> None:
        """Keep what a job has answered, and close it. Raises what its lines say is wrong with all of them."""
        from rowvec.embedders.openai.batch_api import read_outcomes  # late: see above

        fatal: FatalError | None = None
        folder = spool(self.connection, self.plan.run_id)
        for name in seen.files:
            local = folder / f"{uuid4().hex}.jsonl"
            try:
                if not self.batches.download(name, local):
                    logger.warning("%s of batch job %s is gone; its texts are asked again", name, seen.provider_id)
                    continue
                for outcomes in _blocks(read_outcomes(self.batches, local)):
                    fatal = fatal or next((o.error for o in outcomes if isinstance(o.error, FatalError)), None)
                    jobs.keep(self.connection, job, self.plan.pipeline_id, outcomes, self._cost)
            finally:
                local.unlink(missing_ok=True)
        if seen.state != "completed":
            logger.warning("batch job %s is %s. %s", seen.provider_id, seen.state, seen.complaint)
        jobs.close(self.connection, self.account, job, seen.state)
        for name in (*seen.files, seen.input_file):
            if name:
                self.batches.forget(name)
        if fatal is not None:
            raise fatal

    def _forget(self, job: Job, seen: Seen) -> None:
        jobs.forget(self.connection, self.account, job)
        if seen.input_file:
            self.batches.forget(seen.input_file)

    def _submit(self) -> int:
        """Make jobs of all texts that are wanted and may be paid for; how many it were."""
        # The files come first: no transaction is open while the provider is talked to.
        files = self._write_files()
        for file in files:
            with_money = {"usd_a_token": self._cost(1_000_000) / 1_000_000}
            job_id = jobs.prepare(
                self.connection, self.account, self.plan.pipeline_id, file.mark, file.texts, **with_money
            )
            seen = self.batches.submit(file.path, str(file.mark))
            jobs.submitted(self.connection, job_id, seen.provider_id, seen.state)
            file.path.unlink()
            logger.info("batch job %s of %s texts", seen.provider_id, f"{len(file.texts):,}")
        return len(files)

    def _write_files(self) -> list[_File]:
        files: list[_File] = []
        limits = Limits(tokens=self.how.max_tokens)
        for _, group in itertools.groupby(numbered(within(self._entries(), self._room()), limits), lambda one: one[0]):
            mark = uuid4()
            path, texts = spool(self.connection, self.plan.run_id) / f"rowvec-{mark}.jsonl", list[tuple[bytes, int]]()
            with path.open("wb") as out:
                for _, entry in group:
                    out.write(entry.line)
                    texts.append((entry.fingerprint, entry.tokens))
            files.append(_File(path=path, mark=mark, texts=texts))
        return files

    def _entries(self) -> Iterator[Entry]:
        """The texts that a job may be asked; those that cannot be sent at all are left to be rejected later."""
        drawn, unsendable = b"", dict[int, RowError]()

        def contents() -> Iterator[str]:
            nonlocal drawn
            for fingerprint, content in jobs.eligible(self.connection, self.plan, _TRIES[self.how.fallback]):
                drawn = fingerprint
                yield content

        for sized in self.api.sized(contents(), unsendable):
            line = request_line(drawn, sized.text, self.batches.model, self.batches.dimensions)
            yield Entry(fingerprint=drawn, line=line, tokens=sized.tokens)

    def _room(self) -> int | None:
        """Tokens that new jobs may have together, by budget and by the provider's limit; None where there is none."""
        rooms: list[int] = []
        money = left(self.account.budget, spent_by(self.connection, self.account))
        if money is not None:
            # Less a token, for what the division rounds up.
            rooms.append(max(0, int(money / self._cost(1_000_000) * 1_000_000) - 1))
        if self.how.max_tokens is not None:
            under_way = sum(job.tokens for job in jobs.unfinished(self.connection, self.plan.pipeline_id))
            rooms.append(max(0, self.how.max_tokens - under_way))
        return min(rooms) if rooms else None

    def _cost(self, tokens: int) -> float:
        return self.api.cost(tokens) * BATCH_SHARE


def _blocks(outcomes: Iterator[Outcome]) -> Iterator[list[Outcome]]:
    while block := list(itertools.islice(outcomes, _BLOCK)):
        yield block


def _sleep(clock: Clock, seconds: float) -> None:
    clock.wait(seconds, threading.Event())
