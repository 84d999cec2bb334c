"""Proxies that lie on the way to a real server: to a blob server over HTTP, and to Postgres over its own protocol."""

from __future__ import annotations

import http.client
import re
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

_CHUNK = 1 << 16
# Headers that belong to one leg of the way.
_OWN = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFault:
    """What befalls requests to a blob server."""

    method: str
    """A regular expression, such as ``PUT`` or ``GET|HEAD``."""
    path: str = ""
    """A regular expression that is looked for in path and query."""
    do: Literal["lose_answer", "refuse", "slow", "cut"]
    """The server does what it is asked and its answer is lost; it is not asked; it answers late; half of its answer
    comes through."""
    times: int = 1
    """How many requests it befalls; -1: all."""
    status: int = 503
    code: str = "ServerBusy"
    """What a refusal says."""
    seconds: float = 0.5
    """How late is slow."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and what the client heard."""

    method: str
    path: str
    status: int
    """0: nothing, or not all of it."""


class StoreProxy(ThreadingHTTPServer):
    """Stands before a blob server; ``add`` faults, look at ``exchanges``."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, behind: str) -> None:
        """``behind``: ``http://HOST:PORT`` of the real one."""
        super().__init__(("127.0.0.1", 0), _StoreHandler)
        parts = urlsplit(behind)
        self.behind = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.exchanges: list[Exchange] = []
        self._faults: list[StoreFault] = []
        self._spent: list[int] = []
        self._lock = threading.Lock()

    @property
    def host(self) -> str:
        """``http://127.0.0.1:PORT``."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, *faults: StoreFault) -> None:
        """From now on."""
        with self._lock:
            self._faults += faults
            self._spent += [0] * len(faults)

    def befallen(self) -> list[int]:
        """How many requests each fault has befallen so far."""
        with self._lock:
            return list(self._spent)

    def honest(self) -> None:
        """No more faults; what was exchanged is forgotten."""
        with self._lock:
            self._faults, self._spent, self.exchanges = [], [], []

    def fault_for(self, method: str, path: str) -> StoreFault | None:
        """The first fault whose turn it is."""
        with self._lock:
            for i, fault in enumerate(self._faults):
                if not (re.fullmatch(fault.method, method) and re.search(fault.path, path)):
                    continue
                if fault.times < 0 or self._spent[i] < fault.times:
                    self._spent[i] += 1
                    return fault
        return None

    def record(self, exchange: Exchange) -> None:
        """Remember a request."""
        with self._lock:
            self.exchanges.append(exchange)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class _StoreHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: StoreProxy  # pyright: ignore[reportIncompatibleVariableOverride] # no other server has this handler

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.fault_for(self.command, self.path)
        if fault is not None and fault.do == "refuse":
            self._refuse(fault)
            return
        status, headers, answer = self._asked(body)
        if fault is not None and fault.do == "slow":
            time.sleep(fault.seconds)
        if fault is not None and fault.do == "lose_answer":
            self._cut()
            return
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        length = next((value for name, value in headers if name.lower() == "content-length"), None)
        if length is None and status not in (204, 304):
            self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if fault is not None and fault.do == "cut":
            self.wfile.write(answer[: len(answer) // 2])
            self._cut()
            return
        self.wfile.write(answer)
        self.server.record(Exchange(self.command, self.path, status))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass

    def _asked(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """What the real server says: status, headers, body."""
        connection = http.client.HTTPConnection(*self.server.behind, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "keep-alive"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
            keep = [(n, v) for n, v in answer.getheaders() if n.lower() not in _OWN]
            # The answer to HEAD has the length of a body it has not.
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            return answer.status, keep + ([("Content-Length", length)] if length else []), content
        finally:
            connection.close()

    def _refuse(self, fault: StoreFault) -> None:
        content = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>no</Message></Error>".encode()
        self.server.record(Exchange(self.command, self.path, fault.status))
        self.send_response_only(fault.status)
        self.send_header("x-ms-error-code", fault.code)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _cut(self) -> None:
        self.server.record(Exchange(self.command, self.path, 0))
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def before_store(behind: str) -> Generator[StoreProxy]:
    """A proxy to a blob server."""
    proxy = StoreProxy(behind)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()


@dataclass(slots=True, kw_only=True)
class Cut:
    """A connection that is cut: once, or as often as ``times`` says."""

    application: str
    """A regular expression for its whole application_name, as its last BEGIN has set it."""
    sent: int | None = None
    """When the client has sent so many bytes under this name."""
    unheard: bytes | None = None
    """When the server has answered a statement that holds this, and before the client hears of it."""
    times: int = 1
    """How many connections it befalls; -1: all."""
    done: int = 0
    """How many it has befallen."""


class DatabaseProxy:
    """Stands before Postgres; connections that no ``Cut`` is for pass."""

    def __init__(self, dsn: str) -> None:
        self._parts = conninfo_to_dict(dsn)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._lock = threading.Lock()
        self._cuts: list[Cut] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, **parts: str) -> str:
        """The DSN through the proxy."""
        address = {"host": "127.0.0.1", "port": self._listener.getsockname()[1], "sslmode": "disable"}
        return make_conninfo("", **{**self._parts, **address, "gssencmode": "disable", **parts})

    def cut(self, **rule: Any) -> Cut:
        """Cut connections from now on; see ``Cut``."""
        made = Cut(**rule)
        with self._lock:
            self._cuts.append(made)
        return made

    def close(self) -> None:
        """No more connections."""
        # A thread in accept keeps the port open until it is woken.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _connect(self) -> socket.socket:
        host, port = str(self._parts.get("host") or "127.0.0.1"), int(self._parts.get("port") or 5432)
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{port}")
        return server

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError), self._connect() as server:
            way = _Way(client, server)
            threading.Thread(target=way.answer, daemon=True).start()
            try:
                self._ask(way)
            finally:
                way.close()

    def _ask(self, way: _Way) -> None:
        sent, application = 0, ""
        while data := way.client.recv(_CHUNK):
            if (named := _application(data)) not in ("", application):
                sent, application = 0, named
            sent += len(data)
            with self._lock:
                for cut in self._cuts:
                    if not re.fullmatch(cut.application, application) or cut.done == cut.times:
                        continue
                    if cut.sent is not None and sent >= cut.sent:
                        cut.done += 1
                        # What is over the limit stays behind, so that a message ends in its middle.
                        way.server.sendall(data[: len(data) - (sent - cut.sent)])
                        return
                    if cut.unheard is not None and cut.unheard in data:
                        cut.done += 1
                        way.deaf.set()
            way.server.sendall(data)
        # The client has gone by itself.


@dataclass(slots=True)
class _Way:
    """The two ends of a connection."""

    client: socket.socket
    server: socket.socket
    deaf: threading.Event = field(default_factory=threading.Event)
    """Set when the client must receive nothing more."""

    def answer(self) -> None:
        with suppress(OSError):
            while data := self.server.recv(_CHUNK):
                if self.deaf.is_set():
                    break
                self.client.sendall(data)
        self.close()

    def close(self) -> None:
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _application(data: bytes) -> str:
    """The application_name that a BEGIN in what the client sends has set; empty if it sets none."""
    found: list[bytes] = re.findall(rb'SET LOCAL "application_name" = \'([^\']*)\'', data)
    return found[-1].decode() if found else ""


@contextmanager
def before_database(dsn: str) -> Generator[DatabaseProxy]:
    """A proxy to a Postgres server."""
    proxy = DatabaseProxy(dsn)
    try:
        yield proxy
    finally:
        proxy.close()


def terminate(connection: psycopg.Connection[Any], application: str) -> int:
    """End the sessions of this database that have the application_name, as an administrator does; how many."""
    rows = connection.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = %s AND pid <> pg_backend_pid()",
        (application,),
    ).fetchall()
    return sum(ended for (ended,) in rows)
