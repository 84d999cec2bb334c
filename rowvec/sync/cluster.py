"""A batch worked on from its first stage to its last by one machine, which shares no disk with the others."""

from __future__ import annotations

import os

from rowvec.errors import UsageError
from rowvec.ledger.runs import RunId
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.sources.images.file import is_url
from rowvec.sync.batch import Batch
from rowvec.sync.order import through_all_stages

# A task on a cluster costs up to 0.4 s, a hundred times that of a thread: where nobody bills or paces us, a batch of
# the usual size is about a second's work.
_UNPACED_WEIGHT = 5


def batch_weight(pipeline: Pipeline) -> int:
    """How many times the usual least number of rows a batch has, so that its task is 5 s of work or more.

    Asking a provider, or reading images, makes the usual batch that long already.
    """
    unpaced = pipeline.embedder.kind in ("local", "column") and pipeline.source.kind != "images"
    return _UNPACED_WEIGHT if unpaced else 1


def check_reachable(pipeline: Pipeline) -> None:
    """Raise ``UsageError`` where a part of the pipeline is on this machine alone.

    Asked where the flow runs, before anything is planned, and on each worker, whose environment is another.
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


def work_through(pipeline: Pipeline, run_id: RunId, number: int) -> Batch:
    """A batch through all its stages. What it needs is in the database and the store, and so is what it makes.

    Done again, by whichever machine, it pays for nothing that was answered, and loads nothing twice.
    """
    check_reachable(pipeline)
    return through_all_stages(pipeline, run_id, number)
