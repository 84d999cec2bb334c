"""Batches on a cluster: one worker takes a batch through all its stages, without a disk shared with others."""

from __future__ import annotations

import os

from rowvec.errors import UsageError
from rowvec.ledger.runs import Run
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.kept import connections_kept
from rowvec.sources.images.file import is_url
from rowvec.stages.batch import Batch
from rowvec.stages.order import through_all_stages

# A task on a cluster costs up to 0.4 s, a hundred times as much as a thread. If no provider bills or limits us, a batch
# of the usual size is about one second of work.
_UNPACED_WEIGHT = 5


def batch_weight(pipeline: Pipeline) -> int:
    """By what factor a batch is larger than usual, so that its task is at least 5 s of work.

    With a provider's rate limit, or with images, the usual batch already takes that long.
    """
    unpaced = pipeline.embedder.kind in ("local", "column") and pipeline.what == "texts"
    return _UNPACED_WEIGHT if unpaced else 1


def check_reachable(pipeline: Pipeline) -> None:
    """Raise ``UsageError`` if a part of the pipeline exists on this machine alone.

    Called in the flow's process before the plan, and on each worker, which has an environment of its own.
    """
    resolved = resolve(pipeline)
    if not is_url(resolved.artifacts.url):
        raise UsageError(
            "artifacts.url is a folder, which the workers of a cluster do not share; give the URL of a blob container"
        )
    if not (resolved.target.url or os.environ.get("ROWVEC_DATABASE_URL")):
        raise UsageError(
            "on a cluster the embedded Postgres cannot be used; set target.url, or ROWVEC_DATABASE_URL on every worker"
        )
    source = resolved.source
    if source.kind == "images" and not is_url(source.images or source.path):
        raise UsageError(
            "the source's images are in a folder, which the workers of a cluster do not share; "
            "put them into a blob container and give its URL"
        )


def work_through(pipeline: Pipeline, run: Run, number: int) -> Batch:
    """Take a batch through all its stages; its input and its output are in the database and the store.

    If it is done again, by any machine, it pays for no answered text and loads nothing twice.
    """
    check_reachable(pipeline)
    with connections_kept():
        return through_all_stages(pipeline, run, number)
