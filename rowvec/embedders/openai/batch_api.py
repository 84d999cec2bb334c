"""OpenAI's Batch API: files up and down, jobs made, found again and looked at; never a job made twice."""

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
from rowvec.embedders.openai.client import Endpoint, refusal
from rowvec.embedders.openai.requests import Understanding
from rowvec.embedders.provider.refusal import LONGEST_MESSAGE, Refusal, meaning
from rowvec.embedders.provider.response import read_value
from rowvec.embedders.rate_limit.limiter import Clock
from rowvec.errors import EmbedderRefused, EmbedderUnavailable, RetriableError, RowError, RowvecError
from rowvec.vectors.layout import Vectors

ProviderState = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled", "lost"
]

_ENDED = ("failed", "completed", "expired", "cancelled", "lost")

# The key of the metadata that holds our own name of a job.
_MARK = "rowvec_job"

_BACKOFF = tenacity.wait_exponential(multiplier=0.5, max=60) + tenacity.wait_random(0, 1)
_PAGE = 100

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A job as the provider tells of it."""

    provider_id: str
    state: ProviderState
    """``lost``: the provider knows no such job (any more)."""
    files: tuple[str, ...] = ()
    """With answers and errors, where there are any yet."""
    input_file: str | None = None
    complaint: str = ""
    """Why it failed."""
    full: bool = False
    """Whether it failed for the account's limit of tokens in unfinished jobs."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in _ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one text of a job: a vector, or a reason to have none, or neither where it was given back."""

    fingerprint: bytes
    vector: Vectors | None = None
    """``(d,)``, checked."""
    tokens: int = 0
    error: RowvecError | None = None


class OpenAIBatches:
    """Jobs of one account."""

    def __init__(
        self, endpoint: Endpoint, understanding: Understanding, *, transfer_seconds: float, clock: Clock
    ) -> None:
        self._endpoint = endpoint
        self._understanding = understanding
        self._transfer = endpoint.client.with_options(timeout=transfer_seconds)
        self._clock = clock

    @property
    def model(self) -> str:
        """What requests name."""
        return self._endpoint.model

    @property
    def dimensions(self) -> int | None:
        """What requests ask for; None where the model has one length."""
        return self._endpoint.dimensions if self._understanding.send_dimensions else None

    def submit(self, file: Path, mark: str) -> Seen:
        """Upload the file and make the job of this mark. Raises a ``FatalError``, or a ``RetriableError`` at the end of
        its tries; then whether there is a job is not known, and ``find`` is to be asked."""
        uploaded = self._persistently(lambda: self._upload(file))

        def make() -> Batch:
            return self._endpoint.client.batches.create(
                input_file_id=uploaded,
                endpoint=ENDPOINT,
                completion_window="24h",
                metadata={_MARK: mark, "made_by": "rowvec"},
            )

        # A lost acknowledgement is no failure: before each further try we look whether the one before was heard.
        tries = 0

        def make_once() -> Seen:
            nonlocal tries
            tries += 1
            return (self._found(mark) if tries > 1 else None) or _seen(make())

        return self._persistently(make_once)

    def find(self, mark: str) -> Seen | None:
        """The job of this mark, looked for in the whole list."""
        return self._persistently(lambda: self._found(mark))

    def look(self, provider_id: str) -> Seen:
        """How a job is now."""
        lost = Seen(provider_id=provider_id, state="lost", complaint="the provider knows no such job")
        found = self._persistently(lambda: self._or_none(lambda: self._endpoint.client.batches.retrieve(provider_id)))
        return _seen(found) if found else lost

    def download(self, file_id: str, to: Path) -> bool:
        """A file of answers or errors; False where the provider has it no more."""

        def fetch() -> bool | None:
            with self._transfer.files.with_streaming_response.content(file_id) as response, to.open("wb") as sink:
                try:
                    for block in response.iter_bytes(1 << 20):
                        sink.write(block)
                except httpx2.HTTPError as error:
                    # Raised past the client, which looks no further than the headers.
                    raise EmbedderUnavailable(
                        f"a file of a batch job was cut on its way ({type(error).__name__})"
                    ) from None
                expected = response.headers.get("content-length")
            # A body cut at a line's end would otherwise pass for a whole one.
            if expected and not response.headers.get("content-encoding") and to.stat().st_size != int(expected):
                raise EmbedderUnavailable(f"the file {file_id} of a batch job came in pieces")
            return True

        return bool(self._persistently(lambda: self._or_none(fetch)))

    def forget(self, file_id: str) -> None:
        """Delete a file that is needed no more, as well as may be: the provider's own expiry takes the rest."""
        try:
            self._once(lambda: self._endpoint.client.files.delete(file_id))
        except RowvecError:
            return

    def outcome(self, line: AnswerLine) -> Outcome:
        """What a line says of its text. Raises ``EmbedderRefused`` where another model or length has answered."""
        if line.status == 200:
            try:
                reply = read_value(line.body, expected=1, dimensions=self._endpoint.dimensions)
            except EmbedderUnavailable as error:
                return Outcome(fingerprint=line.fingerprint, tokens=_billed(line), error=error)
            self._understanding.check_model(self.model, reply.model)
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

    def _found(self, mark: str) -> Seen | None:
        for batch in self._endpoint.client.batches.list(limit=_PAGE):
            if (batch.metadata or {}).get(_MARK) == mark:
                return _seen(batch)
        return None

    def _or_none(self, call: Callable[[], R]) -> R | None:
        try:
            return call()
        except openai.NotFoundError:
            return None

    def _persistently(self, call: Callable[[], R]) -> R:
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
    """What a file of answers or errors says, line by line; lines that cannot be read are passed over."""
    with file.open("rb") as lines:
        for line in lines:
            read = read_line(line)
            if read is not None:
                yield batches.outcome(read)


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    named = error.retry_after if isinstance(error, RetriableError) else None
    return named or _BACKOFF(state)


def _seen(batch: Batch) -> Seen:
    errors = (batch.errors.data or []) if batch.errors else []
    return Seen(
        provider_id=batch.id,
        state=batch.status,
        files=tuple(name for name in (batch.output_file_id, batch.error_file_id) if name),
        input_file=batch.input_file_id,
        complaint="; ".join(error.message or error.code or "" for error in errors[:3])[:300],
        full=any(error.code == "token_limit_exceeded" for error in errors),
    )


def _refusal(line: AnswerLine) -> Refusal:
    error = line.body.get("error")
    said = cast("dict[str, object]", error) if isinstance(error, dict) else {}
    code, kind, field, message = (_word(said.get(name)) for name in ("code", "type", "param", "message"))
    message = "".join(c for c in " ".join(message.split()) if c.isprintable())[:LONGEST_MESSAGE]
    return Refusal(line.status, code, kind, field, message, {})


def _word(value: object) -> str:
    return value if isinstance(value, str) else ""


def _billed(line: AnswerLine) -> int:
    usage = line.body.get("usage")
    tokens = cast("dict[str, object]", usage).get("prompt_tokens") if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) else 0
