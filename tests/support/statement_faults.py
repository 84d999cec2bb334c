"""What befalls one of rowvec's statements in this process: its connection is cut, the process dies, others write."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import psycopg
import pytest

from rowvec.postgres.connection import Connection
from rowvec.postgres.kept import forget
from rowvec.store.folder import FolderStore

What = Literal["die", "cut", "lose_answer", "meanwhile"]


class Died(BaseException):
    """The end of a process: nothing catches it, and after it no statement reaches a server."""


@dataclass(slots=True)
class StatementFault:
    """What befalls the statement with this number, from 1, of those that the main thread sends.

    Within ``befalling_store`` a change of the store counts too, unless ``counts`` says otherwise.
    """

    number: int
    what: What
    """``cut``: its connection is lost before it is sent; ``lose_answer``: after the server has executed it."""
    meanwhile: Callable[[], object] = lambda: None
    """What others do before it is sent."""
    counts: Literal["both", "changes"] = "both"
    happened: bool = False
    seen: int = field(default=0)
    _used: list[Connection] = field(default_factory=list[Connection])
    _dead: bool = False

    def wait(self, real: Callable[..., Any], connection: Connection, arguments: tuple[Any, ...]) -> Any:
        """Stands in for ``Connection.wait``, through which each exchange with a server goes."""
        if threading.current_thread() is not threading.main_thread():
            return real(connection, *arguments)
        self._used.append(connection)
        if not self._is_now(counted=self.counts == "both"):
            return real(connection, *arguments)
        if self.what == "meanwhile":
            self.meanwhile()
            return real(connection, *arguments)
        if self.what == "lose_answer":
            real(connection, *arguments)
            _cut(connection)
            raise psycopg.OperationalError("the answer was lost")
        if self.what == "die":
            self._dead = True
            raise Died
        _cut(connection)
        return real(connection, *arguments)

    def change(self, real: Callable[..., Any], *arguments: Any) -> Any:
        """Stands in for what changes the store, which counts like a statement; for ``die`` alone."""
        if self._is_now(counted=True):
            self._dead = True
            raise Died
        return real(*arguments)

    def _is_now(self, *, counted: bool) -> bool:
        if self._dead:
            raise Died
        if not counted:
            return False
        self.seen += 1
        self.happened |= self.seen == self.number
        return self.seen == self.number

    def end(self) -> None:
        """Close what a dead process would have left to the system to close."""
        for connection in self._used:
            psycopg.Connection.close(connection)
        # Some of them may have been kept for the next command of this test.
        forget()


def _cut(connection: Connection) -> None:
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.pgconn.socket)) as line:
        line.shutdown(socket.SHUT_RDWR)


@contextmanager
def befalling_store(fault: StatementFault) -> Generator[StatementFault]:
    """Within this context the process also dies before the change of a folder's objects with this number."""
    with befalling(fault), pytest.MonkeyPatch.context() as patched:
        for name in ("put", "replace", "delete"):
            patched.setattr(FolderStore, name, _counted(fault, getattr(FolderStore, name)))
        yield fault


def _counted(fault: StatementFault, real: Callable[..., Any]) -> Callable[..., Any]:
    def change(*arguments: Any) -> Any:
        return fault.change(real, *arguments)

    return change


@contextmanager
def befalling(fault: StatementFault) -> Generator[StatementFault]:
    """Within this context the fault happens, if so many statements are sent."""
    real = Connection.wait
    with pytest.MonkeyPatch.context() as patched:

        def wait(connection: Connection, *arguments: Any) -> Any:
            return fault.wait(real, connection, arguments)

        patched.setattr(Connection, "wait", wait)
        try:
            yield fault
        finally:
            fault.end()
