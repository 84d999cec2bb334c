"""A run's plan: what changed, in batches, stored in the target database until the run has merged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
from psycopg import sql
from psycopg.types.json import Jsonb

from rowvec.errors import TargetError
from rowvec.ledger.pipelines import PipelineId
from rowvec.ledger.reuse import paid_for
from rowvec.ledger.runs import RunId
from rowvec.pipeline import Pipeline
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.postgres.fragments import key_json
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable
from rowvec.vectors.fingerprint import Identity

# Prefect's server spends about 20 ms of CPU on each task run, and the next flow waits for the backlog: 64 batches of
# four stages stay under 300 task runs. A batch of fewer rows than the minimum is less than a second's work.
MAX_BATCHES = 64
MIN_BATCH_ROWS = 8192

VECTOR_TEXT = "rowvec_vector"
KEY_JSON = "rowvec_key"

# Rows fetched at once: a few megabytes of text, and of vectors later.
FETCH_ROWS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a plan found, in rows, and in distinct texts."""

    new: int
    changed: int
    metadata_only: int
    deleted: int
    unchanged: int
    rejected: int
    """Rows of the source that stay in ``rowvec.rejects``."""
    texts: int
    """Distinct contents among new and changed rows."""
    known: int
    """Of these, how many have been paid for already."""

    @property
    def anything(self) -> bool:
        """Whether there is something to merge."""
        return bool(self.new or self.changed or self.metadata_only or self.deleted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A plan that is stored; its rows are in ``rowvec.plan_<run_id>``."""

    run_id: RunId
    pipeline_id: PipelineId
    table: VectorTable
    identity: Identity
    counts: Counts
    batches: int
    direct: bool
    """Whether the vector table does not exist yet, and staging becomes it."""
    lost_images: int = 0
    """Images of rows as they were before the run that are to be put into the store again; known to who made it."""
    seconds: float = 0.0
    """What making it took."""

    @property
    def rows(self) -> sql.Identifier:
        """The table with the plan's rows."""
        return plan_rows(self.run_id)

    @property
    def staging(self) -> sql.Identifier:
        """The table the batches are loaded into."""
        return sql.Identifier("rowvec", f"staging_{self.run_id}")


def plan_rows(run_id: RunId) -> sql.Identifier:
    """The table with the rows of a run's plan."""
    return sql.Identifier("rowvec", f"plan_{run_id}")


def count_batches(rows: int, weight: int = 1) -> int:
    """How many batches for so many rows: batches grow with the table, task runs do not.

    ``weight``: how many times the usual least number of rows a batch is to have.
    """
    return max(1, min(MAX_BATCHES, -(-rows // (weight * MIN_BATCH_ROWS)))) if rows else 0


def store(connection: Connection, plan: Plan) -> None:
    """Record the totals of a plan whose rows are in their table."""
    table = plan.table
    layout = {
        "key": [[c.name, c.pg_type] for c in table.key],
        "metadata": [[c.name, c.pg_type] for c in table.metadata],
        "identity": asdict(plan.identity),
    }
    values = {
        "run_id": plan.run_id,
        "layout": Jsonb(layout),
        "counts": Jsonb(asdict(plan.counts)),
        "batches": plan.batches,
        "direct": plan.direct,
    }
    connection.execute(query("plan", "store"), values)


def open_plan(connection: Connection, pipeline: Pipeline, run_id: RunId) -> Plan:
    """The stored plan of a run: whichever process or machine asks.

    Raises ``TargetError`` where the plan is gone, as after a run that is over.
    """
    row = connection.execute(query("plan", "open"), {"run_id": run_id}).fetchone()
    if row is None:
        raise TargetError(f"the plan of run {run_id} is gone; start a new sync")
    pipeline_id, layout, counts, batches, direct = row
    return Plan(
        run_id=run_id,
        pipeline_id=pipeline_id,
        table=VectorTable.of(pipeline, _columns(layout["key"]), _columns(layout["metadata"])),
        identity=Identity(**layout["identity"]),
        counts=Counts(**counts),
        batches=batches,
        direct=direct,
    )


def fetch(connection: Connection, plan: Plan, batch: int) -> Iterator[pa.RecordBatch]:
    """The rows of a batch, equal fingerprints together: the artifact's columns less the embedding, then the source's
    own vector as text (NULL but for the column embedder) and the key as the rejects hold it."""
    schema = fetched_schema(plan.table)
    columns = sql.SQL(", ").join(
        sql.SQL("{}::{}").format(sql.Identifier(c.name), sql.SQL(c.travels_as))
        for c in (*plan.table.key, *plan.table.metadata)
    )
    with connection.transaction(), connection.cursor(name="batch", binary=True) as cursor:
        cursor.itersize = FETCH_ROWS
        statement = query(
            "plan",
            "fetch",
            columns=columns,
            key_json=key_json(plan.table.key),
            plan=plan.rows,
            batch=sql.Literal(batch),
        )
        cursor.execute(statement)
        while rows := cursor.fetchmany(FETCH_ROWS):
            yield pa.record_batch(
                [pa.array(v, f.type) for v, f in zip(zip(*rows, strict=True), schema, strict=True)], schema
            )


def fetched_schema(table: VectorTable) -> pa.Schema:
    """The schema of what ``fetch`` yields."""
    without = [f for f in table.artifact_schema if f.name not in ("embedding", "embedding_bits")]
    return pa.schema([*without, pa.field(VECTOR_TEXT, pa.string()), pa.field(KEY_JSON, pa.string())])


def sample_texts(connection: Connection, plan: Plan, limit: int) -> tuple[list[str], int, int]:
    """Up to ``limit`` of the contents to be paid for, with the number and the characters of all of them."""
    parts = {"plan": plan.rows, "paid_for": paid_for(connection, plan.pipeline_id, plan.identity)}
    texts = [r[0] for r in connection.execute(query("plan", "sample_texts", limit=sql.Literal(limit), **parts))]
    total = connection.execute(query("plan", "unpaid_characters", **parts)).fetchone()
    count, characters = total or (0, 0)
    return texts, count, characters


def _columns(pairs: list[list[Any]]) -> tuple[PgColumn, ...]:
    return tuple(PgColumn(name, pg_type) for name, pg_type in pairs)
