"""The pipeline whose rows are erased, with all its generations, its ledger and its store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from psycopg import sql

from rowvec.errors import UsageError
from rowvec.ledger.behind import refuse_if_behind
from rowvec.ledger.generations import Generation, list_generations, live_of
from rowvec.ledger.marked_store import standing
from rowvec.ledger.pipelines import PipelineId
from rowvec.pipeline import Pipeline
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import stored_columns, stored_table
from rowvec.stages.extract.chunks import chunk_table
from rowvec.store.protocol import Store

NEEDED = frozenset({"source", "target", "artifacts"})


@dataclass(frozen=True, slots=True)
class Kept:
    """A table with rows of the source: a vector table, or a table of chunks."""

    name: sql.Identifier
    shown: str
    types: dict[str, str]
    """Of its columns, by name."""
    has_fingerprints: bool
    """Whether it is a vector table."""
    is_live: bool
    """Whether syncs keep it in step with the source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """See the module."""

    connection: Connection
    store: Store
    pipeline: Pipeline
    """Resolved."""
    generations: tuple[Generation, ...]
    live: Generation
    key: tuple[PgColumn, ...]
    """The key of the source's rows, with the types of the live vector table."""
    folder: Path
    """For temporary files."""

    @property
    def ids(self) -> list[PipelineId]:
        """The ids of all generations."""
        return [generation.pipeline_id for generation in self.generations]

    @property
    def ids_sql(self) -> sql.Composed:
        """The same, as an array in SQL."""
        return sql.SQL("{}::int[]").format(sql.Literal(self.ids))

    def tables(self) -> list[Kept]:
        """The tables of all generations that have the key's columns.

        Raises ``UsageError`` if a vector table does not have them.
        """
        found: list[Kept] = []
        for generation in self.generations:
            if generation.state == "dropped":
                continue
            found += self._kept(generation, generation.schema, generation.table, is_vectors=True)
            chunks = chunk_table(generation.pipeline_id)
            row = self.connection.execute(
                query("erasure", "is_there", table=sql.Literal(chunks.as_string(self.connection)))
            ).fetchone()
            if row and row[0]:
                found += self._kept(generation, "rowvec", f"chunks_{generation.pipeline_id}", is_vectors=False)
        return found

    def _kept(self, generation: Generation, schema: str, table: str, *, is_vectors: bool) -> list[Kept]:
        types = {name: pg_type for name, pg_type, _ in stored_columns(self.connection, schema, table)}
        if not types:
            return []
        if any(column.name not in types for column in self.key):
            wanted = ", ".join(column.name for column in self.key)
            raise UsageError(
                f"the generation {generation.name} has another key than ({wanted}), so nobody can tell which of its "
                "rows must be erased: drop it with rowvec rebuild FILE --drop-old, or finish its rebuild, first"
            )
        return [
            Kept(
                name=sql.Identifier(schema, table),
                shown=f"{schema}.{table}",
                types=types,
                has_fingerprints=is_vectors,
                is_live=generation.state == "live",
            )
        ]


def work_on(connection: Connection, store: Store, pipeline: Pipeline, folder: Path) -> Work:
    """The work on a pipeline whose references are resolved.

    Raises ``UsageError`` if it has no vector table, or if another database writes to its store, and ``LedgerBehind`` or
    ``StoreBehind`` if database or store was set back.
    """
    generations = list_generations(connection, pipeline.name)
    live = live_of(generations, pipeline)
    refuse_if_behind(connection, store, pipeline.name)
    whose = standing(connection, store, pipeline.name)
    if whose.others:
        raise UsageError(
            "another database, or this one before it was copied or set back, also writes to this store, and what its "
            "manifests name cannot be erased from here: run rowvec adopt FILE if this database replaces the other, or "
            "give this pipeline an artifacts.url of its own; nothing was erased"
        )
    return Work(
        connection=connection,
        store=store,
        pipeline=pipeline,
        generations=tuple(generations),
        live=live,
        key=stored_table(connection, pipeline).row_key,
        folder=folder,
    )
