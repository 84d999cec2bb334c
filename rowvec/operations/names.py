"""Names of pipelines: ``rowvec rename`` gives a pipeline another one, ``rowvec adopt`` gives a name to another table.

A name belongs to one vector table of a database. Under it the ledger has what was paid for, and the store has the
artifacts, so two tables with one name would restore and prune each other's vectors.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from rowvec.embedders import open_embedder
from rowvec.errors import ArtifactCorrupt, RowvecError, UsageError
from rowvec.images.content import KnownImage
from rowvec.ledger.changes import forget
from rowvec.ledger.changes import known as known_changes
from rowvec.ledger.generations import Generation, list_generations, live_of, url_of_target
from rowvec.ledger.pipelines import VECTOR_COLUMNS, owner_of
from rowvec.ledger.runs import exclusively
from rowvec.operations.changes import remove_queue
from rowvec.pipeline import Pipeline
from rowvec.pipeline.model import LONGEST_PIPELINE_NAME
from rowvec.pipeline.parts import table_identifier
from rowvec.pipeline.references import resolve, without_key
from rowvec.postgres.connection import Connection, open_target
from rowvec.postgres.migrations import install
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import find_table, stored_columns, stored_table
from rowvec.runtime.home import home, temporary_folder
from rowvec.store.open import open_store
from rowvec.store.protocol import Store
from rowvec.vectors.fingerprint import Identity

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Renamed:
    """What ``rowvec rename`` did."""

    name: str
    old_name: str
    table: str
    already: bool
    """Whether the pipeline had the name before, from an earlier call."""
    generations: int
    images: int
    """Images that were copied in the store, because their names in it begin with the pipeline's name."""

    def as_json(self) -> dict[str, Any]:
        """As one JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """What ``rowvec adopt`` did."""

    name: str
    table: str
    already: bool
    """Whether the name belonged to the table before."""
    former_table: str | None
    """The table that the name belonged to."""
    former_name: str | None
    """The name that the former table has now; None if it is gone, and its ledger now belongs to this table."""
    taken_in: bool
    """Whether the table existed and the ledger did not know it."""
    other_rows: int
    """Rows of a table that was taken in whose fingerprint is not that of their content: a sync embeds them again."""

    def as_json(self) -> dict[str, Any]:
        """As one JSON object."""
        return asdict(self)


def rename(pipeline: Pipeline, old: str) -> Renamed:
    """Give the pipeline ``old`` of this database the name in the pipeline file, in one transaction.

    The table, its functions and views, and the artifacts stay as they are. Raises ``UsageError`` if there is no such
    pipeline, if the file is for another table, or if the new name is taken; ``PipelineBusy`` if a run of it is at work.
    """
    with open_target(resolve(pipeline, frozenset({"target"})), "rowvec rename") as connection:
        install(connection)
        known, taken = list_generations(connection, old), list_generations(connection, pipeline.name)
        if not known:
            if taken:
                return _renamed(pipeline, old, live_of(taken, pipeline), generations=0, images=0)
            raise _unknown(connection, old)
        if pipeline.name == old:
            raise UsageError(f"the pipeline file has the name {old} still: write the new name into it, and run again")
        if taken:
            raise UsageError(
                f"the name {pipeline.name} is taken in this database, by the pipeline of {taken[0].schema}."
                f"{taken[0].table}; choose another one"
            )
        live = live_of(known, pipeline)
        with _held(pipeline, known):
            images = _copy_images(connection, pipeline, old)
            _leave_queue(connection, live)
            with connection.transaction():
                _rename(connection, old, pipeline.name)
        return _renamed(pipeline, old, live, generations=len(known), images=images)


def adopt(pipeline: Pipeline) -> Adopted:
    """Give the pipeline's name to the table in the pipeline file, in one transaction.

    If the name belonged to another table that exists, that table's pipeline gets a free name, with all that the ledger
    has of it. If that table is gone, what was paid for belongs to the new one. A vector table that the ledger does not
    know is taken in.

    Raises ``UsageError`` if there is nothing to adopt, the table belongs to another pipeline, or is not a vector table
    of this embedder; ``PipelineBusy`` if a run of the name is at work.
    """
    resolved = resolve(without_key(pipeline), frozenset({"target", "embedder"}))
    identity = open_embedder(resolved.embedder).identity
    schema, table = table_identifier(pipeline.target.table)
    with open_target(resolved, "rowvec adopt") as connection:
        install(connection)
        _check_owner(connection, pipeline, schema, table)
        exists = bool(stored_columns(connection, schema, table))
        known = list_generations(connection, pipeline.name)
        live = next((g for g in known if g.state == "live"), None)
        if live is not None and (live.schema, live.table) == (schema, table):
            return _adopted(pipeline, already=True)
        if live is None and not exists:
            raise UsageError(f"there is no table {schema}.{table} to adopt: run rowvec sync, which creates it")
        others = _other_rows(connection, resolved, identity) if exists else 0
        former_name: str | None = None
        with _held(pipeline, known):
            _leave_queue(connection, live)
            with connection.transaction():
                if live is not None and not stored_columns(connection, live.schema, live.table):
                    _move(connection, live, schema, table)
                else:
                    if live is not None:
                        former_name = _free_name(connection, pipeline.name)
                        _rename(connection, pipeline.name, former_name)
                    if exists:
                        values = {"name": pipeline.name, "schema": schema, "table": table}
                        connection.execute(query("names", "take_in"), {**values, "identity": Jsonb(identity.as_json())})
        former = f"{live.schema}.{live.table}" if live else None
        return _adopted(pipeline, former_table=former, former_name=former_name, taken_in=exists, other_rows=others)


def _renamed(pipeline: Pipeline, old: str, live: Generation, *, generations: int, images: int) -> Renamed:
    return Renamed(
        name=pipeline.name,
        old_name=old,
        table=f"{live.schema}.{live.table}",
        already=not generations,
        generations=generations,
        images=images,
    )


def _adopted(
    pipeline: Pipeline,
    *,
    already: bool = False,
    former_table: str | None = None,
    former_name: str | None = None,
    taken_in: bool = False,
    other_rows: int = 0,
) -> Adopted:
    return Adopted(
        name=pipeline.name,
        table=".".join(table_identifier(pipeline.target.table)),
        already=already,
        former_table=former_table,
        former_name=former_name,
        taken_in=taken_in,
        other_rows=other_rows,
    )


@contextmanager
def _held(pipeline: Pipeline, generations: list[Generation]) -> Generator[None]:
    """Hold all generations, so that none has a run meanwhile."""
    url = url_of_target(pipeline)
    with ExitStack() as held:
        for generation in sorted(generations, key=lambda g: g.pipeline_id):
            if generation.state != "dropped":
                held.enter_context(exclusively(url, generation.name, generation.pipeline_id))
        yield


def _leave_queue(connection: Connection, live: Generation | None) -> None:
    """Drop the queue of changes of a pipeline while the ledger still has its name: later it would only grow.

    The next sync makes another one and compares everything.
    """
    settings = live and live.settings
    if live is None or settings is None or known_changes(connection, live.pipeline_id) is None:
        return
    forget(connection, live.pipeline_id)
    try:
        remove_queue(settings)
    except RowvecError as error:
        logger.warning("%s: its queue of changes is left in the source's database, and grows: %s", live.name, error)


def _rename(connection: Connection, old: str, new: str) -> None:
    values = {"old": old, "new": new}
    for block in ("rename", "rename_spending", "rename_erasures", "forget_images", "rename_images"):
        connection.execute(query("names", block), values)


def _copy_images(connection: Connection, pipeline: Pipeline, old: str) -> int:
    """Copy the images that the store has to their new names: a copy that is there already is left alone."""
    rows = connection.execute(query("names", "images"), {"family": old}).fetchall()
    if not rows:
        return 0
    store = open_store(resolve(pipeline, frozenset({"artifacts"})).artifacts)
    with temporary_folder(home()) as folder:
        return sum(
            _copy_image(
                store,
                folder / "image",
                old,
                pipeline.name,
                KnownImage(sha256=sha256, media_type=media_type, bytes=size, place=place),
            )
            for sha256, media_type, size, place in rows
        )


def _copy_image(store: Store, local: Path, old: str, new: str, image: KnownImage) -> bool:
    try:
        store.get(image.object_name(old), local, image.sha256, at_most=image.bytes)
    except ArtifactCorrupt:
        # The store has lost it: the next sync finds that, and uploads it from the source.
        return False
    store.put(image.object_name(new), local, image.sha256)
    local.unlink()
    return True


def _unknown(connection: Connection, name: str) -> UsageError:
    found = [row[0] for row in connection.execute(query("names", "families"))]
    there = f"it has {', '.join(found[:20])}" if found else "it has none"
    return UsageError(f"this database has no pipeline {name}: {there}")


def _check_owner(connection: Connection, pipeline: Pipeline, schema: str, table: str) -> None:
    owner = owner_of(connection, schema, table)
    if owner not in (None, pipeline.name):
        raise UsageError(
            f"the table {schema}.{table} belongs to the pipeline {owner} in this database; if {pipeline.name} is the "
            f"new name of that pipeline, run rowvec rename FILE {owner}"
        )


def _other_rows(connection: Connection, pipeline: Pipeline, identity: Identity) -> int:
    """How many rows of a table have another fingerprint than their content by this embedder.

    Raises ``UsageError`` if the table is not one of this pipeline's vectors.
    """
    schema, name = table_identifier(pipeline.target.table)
    if not VECTOR_COLUMNS.issubset(column for column, _, _ in stored_columns(connection, schema, name)):
        raise UsageError(f"{schema}.{name} is not a vector table of rowvec; name another one in target.table")
    table = stored_table(connection, pipeline)
    find_table(connection, table)
    if identity.from_source:
        # The fingerprint covers the text of a vector that the table does not have.
        return 0
    statement = query("names", "matching", identity=sql.Literal(identity.digest()), table=table.identifier)
    matching, rows = connection.execute(statement).fetchone() or (0, 0)
    if rows and not matching:
        raise UsageError(
            f"no row of {schema}.{name} has a vector of {identity}: adopt it with the pipeline file that it was made by"
        )
    return rows - matching


def _move(connection: Connection, live: Generation, schema: str, table: str) -> None:
    """Let the ledger's rows of a table that is gone belong to another one."""
    old = {"old_schema": live.schema, "old_table": live.table}
    written = sql.Identifier(schema, table).as_string(connection)
    values = {"name": live.name, "schema": schema, "table": table, "written": written, **old}
    for block in ("move_table", "move_builds", "move_tunings"):
        connection.execute(query("names", block), values)


def _free_name(connection: Connection, name: str) -> str:
    """A name for the pipeline that loses its own: the same with ``-old``, and a number if that is taken."""
    taken = {row[0] for row in connection.execute(query("names", "families"))}
    suffixes = ("-old", *(f"-old-{number}" for number in range(2, len(taken) + 3)))
    names = (name[: LONGEST_PIPELINE_NAME - len(suffix)] + suffix for suffix in suffixes)
    return next(free for free in names if free not in taken)
