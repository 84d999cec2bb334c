"""What makes a loaded table one to search: its index, as good as it has to be, and what stands beside it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rowvec.database import Connection
from rowvec.hybrid import Hybrid, drop_text_indexes, ensure_text_index
from rowvec.hybrid_function import drop_hybrid_function, install_hybrid_function
from rowvec.index import index_state
from rowvec.index_builds import look
from rowvec.index_choice import IndexChoice, choose
from rowvec.pipeline import Pipeline
from rowvec.provenance import install_provenance
from rowvec.recall import RecallReport
from rowvec.search_function import install_search_function
from rowvec.sparsity import sparsity_of
from rowvec.tunings import find_tuning
from rowvec.upkeep import keep_fit
from rowvec.vacuum import vacuum_if_due
from rowvec.vector_table import VectorTable
from rowvec.wear import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """The index a vector table has now, and how many rows it is for."""

    choice: IndexChoice
    rows: int
    recall: RecallReport | None
    """None where there is no index."""
    seconds: float
    reason: Reason | None = None
    """Why one was built; None where none was."""
    said: tuple[str, ...] = ()
    """What was found and done to keep it fit, a sentence each: ``validate.check_serving`` hands it on."""


def serve(
    connection: Connection, table: VectorTable, pipeline: Pipeline, *, rebuild: bool = False, measure: bool = False
) -> Indexed:
    """See to it that the table has the index it is to have, its search function and its provenance view.

    ``rebuild``: build the index anew though nothing is wrong with it. ``measure``: see ``upkeep.keep_fit``. The
    connection must be in no transaction.
    """
    started = time.monotonic()
    indexed = any(state.valid for state in index_state(connection, table))
    looked = look(connection, table)
    tuned = find_tuning(connection, table)
    choice = choose(
        looked.rows,
        table.dimensions,
        table.precision,
        table.bits,
        pipeline.index,
        metric=table.metric,
        indexed=indexed,
        tuned=tuned.choice if tuned else None,
        tuned_rows=tuned.rows if tuned else 0,
        sparsity=sparsity_of(connection, table, indexed=indexed),
    )
    kept = keep_fit(connection, table, choice, looked, pipeline.validation.recall, asked=rebuild, measure=measure)
    vacuumed = vacuum_if_due(connection, table)
    _install_functions(connection, table, pipeline, kept.choice)
    install_provenance(connection, table)
    return Indexed(
        choice=kept.choice,
        rows=looked.rows,
        recall=kept.recall,
        seconds=time.monotonic() - started,
        reason=kept.reason,
        said=(*kept.said, vacuumed) if vacuumed else kept.said,
    )


def _install_functions(connection: Connection, table: VectorTable, pipeline: Pipeline, choice: IndexChoice) -> None:
    install_search_function(connection, table, choice)
    if pipeline.search.hybrid:
        hybrid = Hybrid(language=pipeline.search.language)
        ensure_text_index(connection, table, hybrid)
        install_hybrid_function(connection, table, choice, hybrid)
    else:
        drop_text_indexes(connection, table)
        drop_hybrid_function(connection, table)
