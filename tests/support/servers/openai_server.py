"""A server that speaks OpenAI's embeddings protocol over real HTTP, remembers what it was sent, and fails on command.

In a test: ``with serve(faults=[rate_limited(2)]) as server: ...``, then look at ``server.texts`` and
``server.requests``. As a process: ``python -m tests.support.servers.openai_server --port 0`` prints
its address; ``GET /stats`` answers with counts, ``POST /faults`` takes a JSON list of faults (the fields of
``Fault``), ``POST /reset`` forgets it all.
Inputs may be images, in the forms that ``tests/support/servers/openai_image_inputs.py`` reads.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pytest

from rowvec.embedders.provider.tokens import count
from rowvec.embedders.wordllama import LocalModel
from rowvec.pipeline.embedders import LocalEmbedder
from tests.support.servers.fault_injection import Answering, Faults, StandIn, running
from tests.support.servers.openai_batch_api import Batches
from tests.support.servers.openai_image_inputs import Unreadable, inputs_of
from tests.support.waiting import PATIENCE_SECONDS

NATIVE = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536}
"""Dimensions where none are asked for; of any other model, 256."""

KEY = "sk-test-0123456789abcdef"
"""The key this server takes, unless it is told another."""

Spoil = Literal["nan", "inf", "zero", "null"]
Shape = Literal[
    "short", "long", "shuffled", "duplicate_index", "wrong_dimensions", "empty", "html", "cut", "hang", "junk", "drip"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to a request instead of the correct answer, or in addition to it."""

    times: int = 1
    """How many requests it befalls; -1: all."""
    after: int = 0
    """How many requests go well before it."""
    status: int | None = None
    """An error with this status."""
    code: str | int | None = None
    """A word; compatible servers write a number."""
    kind: str = "error"
    message: str = "The server had an error while processing your request."
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict[str, str])
    shape: Shape | None = None
    """A success that is no good answer."""
    spoil: Spoil | None = None
    """What stands in the vectors of the texts that hold ``marker``."""
    marker: str = ""
    """The fault befalls requests only where a text holds it; '' is held by every text."""
    seconds: float = 0.0
    """How long ``hang`` keeps the connection, and ``drip`` waits before each byte."""


def rate_limited(retry_after: float | None = None, *, milliseconds: int | None = None, times: int = 1) -> Fault:
    """429 as when the minute's requests are used up."""
    headers = {} if retry_after is None else {"Retry-After": f"{retry_after:g}"}
    if milliseconds is not None:
        headers["retry-after-ms"] = str(milliseconds)
    message = "Rate limit reached for requests per min (RPM)."
    return Fault(status=429, code="rate_limit_exceeded", kind="requests", message=message, headers=headers, times=times)


def quota(code: str = "insufficient_quota", times: int = -1) -> Fault:
    """429 as when the account has no money left."""
    return Fault(status=429, code=code, kind="insufficient_quota", message="You exceeded your quota.", times=times)


def slow_down(times: int = 1) -> Fault:
    """429 as when traffic rises too fast."""
    return Fault(status=429, code="slow_down", message="Reduce your request rate.", times=times)


def failing(status: int, times: int = 1) -> Fault:
    """An error of the server's own."""
    return Fault(status=status, code=None, kind="server_error", times=times)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request as it came in, and what became of it."""

    path: str
    model: str
    texts: tuple[str, ...]
    dimensions: int | None
    encoding_format: str
    key: str
    status: int
    """What was answered; 0: nothing, the connection was cut."""
    at: float
    """Seconds of the monotonic clock."""


@dataclass(slots=True)
class _Bucket:
    """Enforces a limit a minute: full at the start, refilled without pause."""

    per_minute: float
    capacity: float
    level: float = field(init=False)
    at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.level = self.capacity

    def take(self, amount: float) -> float:
        """0 where the amount was had, else the seconds until it can be had."""
        now = time.monotonic()
        self.level = min(self.capacity, self.level + (now - self.at) * self.per_minute / 60)
        self.at = now
        if amount <= self.level:
            self.level -= amount
            return 0.0
        return (amount - self.level) * 60 / self.per_minute


def vector(model: str, text: str, dimensions: int) -> npt.NDArray[np.float32]:
    """``(d,)``: the unit vector this server gives for a text; fewer dimensions are a shortening of more."""
    seed = int.from_bytes(hashlib.sha256(f"{model}\0{text}".encode()).digest()[:8], "little")
    drawn = np.random.default_rng(seed).standard_normal(dimensions, dtype=np.float32)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


def drawn(model: str, texts: list[str], dimensions: int) -> list[npt.NDArray[np.float32]]:
    """The vectors of texts, each from its own hash: known beforehand, and no two near each other."""
    return [vector(model, text, dimensions) for text in texts]


def meant(model: str, texts: list[str], dimensions: int) -> list[npt.NDArray[np.float32]]:
    """The vectors of texts by the local model: like texts are near each other, as an index expects."""
    del model
    local = LocalModel(LocalEmbedder.model_validate({"kind": "local", "dimensions": dimensions}))
    return [values for answer in local.embed(texts) for values in np.asarray(answer.vectors)]


class OpenAIServer(StandIn):
    """The server. Its attributes may be changed while it runs."""

    def __init__(
        self,
        *,
        port: int = 0,
        faults: list[Fault] | None = None,
        poison: str | None = None,
        latency: float = 0.0,
        latency_per_text: float = 0.0,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        burst_seconds: float = 60.0,
        floats: bool = False,
        key: str | None = KEY,
        dimensions_field: bool = True,
        native: int = 256,
        meaning: bool = False,
    ) -> None:
        """``poison``: texts that hold it make their request a 400. ``burst_seconds``: how much of a minute's limit may
        be used at once. ``floats``: numbers even where base64 is asked for. ``key``: None takes any.
        ``dimensions_field``: whether models of other names can shorten; ``native``: how long their vectors are.
        ``meaning``: vectors are the local model's, of 64, 128 or 256 dimensions, and not drawn from the text's hash.
        """
        super().__init__(port, Handler)
        self.poison, self.latency, self.floats, self.key = poison, latency, floats, key
        self.latency_per_text = latency_per_text
        self.dimensions_field, self.native = dimensions_field, native
        self.vectors = meant if meaning else drawn
        share = burst_seconds / 60
        self._requests_bucket = (
            _Bucket(requests_per_minute, max(1.0, requests_per_minute * share)) if requests_per_minute else None
        )
        self._tokens_bucket = _Bucket(tokens_per_minute, tokens_per_minute * share) if tokens_per_minute else None
        self._limits = (requests_per_minute, tokens_per_minute)
        self.faults = Faults(faults or [])
        self.shows: dict[str, str] = {}
        """By the sha256 of an image's bytes, the text that it has the vector of."""
        self.requests: list[Request] = []
        self.tokens_billed = 0
        self.answers_as: str | None = None
        """The model it says has answered; None: the one that was asked for."""
        self.hold: threading.Event | None = None
        """While set to an event, requests that will be answered rightly wait for it."""
        self.batches = Batches(answer=self._answer_in_a_job)

    @property
    def url(self) -> str:
        """The ``base_url`` for a client."""
        return f"{self.origin}/v1"

    @property
    def texts(self) -> list[str]:
        """Every text ever sent, in the order of arrival, as often as it was sent."""
        return [text for request in self.requests for text in request.texts]

    @property
    def sent(self) -> Counter[str]:
        """How often each text was sent."""
        return Counter(self.texts)

    @property
    def paid(self) -> Counter[str]:
        """How often each text was sent in a request that was answered with 200: what a provider would bill."""
        return Counter(text for request in self.requests if request.status == 200 for text in request.texts)

    def add(self, *faults: Fault) -> None:
        """More faults, counted from now."""
        self.faults.add(*faults)

    def reset(self) -> None:
        """Forget all requests and faults."""
        self.faults.clear()
        with self.lock:
            self.requests, self.tokens_billed = [], 0

    def stats(self) -> dict[str, Any]:
        """What happened so far, for another process."""
        sent, paid = self.sent, self.paid
        return {
            "requests": len(self.requests),
            "in_flight": self._at_once,
            "statuses": dict(Counter(str(request.status) for request in self.requests)),
            "texts": sum(sent.values()),
            "distinct_texts": len(sent),
            "sent_most_often": max(sent.values(), default=0),
            "paid": sum(paid.values()),
            "distinct_paid": len(paid),
            "paid_twice": sorted(text for text, times in paid.items() if times > 1)[:100],
            "tokens": self.tokens_billed,
        }

    def record(self, request: Request, tokens: int) -> None:
        """Remember a request."""
        with self.lock:
            self.requests.append(request)
            if request.status == 200:
                self.tokens_billed += tokens

    def fault_for(self, texts: list[str]) -> Fault | None:
        """The first fault whose time has come."""
        return self.faults.due(lambda fault: not fault.marker or any(fault.marker in text for text in texts))

    def over_limit(self, tokens: int) -> Fault | None:
        """A 429 where the account's limits are reached."""
        with self.lock:
            wait = self._requests_bucket.take(1) if self._requests_bucket else 0.0
            what = "requests"
            if not wait and self._tokens_bucket:
                wait, what = self._tokens_bucket.take(tokens), "tokens"
        if not wait:
            return None
        names = zip(("requests", "tokens"), self._limits, strict=True)
        headers = {f"x-ratelimit-limit-{name}": f"{limit:g}" for name, limit in names if limit}
        headers |= {"retry-after-ms": str(int(wait * 1000) + 1), "Retry-After": str(int(wait) + 1)}
        message = f"Rate limit reached on {what} per min."
        return Fault(status=429, code="rate_limit_exceeded", kind=what, message=message, headers=headers)

    def _answer_in_a_job(self, body: dict[str, Any]) -> tuple[int, dict[str, Any], int]:
        """What a request of a job is answered: no account's limits apply, but faults and poison do."""
        texts, model = list(body["input"]), str(body["model"])
        tokens = _count_tokens(texts)
        fault = _invalid(texts, tokens, self.poison) or self.fault_for(texts)
        status = (fault.status or 200) if fault else 200
        wanted, form = body.get("dimensions"), str(body.get("encoding_format"))
        at = time.monotonic()
        request = Request(
            path="/v1/batches", model=model, texts=tuple(texts), dimensions=wanted, encoding_format=form, key="",
            status=status, at=at,
        )  # fmt: skip
        self.record(request, tokens)
        if fault and status != 200:
            error = {"message": fault.message, "type": fault.kind, "param": fault.param, "code": fault.code}
            return status, {"error": error}, 0
        vectors = self.vectors(model, texts, int(wanted or NATIVE.get(model, self.native)))
        data = _data(texts, vectors, fault, base64_wanted=form == "base64")
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return 200, {"object": "list", "data": data, "model": self.answers_as or model, "usage": usage}, tokens


class Handler(Answering):
    """Speaks the protocol."""

    server: OpenAIServer  # pyright: ignore[reportIncompatibleVariableOverride] # no other server has this handler

    def do_GET(self) -> None:
        if self.path == "/stats":
            self._send(200, self.server.stats())
        elif self._is_of_batches():
            self._batches(b"")
        else:
            self._send(404, {"error": {"message": f"Unknown request URL: GET {self.path}."}})

    def do_DELETE(self) -> None:
        self._batches(b"")

    def do_POST(self) -> None:
        if self._is_of_batches():
            self._batches(self._read())
            return
        body = json.loads(self.received() or b"{}")
        path = urlsplit(self.path).path
        if path == "/faults":
            self.server.add(*(Fault(**fault) for fault in body))
            self._send(200, {})
        elif path == "/reset":
            self.server.reset()
            self._send(200, {})
        elif path == "/v1/embeddings":
            self._embeddings(path, body, str(body.get("model")))
        elif path.startswith("/openai/deployments/") and path.endswith("/embeddings") and "api-version=" in self.path:
            self._embeddings(path, body, path.split("/")[3])
        else:
            self._send(404, {"error": {"message": f"Invalid URL (POST {path})", "code": "404"}})

    def _is_of_batches(self) -> bool:
        path = urlsplit(self.path).path
        return path.startswith(("/v1/files", "/v1/batches", "/openai/files", "/openai/batches"))

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.received()
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _batches(self, body: bytes) -> None:
        url = urlsplit(self.path)
        path = url.path.removeprefix("/v1").removeprefix("/openai")
        key = self.headers.get("Authorization", "").removeprefix("Bearer ") or self.headers.get("api-key", "")
        if self.server.key is not None and key != self.server.key:
            error = {"message": f"Incorrect API key provided: {key}.", "code": "invalid_api_key"}
            self._send(401, {"error": error})
            return
        answered = self.server.batches.handle(self.command, path, url.query, self.headers, body)
        if answered is None:
            self._no_answer(Fault(shape="cut"))
        elif isinstance(answered[1], bytes):
            self.answer(200, answered[1], "application/octet-stream")
        else:
            self._send(answered[0], answered[1])

    def _embeddings(self, path: str, body: dict[str, Any], model: str) -> None:
        with self.server.counted():
            try:
                texts, unreadable = inputs_of(body, self.server.shows), None
            except Unreadable as error:
                texts, unreadable = ["unreadable"], Fault(status=400, code=400, message=str(error))
            key = self.headers.get("Authorization", "").removeprefix("Bearer ") or self.headers.get("api-key", "")
            tokens = _count_tokens(texts)
            seconds = self.server.latency + self.server.latency_per_text * len(texts)
            if seconds:
                time.sleep(seconds)
            fault = self._refusal(body, texts, tokens, model, key, unreadable)
            if fault is None and self.server.hold is not None:
                self.server.hold.wait(PATIENCE_SECONDS)
            shape = fault.shape if fault else None
            status = 0 if shape in ("cut", "hang", "drip") else (fault.status or 200) if fault else 200
            wanted = body.get("dimensions")
            self.server.record(
                Request(
                    path=path,
                    model=model,
                    texts=tuple(texts),
                    dimensions=wanted,
                    encoding_format=body.get("encoding_format", "float"),
                    key=key,
                    status=status,
                    at=time.monotonic(),
                ),
                tokens,
            )
            if status not in (0, 200) and fault:
                error = {"message": fault.message, "type": fault.kind, "param": fault.param, "code": fault.code}
                self._send(status, {"error": error}, fault.headers)
                return
            if fault and shape in ("cut", "hang", "drip", "html", "junk"):
                self._no_answer(fault)
                return
            base64_wanted = body.get("encoding_format") == "base64" and not self.server.floats
            dimensions = int(wanted or NATIVE.get(model, self.server.native))
            wrong = 1 if shape == "wrong_dimensions" else 0
            vectors = self.server.vectors(model, texts, dimensions + wrong)
            data = _data(texts, vectors, fault, base64_wanted=base64_wanted)
            usage = {"prompt_tokens": tokens, "total_tokens": tokens}
            self._send(200, {"object": "list", "data": data, "model": self.server.answers_as or model, "usage": usage})

    def _refusal(
        self, body: dict[str, Any], texts: list[str], tokens: int, model: str, key: str, unreadable: Fault | None
    ) -> Fault | None:
        if self.server.key is not None and key != self.server.key:
            message = f"Incorrect API key provided: {key}. You can find your API key in your account."
            return Fault(status=401, code="invalid_api_key", kind="invalid_request_error", message=message)
        invalid = _invalid(texts, tokens, self.server.poison)
        if body.get("dimensions") is not None and not self._can_shorten(model):
            invalid = Fault(
                status=400, message="This model does not support specifying dimensions.", param="dimensions"
            )
        return invalid or unreadable or self.server.over_limit(tokens) or self.server.fault_for(texts)

    def _can_shorten(self, model: str) -> bool:
        if model in NATIVE:
            return model != "text-embedding-ada-002"
        return self.server.dimensions_field

    def _no_answer(self, fault: Fault) -> None:
        if fault.shape == "html":
            self._send(200, "<html><body>Welcome to the guest network</body></html>")
        elif fault.shape == "junk":
            self._send(200, {"object": "list", "data": [{"index": 0, "embedding": "!!!"}]})
        else:
            if fault.shape == "hang":
                time.sleep(fault.seconds)
            elif fault.shape == "drip":
                self.drip(fault.seconds)
            else:
                # Promise more than is sent.
                self.send_response(200)
                self.send_header("Content-Length", "100000")
                self.end_headers()
                self.wfile.write(b'{"object": "list", "data": [')
                self.wfile.flush()
            self.hang_up()

    def _send(self, status: int, body: dict[str, Any] | str, headers: dict[str, str] | None = None) -> None:
        content_type = "text/html" if isinstance(body, str) else "application/json"
        self.answer(status, (body if isinstance(body, str) else json.dumps(body)).encode(), content_type, headers)


def _count_tokens(texts: list[str]) -> int:
    return sum(count(text) for text in texts)


def _invalid(texts: list[str], tokens: int, poison: str | None) -> Fault | None:
    """The limits of facts.md, and the poison."""
    message = None
    if not texts or len(texts) > 2048 or "" in texts or (poison and any(poison in text for text in texts)):
        message = (
            "'$.input' is invalid. Please check the API reference: https://platform.openai.com/docs/api-reference."
        )
    elif any(_count_tokens([text]) > 8192 for text in texts if len(text) > 8192):
        message = "This model's maximum context length is 8192 tokens, however you requested more."
    elif tokens > 300_000:
        message = f"Requested {tokens} tokens, max 300000 tokens per request"
    return Fault(status=400, kind="invalid_request_error", message=message) if message else None


def _data(
    texts: list[str], vectors: list[npt.NDArray[np.float32]], fault: Fault | None, *, base64_wanted: bool
) -> list[dict[str, Any]]:
    shape = fault.shape if fault else None
    data: list[dict[str, Any]] = []
    for index, (text, values) in enumerate(zip(texts, vectors, strict=True)):
        spoil = fault.spoil if fault and fault.marker in text else None
        if spoil is not None:
            values = _spoiled(values, spoil)
        embedding: Any = values.tolist()
        if spoil == "null":
            embedding[0] = None
        elif base64_wanted:
            embedding = base64.b64encode(values.astype("<f4").tobytes()).decode()
        data.append({"object": "embedding", "index": index, "embedding": embedding})
    return _reshaped(data, shape)


def _spoiled(values: npt.NDArray[np.float32], spoil: Spoil) -> npt.NDArray[np.float32]:
    if spoil == "zero":
        return np.zeros_like(values)
    spoiled = values.copy()
    spoiled[-1] = np.inf if spoil == "inf" else np.nan if spoil == "nan" else 0.0
    return spoiled


def _reshaped(data: list[dict[str, Any]], shape: Shape | None) -> list[dict[str, Any]]:
    if shape == "short":
        return data[:-1]
    if shape == "long":
        return [*data, {**data[-1], "index": len(data)}]
    if shape == "shuffled":
        return data[1::2] + data[::2]
    if shape == "duplicate_index":
        return [*data[:-1], {**data[-1], "index": 0}] if len(data) > 1 else [{**data[0], "index": 1}]
    return [] if shape == "empty" else data


@contextmanager
def serve(**options: Any) -> Generator[OpenAIServer]:
    """A server in a thread, on a port of its own; ``options`` are those of ``OpenAIServer``."""
    with running(OpenAIServer(**options)) as server:
        yield server


@pytest.fixture
def openai_server() -> Generator[OpenAIServer]:
    """A server without faults; ``add`` some."""
    with serve() as server:
        yield server


def main() -> None:
    """Run as a process of its own until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--latency-per-text", type=float, default=0.0, help="seconds more for each text of a request")
    parser.add_argument("--poison", help="texts that hold this make their request a 400")
    parser.add_argument("--meaning", action="store_true", help="vectors by the local model; left out: by hash")
    parser.add_argument("--key", help="the only key taken; left out: any")
    parser.add_argument("--requests-per-minute", type=float)
    parser.add_argument("--tokens-per-minute", type=float)
    parser.add_argument("--burst-seconds", type=float, default=60.0)
    parser.add_argument(
        "--faults", type=json.loads, default=[], help="a JSON list, e.g. " + json.dumps([asdict(quota())])
    )
    arguments = vars(parser.parse_args())
    arguments["faults"] = [Fault(**fault) for fault in arguments["faults"]]
    server = OpenAIServer(**arguments)
    print(server.server_address[1], flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
