"""The rejects command: the rows that cannot be embedded, and trying them again."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rowvec.ledger import pipelines
from rowvec.ledger import rejects as set_aside
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import open_target
from rowvec.postgres.migrations import install
from rowvec.sync.batch_api import jobs


def rejects(pipeline: Pipeline, *, retry: bool) -> dict[str, Any]:
    """The rows that are set aside; with ``retry`` they are forgotten, so that the next sync tries them again."""
    resolved = resolve(pipeline)
    with open_target(resolved, "rowvec rejects") as connection:
        install(connection)
        pipeline_id = pipelines.find(connection, pipeline)
        count = set_aside.count(connection, pipeline_id)
        listed = set_aside.listed(connection, pipeline_id)
        retried = set_aside.forget(connection, pipeline_id) if retry else 0
        if retry:
            jobs.forget_refusals(connection, pipeline_id)
    return {"count": count, "retried": retried, "rejects": [asdict(reject) for reject in listed]}
