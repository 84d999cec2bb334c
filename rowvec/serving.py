"""What makes a loaded table one to search: its index, as good as it has to be, and what stands beside it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from rowvec.database import Connection
from rowvec.index import ensure_index, index_state
from rowvec.index_choice import IndexChoice, choose
from rowvec.pipeline import Pipeline, Recall
from rowvec.progress import tell
from rowvec.provenance import install_provenance
from rowvec.recall import RecallReport
from rowvec.search_function import install_search_function
from rowvec.validate import measured_recall
from rowvec.vector_table import VectorTable, count_rows

# HNSW graphs are drawn by lot, and many equal vectors can cut a part of one off: of five builds over the same 69,202
# texts two found 0.95 of the neighbours and three 0.97 to 0.99, whatever the search's effort.
_REBUILDS = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """The index a vector table has now, and how many rows it is for."""

    choice: IndexChoice
    rows: int
    recall: RecallReport | None
    """None where there is no index."""
    seconds: float


def serve(connection: Connection, table: VectorTable, pipeline: Pipeline) -> Indexed:
    """See to it that the table has the index it is to have, its search function and its provenance view."""
    started = time.monotonic()
    indexed = any(state.valid for state in index_state(connection, table))
    rows = count_rows(connection, table)
    choice = choose(
        rows, table.dimensions, table.precision, table.bits, pipeline.index, metric=table.metric, indexed=indexed
    )
    recall = _build_index(connection, table, choice, pipeline.validation.recall)
    install_search_function(connection, table, choice)
    install_provenance(connection, table)
    return Indexed(choice=choice, rows=rows, recall=recall, seconds=time.monotonic() - started)


def _build_index(
    connection: Connection, table: VectorTable, choice: IndexChoice, wanted: Recall
) -> RecallReport | None:
    """Build what is missing, and build again what does not find enough; returns the recall it ends with."""

    def progress(done: float, phase: str) -> None:
        tell("index", phase, round(done * 100), 100)

    ensure_index(connection, table, choice, progress)
    for _ in range(_REBUILDS):
        recall = measured_recall(connection, table, choice, wanted)
        if recall is None or recall.passed:
            return recall
        logger.warning("the index finds %.3f of %.3f wanted: it is built anew", recall.recall or 0.0, wanted.at_least)
        ensure_index(connection, table, choice, progress, rebuild=True)
    return measured_recall(connection, table, choice, wanted)
