"""Batch API jobs: a run submits its texts before it embeds batches, and the batches reuse the answers.

The ledger holds a job and its texts before the provider receives it, and ``rowvec.answers`` holds its answers before
the job is closed. So if a run is killed, or ends while jobs are unfinished, the next run continues with the same jobs.
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
from rowvec.embedders.openai.batch_files import Entry, JobLimits, numbered, request_line, within
from rowvec.embedders.openai.prices import BATCH_SHARE
from rowvec.embedders.rate_limit.limiter import Clock, SystemClock
from rowvec.errors import AwaitingJobs, EmbedderRefused, FatalError, RowError
from rowvec.ledger.held_lease import Ownership
from rowvec.ledger.lease import open_owned
from rowvec.ledger.plans import Plan, open_plan
from rowvec.ledger.runs import Run
from rowvec.ledger.spending import SpendingAccount, account_of, check_price, left, spent_by
from rowvec.ledger.workdir import make_workdir
from rowvec.pipeline import Pipeline
from rowvec.pipeline.embedders import BatchApi, OpenAIEmbedder
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import Connection
from rowvec.runtime.figures import counted
from rowvec.stages.batch_api import jobs
from rowvec.stages.batch_api.jobs import Job

if TYPE_CHECKING:
    # Every sync imports this module, and a sync without the Batch API does not need OpenAI's client.
    from rowvec.embedders.openai.batch_api import JobStatus, OpenAIBatches, Outcome
    from rowvec.embedders.openai.texts import OpenAIApi

# Outcomes made durable at once: 3,072 dimensions of 4 bytes make it 6 MB.
_BLOCK = 512

# How many jobs may contain a text before it is embedded directly.
_TRIES = {"batch": 3, "direct": 1}

# Seconds between two looks at the jobs. They grow, because a job that is not done in minutes takes hours.
_FIRST_PAUSE, _PAUSE_GROWTH, _LONGEST_PAUSE = 2.0, 1.5, 120.0

Step = Literal["submit", "wait", "leave", "go on"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """The facts that the next step is decided from."""

    eligible: int
    """Texts that may go into a job; counted up to ``at_least`` and no further."""
    at_least: int
    unfinished: int
    """Jobs at the provider whose answers are not collected."""
    awaited: bool
    """Whether they hold texts that this run needs."""
    barred: bool
    """Whether no job can be submitted now, because the provider's queue is full or the budget is used up."""
    overdue: bool
    """Whether runs have waited longer than the pipeline allows."""
    waited: float
    """Seconds that this run has waited."""
    wait: float
    """Seconds that a run may wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Awaited:
    """The jobs and texts that a later run must collect; zero if this run has every answer it waits for."""

    jobs: int = 0
    texts: int = 0

    def conclude(self, pipeline: Pipeline) -> None:
        """Raise ``AwaitingJobs`` if a later run must collect jobs; otherwise do nothing."""
        if self.jobs:
            raise AwaitingJobs(
                f"{pipeline.name} awaits {counted(self.jobs, 'batch jobs')} of {counted(self.texts, 'texts')} at the "
                "provider, for up to 24 hours; the vector table is unchanged, and the next sync continues from here",
                jobs=self.jobs,
                texts=self.texts,
            )


def decide(now: Situation) -> Step:
    """Decide the next step.

    Texts are submitted if there are enough of them. A run whose texts are at the provider waits as long as it may, and
    then leaves. The texts that remain are embedded directly.
    """
    wanted = now.eligible >= now.at_least and not now.overdue
    if wanted and not now.barred:
        return "submit"
    if now.unfinished and (now.awaited or wanted):
        return "wait" if now.waited < now.wait else "leave"
    return "go on"


def pauses() -> Iterator[float]:
    """Seconds to wait before each next look at the jobs."""
    pause = _FIRST_PAUSE
    while True:
        yield pause
        pause = min(_LONGEST_PAUSE, pause * _PAUSE_GROWTH)


def may_have_jobs(pipeline: Pipeline) -> bool:
    """Whether the pipeline may have jobs, including jobs from before its Batch API was switched off."""
    return isinstance(pipeline.embedder, OpenAIEmbedder)


def price_share(pipeline: Pipeline, texts: int) -> float:
    """The share of the normal token price that this number of texts would cost."""
    how = pipeline.embedder.jobs if isinstance(pipeline.embedder, OpenAIEmbedder) else None
    return BATCH_SHARE if how is not None and texts >= how.at_least else 1.0


def run(pipeline: Pipeline, run: Run, clock: Clock | None = None) -> Awaited:
    """Collect the answers of jobs, submit new jobs, and wait for them as long as the pipeline says.

    Raises a ``FatalError`` (for example ``BudgetExceeded``) or a ``RetriableError``; it can be called again after
    either.
    """
    resolved = resolve(pipeline)
    embedder = resolved.embedder
    how = embedder.jobs if isinstance(embedder, OpenAIEmbedder) else None
    with open_owned(resolved, run.lease, "rowvec jobs") as connection, ExitStack() as opened:
        if how is None and not jobs.unfinished(connection, run.pipeline_id):
            return Awaited()
        api, batches = opened.enter_context(open_batch_api(embedder))
        check_price(resolved, api.cost(1_000_000))
        run_jobs = _Jobs(
            connection=connection,
            api=api,
            batches=batches,
            how=how or BatchApi(),
            makes_jobs=how is not None,
            plan=open_plan(connection, resolved, run.run_id),
            account=account_of(resolved, run.run_id),
            ownership=Ownership(run.lease, resolved.target.url),
        )
        return run_jobs.work(clock or SystemClock())


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """A job's input file on disk, and the fingerprint and tokens of each of its texts."""

    path: Path
    mark: UUID
    texts: list[tuple[bytes, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Jobs:
    """One run's jobs at the provider."""

    connection: Connection
    api: OpenAIApi
    batches: OpenAIBatches
    how: BatchApi
    makes_jobs: bool
    """Whether new jobs may be submitted; existing jobs are collected in any case."""
    plan: Plan
    account: SpendingAccount
    ownership: Ownership

    def work(self, clock: Clock) -> Awaited:
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
                    return Awaited(jobs=count, texts=texts)
                case "go on":
                    return Awaited()

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
        """Look at all jobs and collect the ended ones; returns whether any has ended, and whether the queue is full."""
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
                        f"the provider refuses a job of {job.tokens:,} tokens: {seen.complaint}; set "
                        "embedder.batch.max_tokens to the account's limit, or wait for its other jobs"
                    )
                full = True
                self._forget(job, seen)
            else:
                self._take(job, seen)
        return ended, full

    def _seen(self, job: Job) -> JobStatus | None:
        if job.provider_id is None:
            found = self.batches.find(job.mark)
            if found is None:
                # A run was killed before the provider received the job: nothing was asked, and nothing is owed.
                jobs.forget(self.connection, self.account, job)
                return None
            jobs.submitted(self.connection, job.job_id, found.provider_id, found.state)
            return found
        seen = self.batches.look(job.provider_id)
        jobs.seen(self.connection, job, seen.state)
        return seen

    def _take(self, job: Job, seen: JobStatus) -> None:
        """Keep a job's answers and close it. Raises the ``FatalError`` that its lines report, if there is one."""
        from rowvec.embedders.openai.batch_api import read_outcomes  # late: see above

        fatal: FatalError | None = None
        folder = make_workdir(self.connection, self.plan.run_id)
        for name in seen.files:
            local = folder / f"{uuid4().hex}.jsonl"
            try:
                if not self.batches.download(name, local):
                    logger.warning(
                        "%s of batch job %s no longer exists; its texts are sent again", name, seen.provider_id
                    )
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

    def _forget(self, job: Job, seen: JobStatus) -> None:
        jobs.forget(self.connection, self.account, job)
        if seen.input_file:
            self.batches.forget(seen.input_file)

    def _submit(self) -> int:
        """Submit jobs for all eligible texts that the budget allows; returns the number of jobs."""
        # The files are written first, so that no transaction is open during a request to the provider.
        files = self._write_files()
        for file in files:
            usd_a_token = self._cost(1_000_000) / 1_000_000
            job_id = jobs.prepare(
                self.connection, self.account, self.plan.pipeline_id, file.mark, file.texts, usd_a_token
            )
            self.ownership.ensure()
            seen = self.batches.submit(file.path, str(file.mark))
            jobs.submitted(self.connection, job_id, seen.provider_id, seen.state)
            file.path.unlink()
            logger.info("submitted batch job %s with %s texts", seen.provider_id, f"{len(file.texts):,}")
        return len(files)

    def _write_files(self) -> list[_File]:
        files: list[_File] = []
        limits = JobLimits(tokens=self.how.max_tokens)
        for _, group in itertools.groupby(numbered(within(self._entries(), self._room()), limits), lambda one: one[0]):
            mark = uuid4()
            path = make_workdir(self.connection, self.plan.run_id) / f"rowvec-{mark}.jsonl"
            texts: list[tuple[bytes, int]] = []
            with path.open("wb") as out:
                for _, entry in group:
                    out.write(entry.line)
                    texts.append((entry.fingerprint, entry.tokens))
            files.append(_File(path=path, mark=mark, texts=texts))
        return files

    def _entries(self) -> Iterator[Entry]:
        """The texts that may go into a job; a text that cannot be sent at all is left out and rejected later."""
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
        """Tokens that new jobs may have together by the budget and the provider's limit; None if neither is set."""
        rooms: list[int] = []
        money = left(self.account.budget, spent_by(self.connection, self.account))
        if money is not None:
            # One token less, because the division may round up.
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
