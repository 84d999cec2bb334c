"""The generations of a vector table in the ledger; one of them is live."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, LiteralString, cast

from psycopg import sql

from rowvec.errors import UsageError
from rowvec.ledger.pipelines import PipelineId, check_name, check_table, is_readable
from rowvec.pipeline import Pipeline
from rowvec.pipeline.parts import has_schema
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import Connection, open_target, target_url
from rowvec.postgres.queries import query
from rowvec.vectors.fingerprint import Identity

State = Literal["live", "building", "retired", "dropped"]


# Neither the vectors nor their layout depend on these settings, so a sync applies a change of them at once.
_FREE = ("name", "artifacts", "index", "search", "validation", "freshness")
# Keys of the target that say where the table is.
_PLACE = ("table", "url", "direct_url")


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One build of a vector table."""

    pipeline_id: PipelineId
    name: str
    number: int
    state: State
    schema: str
    table: str
    identity: Identity
    settings: Pipeline | None
    """The pipeline file as of its last run; None until the next run, if the ledger is older than generations."""
    created_at: datetime
    last_run: int | None
    """The number of its last run: a generation that was live later has the higher one, whatever a clock says."""


def list_generations(connection: Connection, family: str) -> list[Generation]:
    """All generations of a pipeline, newest first."""
    rows = connection.execute(query("generations", "of_family"), {"family": family}).fetchall()
    return [_generation(row) for row in rows]


def live_of(generations: list[Generation], pipeline: Pipeline) -> Generation:
    """The live generation, which is the one that clients read.

    Raises ``UsageError`` if there is none yet, or if the pipeline's name belongs to another table.
    """
    live = next((g for g in generations if g.state == "live"), None)
    if live is None:
        raise UsageError(f"the pipeline {pipeline.name} has no vector table yet; run rowvec sync first")
    check_table(pipeline, live.schema, live.table)
    return live


@dataclass(frozen=True, slots=True)
class GenerationBefore:
    """The kept generation that was live before the present one."""

    table: str
    dimensions: int


def generation_before(connection: Connection, schema: str, table: str) -> GenerationBefore | None:
    """The generation that was live before the table ``schema.table``; None if there is none, or no ledger."""
    exists = connection.execute(query("generations", "ledger_exists")).fetchone()
    if not (exists and exists[0]):
        return None
    row = connection.execute(query("generations", "before"), {"schema": schema, "table": table}).fetchone()
    return GenerationBefore(*row) if row else None


def effective(pipeline: Pipeline) -> Pipeline:
    """The settings that a sync should use: those of the file, or those of the live generation during a rebuild.

    While a generation with the file's settings is being built, a scheduled sync with that file therefore syncs the live
    table, so that clients do not read old rows for as long as the rebuild takes. Raises ``UsageError`` if the name
    belongs to another table.
    """
    if "." in pipeline.name:
        return pipeline
    with (
        open_target(resolve(pipeline, frozenset({"target"})), "rowvec generations") as connection,
        connection.transaction(),
    ):
        # Before the first run there is no ledger, and a role that only searches may not read it.
        readable = is_readable(connection, "pipelines", "settings")
        check_name(connection, pipeline)
        known = list_generations(connection, pipeline.name) if readable else []
    building = any(
        g.state == "building" and g.settings is not None and same_vectors(g.settings, pipeline) for g in known
    )
    live = next((g for g in known if g.state == "live"), None)
    if not building or live is None or live.settings is None or same_vectors(live.settings, pipeline):
        return pipeline
    return by_settings(live, pipeline)


def by_settings(generation: Generation, pipeline: Pipeline) -> Pipeline:
    """The pipeline that syncs a generation: the generation's own source and vectors, and the file's other settings."""
    if generation.settings is None:
        return pipeline
    now = {part: getattr(pipeline, part) for part in _FREE if part != "name"}
    now["index"] = pipeline.index.model_copy(update={"bits": generation.settings.index.bits})
    return generation.settings.model_copy(update=now)


def url_of_target(pipeline: Pipeline) -> str:
    """The resolved URL of the target database."""
    return target_url(resolve(pipeline, frozenset({"target"})).target.url)


def same_vectors(one: Pipeline, other: Pipeline) -> bool:
    """Whether two pipelines make the same vectors in the same layout. Their names and tables may differ."""
    return _essence(one) == _essence(other)


def _essence(pipeline: Pipeline) -> dict[str, Any]:
    written = pipeline.model_dump(mode="json", exclude_none=True)
    kept = {name: part for name, part in written.items() if name not in _FREE}
    layout = {name: value for name, value in kept["target"].items() if name not in _PLACE}
    # Of the index's settings, this one decides the type of a column.
    return {**kept, "target": {**layout, "bits": layout["bits"] and pipeline.index.bits}}


def hide_until_switch(connection: Connection, schema: str, table: str) -> None:
    """Take from all others what default privileges gave them on a new table, if it is of a generation that is not live.

    Row level security and the privileges of the live table come with the switch; until then only the owner reads the
    new table. For the transaction that creates the table.
    """
    values = {"schema": schema, "table": table}
    for (statement,) in connection.execute(query("generations", "default_privileges"), values).fetchall():
        # The database itself wrote and quoted it.
        connection.execute(sql.SQL(cast("LiteralString", statement)))


def as_generation(pipeline: Pipeline, name: str, schema: str, table: str) -> Pipeline:
    """The same pipeline with another name and table. ``model_copy`` does not validate, so the name may have a dot."""
    target = pipeline.target.model_copy(update={"table": _quoted(schema, table)})
    return pipeline.model_copy(update={"name": name, "target": target})


def _quoted(schema: str, table: str) -> str:
    return ".".join('"' + part.replace('"', '""') + '"' for part in (schema, table))


def _generation(row: tuple[Any, ...]) -> Generation:
    pipeline_id, name, number, state, schema, table, identity, settings, created_at, last_run = row
    return Generation(
        pipeline_id=pipeline_id,
        name=name,
        number=number,
        state=state,
        schema=schema,
        table=table,
        identity=Identity(**identity),
        settings=_read(settings, name, schema, table),
        created_at=created_at,
        last_run=last_run,
    )


def _read(settings: dict[str, Any] | None, name: str, schema: str, table: str) -> Pipeline | None:
    if settings is None:
        return None
    if not has_schema(settings["target"]["table"]):
        # Written by a version that took a table without a schema.
        settings = {**settings, "target": {**settings["target"], "table": _quoted(schema, table)}}
    return Pipeline.model_validate({**settings, "name": name.partition(".")[0]}).model_copy(update={"name": name})
