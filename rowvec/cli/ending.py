"""How a command ends before it is done: by Ctrl-C, by SIGTERM, or because a server that it needs has ended.

The main thread unwinds: the run is recorded as ended and lets go of its lease, bars go from the terminal. It has a few
seconds for that, because threads may wait for an answer of a provider; then the process ends in any case. Its exit
handlers do not run, for they would wait for these threads.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from rowvec.cli.output import err, fail
from rowvec.cli.terminal import silence_others
from rowvec.postgres.embedded import release_all

_UNWIND_SECONDS = 3.0
_FINISH_SECONDS = 1.0
_INTERRUPTED = 130
_WHAT_NOW = "nothing is half done for readers, what was paid for is kept, and the next run goes on from there"
_SENTENCES = {
    signal.SIGINT: (f"interrupted: {_WHAT_NOW}", _INTERRUPTED),
    signal.SIGTERM: (f"ended by SIGTERM: {_WHAT_NOW}", 128 + signal.SIGTERM),
    signal.SIGHUP: (f"ended, because its terminal was closed: {_WHAT_NOW}", 128 + signal.SIGHUP),
}


class Ended(KeyboardInterrupt):
    """Raised in the main thread; psycopg cancels a statement for it, as for Ctrl-C."""


class Ending:
    """The end of one command that came early, if it does."""

    def __init__(self) -> None:
        self._as_json = False
        self._lock = threading.Lock()
        self._sentence: str | None = None
        self._status = 1
        self._told = False
        self._cleanups: list[Callable[[], None]] = []

    def watch_signals(self, *, as_json: bool) -> None:
        """End the command at Ctrl-C and SIGTERM; only the main thread may call this."""
        self._as_json = as_json
        for number in _SENTENCES:
            # `nohup`, and a shell that starts a command in the background, have a signal ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        # Python runs a handler only between two steps of the main thread, and other code may replace it. The system
        # writes every signal to this pipe at once.
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=self._read_signals, args=(reading,), daemon=True).start()

    def at_end(self, cleanup: Callable[[], None]) -> None:
        """Call this if the command ends early: it must end something that the command has started, without waiting."""
        self._cleanups.append(cleanup)

    def because(self, sentence: str, status: int = 1) -> None:
        """End the command from any thread, with this sentence."""
        if self._begin(sentence, status):
            ident = threading.main_thread().ident
            if ident is not None:
                # A script that starts a command in the background has SIGINT ignored.
                ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
                signal.pthread_kill(ident, signal.SIGTERM if ignored else signal.SIGINT)

    def finish(self) -> NoReturn:
        """Say why the command ends, end what it has started, and end the process."""
        with self._lock:
            if not self._told:
                self._told = True
                with suppress(OSError, ValueError):
                    err.show_cursor(show=True)
                    fail(self._sentence or _SENTENCES[signal.SIGINT][0], self._as_json)
        for cleanup in (*self._cleanups, release_all):
            with suppress(Exception):
                cleanup()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(self._status if self._sentence else _INTERRUPTED)

    @property
    def begun(self) -> bool:
        """Whether the command ends early."""
        return self._sentence is not None

    def _begin(self, sentence: str, status: int) -> bool:
        with self._lock:
            if self._sentence is not None:
                return False
            self._sentence, self._status = sentence, status
        # One sentence is enough. Typer says that it aborts, and Prefect names each log that reaches no server now.
        logging.raiseExceptions = False
        silence_others()
        threading.Thread(target=self._end_in_any_case, daemon=True).start()
        return True

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._begin(*_SENTENCES[signal.Signals(number)])
        raise Ended

    def _read_signals(self, reading: int) -> None:
        while number := os.read(reading, 1):
            known = _SENTENCES.get(signal.Signals(number[0]))
            if known is not None:
                self._begin(*known)

    def _end_in_any_case(self) -> None:
        time.sleep(_UNWIND_SECONDS)
        # Not in this thread: the main thread may hold a lock of the terminal.
        threading.Thread(target=self.finish, daemon=True).start()
        time.sleep(_FINISH_SECONDS)
        os._exit(self._status)


ENDING = Ending()
"""The end of this process's command."""
