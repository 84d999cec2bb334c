"""Clears at once what a killed or cancelled run left behind; without this, the next run would do it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from rowvec.errors import PipelineBusy
from rowvec.ledger.held_lease import exclusively_on
from rowvec.ledger.pipelines import PipelineId, is_readable
from rowvec.ledger.runs import Ending, RunId, State, clear_leftovers, finish_run
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import Connection, open_target, target_url
from rowvec.postgres.queries import query

_NEEDED = frozenset({"target"})
# No run has this number: the leftovers of every run of the pipeline are cleared.
_NO_RUN = RunId(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleared:
    """What was found and cleared."""

    runs: tuple[int, ...] = ()
    """Dead runs that the ledger had as running."""
    tables: tuple[str, ...] = ()
    """Plan tables and staging tables that were dropped."""


def clear(pipeline: Pipeline, why: str, state: State = "abandoned") -> Cleared:
    """Close the pipeline's dead runs in the ledger as ``state``, with the error ``why``; drop their tables and files.

    This covers all generations of the pipeline, because a rebuild works on one that is not live yet. A generation that
    another run is working on is skipped: that run has cleared up itself. What was paid for is kept for the next run.
    Only files on this machine are removed.
    """
    resolved = resolve(pipeline, _NEEDED)
    runs: list[int] = []
    tables: list[str] = []
    with open_target(resolved, "rowvec leftovers") as connection:
        if not is_readable(connection, "run_leases", "number"):
            return Cleared()
        family = connection.execute(query("cleanup", "family"), {"name": pipeline.name}).fetchall()
        for pipeline_id, name in family:
            url = target_url(resolved.target.url)
            with suppress(PipelineBusy), exclusively_on(connection, url, name, pipeline_id):
                dead = _close(connection, pipeline_id, Ending(state=state, error=why))
                runs += dead
                tables += clear_leftovers(connection, pipeline_id, _NO_RUN)
    return Cleared(runs=tuple(runs), tables=tuple(tables))


def _close(connection: Connection, pipeline_id: PipelineId, ending: Ending) -> list[RunId]:
    rows = connection.execute(query("cleanup", "unfinished"), {"pipeline_id": pipeline_id}).fetchall()
    dead = [RunId(run_id) for (run_id,) in rows]
    for run_id in dead:
        finish_run(connection, run_id, ending)
    return dead
