"""The points of a run, where its process does what others see; a process notes them, or meets a fault at one.

A point is a statement (also BEGIN, COMMIT and each part of a COPY), a request to an embedder or a store, or an
operation on a file under the folder of the case. They are found where psycopg, the HTTP libraries and Python's audit
events pass them on, so new code of rowvec has points without being listed anywhere.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import select
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.waiting import Ready, Wait

from rowvec.postgres.session import Connection

Kind = Literal["statement", "request", "file"]
Fault = Literal["before", "after", "cut", "full"]
"""``before``: the process is killed instead. ``after``: it is killed once the server has the whole statement, or has
answered the request, before it reads the answer; the server may still be at work then. An operation on a file has no
``after``: what comes next has a ``before``. ``cut``: the server ends the session before the statement. ``full``: the
disk is full, for this one operation."""

# Threads that act at times of their own: they renew a lease, and share a rate limit.
_TIMED = ("rowvec lease", "rowvec pace")
_WIDTH = 90

_COMMENT = re.compile(r"^\s*--[^\n]*\n", re.MULTILINE)
# Words of statements that may change what others see.
_CHANGING = re.compile(
    r"\b(ALTER|ANALYZE|COMMENT|COPY|CREATE|DELETE|DROP|GRANT|INSERT|MERGE|REINDEX|REVOKE|TRUNCATE|UPDATE|VACUUM|setval)\b"
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events with the places of their paths among the arguments, and of the folder that a path is relative to.
_CHANGES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
    "os.symlink": ((1, 2),),
    "os.remove": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),),
    "os.truncate": ((0, None),),
}
_DIFFERENT = [
    (re.compile(pattern), word)
    for pattern, word in (
        (r"\s+", " "),
        (r"[0-9]{8}T[0-9]{6}[0-9.]*Z", "T"),
        (r"scratch_[0-9]+_[0-9a-f]{8}", "scratch"),
        (r"(?<![0-9a-zA-Z])[0-9a-f-]{12,}(?![0-9a-zA-Z])", "H"),
        (r"/[0-9a-f]{2}(?![0-9a-zA-Z])", "/HH"),
        (r"(tmp|temporary-)[a-z0-9_]{8}", "temporary"),
        (r"[0-9]+", "N"),
    )
]


@dataclass(frozen=True, slots=True)
class Point:
    """One thing that a run does, known again in another run of the same command."""

    kind: Kind
    what: str
    """Without numbers and names that differ from run to run."""
    number: int
    """From 1, of those with the same ``kind`` and ``what``."""

    def __str__(self) -> str:
        return f"{self.kind} {self.what} #{self.number}"


@dataclass(frozen=True, slots=True)
class Seen:
    """A point as the run came to it."""

    point: Point
    within: bool
    """Whether it is a statement within a transaction, of which nothing is left if the process is killed before it."""
    changes: bool
    """Whether others may see something new after it."""


At = tuple[Point, Fault]
"""A fault and where it happens."""


class Watch:
    """Notes the points of this process, and lets a fault happen at one of them."""

    def __init__(self, root: Path, at: At | None) -> None:
        """``root``: operations on files outside do not count."""
        self.seen: list[Seen] = []
        self.happened = False
        """Whether the fault has, if it does not end the process."""
        self._root, self._at = f"{root}/", at
        self._counts: Counter[tuple[Kind, str]] = Counter()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin; there is no end but that of the process."""
        _watch_statements(self)
        _watch_requests(self)
        _watch_files(self)

    def comes_to(self, kind: Kind, what: str, *, within: bool = False, changes: bool = True) -> Point | None:
        """Note a point before it happens; None if it does not count."""
        if threading.current_thread().name.startswith(_TIMED):
            return None
        with self._lock:
            self._counts[kind, what] += 1
            point = Point(kind, what, self._counts[kind, what])
            self.seen.append(Seen(point, within, changes))
        if self.is_due(point, "before"):
            die()
        return point

    def is_due(self, point: Point | None, fault: Fault) -> bool:
        """Whether this happens now."""
        due = self._at == (point, fault)
        self.happened |= due
        return due

    def touches(self, operation: str, *paths: str) -> None:
        """Note an operation on files, if one of them counts."""
        if any(path.startswith(self._root) for path in paths):
            named = _plain(" to ".join(path.removeprefix(self._root) for path in paths))
            # To sync changes nothing for who reads the file, unless the machine loses power.
            point = self.comes_to("file", f"{operation} {named}", changes=operation != "fsync")
            if self.is_due(point, "full"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), paths[-1])


def die() -> None:
    """End this process as the system's out-of-memory killer does."""
    os.kill(os.getpid(), signal.SIGKILL)


def _plain(text: str) -> str:
    """The text without what differs from run to run: times, digests, random names, numbers."""
    for pattern, word in _DIFFERENT:
        text = pattern.sub(word, text)
    return text


def _watch_statements(watch: Watch) -> None:
    real = Connection.wait
    # By connection, whether its transaction has changed anything so far.
    changed: dict[int, bool] = {}

    def wait(connection: Connection, gen: Any, *arguments: Any) -> Any:
        text, one = _statement(connection, gen), id(connection)
        within = connection.pgconn.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR)
        changed[one] = (within and changed.get(one, False)) or bool(_CHANGING.search(text))
        changes = changed[one] and (text == "COMMIT" or not (within or text.startswith("BEGIN")))
        point = watch.comes_to("statement", _plain(text)[:_WIDTH].strip(), within=within, changes=changes)
        if watch.is_due(point, "after"):
            _send(gen, connection.pgconn.socket)
            die()
        if watch.is_due(point, "cut"):
            with psycopg.connect(os.environ["ROWVEC_DATABASE_URL"]) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))
        return real(connection, gen, *arguments)

    Connection.wait = wait  # pyright: ignore[reportAttributeAccessIssue] # the one way to the server


def _statement(connection: Connection, gen: Any) -> str:
    """The statement that psycopg is about to send, or the name of what it does."""
    frame = getattr(gen, "gi_frame", None)
    names: dict[str, Any] = frame.f_locals if frame else {}
    given = names.get("query", names.get("statement", names.get("command")))
    if isinstance(given, sql.Composable):
        given = given.as_string(connection)
    if isinstance(given, bytes):
        given = given.decode()
    return _COMMENT.sub("", given).strip() if isinstance(given, str) else str(gen.__name__)


def _send(gen: Generator[Any, Any, Any], socket: int) -> None:
    """Let psycopg send all of a statement, and read none of the answer."""
    with suppress(StopIteration):
        wanted = next(gen)
        while wanted & Wait.W:
            _, writable, _ = select.select([socket], [socket], [])
            wanted = gen.send(Ready.W if writable else Ready.R)


def _watch_requests(watch: Watch) -> None:
    # Late: what the command has not imported, it does not send requests with.
    import httpcore
    import httpcore2
    from urllib3.connectionpool import HTTPConnectionPool

    def of_httpcore(_pool: Any, request: Any) -> str:
        return f"{request.method.decode()} {request.url.target.decode()}"

    def of_urllib3(_pool: Any, method: str, url: str, *_: Any, **__: Any) -> str:
        return f"{method} {url}"

    for pool in (httpcore.ConnectionPool, httpcore2.ConnectionPool):
        _wrap(watch, pool, "handle_request", of_httpcore)
    _wrap(watch, HTTPConnectionPool, "urlopen", of_urllib3)


def _wrap(watch: Watch, owner: type[Any], name: str, described: Callable[..., str]) -> None:
    real = getattr(owner, name)

    @functools.wraps(real)
    def call(*args: Any, **kwargs: Any) -> Any:
        point = watch.comes_to("request", _plain(described(*args, **kwargs)))
        answer = real(*args, **kwargs)
        if watch.is_due(point, "after"):
            die()
        return answer

    setattr(owner, name, call)


def _watch_files(watch: Watch) -> None:
    # Late: they take a second to import.
    import pyarrow
    import pyarrow.parquet

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes | os.PathLike) and isinstance(flags, int) and flags & _WRITES:
                watch.touches("open", _path(path, None))
        elif event in _CHANGES:
            paths = [_path(arguments[at], None if of is None else arguments[of]) for at, of in _CHANGES[event]]
            watch.touches(event, *paths)

    sys.addaudithook(hook)
    real_sync = os.fsync

    def fsync(file: Any) -> None:
        watch.touches("fsync", _opened(file if isinstance(file, int) else file.fileno()))
        real_sync(file)

    # Neither of these has an audit event.
    os.fsync = fsync
    for module, name in ((pyarrow, "OSFile"), (pyarrow.parquet, "ParquetWriter")):
        real = getattr(module, name)

        def opened(path: Any, *args: Any, _real: Any = real, **kwargs: Any) -> Any:
            watch.touches("open", str(path))
            return _real(path, *args, **kwargs)

        setattr(module, name, opened)


def _path(path: Any, folder: Any) -> str:
    """The whole path, of one that may be relative to an open folder."""
    if isinstance(path, int):
        return _opened(path)
    given = os.fsdecode(path)
    if isinstance(folder, int) and folder >= 0:
        return f"{_opened(folder)}/{given}"
    return str(Path(given).absolute())


def _opened(descriptor: int) -> str:
    """The path of what is open."""
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())
