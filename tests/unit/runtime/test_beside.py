"""Work in a thread beside a context."""

from __future__ import annotations

import threading
import time

from rowvec.runtime.beside import beside


def test_the_context_ends_only_when_the_work_has_returned() -> None:
    done: list[bool] = []

    def work(stop: threading.Event) -> None:
        stop.wait()
        time.sleep(0.05)
        done.append(True)

    with beside(work):
        assert not done
    assert done
