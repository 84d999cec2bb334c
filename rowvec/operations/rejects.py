"""What ``rowvec rejects`` does: list the rows that cannot be embedded, and let the next sync try them again."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rowvec.ledger.pipelines import find
from rowvec.ledger.rejects import count_rejects, forget_rejects, list_rejects
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import open_target
from rowvec.postgres.migrations import install
from rowvec.stages.batch_api.jobs import forget_refusals


def rejects(pipeline: Pipeline, *, retry: bool) -> dict[str, Any]:
    """The rejected rows; with ``retry`` they are deleted from the ledger, so that the next sync tries them again.

    Raises ``UsageError`` if the pipeline has never run.
    """
    resolved = resolve(pipeline)
    with open_target(resolved, "rowvec rejects") as connection:
        install(connection)
        pipeline_id = find(connection, pipeline)
        count = count_rejects(connection, pipeline_id)
        listed = list_rejects(connection, pipeline_id)
        retried = forget_rejects(connection, pipeline_id) if retry else 0
        if retry:
            forget_refusals(connection, pipeline_id)
    return {"count": count, "retried": retried, "rejects": [asdict(reject) for reject in listed]}
