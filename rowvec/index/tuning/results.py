"""What tuners have found, kept where a sync looks for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from rowvec.index.build import index_state
from rowvec.index.choice import fits, oversampling_for
from rowvec.index.tuning.candidates import Measured
from rowvec.ledger import pipelines
from rowvec.pipeline.model import Index
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """The choice of the last tuning of a vector table."""

    choice: IndexChoice
    rows: int
    """Of the table, when it was tuned."""
    at_least: float
    """The recall that was wanted."""
    tuned_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What a tuner did and found."""

    choice: IndexChoice
    reason: str
    measured: tuple[Measured, ...]
    skipped: tuple[tuple[str, str], ...]
    """Names of candidates that were not measured, and why."""
    rows: int
    sampled_rows: int
    queries: int
    k: int
    at_least: float
    exact_ms: float
    """Of a search of the whole table without an index, reckoned from the sample."""
    seconds: float
    kept: str | None = None
    """Why the choice of the tuning before was left as it is; None where syncs go by this one."""

    def is_choice(self, measured: Measured) -> bool:
        """Whether this is what was chosen, index and effort, whatever the reason given."""
        return replace(measured.choice, reason=self.choice.reason) == self.choice

    def as_json(self) -> dict[str, Any]:
        """What ``rowvec index --tune --json`` prints."""
        return asdict(self)


def keeps_former(former: Tuned, tuning: Tuning) -> str | None:
    """Why a tuning does not replace the one before: it had not the time to measure what that one chose."""
    chosen = _build(former.choice)
    if not tuning.skipped or chosen.kind == "none" or any(_build(m.choice) == chosen for m in tuning.measured):
        return None
    return (
        f"The choice of {former.tuned_at:%Y-%m-%d %H:%M} ({former.choice.kind} on {former.choice.on}) stays: this "
        "tuning had not the time to measure it. Give it more seconds."
    )


def _build(choice: IndexChoice) -> IndexChoice:
    """What is built, without the effort of searches."""
    return replace(choice, reason="", oversampling=1, ef_search=None, probes=None, lists=None)


def store_tuning(connection: Connection, table: VectorTable, tuning: Tuning) -> Tuning:
    """Keep it in place of the one before, or say why that one stays."""
    former = find_tuning(connection, table)
    kept = keeps_former(former, tuning) if former else None
    if kept:
        return replace(tuning, kept=kept)
    values = {
        **_of(table),
        "chosen": Jsonb(asdict(tuning.choice)),
        "measured": Jsonb([asdict(m) for m in tuning.measured]),
        "skipped": Jsonb([list(pair) for pair in tuning.skipped]),
        "rows": tuning.rows,
        "sampled": tuning.sampled_rows,
        "queries": tuning.queries,
        "k": tuning.k,
        "at_least": tuning.at_least,
        "seconds": tuning.seconds,
    }
    connection.execute(query("tuner", "store"), values)
    return tuning


def find_tuning(connection: Connection, table: VectorTable) -> Tuned | None:
    """The last tuning of this table; None where there was none that we may read, or of vectors of another kind."""
    if not pipelines.is_readable(connection, "tunings", "chosen"):
        return None
    row = connection.execute(query("tuner", "find"), _of(table)).fetchone()
    if row is None:
        return None
    chosen, rows, at_least, tuned_at = row
    return Tuned(choice=IndexChoice(**chosen), rows=rows, at_least=at_least, tuned_at=tuned_at)


def _of(table: VectorTable) -> dict[str, object]:
    layout = {
        "dimensions": table.dimensions,
        "precision": table.precision,
        "bits": table.bits,
        "metric": table.metric,
    }
    return {"schema": table.schema, "table": table.name, "layout": Jsonb(layout)}


def present_index(connection: Connection, table: VectorTable, wanted: Index) -> IndexChoice:
    """What a search can go by: the valid index that is there, with the effort that was tuned for it; else none."""
    oversampling = oversampling_for(wanted, table.dimensions)
    tuned = find_tuning(connection, table) if wanted.kind == "auto" and wanted.on == "auto" else None
    for state in reversed(index_state(connection, table)):
        if state.valid and not state.partial:
            if tuned and fits(state.present, tuned.choice):
                return tuned.choice
            return replace(state.present, oversampling=oversampling)
    return IndexChoice(kind="none", oversampling=oversampling, reason="There is no index.")
