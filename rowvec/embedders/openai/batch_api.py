"""OpenAI's Batch API: uploads and downloads files, and creates, finds and checks jobs; never creates a job twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, cast

import httpx2
import numpy as np
import openai
import tenacity
from openai.types import Batch

from rowvec.embedders.checks import usable
from rowvec.embedders.openai.batch_files import ENDPOINT, AnswerLine, read_line
from rowvec.embedders.openai.client import OpenAIEndpoint, refusal
from rowvec.embedders.provider.refusal import LONGEST_MESSAGE, Refusal, meaning
from rowvec.embedders.provider.requests import ServerFacts
from rowvec.embedders.provider.response import read_value
from rowvec.embedders.rate_limit.limiter import Clock
from rowvec.errors import EmbedderRefused, EmbedderUnavailable, RetriableError, RowError, RowvecError
from rowvec.vectors.layout import Vectors

ProviderState = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled", "lost"
]

_ENDED = ("failed", "completed", "expired", "cancelled", "lost")

# The metadata key that holds our own name of a job.
_MARK = "rowvec_job"

_BACKOFF = tenacity.wait_exponential(multiplier=0.5, max=60) + tenacity.wait_random(0, 1)
_PAGE = 100
# A read or write of a file that takes longer is given up.
_STALLED_SECONDS = 60.0

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """A job as the provider reports it."""

    provider_id: str
    state: ProviderState
    """``lost``: the provider does not know the job, or no longer."""
    files: tuple[str, ...] = ()
    """Ids of the files with answers and with errors, as far as there are any."""
    input_file: str | None = None
    complaint: str = ""
    """Why it failed."""
    full: bool = False
    """Whether it failed because of the account's limit of tokens in unfinished jobs."""

    @property
    def ended(self) -> bool:
        """Whether the job will answer nothing more."""
        return self.state in _ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of one text of a job: a vector, or an error, or neither if the job returned it unanswered."""

    fingerprint: bytes
    vector: Vectors | None = None
    """``(d,)``, checked."""
    tokens: int = 0
    error: RowvecError | None = None


class OpenAIBatches:
    """The Batch API jobs of one account."""

    def __init__(self, endpoint: OpenAIEndpoint, server: ServerFacts, *, transfer_seconds: float, clock: Clock) -> None:
        self._endpoint = endpoint
        self._server = server
        # The longest of these limits is that of the whole transfer; the others are those of one read or write.
        stalled = min(_STALLED_SECONDS, transfer_seconds)
        whole = httpx2.Timeout(transfer_seconds, connect=stalled, read=stalled, write=stalled)
        self._transfer = endpoint.client.with_options(timeout=whole)
        self._clock = clock

    @property
    def model(self) -> str:
        """The model that requests name."""
        return self._endpoint.model

    @property
    def dimensions(self) -> int | None:
        """The dimensions that requests ask for; None if the model has only one length."""
        return self._endpoint.dimensions if self._server.send_dimensions else None

    def submit(self, file: Path, mark: str) -> JobStatus:
        """Upload the file and create a job with this mark.

        Raises a ``FatalError``, or a ``RetriableError`` after the last try. Then it is unknown whether the job exists,
        and the caller should ask ``find``.
        """
        uploaded = self._with_retries(lambda: self._upload(file))

        def create() -> Batch:
            return self._endpoint.client.batches.create(
                input_file_id=uploaded,
                endpoint=ENDPOINT,
                completion_window="24h",
                metadata={_MARK: mark, "made_by": "rowvec"},
            )

        # The response may be lost after the job was created: before each further try, look for the job.
        tries = 0

        def create_once() -> JobStatus:
            nonlocal tries
            tries += 1
            return (self._found(mark) if tries > 1 else None) or _status(create())

        return self._with_retries(create_once)

    def find(self, mark: str) -> JobStatus | None:
        """The job with this mark, from the whole list of jobs; None if there is none. Raises what ``submit`` raises."""
        return self._with_retries(lambda: self._found(mark))

    def look(self, provider_id: str) -> JobStatus:
        """The current status of a job. Raises what ``submit`` raises."""
        lost = JobStatus(provider_id=provider_id, state="lost", complaint="the provider knows no such job")
        found = self._with_retries(lambda: self._or_none(lambda: self._endpoint.client.batches.retrieve(provider_id)))
        return _status(found) if found else lost

    def download(self, file_id: str, to: Path) -> bool:
        """Download a file of answers or errors; False if the provider has deleted it. Raises what ``submit`` raises."""

        def fetch() -> bool | None:
            with self._transfer.files.with_streaming_response.content(file_id) as response, to.open("wb") as sink:
                try:
                    for block in response.iter_bytes(1 << 20):
                        sink.write(block)
                except httpx2.HTTPError as error:
                    # The client turns errors into its own only up to the headers, not while the body is read.
                    raise EmbedderUnavailable(
                        f"the download of a batch job's file was interrupted ({type(error).__name__})"
                    ) from None
                expected = response.headers.get("content-length")
            # A body that was cut at the end of a line would look complete.
            if expected and not response.headers.get("content-encoding") and to.stat().st_size != int(expected):
                raise EmbedderUnavailable(f"the file {file_id} of a batch job arrived incomplete")
            return True

        return bool(self._with_retries(lambda: self._or_none(fetch)))

    def forget(self, file_id: str) -> None:
        """Try to delete a file that is no longer needed; if that fails, the provider's own expiry removes it."""
        try:
            self._once(lambda: self._endpoint.client.files.delete(file_id))
        except RowvecError:
            return

    def outcome(self, line: AnswerLine) -> Outcome:
        """The outcome of a line's text. Raises ``EmbedderRefused`` if another model has answered."""
        if line.status == 200:
            try:
                reply = read_value(line.body, expected=1, dimensions=self._endpoint.dimensions)
            except EmbedderUnavailable as error:
                return Outcome(fingerprint=line.fingerprint, tokens=_billed(line), error=error)
            self._server.check_model(self.model, reply.model)
            good = bool(np.all(usable(reply.vectors)))
            return Outcome(
                fingerprint=line.fingerprint, vector=reply.vectors[0] if good else None, tokens=reply.tokens or 0
            )
        if line.status is None:
            return Outcome(fingerprint=line.fingerprint)
        error = meaning(_refusal(line), model=self.model, address=self._endpoint.address)
        return Outcome(fingerprint=line.fingerprint, error=error)

    def _upload(self, file: Path) -> str:
        with file.open("rb") as source:
            return self._transfer.files.create(file=(file.name, source, "application/jsonl"), purpose="batch").id

    def _found(self, mark: str) -> JobStatus | None:
        for batch in self._endpoint.client.batches.list(limit=_PAGE):
            if (batch.metadata or {}).get(_MARK) == mark:
                return _status(batch)
        return None

    def _or_none(self, call: Callable[[], R]) -> R | None:
        try:
            return call()
        except openai.NotFoundError:
            return None

    def _with_retries(self, call: Callable[[], R]) -> R:
        never = threading.Event()
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(RetriableError),
            stop=tenacity.stop_after_attempt(self._endpoint.max_attempts),
            wait=_wait,
            sleep=lambda seconds: self._clock.wait(seconds, never),
            reraise=True,
        )
        return retrying(lambda: self._once(call))

    def _once(self, call: Callable[[], R]) -> R:
        try:
            return call()
        except openai.APIError as error:
            refused = refusal(error, secret=self._endpoint.secret)
        # Outside the handler, so that no traceback ever leads to the client's exception, which may quote the key.
        address = self._endpoint.address
        if refused.status == 404:
            raise EmbedderRefused(f"there is no Batch API at {address}; set embedder.batch to false")
        meant = meaning(refused, model=self.model, address=address)
        if isinstance(meant, RowError):
            raise EmbedderRefused(f"the Batch API at {address} does not take the job: {meant.detail}")
        raise meant


def read_outcomes(batches: OpenAIBatches, file: Path) -> Iterator[Outcome]:
    """The outcomes in a file of answers or errors, line by line; lines that cannot be read are skipped."""
    with file.open("rb") as lines:
        for line in lines:
            read = read_line(line)
            if read is not None:
                yield batches.outcome(read)


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    named = error.retry_after if isinstance(error, RetriableError) else None
    return named or _BACKOFF(state)


def _status(batch: Batch) -> JobStatus:
    errors = (batch.errors.data or []) if batch.errors else []
    return JobStatus(
        provider_id=batch.id,
        state=batch.status,
        files=tuple(name for name in (batch.output_file_id, batch.error_file_id) if name),
        input_file=batch.input_file_id,
        complaint="; ".join(error.message or error.code or "" for error in errors[:3])[:300],
        full=any(error.code == "token_limit_exceeded" for error in errors),
    )


def _refusal(line: AnswerLine) -> Refusal:
    error = line.body.get("error")
    fields = cast("dict[str, object]", error) if isinstance(error, dict) else {}
    code, kind, field, message = (_word(fields.get(name)) for name in ("code", "type", "param", "message"))
    message = "".join(c for c in " ".join(message.split()) if c.isprintable())[:LONGEST_MESSAGE]
    return Refusal(line.status, code, kind, field, message, {})


def _word(value: object) -> str:
    return value if isinstance(value, str) else ""


def _billed(line: AnswerLine) -> int:
    usage = line.body.get("usage")
    tokens = cast("dict[str, object]", usage).get("prompt_tokens") if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) else 0
