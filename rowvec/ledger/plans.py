"""A run's plan: the rows that changed, in batches, stored in the target database until the run has merged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
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
from rowvec.postgres.fragments import as_sent, key_json, same_key
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable, stored_columns
from rowvec.runtime.memory import is_tight
from rowvec.vectors.fingerprint import Identity

# Prefect's server spends about 20 ms of CPU on each task run, and the next flow has to wait for the backlog. 64 batches
# of four stages stay under 300 task runs. A batch smaller than the minimum would take less than a second. What a batch
# holds on disk, and what is done again after a kill, grows with its rows: 131,072 vectors of 1,536 dimensions take
# 800 MB. From there on the number of batches grows with the table, and the embedding takes so long that the task runs
# do not matter.
USUAL_BATCHES = 64
MIN_BATCH_ROWS = 8192
MAX_BATCH_ROWS = 16 * MIN_BATCH_ROWS
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
    empty: int = 0
    """Of the rows that were compared, those without content: they have no vector, and are no rejects."""

    @property
    def anything(self) -> bool:
        """Whether there is something to merge."""
        return bool(self.new or self.changed or self.metadata_only or self.deleted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """What a plan took from the queue of changes."""

    whole: bool
    """Whether the run compares the whole source, whatever the queue says."""
    why: str
    """Why it does, or what it relies on: for people."""
    snapshot: str
    """The extract's snapshot; the merge removes exactly the entries that it has seen."""
    facts: dict[str, Any]
    """What the next run may rely on once this one has merged."""
    keys: int
    """Keys in the queue."""
    missed: int | None = None
    """Rows that a whole comparison found changed and the queue did not name; None if the queue was not complete."""
    missed_keys: tuple[str, ...] = ()
    """The first of their keys."""
    rows: int = 0
    """Rows of the vector table before the merge; only if the run does not compare everything."""
    checksum: str = "0"
    """Its checksum, likewise."""
    others: list[list[str]] = field(default_factory=list[list[str]])
    """Keys, as texts, that are compared too: of rejected rows which each run tries again."""
    verified_run: int = 0
    """The run that last compared everything."""
    verified_at: str = ""
    """When: for people."""


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
    queued: Queued | None = None
    """What the plan took from the queue of changes; None if the source has none."""

    @property
    def scope(self) -> sql.Identifier | None:
        """A table of the only keys that the run compares; None: it compares everything."""
        return scope_rows(self.run_id) if self.queued and not self.queued.whole else None

    @property
    def of_part(self) -> bool:
        """Whether no round of the run, this one or an earlier one, compares everything."""
        return self.queued is not None and not self.queued.whole and self.queued.verified_run != self.run_id

    @property
    def stored(self) -> sql.Composable:
        """The vector table, or the part of it that the run compares."""
        return within_scope(self.table, self.scope)

    @property
    def in_scope(self) -> sql.Composable:
        """Whether a row ``t`` of the vector table is among those that the run compares."""
        if self.scope is None:
            return sql.SQL("true")
        return query("plans", "in_scope", scope=self.scope, same_key=same_key(self.table.key, "scope", "t"))

    @property
    def rows(self) -> sql.Identifier:
        """The table with the plan's rows."""
        return plan_rows(self.run_id)

    @property
    def staging(self) -> sql.Identifier:
        """The table that the batches are loaded into."""
        return sql.Identifier("rowvec", f"staging_{self.run_id}")


def scope_rows(run_id: RunId) -> sql.Identifier:
    """The table with the keys that a run compares, if it does not compare everything."""
    return sql.Identifier("rowvec", f"scope_{run_id}")


def within_scope(table: VectorTable, scope: sql.Identifier | None) -> sql.Composable:
    """What follows FROM: the vector table, or its rows whose keys are in ``scope``."""
    if scope is None:
        return table.identifier
    same = same_key(table.key, "scope", "source")
    return query("source", "within", relation=table.identifier, scope=scope, same_key=same)


def plan_rows(run_id: RunId) -> sql.Identifier:
    """The table with the rows of a run's plan."""
    return sql.Identifier("rowvec", f"plan_{run_id}")


def count_batches(rows: int, weight: int = 1) -> int:
    """The number of batches for ``rows`` rows, of which no batch has more than ``MAX_BATCH_ROWS``.

    ``weight``: the minimum number of rows per batch, as a multiple of the usual minimum. The minimum is a quarter of
    the usual one if this process has little memory.
    """
    if not rows:
        return 0
    least = max(1, weight * MIN_BATCH_ROWS // (_SHARE_IF_TIGHT if is_tight() else 1))
    return max(min(USUAL_BATCHES, -(-rows // least)), -(-rows // MAX_BATCH_ROWS))


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
        "bits": table.bits,
    }
    values = {
        "run_id": plan.run_id,
        "layout": Jsonb(layout),
        "counts": Jsonb(asdict(plan.counts)),
        "batches": plan.batches,
        "direct": plan.direct,
        "changes": Jsonb(asdict(plan.queued)) if plan.queued else None,
    }
    connection.execute(query("plans", "store"), values)


def open_plan(connection: Connection, pipeline: Pipeline, run_id: RunId) -> Plan:
    """The stored plan of a run; any process on any machine can open it.

    Raises ``TargetError`` if the plan is gone, which is so after the run is over.
    """
    row = connection.execute(query("plans", "open"), {"run_id": run_id}).fetchone()
    if row is None:
        raise TargetError(f"the plan of run {run_id} is gone; start a new sync")
    pipeline_id, layout, counts, batches, direct, queued = row
    table = VectorTable.of(pipeline, _columns(layout["key"]), _columns(layout["metadata"]))
    return Plan(
        run_id=run_id,
        pipeline_id=pipeline_id,
        # A plan that an earlier release stored is of a table with one bit per dimension, if any.
        table=replace(table, bits=layout.get("bits", min(1, table.bits))),
        identity=Identity(**layout["identity"]),
        counts=Counts(**counts),
        batches=batches,
        direct=direct,
        queued=Queued(**queued) if queued else None,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRow:
    """What a sync would do with one row."""

    action: str
    """``changed``, ``deleted``, ``new`` or ``metadata_only``."""
    key: tuple[str | None, ...]
    """As texts."""
    old: str | None
    """The content of its vector; None if it has none."""
    new: str | None
    """Its content in the source; None if it is gone."""


def planned_rows(connection: Connection, plan: Plan, limit: int) -> tuple[PlannedRow, ...]:
    """Up to ``limit`` rows of a plan.

    Rows that change come first, then those that are deleted, new, or changed in their metadata alone.
    """
    table = plan.table
    old: sql.Composable = sql.SQL("NULL::text")
    joined: sql.Composable = sql.SQL("")
    if stored_columns(connection, table.schema, table.name):
        old = sql.SQL("t.content")
        joined = query(
            "plans", "stored", table=table.identifier, same_key=same_key(table.key, "t", "p", cast_right=True)
        )
    parts = {"plan": plan.rows, "old": old, "joined": joined, "key_json": key_json(table.key, "p")}
    rows = connection.execute(query("plans", "show", limit=sql.Literal(limit), **parts)).fetchall()
    return tuple(PlannedRow(action=action, key=tuple(key), old=old, new=new) for action, key, old, new in rows)


def _columns(pairs: list[list[Any]]) -> tuple[PgColumn, ...]:
    return tuple(PgColumn(name, pg_type) for name, pg_type in pairs)
