"""A server that speaks the protocol of Azure AI Vision's multimodal embeddings over real HTTP, and fails on command.

``POST /computervision/retrieval:vectorizeImage`` (bytes, or JSON with a url) and ``:vectorizeText``, as the REST
reference describes them; the real service was never asked. In a test: ``with serve(faults=[throttled(2)]) as server``,
then look at ``server.requests``. An image that ``server.shows`` knows has the vector of the text it shows, longer: so
that a text can be seen to find an image. As a process: ``python -m tests.support.servers.azure_vision`` prints its
port.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import numpy as np
import numpy.typing as npt

from tests.support.servers.fault_injection import Answering, Faults, StandIn, running

KEY = "0123456789abcdef0123456789abcdef"
API_VERSION = "2024-02-01"
MODEL = "2023-04-15"

# Real vectors of images are about so long, those of texts shorter.
IMAGE_NORM, TEXT_NORM = 92.0, 30.0

_MOST_BYTES = 20 * 2**20
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*", b"\0\0\1\0")

Shape = Literal["nan", "null", "zero", "short", "html", "cut", "hang", "other_model", "no_model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is done to a request instead of answering it rightly."""

    times: int = 1
    """How many requests it befalls; -1: all."""
    after: int = 0
    """How many requests go well before it."""
    status: int | None = None
    code: str = "InternalServerError"
    inner: str | None = None
    message: str = "Internal server error."
    headers: dict[str, str] = field(default_factory=dict[str, str])
    shape: Shape | None = None
    """A success that is no good answer."""
    marker: bytes = b""
    """Befalls only what holds these bytes; none: all."""
    seconds: float = 0.0


def throttled(retry_after: float | None = None, times: int = 1) -> Fault:
    """429 as when the tier's calls a second are used up."""
    message = "Requests to the Computer Vision API have exceeded call rate limit of your current pricing tier."
    headers = {} if retry_after is None else {"Retry-After": f"{retry_after:g}"}
    return Fault(status=429, code="429", message=message, headers=headers, times=times)


def out_of_quota() -> Fault:
    """403 as when the free tier's month is used up."""
    message = "Out of call volume quota. Quota will be replenished in 12 days."
    return Fault(status=403, code="403", message=message, times=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request as it came in, and what became of it."""

    what: str
    """``Image`` or ``Text``."""
    content: bytes
    """The image's bytes or URL, or the text."""
    content_type: str
    query: dict[str, str]
    key: str
    status: int
    """What was answered; 0: nothing."""
    at: float


def vector(meaning: str, norm: float) -> npt.NDArray[np.float64]:
    """``(1024,)``: what this server gives for a meaning."""
    seed = int.from_bytes(hashlib.sha256(meaning.encode()).digest()[:8], "little")
    drawn = np.random.default_rng(seed).standard_normal(1024)
    return norm * drawn / np.linalg.norm(drawn)


class VisionServer(StandIn):
    """The server. Its attributes may be changed while it runs."""

    def __init__(
        self, *, port: int = 0, faults: list[Fault] | None = None, latency: float = 0.0, key: str | None = KEY
    ) -> None:
        """``key``: None takes any."""
        super().__init__(port, _Handler)
        self.latency, self.key = latency, key
        self.shows: dict[str, str] = {}
        """By the sha256 of an image's bytes, the text that it has the direction of."""
        self.requests: list[Request] = []
        self.faults = Faults(faults or [])

    @property
    def url(self) -> str:
        """The ``base_url`` for a client; what Azure calls the endpoint."""
        return self.origin

    @property
    def billed(self) -> int:
        """Transactions answered with 200."""
        return sum(request.status == 200 for request in self.requests)

    def record(self, request: Request) -> None:
        """Remember a request."""
        with self.lock:
            self.requests.append(request)

    def fault_for(self, content: bytes) -> Fault | None:
        """The first fault whose time has come."""
        return self.faults.due(lambda fault: fault.marker in content)

    def meant(self, what: str, content: bytes) -> npt.NDArray[np.float64]:
        """The vector of a text, or of an image."""
        if what == "Text":
            return vector(content.decode(), TEXT_NORM)
        digest = hashlib.sha256(content).hexdigest()
        return vector(self.shows.get(digest, digest), IMAGE_NORM)


class _Handler(Answering):
    server: VisionServer  # pyright: ignore[reportIncompatibleVariableOverride] # no other server has this handler

    def do_POST(self) -> None:
        raw = self.received()
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        what = parts.path.removeprefix("/computervision/retrieval:vectorize")
        key = self.headers.get("Ocp-Apim-Subscription-Key") or self.headers.get("Authorization", "")
        content_type = self.headers.get("Content-Type", "").partition(";")[0]
        content, refused = _content(what, raw, content_type)
        with self.server.counted():
            time.sleep(self.server.latency)
            fault = self._refusal(what, query, key) or refused or self.server.fault_for(content)
            status = 200 if fault is None else 0 if fault.shape in ("cut", "hang") else fault.status or 200
            self.server.record(
                Request(
                    what=what,
                    content=content,
                    content_type=content_type,
                    query=query,
                    key=key,
                    status=status,
                    at=time.monotonic(),
                )
            )
            if fault and fault.status:
                self._send_error(fault)
            elif fault and fault.shape in ("cut", "hang"):
                time.sleep(fault.seconds)
                self.hang_up()
            elif fault and fault.shape == "html":
                self._send(200, b"<html>Welcome to the guest network</html>")
            else:
                body = _body(self.server.meant(what, content).tolist(), fault.shape if fault else None)
                self._send(200, json.dumps(body).encode())

    def _refusal(self, what: str, query: dict[str, str], key: str) -> Fault | None:
        if what not in ("Image", "Text"):
            return Fault(status=404, code="404", message="Resource not found")
        if self.server.key is not None and key not in (self.server.key, f"Bearer {self.server.key}"):
            message = f"Access denied due to invalid subscription key or wrong API endpoint ({key})."
            return Fault(status=401, code="401", message=message)
        if query.get("api-version") != API_VERSION:
            return Fault(status=400, code="BadArgument", message="The api-version is not supported.")
        if query.get("model-version", MODEL) != MODEL:
            return Fault(status=400, code="InvalidRequest", message="The requested model-version is not supported.")
        return None

    def _send_error(self, fault: Fault) -> None:
        error: dict[str, Any] = {"code": fault.code, "message": fault.message}
        if fault.inner:
            error["innererror"] = {"code": fault.inner, "message": fault.message}
        headers = {"x-ms-error-code": fault.code, **fault.headers}
        self._send(fault.status or 500, json.dumps({"error": error}).encode(), headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.answer(status, content, "application/json", headers)


def _content(what: str, raw: bytes, content_type: str) -> tuple[bytes, Fault | None]:
    """What the request asks to embed, or the reason why that is impossible."""
    if what == "Image" and content_type == "application/octet-stream":
        if len(raw) > _MOST_BYTES:
            return raw, _invalid("InvalidImageSize", "The image is too large.")
        if not raw.startswith(_SIGNATURES):
            return raw, _invalid("InvalidImageFormat", "Input data is not a valid image.")
        return raw, None
    try:
        found = json.loads(raw).get("url" if what == "Image" else "text")
    except (ValueError, AttributeError):
        found = None
    if not isinstance(found, str) or not found:
        return raw, Fault(status=400, code="InvalidRequest", message="The request body is not valid.")
    return found.encode(), None


def _invalid(inner: str, message: str) -> Fault:
    return Fault(status=400, code="InvalidRequest", inner=inner, message=message)


def _body(values: list[Any], shape: Shape | None) -> dict[str, Any]:
    if shape == "zero":
        values = [0.0] * len(values)
    if shape in ("nan", "null"):
        values[3] = float("nan") if shape == "nan" else None
    if shape == "short":
        values = values[:-1]
    body: dict[str, Any] = {"modelVersion": "2022-04-11" if shape == "other_model" else MODEL, "vector": values}
    if shape == "no_model":
        del body["modelVersion"]
    return body


@contextmanager
def serve(**options: Any) -> Generator[VisionServer]:
    """A server in a thread, on a port of its own; ``options`` are those of ``VisionServer``."""
    with running(VisionServer(**options)) as server:
        yield server


def main() -> None:
    """Run as a process of its own until it is ended; takes any key."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    arguments = parser.parse_args()
    server = VisionServer(port=arguments.port, latency=arguments.latency, key=None)
    print(server.server_address[1], flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
