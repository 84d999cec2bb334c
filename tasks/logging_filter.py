"""Expected failures of a task are told as their sentence: Prefect logs a page of traceback for each."""

from __future__ import annotations

import logging

from rowvec.errors import RowvecError

_LOGGERS = ("prefect.task_runs", "prefect.flow_runs", "prefect.engine")


class _Sentences(logging.Filter):
    """Drop the traceback of an error of ours: its message says what failed and what to do."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let nearly all pass, some of it shorter."""
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(error, RowvecError):
            record.exc_info = record.exc_text = None
            # The process says once more, as its last word, that the error it was told of came to it unexpectedly.
            return "unexpected exception" not in record.msg
        return True


def tell_sentences() -> None:
    """Have it so from now on in this process."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(present, _Sentences) for present in logger.filters):
            logger.addFilter(_Sentences())
