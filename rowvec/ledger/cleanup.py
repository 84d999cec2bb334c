"""What a run leaves behind that was killed or cancelled: cleared at once, where the next run would do it later."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass

from rowvec.errors import PipelineBusy
from rowvec.ledger import pipelines
from rowvec.ledger import runs as runs_stage
from rowvec.ledger.pipelines import PipelineId
from rowvec.ledger.runs import RunId
from rowvec.ledger.workdir import spooled
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import Connection, open_target, target_url
from rowvec.postgres.queries import query

_NEEDED = frozenset({"target"})
_NO_RUN = RunId(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleared:
    """What was there to clear."""

    runs: tuple[int, ...] = ()
    """Runs that nobody was finishing; the ledger says so now."""
    tables: tuple[str, ...] = ()
    """Plans and staging tables."""


def clear(pipeline: Pipeline, why: str) -> Cleared:
    """Close the pipeline's dead runs in the ledger, ``why`` being their error, and drop their tables and files.

    All its generations are looked at, for a rebuild works on one that is not read yet. Nothing is done to one that a
    run is at work on: that run has cleared up itself. Locks need no clearing, they went with their sessions. What was
    paid for is kept, for the next run to take over. Files are those of this machine.
    """
    resolved = resolve(pipeline, _NEEDED)
    runs: list[int] = []
    tables: list[str] = []
    with open_target(resolved, "rowvec leftovers") as connection:
        if not pipelines.is_readable(connection, "pipelines", "family"):
            return Cleared()
        family = connection.execute(query("ledger", "family"), {"name": pipeline.name}).fetchall()
        for pipeline_id, name in family:
            with suppress(PipelineBusy), runs_stage.exclusively(target_url(resolved.target.url), name, pipeline_id):
                dead = _close(connection, pipeline_id, why)
                runs += dead
                tables += runs_stage.clear_leftovers(connection, pipeline_id, _NO_RUN)
    return Cleared(runs=tuple(runs), tables=tuple(tables))


def _close(connection: Connection, pipeline_id: PipelineId, why: str) -> list[RunId]:
    rows = connection.execute(query("ledger", "unfinished"), {"pipeline_id": pipeline_id}).fetchall()
    dead = [RunId(run_id) for (run_id,) in rows]
    for run_id in dead:
        runs_stage.finish_run(connection, run_id, "abandoned", error=why)
        shutil.rmtree(spooled(connection, run_id), ignore_errors=True)
    return dead
