"""What ``rowvec rejects`` does: list the rows that cannot be embedded, and let the next sync try them again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rowvec.ledger.changes import doubt
from rowvec.ledger.pipelines import find
from rowvec.ledger.rejects import Reject, count_rejects, forget_rejects, list_rejects
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import open_target
from rowvec.postgres.migrations import install
from rowvec.stages.batch_api.jobs import forget_refusals

_NEEDED = frozenset({"target"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectsReport:
    """The rejected rows of a pipeline; ``as_json`` is what ``rowvec rejects --json`` prints."""

    count: int
    """All rejected rows."""
    retried: int
    """Rows that the next sync tries again, because this call asked for it."""
    rejects: tuple[Reject, ...]
    """The newest first, up to 1,000."""

    def as_json(self) -> dict[str, Any]:
        """The report as one JSON object; times are ``datetime``."""
        return {**asdict(self), "rejects": [asdict(reject) for reject in self.rejects]}


def rejects(pipeline: Pipeline, *, retry: bool = False) -> RejectsReport:
    """The rows that cannot be embedded, or that the database refuses, each with the reason.

    With ``retry`` they are deleted from the ledger, so that the next sync tries them again.

    Raises ``UsageError`` if the pipeline has never run, ``TargetError`` and ``DatabaseUnavailable`` if the ledger
    cannot be read.
    """
    resolved = resolve(pipeline, _NEEDED)
    with open_target(resolved, "rowvec rejects") as connection:
        install(connection)
        pipeline_id = find(connection, pipeline)
        count = count_rejects(connection, pipeline_id)
        listed = list_rejects(connection, pipeline_id)
        retried = forget_rejects(connection, pipeline_id) if retry else 0
        if retry:
            forget_refusals(connection, pipeline_id)
            doubt(connection, pipeline_id, "the rejected rows are tried again")
    return RejectsReport(count=count, retried=retried, rejects=tuple(listed))
