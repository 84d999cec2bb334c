"""Several requests under way at once, and never more of them, or of their answers, than memory was promised for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from rowvec.embedders.rate_limit.limiter import Stopped
from rowvec.errors import RowvecError

Request = TypeVar("Request")
Reply = TypeVar("Reply")

Work = Callable[[Request, threading.Event], Iterable[Reply]]
"""Sends one request and gives its answers as they come; raises ``Stopped`` soon after the event is set."""


def in_flight(
    work: Work[Request, Reply],
    requests: Iterator[Request],
    concurrency: int,
    places: threading.BoundedSemaphore | None = None,
) -> Generator[Reply]:
    """All answers to ``requests``, as they arrive, drawing a request only when a thread is free for it.

    ``places``: of as many requests as may be under way at once in all calls that share it.

    After the first failure nothing new is sent, but what is under way is awaited and its answers are given out: they
    are paid for. Then the failure is raised. Closing the generator ends the work the same way, without the answers.
    """
    crew = _Crew(work, concurrency, places or threading.BoundedSemaphore(concurrency))
    try:
        while crew.keep_busy(requests):
            event = crew.events.get()
            if isinstance(event, Future):
                crew.one_done(event)
            else:
                yield event
    finally:
        crew.dismiss()
    if crew.failure is not None:
        raise crew.failure


class _Crew(Generic[Request, Reply]):
    """The threads, and what they report."""

    def __init__(self, work: Work[Request, Reply], size: int, places: threading.BoundedSemaphore) -> None:
        self._work = work
        self._places = places
        self._size = size
        self._running = 0
        self._stop = threading.Event()
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="embed")
        self.failure: BaseException | None = None
        self.events: queue.SimpleQueue[Reply | Future[None]] = queue.SimpleQueue()
        """Answers; and of each thread that is through with a request, the future, which carries its error."""

    def keep_busy(self, requests: Iterator[Request]) -> bool:
        """Give each idle thread a request while there are any; whether anything is under way then."""
        try:
            while self._running < self._size and not self._stop.is_set() and self._send_next(requests):
                self._running += 1
        except RowvecError as error:
            self._fail(error)
        return self._running > 0

    def one_done(self, thread: Future[None]) -> None:
        """A thread is idle again."""
        self._running -= 1
        error = thread.exception()
        if error is not None and not isinstance(error, Stopped):
            self._fail(error)

    def dismiss(self) -> None:
        """Wait for what is under way, and send nothing more."""
        self._stop.set()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _send_next(self, requests: Iterator[Request]) -> bool:
        for request in requests:
            self._threads.submit(self._send, request).add_done_callback(self.events.put)
            return True
        return False

    def _send(self, request: Request) -> None:
        with self._places:
            for reply in self._work(request, self._stop):
                self.events.put(reply)

    def _fail(self, error: BaseException) -> None:
        self.failure = self.failure or error
        self._stop.set()
