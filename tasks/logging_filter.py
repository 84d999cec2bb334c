"""Logs an expected failure as one sentence, and a cancelled run as one; Prefect would log pages of traceback."""

from __future__ import annotations

import logging

from rowvec_tasks.cancellation import is_being_cancelled, is_known_to_be_cancelled

from rowvec.errors import RowvecError
from rowvec.runtime.display import one_line, shown

_LOGGERS = ("prefect.task_runs", "prefect.flow_runs", "prefect.engine")


# What Prefect says when the process is asked to end: of each task that is interrupted, and of the run as it was before.
_ENDED = ("Crash detected!", "Finished in state Crashed(", "Finished in state Running(")


class _Sentences(logging.Filter):
    """Drops the traceback of a ``RowvecError``: its message says what failed and what to do."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged; the record of a ``RowvecError`` loses its traceback."""
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        expected = isinstance(error, RowvecError)
        # `prefect flow-run logs` writes messages to a terminal as they are.
        record.msg, record.args = (one_line if expected else shown)(record.getMessage()), None
        if expected:
            record.exc_info = record.exc_text = None
            # Prefect has logged this error already. At the end of the process it logs it again, as unexpected. A task
            # that notices that its run was cancelled fails, and the run has said why.
            return "unexpected exception" not in record.msg and not is_known_to_be_cancelled()
        return not (record.msg.startswith(_ENDED) and is_being_cancelled())


def log_sentences() -> None:
    """Install the filter for the rest of this process; a second call changes nothing."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(present, _Sentences) for present in logger.filters):
            logger.addFilter(_Sentences())
