"""Tasks of the flows that are no syncs. A sync starts without importing what they need."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from rowvec_tasks.policy import stage

from rowvec.index.tuning.results import Tuning
from rowvec.index.tuning.tuner import Budget
from rowvec.ledger.runs import Run
from rowvec.operations import rebuild, repair
from rowvec.operations.audit import Audit
from rowvec.operations.audit import audit as run_audit
from rowvec.operations.erasure.forget import Erasure, forget
from rowvec.operations.index import maintain, tune
from rowvec.operations.prune import prune
from rowvec.operations.pruned import Pruned
from rowvec.operations.rebuild import Comparison
from rowvec.operations.relevance.evaluate import Evaluation
from rowvec.operations.restore import Restore, Restored, finish_restore, restore_rows
from rowvec.pipeline import Pipeline
from rowvec.stages.report import RestoreReport


@stage("restore")
def restore(pipeline: Pipeline, under_way: Restore) -> Restored:
    """Build the vector table from artifacts and journal."""
    return restore_rows(pipeline, under_way)


@stage("validate restore")
def validate_restore(pipeline: Pipeline, run: Run, restored: Restored) -> RestoreReport:
    """Build the index, check the table, and record the verdict."""
    return finish_restore(pipeline, run, restored)


@stage("begin rebuild")
def begin_rebuild(pipeline: Pipeline, max_cost: float | None) -> Pipeline:
    """Find the settings that build the next generation, and refuse to spend more than ``max_cost`` US dollars."""
    return rebuild.begin_rebuild(pipeline, max_cost)


@stage("live pipeline")
def live_pipeline(pipeline: Pipeline) -> Pipeline:
    """Read the settings of the live generation."""
    return rebuild.live_pipeline(pipeline)


@stage("compare")
def compare(pipeline: Pipeline, following: Pipeline) -> Comparison:
    """Measure the recall of both generations with the same rows as queries."""
    return rebuild.compare(pipeline, following)


@stage("judge")
def judge(live: Pipeline, following: Pipeline, questions: Path, to_switch: bool) -> Evaluation:
    """Ask labelled questions of both generations, and refuse to switch to one that answers them worse."""
    return rebuild.judge(live, following, questions, to_switch)


@stage("switch")
def switch(pipeline: Pipeline, following: Pipeline) -> str:
    """Make the next generation the live one, in one transaction."""
    return rebuild.switch(pipeline, following)


@stage("audit")
def audit(pipeline: Pipeline) -> Audit:
    """Compare source, artifacts and vector table both ways."""
    return run_audit(pipeline)


@stage("prepare repair")
def prepare_repair(pipeline: Pipeline) -> Audit:
    """Audit, and repair what a sync alone cannot."""
    return repair.prepare_repair(pipeline)


@stage("prune")
def prune_store(pipeline: Pipeline, older_than: timedelta, *, apply: bool, compact: bool) -> Pruned:
    """Delete from the store what is old and no longer needed."""
    return prune(pipeline, older_than, apply=apply, compact=compact)


@stage("forget")
def erase(pipeline: Pipeline) -> Erasure:
    """Erase the traces of rows that were deleted long enough ago."""
    return forget(pipeline, apply=True)


@stage("maintain index")
def maintain_index(pipeline: Pipeline, *, rebuild_it: bool) -> dict[str, Any]:
    """Build the index if it is missing, worn or wrong."""
    return maintain(pipeline, rebuild=rebuild_it)


@stage("tune index")
def tune_index(pipeline: Pipeline, budget: Budget) -> Tuning:
    """Measure which index suits the table's vectors, and store the choice for syncs."""
    return tune(pipeline, budget)
