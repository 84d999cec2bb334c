"""No step of a request gets more time than is left until the request's deadline, nor more than its own limit."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpcore2
import pytest

from rowvec.runtime import step_deadline
from rowvec.runtime.step_deadline import Core, DeadlineBackend, DeadlineStream, Until

CORE = Core(
    connect_error=httpcore2.ConnectError,
    connect_timeout=httpcore2.ConnectTimeout,
    read_timeout=httpcore2.ReadTimeout,
    write_timeout=httpcore2.WriteTimeout,
)
STEP_SECONDS = 10.0
PIECE_BYTES = 16_384


@dataclass(slots=True)
class Network:
    """A network of which each step takes ten seconds of its own clock, and which notes how long the step may take."""

    now: float = 1000.0
    given: list[float | None] = field(default_factory=list[float | None])
    refuses: bool = False
    """Whether no address accepts a connection."""

    def _step(self, seconds: float | None) -> None:
        self.given.append(seconds)
        self.now += STEP_SECONDS

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """See ``NetworkStream``."""
        self._step(timeout)
        return b"x" * min(1, max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """See ``NetworkStream``."""
        assert len(buffer) <= PIECE_BYTES
        self._step(timeout)

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> Network:
        """See ``NetworkStream``."""
        self._step(timeout)
        return self

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> Network:
        """See ``NetworkBackend``."""
        self._step(timeout)
        if self.refuses:
            raise httpcore2.ConnectError
        return self

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> Network:
        """See ``NetworkBackend``."""
        self._step(timeout)
        return self

    def get_extra_info(self, info: str) -> None:
        """See ``NetworkStream``."""

    def close(self) -> None:
        """See ``NetworkStream``."""

    def sleep(self, seconds: float) -> None:
        """See ``NetworkBackend``."""
        self.now += seconds


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    """The network, whose clock is the one that deadlines are compared with; a host has five addresses."""
    made = Network()
    monkeypatch.setattr(step_deadline, "time", SimpleNamespace(monotonic=lambda: made.now))
    addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"192.0.2.{n}", 80)) for n in range(5)]

    def resolved(host: str, port: int, type: int) -> list[Any]:
        return addresses

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    return made


Steps = Callable[[Network, Until, float | None], None]


def reads(network: Network, until: Until, limit: float | None) -> None:
    """Five reads of one connection."""
    for _ in range(5):
        DeadlineStream(network, until, CORE).read(100, limit)


def one_write(network: Network, until: Until, limit: float | None) -> None:
    """One write of five pieces."""
    DeadlineStream(network, until, CORE).write(bytes(5 * PIECE_BYTES), limit)


def handshakes(network: Network, until: Until, limit: float | None) -> None:
    """TLS in TLS, as by a proxy, five deep."""
    stream, context = DeadlineStream(network, until, CORE), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for _ in range(5):
        stream = stream.start_tls(context, "example", limit)


def addresses(network: Network, until: Until, limit: float | None) -> None:
    """A host with five addresses, none of which accepts a connection."""
    network.refuses = True
    with contextlib.suppress(httpcore2.ConnectError):
        DeadlineBackend(network, until, CORE).connect_tcp("example", 80, limit)


STEPS = pytest.mark.parametrize(
    ("steps", "error"),
    [
        (reads, httpcore2.ReadTimeout),
        (one_write, httpcore2.WriteTimeout),
        (handshakes, httpcore2.ConnectTimeout),
        (addresses, httpcore2.ConnectTimeout),
    ],
)


@STEPS
@pytest.mark.parametrize(
    ("limit", "given"), [(None, [30, 20, 10]), (100.0, [30, 20, 10]), (15.0, [15, 15, 10]), (5.0, [5, 5, 5])]
)
def test_each_step_gets_what_is_left_and_none_begins_after_the_deadline(
    network: Network, steps: Steps, error: type[Exception], limit: float | None, given: list[float]
) -> None:
    until = Until()
    with until.at(network.now + 30), pytest.raises(error):
        steps(network, until, limit)
    assert network.given == given


@STEPS
def test_a_step_of_no_request_has_its_own_limit(network: Network, steps: Steps, error: type[Exception]) -> None:
    until = Until()
    with until.at(network.now):
        pass
    steps(network, until, 7.0)
    assert network.given == [7.0] * 5
    with until.at(network.now), pytest.raises(error):
        steps(network, until, 7.0)
