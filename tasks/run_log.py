"""Brings what the core says into the log of the flow run: one line per stage, and every warning."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Generator
from contextlib import contextmanager

from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from rowvec.runtime.display import one_line
from rowvec.stages import order

_CORE = "rowvec"
_open: list[_ToRun] = []
"""Of the runs of this process that are at work, the outermost first."""


class _ToRun(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self._run_id = flow_run.get_id()
        self._logger = get_run_logger()
        # Threads of the core have no context of Prefect, and its logger needs one to find the server.
        self._context = contextvars.copy_context()

    def emit(self, record: logging.LogRecord) -> None:
        """Log the record in the run that it is of; one of a thread that belongs to no run, in the innermost run."""
        if record.levelno < logging.WARNING and record.name != order.__name__:
            return
        run_id = flow_run.get_id()
        if run_id == self._run_id or (run_id is None and _open[-1] is self):
            self._context.copy().run(self._logger.log, record.levelno, "%s", one_line(record.getMessage()))


@contextmanager
def told() -> Generator[None]:
    """Within this context, the log of the present flow run has what the core says."""
    core = logging.getLogger(_CORE)
    handler = _ToRun()
    before = core.level, core.propagate
    # Prefect's logger passes on to the console, so the core's must not do that too.
    core.setLevel(logging.INFO)
    core.propagate = False
    core.addHandler(handler)
    _open.append(handler)
    try:
        yield
    finally:
        _open.remove(handler)
        core.removeHandler(handler)
        core.setLevel(before[0])
        core.propagate = before[1]
