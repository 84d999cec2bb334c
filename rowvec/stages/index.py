"""The index stage: a loaded table gets its index, its search functions and its provenance view."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from rowvec.index.build import index_state, known_faults, pooled_build
from rowvec.index.choice import Facts, Sparsity, Tuned, choose, fits
from rowvec.index.history import Build, look, recorded_builds
from rowvec.index.partitions import Chooser, Served, partitions_as_they_are, serve_partitions
from rowvec.index.raised_search import raised_search
from rowvec.index.recall import RecallReport
from rowvec.index.sparsity import sparsity_of
from rowvec.index.tuning.results import Tuned as Tuning
from rowvec.index.tuning.results import find_tuning
from rowvec.index.upkeep import Kept, keep_fit
from rowvec.index.vacuum import vacuum_if_due
from rowvec.index.wear import Reason, in_vain
from rowvec.ledger.runs import Run
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.postgres.tables.partitions import tables_of
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable
from rowvec.runtime.telemetry import traced
from rowvec.searches.hybrid import Hybrid, drop_text_indexes, ensure_text_index
from rowvec.searches.hybrid_function import drop_hybrid_function, install_hybrid_function
from rowvec.searches.provenance_view import install_provenance
from rowvec.searches.sql_function import install_search_function
from rowvec.stages.work import open_stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """The index a vector table has now, and how many rows it is for."""

    choice: IndexChoice
    rows: int
    recall: RecallReport | None
    """None if there is no index."""
    seconds: float
    reason: Reason | None = None
    """Why an index was built; None if none was."""
    notes: tuple[str, ...] = ()
    """What the index's upkeep found and did, one sentence each; ``validate.check_serving`` reports it."""


def serve(
    connection: Connection, table: VectorTable, pipeline: Pipeline, *, rebuild: bool = False, measure: bool = False
) -> Indexed:
    """Give the table the index that it needs, its search functions and its provenance view.

    ``rebuild``: rebuild the index even if nothing is wrong with it. ``measure``: see ``upkeep.keep_fit``. The
    connection must not be in a transaction. Through a pooler this is done by ``target.direct_url``, if it is given.
    """
    with connection.directly() as direct:
        return _serve(direct, table, pipeline, rebuild=rebuild, measure=measure)


def _serve(connection: Connection, table: VectorTable, pipeline: Pipeline, *, rebuild: bool, measure: bool) -> Indexed:
    started = time.monotonic()
    tuned = find_tuning(connection, table)

    def serve_one(one: VectorTable) -> Served:
        return _serve_table(connection, one, pipeline, tuned, rebuild=rebuild, measure=measure)

    if table.partition_by is None:
        served = serve_one(table)
    else:
        served = serve_partitions(connection, table, _chooser(table, pipeline, tuned), serve_one)
    pooled = pooled_build(connection) if served.reason else None
    _install_functions(connection, table, pipeline, served.choice)
    install_provenance(connection, table)
    return Indexed(
        choice=served.choice,
        rows=served.rows,
        recall=served.recall,
        seconds=time.monotonic() - started,
        reason=served.reason,
        notes=(*served.notes, *filter(None, (pooled, known_faults(connection, served.choice)))),
    )


def _serve_table(
    connection: Connection,
    table: VectorTable,
    pipeline: Pipeline,
    tuned: Tuning | None,
    *,
    rebuild: bool,
    measure: bool,
) -> Served:
    """Keep the index of one table, or of one partition, fit."""
    indexed = any(state.valid for state in index_state(connection, table))
    looked = look(connection, table)
    facts = _facts(table, looked.rows, indexed=indexed, sparsity=sparsity_of(connection, table, indexed=indexed))
    recall = pipeline.validation.recall
    choice = _choice(facts, pipeline, tuned, looked.tried)
    kept = keep_fit(connection, table, choice, looked, recall, asked=rebuild, measure=measure)
    if kept.recall is not None and not kept.recall.passed:
        looked = look(connection, table)
        other = _choice(facts, pipeline, tuned, looked.tried)
        if other != choice:
            kept = _added(kept, keep_fit(connection, table, other, looked, recall))
    vacuumed = vacuum_if_due(connection, table)
    return Served(
        choice=kept.choice,
        rows=looked.rows,
        recall=kept.recall,
        reason=kept.reason,
        notes=(*kept.notes, *filter(None, (vacuumed,))),
    )


def serve_as_it_is(connection: Connection, table: VectorTable, pipeline: Pipeline, rows: int) -> Indexed | None:
    """What serves a table of which a run has compared a part: reads the catalog and no row of the table.

    Returns None if the table, or one of its partitions, has no index that suits it; then ``serve`` must build one.
    Recall and wear, which need the whole table, are left to the next run that compares everything.
    """
    started = time.monotonic()
    if table.layout.is_sparse:
        return None  # the choice depends on the nonzeros of all rows
    tuned = find_tuning(connection, table)
    if table.partition_by is None:
        found = _as_it_is(connection, table, pipeline, tuned, rows)
    else:
        found = partitions_as_they_are(connection, table, _chooser(table, pipeline, tuned))
    if found is None:
        return None
    choice, notes = found
    _install_functions(connection, table, pipeline, choice)
    return Indexed(choice=choice, rows=rows, recall=None, seconds=time.monotonic() - started, notes=notes)


def _as_it_is(
    connection: Connection, table: VectorTable, pipeline: Pipeline, tuned: Tuning | None, rows: int
) -> tuple[IndexChoice, tuple[str, ...]] | None:
    """How a table is searched, and notes; None if it lacks its index."""
    states = [state for state in index_state(connection, table) if state.valid and not state.partial]
    choice = _choice(_facts(table, rows, indexed=bool(states)), pipeline, tuned, recorded_builds(connection, table))
    if bool(states) != (choice.kind != "none") or not all(fits(state.present, choice) for state in states):
        return None
    if states:
        choice = raised_search(connection, table, states[-1].name, choice)
    vacuumed = vacuum_if_due(connection, table)
    return choice, (vacuumed,) if vacuumed else ()


def _facts(table: VectorTable, rows: int, *, indexed: bool, sparsity: Sparsity | None = None) -> Facts:
    return Facts(
        rows=rows,
        dimensions=table.dimensions,
        precision=table.precision,
        bits=table.bits,
        metric=table.metric,
        indexed=indexed,
        sparsity=sparsity,
    )


def _chooser(table: VectorTable, pipeline: Pipeline, tuned: Tuning | None) -> Chooser:
    """The index of a partition by its rows alone."""
    return lambda rows, indexed: _choice(_facts(table, rows, indexed=indexed), pipeline, tuned, ())


def _choice(facts: Facts, pipeline: Pipeline, tuned: Tuning | None, builds: tuple[Build, ...]) -> IndexChoice:
    """The index for a table; one on floats if ``auto`` chose bits, and all builds on them found too little.

    A partition that is small is searched exactly, also if the table as a whole was tuned for an index. And all
    partitions have the same kind of index, because one function searches them.
    """
    wanted, recall = pipeline.index, pipeline.validation.recall
    split = pipeline.target.partition_by is not None
    choice = choose(facts, wanted, Tuned(choice=tuned.choice, rows=tuned.rows) if tuned else None)
    if split:
        plain = choose(facts, wanted)
        return plain if plain.kind == "none" else choice
    tried = [build.tried for build in builds]
    if choice.on != "bits" or wanted.on != "auto" or not in_vain(tried, choice, recall.k, recall.at_least, None):
        return choice
    floats = choose(replace(facts, bits=0), wanted)
    return choice if floats.kind == "none" else floats


def _added(first: Kept, then: Kept) -> Kept:
    """The outcome of two attempts."""
    return replace(then, reason=then.reason or first.reason, notes=(*first.notes, *then.notes))


def _install_functions(connection: Connection, table: VectorTable, pipeline: Pipeline, choice: IndexChoice) -> None:
    install_search_function(connection, table, choice)
    if pipeline.search.hybrid:
        hybrid = Hybrid(language=pipeline.search.language)
        for one in tables_of(connection, table):
            ensure_text_index(connection, one, hybrid)
        install_hybrid_function(connection, table, choice, hybrid)
    else:
        drop_text_indexes(connection, table)
        drop_hybrid_function(connection, table)


@traced("index")
def run(pipeline: Pipeline, run: Run) -> Indexed:
    """Give the vector table its index and the search functions that use it."""
    with open_stage(pipeline, run, "index") as work:
        plan = work.plan
        if plan.of_part and plan.queued is not None:
            rows = plan.queued.rows + plan.counts.new - plan.counts.deleted
            found = serve_as_it_is(work.connection, plan.table, work.pipeline, rows)
            if found is not None:
                return found
        return serve(work.connection, plan.table, work.pipeline)
