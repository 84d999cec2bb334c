"""Sends several requests at once, with a bound on their number and so on the memory they and their answers need."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from rowvec.embedders.rate_limit.limiter import Stopped
from rowvec.errors import RowvecError

RequestT = TypeVar("RequestT")
ReplyT = TypeVar("ReplyT")

Send = Callable[[RequestT, threading.Event], Iterable[ReplyT]]
"""Sends one request and yields its answers as they arrive; raises ``Stopped`` soon after the event is set."""


def in_flight(
    send: Send[RequestT, ReplyT],
    requests: Iterator[RequestT],
    concurrency: int,
    slots: threading.BoundedSemaphore | None = None,
) -> Generator[ReplyT]:
    """All answers to ``requests``, as they arrive. The next request is read only when a thread is free for it.

    ``slots``: bounds the requests in flight over all calls that share the semaphore.

    After the first failure nothing new is sent, but the requests in flight finish and their answers are yielded,
    because they are paid for. Then the failure is raised. Closing the generator stops the work in the same way, but
    without the answers.
    """
    workers = _Workers(send, concurrency, slots or threading.BoundedSemaphore(concurrency))
    try:
        while workers.keep_busy(requests):
            event = workers.events.get()
            if isinstance(event, Future):
                workers.request_done(event)
            else:
                yield event
    finally:
        workers.shut_down()
    if workers.failure is not None:
        raise workers.failure


class _Workers(Generic[RequestT, ReplyT]):
    """The threads that send requests, and the queue of what they report."""

    def __init__(self, send: Send[RequestT, ReplyT], size: int, slots: threading.BoundedSemaphore) -> None:
        self._send_request = send
        self._slots = slots
        self._size = size
        self._running = 0
        self._stop = threading.Event()
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="embed")
        self.failure: BaseException | None = None
        self.events: queue.SimpleQueue[ReplyT | Future[None]] = queue.SimpleQueue()
        """Answers, and the future of each request that is finished, which holds its error."""

    def keep_busy(self, requests: Iterator[RequestT]) -> bool:
        """Give each idle thread a request while there are any; returns whether a request is in flight."""
        try:
            while self._running < self._size and not self._stop.is_set() and self._send_next(requests):
                self._running += 1
        except RowvecError as error:
            self._fail(error)
        return self._running > 0

    def request_done(self, done: Future[None]) -> None:
        """A thread is idle again; keep the error of its request, if it is the first."""
        self._running -= 1
        error = done.exception()
        if error is not None and not isinstance(error, Stopped):
            self._fail(error)

    def shut_down(self) -> None:
        """Send nothing more, and wait for the requests in flight."""
        self._stop.set()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _send_next(self, requests: Iterator[RequestT]) -> bool:
        for request in requests:
            self._threads.submit(self._send, request).add_done_callback(self.events.put)
            return True
        return False

    def _send(self, request: RequestT) -> None:
        with self._slots:
            for reply in self._send_request(request, self._stop):
                self.events.put(reply)

    def _fail(self, error: BaseException) -> None:
        self.failure = self.failure or error
        self._stop.set()
