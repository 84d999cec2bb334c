"""A run's plan: the rows that changed, in batches, stored in the target database until the run has merged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
from psycopg import sql
from psycopg.types.json import Jsonb

from rowvec.errors import TargetError
from rowvec.ledger.pipelines import PipelineId, written_id
from rowvec.ledger.reuse import paid_for
from rowvec.ledger.runs import RunId
from rowvec.pipeline import Pipeline
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.postgres.fragments import as_sent, key_json
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable
from rowvec.runtime.memory import is_tight
from rowvec.vectors.fingerprint import Identity

# Prefect's server spends about 20 ms of CPU on each task run, and the next flow has to wait for the backlog. 64 batches
# of four stages stay under 300 task runs. A batch smaller than the minimum would take less than a second.
MAX_BATCHES = 64
MIN_BATCH_ROWS = 8192
_SHARE_IF_TIGHT = 4

VECTOR_TEXT = "rowvec_vector"
KEY_JSON = "rowvec_key"

# Rows per fetch: a few megabytes of text, and later of vectors.
FETCH_ROWS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """The size of a plan, in rows and in distinct texts."""

    new: int
    changed: int
    metadata_only: int
    deleted: int
    unchanged: int
    rejected: int
    """Rows of the source that stay rejected, in ``rowvec.rejects``."""
    texts: int
    """Distinct contents of the new and changed rows."""
    known: int
    """How many of these texts are paid for already."""

    @property
    def anything(self) -> bool:
        """Whether there is something to merge."""
        return bool(self.new or self.changed or self.metadata_only or self.deleted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A stored plan; its rows are in the table ``rowvec.plan_<run_id>``."""

    run_id: RunId
    pipeline_id: PipelineId
    table: VectorTable
    identity: Identity
    counts: Counts
    batches: int
    direct: bool
    """True if the vector table does not exist yet, so that the staging table becomes the vector table."""
    lost_images: int = 0
    """Lost images of unchanged rows, which the run must upload again; 0 in a plan that was read from the database."""
    seconds: float = 0.0
    """How long the plan took."""

    @property
    def rows(self) -> sql.Identifier:
        """The table with the plan's rows."""
        return plan_rows(self.run_id)

    @property
    def staging(self) -> sql.Identifier:
        """The table that the batches are loaded into."""
        return sql.Identifier("rowvec", f"staging_{self.run_id}")


def plan_rows(run_id: RunId) -> sql.Identifier:
    """The table with the rows of a run's plan."""
    return sql.Identifier("rowvec", f"plan_{run_id}")


def count_batches(rows: int, weight: int = 1) -> int:
    """The number of batches for ``rows`` rows. The batches grow with the table; the number of task runs does not.

    ``weight``: the minimum number of rows per batch, as a multiple of the usual minimum. The minimum is a quarter of
    the usual one if this process has little memory.
    """
    least = weight * MIN_BATCH_ROWS // (_SHARE_IF_TIGHT if is_tight() else 1)
    return max(1, min(MAX_BATCHES, -(-rows // max(1, least)))) if rows else 0


def begin_dry_run(connection: Connection, pipeline: Pipeline, identity: Identity) -> tuple[PipelineId, RunId]:
    """The ids that a plan needs which nobody will carry out, for a transaction that is rolled back.

    A pipeline that has never run gets a row that no other session waits for.
    """
    found = connection.execute(query("pipelines", "find"), {"name": pipeline.name}).fetchone()
    if found is None:
        values = {"name": pipeline.name, "identity": Jsonb(identity.as_json())}
        pipeline_id = written_id(connection, query("plans", "pass_pipeline"), values)
    else:
        pipeline_id = found[0]
    run_id = written_id(connection, query("plans", "pass_run"), {"pipeline_id": pipeline_id})
    return PipelineId(pipeline_id), RunId(run_id)


def store(connection: Connection, plan: Plan) -> None:
    """Store the totals of a plan whose rows are already in the plan's table."""
    table = plan.table
    layout = {
        "key": [[c.name, c.pg_type] for c in table.key],
        "metadata": [[c.name, c.pg_type] for c in table.metadata],
        "identity": plan.identity.as_json(),
    }
    values = {
        "run_id": plan.run_id,
        "layout": Jsonb(layout),
        "counts": Jsonb(asdict(plan.counts)),
        "batches": plan.batches,
        "direct": plan.direct,
    }
    connection.execute(query("plans", "store"), values)


def open_plan(connection: Connection, pipeline: Pipeline, run_id: RunId) -> Plan:
    """The stored plan of a run; any process on any machine can open it.

    Raises ``TargetError`` if the plan is gone, which is so after the run is over.
    """
    row = connection.execute(query("plans", "open"), {"run_id": run_id}).fetchone()
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
    """The rows of a batch, ordered by fingerprint.

    Columns: those of an artifact without the embedding; then the source's own vector as text, which is NULL except
    with the column embedder; then the key in the form of ``rowvec.rejects``.
    """
    schema = fetched_schema(plan.table)
    columns = as_sent((*plan.table.key, *plan.table.metadata))
    with connection.transaction(), connection.cursor(name="batch", binary=True) as cursor:
        cursor.itersize = FETCH_ROWS
        statement = query(
            "plans",
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
    """The schema of the batches that ``fetch`` yields."""
    without = [f for f in table.artifact_schema if f.name not in ("embedding", "embedding_bits")]
    return pa.schema([*without, pa.field(VECTOR_TEXT, pa.string()), pa.field(KEY_JSON, pa.string())])


def sample_texts(connection: Connection, plan: Plan, limit: int) -> tuple[list[str], int, int]:
    """Up to ``limit`` of the contents that must be paid for, and the number and the characters of all of these."""
    parts = {"plan": plan.rows, "paid_for": paid_for(connection, plan.pipeline_id, plan.identity)}
    texts = [r[0] for r in connection.execute(query("plans", "sample_texts", limit=sql.Literal(limit), **parts))]
    total = connection.execute(query("plans", "unpaid_characters", **parts)).fetchone()
    count, characters = total or (0, 0)
    return texts, count, characters


def _columns(pairs: list[list[Any]]) -> tuple[PgColumn, ...]:
    return tuple(PgColumn(name, pg_type) for name, pg_type in pairs)
