"""Logs an expected failure as one sentence; Prefect would log a page of traceback for each."""

from __future__ import annotations

import logging

from rowvec.errors import RowvecError
from rowvec.runtime.display import shown

_LOGGERS = ("prefect.task_runs", "prefect.flow_runs", "prefect.engine")


class _Sentences(logging.Filter):
    """Drops the traceback of a ``RowvecError``: its message says what failed and what to do."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged; the record of a ``RowvecError`` loses its traceback."""
        # `prefect flow-run logs` writes messages to a terminal as they are.
        record.msg, record.args = shown(record.getMessage()), None
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(error, RowvecError):
            record.exc_info = record.exc_text = None
            # Prefect has logged this error already. At the end of the process it logs it again, as unexpected.
            return "unexpected exception" not in record.msg
        return True


def log_sentences() -> None:
    """Install the filter for the rest of this process; a second call changes nothing."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(present, _Sentences) for present in logger.filters):
            logger.addFilter(_Sentences())
