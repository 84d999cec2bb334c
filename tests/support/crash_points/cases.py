"""The commands that are killed: what was there before, what the command does, and how a person runs it again."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg

from rowvec.errors import UsageError
from rowvec.operations.audit import audit
from rowvec.operations.changes import install_queue, remove_queue
from rowvec.operations.erasure.forget import forget
from rowvec.operations.index import maintain
from rowvec.operations.prune import prune
from rowvec.operations.rebuild import rollback
from rowvec.operations.repair import prepare_repair
from rowvec.operations.restore import finish_restore, restore_rows, restoring
from rowvec.operations.switch import retire_for_good
from rowvec.operations.sync import sync
from rowvec.pipeline import Pipeline
from rowvec.stages.report import conclude
from tests.support import byte_search, paintings

FOLDER, SOURCE, EMBEDDER = "CRASH_FOLDER", "CRASH_SOURCE", "CRASH_EMBEDDER"
"""Environment variables: the folder of the case, the DSN of the source's database, the embedder's ``base_url``."""
TEXTS_PER_REQUEST = 4

Step = Callable[[Pipeline], object]


def _as_it_was(pipeline: Pipeline) -> Pipeline:
    return pipeline


def other_model(pipeline: Pipeline) -> Pipeline:
    """The pipeline after its file was edited to name another embedder."""
    embedder = pipeline.embedder.model_copy(update={"model": "another-model", "dimensions": 24})
    return pipeline.model_copy(update={"embedder": embedder})


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One command in one situation."""

    name: str
    command: str
    """The command as the documentation groups it."""
    source: dict[str, Any]
    """The source in the pipeline file, over that of ``paintings.pipeline``."""
    before: tuple[Step, ...]
    """What has happened before the command."""
    run: Step
    again: Step | None = None
    """What a person does after the kill, if it is not just the same command."""
    apart: bool = False
    """Whether the source is in another database."""
    after: Callable[[Pipeline], Pipeline] | None = _as_it_was
    """The pipeline file once the command has ended, for an audit; None if the vector table is not there yet."""

    def pipeline(self) -> Pipeline:
        """The pipeline, in the environment of the case."""
        folder = os.environ[FOLDER]
        embedder: dict[str, Any] = {
            "kind": "openai",
            "model": "text-embedding-3-small",
            "dimensions": 16,
            "base_url": os.environ[EMBEDDER],
            "max_batch_inputs": TEXTS_PER_REQUEST,
            "concurrency": 1,
        }
        source: dict[str, Any] = dict(self.source)
        if "kind" in source:
            source = {"key": ["id"], "content": "{title}\n{description}", "metadata": ["author", "year"], **source}
        if "path" in source:
            source["path"] = f"{folder}/{source['path']}"
        if self.apart:
            source["url"] = os.environ[SOURCE]
        parts: dict[str, dict[str, Any]] = {
            "source": source,
            "embedder": embedder,
            "index": {"kind": "hnsw", "on": "float"},
            "validation": {"max_delete_fraction": 0.5},
        }
        return paintings.pipeline(f"{folder}/store", **parts)


def _source() -> psycopg.Connection[tuple[Any, ...]]:
    return psycopg.connect(os.environ[SOURCE], autocommit=True)


def fill(_: Pipeline) -> None:
    """Ten rows, one of them with the text of another."""
    with _source() as connection:
        connection.execute(paintings.SOURCE)
        paintings.fill(connection, 10)
        connection.execute("UPDATE paintings SET title = 'Painting 1', description = 'It shows 1' WHERE id IN (1, 10)")


def edit(_: Pipeline) -> None:
    """Every kind of change: new, edited, metadata alone, deleted, blank, moved, swapped."""
    with _source() as connection:
        paintings.fill(connection, 5, start=11)
        connection.execute("UPDATE paintings SET title = 'Edited ' || id WHERE id IN (1, 2)")
        connection.execute("UPDATE paintings SET author = 'Somebody' WHERE id = 3")
        connection.execute("DELETE FROM paintings WHERE id = 4")
        connection.execute("UPDATE paintings SET title = '', description = NULL WHERE id = 5")
        connection.execute("UPDATE paintings SET id = 106 WHERE id = 6")
        connection.execute(
            "UPDATE paintings AS p SET title = o.title, description = o.description FROM paintings AS o"
            " WHERE (p.id, o.id) IN ((7, 8), (8, 7))"
        )


def write_csv(pipeline: Pipeline) -> None:
    """The source as a file, in place of the table."""
    path = Path(getattr(pipeline.source, "path", ""))
    with _source() as connection, path.open("w", newline="") as file:
        rows = connection.execute("SELECT id, title, description, author, year FROM paintings ORDER BY id").fetchall()
        writer = csv.writer(file)
        writer.writerow(["id", "title", "description", "author", "year"])
        writer.writerows(rows)


def lengthen(_: Pipeline) -> None:
    """Texts of several chunks."""
    with _source() as connection:
        connection.execute(
            "UPDATE paintings SET description = description || repeat(' and the sea of year ' || id, 8) WHERE id < 4"
        )


def shorten(_: Pipeline) -> None:
    """One of these texts has fewer chunks now, and one more."""
    with _source() as connection:
        connection.execute("UPDATE paintings SET description = 'It is short' WHERE id = 2")
        connection.execute("UPDATE paintings SET description = description || repeat(' and more', 20) WHERE id = 3")


def damage(pipeline: Pipeline) -> None:
    """A row is gone, one is orphaned, a vector and a text are corrupt, and an artifact is lost."""
    with psycopg.connect(os.environ["ROWVEC_DATABASE_URL"], autocommit=True) as connection:
        connection.execute("DELETE FROM vectors.paintings WHERE id = 1")
        connection.execute("DELETE FROM public.paintings WHERE id = 2")
        connection.execute(
            "UPDATE vectors.paintings AS t SET embedding = o.embedding FROM vectors.paintings AS o"
            " WHERE t.id = 3 AND o.id = 8"
        )
        connection.execute("UPDATE vectors.paintings SET content = 'another' WHERE id = 7")
        newest = "SELECT name FROM rowvec.artifacts ORDER BY artifact_id DESC LIMIT 1"
        ((name,),) = connection.execute(newest).fetchall()
    (Path(str(pipeline.artifacts.url)) / name).unlink()


def lose_table(_: Pipeline) -> None:
    """The database is a new one: no vector table, no ledger."""
    with psycopg.connect(os.environ["ROWVEC_DATABASE_URL"], autocommit=True) as connection:
        for schema in ("vectors", "rowvec"):
            connection.execute(f"DROP SCHEMA {schema} CASCADE".encode())


def build(pipeline: Pipeline) -> None:
    """``rowvec rebuild --no-switch``."""
    paintings.rebuild(other_model(pipeline), to_switch=False)


def build_and_switch(pipeline: Pipeline) -> None:
    """``rowvec rebuild``."""
    paintings.rebuild(other_model(pipeline))


def build_again(pipeline: Pipeline) -> None:
    """``rowvec rebuild``, and ``rowvec sync`` if it says that the switch was made already."""
    try:
        paintings.rebuild(other_model(pipeline))
    except UsageError as error:
        if "already has these settings" not in str(error):
            raise
        sync(other_model(pipeline))


def roll_back_again(pipeline: Pipeline) -> None:
    """``rowvec rebuild --rollback``, unless ``rowvec sync`` with the old file shows that it was done already."""
    try:
        sync(pipeline)
    except UsageError:
        rollback(pipeline)
        sync(pipeline)


def roll_back(pipeline: Pipeline) -> None:
    """``rowvec rebuild --rollback``, then ``rowvec sync`` with the old file."""
    rollback(pipeline)
    sync(pipeline)


def restore(pipeline: Pipeline) -> None:
    """``rowvec restore``, then ``rowvec sync``."""
    with restoring(pipeline) as under_way:
        conclude(finish_restore(pipeline, under_way.run, restore_rows(pipeline, under_way)))
    sync(pipeline)


def restore_again(pipeline: Pipeline) -> None:
    """``rowvec restore``, which may say that the table is there, then ``rowvec sync``."""
    try:
        restore(pipeline)
    except UsageError as error:
        if "has rows" not in str(error):
            raise
        sync(pipeline)


def repair(pipeline: Pipeline) -> None:
    """``rowvec audit --repair``."""
    if not prepare_repair(pipeline).is_finished:
        sync(pipeline, cause="repair")
        assert audit(pipeline).consistent


def prune_all(pipeline: Pipeline) -> None:
    """``rowvec prune --older-than 0 --apply``."""
    prune(pipeline, timedelta(0), apply=True)


def compact(pipeline: Pipeline) -> None:
    """``rowvec prune --older-than 0 --apply --compact``."""
    prune(pipeline, timedelta(0), apply=True, compact=True)


def erase(pipeline: Pipeline) -> None:
    """``rowvec forget --key 4 --apply``; nothing of the row that ``edit`` has deleted is left."""
    forget(pipeline, ["4"], apply=True)
    folder = Path(os.environ[FOLDER])
    assert byte_search.in_folder(folder, [b"Painting 4", b"the number 4"]) == []


def rebuild_index(pipeline: Pipeline) -> None:
    """``rowvec index --rebuild``."""
    maintain(pipeline, rebuild=True)


def drop_index(_: Pipeline) -> None:
    """Somebody has dropped the index."""
    with psycopg.connect(os.environ["ROWVEC_DATABASE_URL"], autocommit=True) as connection:
        find = "SELECT indexname FROM pg_indexes WHERE schemaname = 'vectors' AND indexdef ~ 'hnsw'"
        for (name,) in connection.execute(find).fetchall():
            connection.execute(f'DROP INDEX vectors."{name}"'.encode())


_QUERY = {"kind": "postgres", "query": "SELECT * FROM public.paintings WHERE id > 0"}
_CSV = {"kind": "csv", "path": "paintings.csv"}
_TRIGGER = {"changes": {"by": "trigger"}}
_CHUNKS = {"chunks": {"tokens": 16, "overlap": 0}}
_TWICE: tuple[Step, ...] = (fill, sync, edit, sync)

CASES = [
    Case(name="sync, table, first", command="sync: table", source={}, before=(fill,), run=sync),
    Case(name="sync, table, later", command="sync: table", source={}, before=(fill, sync, edit), run=sync),
    Case(name="sync, query, later", command="sync: query", source=_QUERY, before=(fill, sync, edit), run=sync),
    Case(
        name="sync, other database, first",
        command="sync: table of another database",
        source={},
        before=(fill,),
        run=sync,
        apart=True,
    ),
    Case(
        name="sync, other database, later",
        command="sync: table of another database",
        source={},
        before=(fill, sync, edit),
        run=sync,
        apart=True,
    ),
    Case(name="sync, csv, first", command="sync: file", source=_CSV, before=(fill, write_csv), run=sync),
    Case(
        name="sync, csv, later",
        command="sync: file",
        source=_CSV,
        before=(fill, write_csv, sync, edit, write_csv),
        run=sync,
    ),
    Case(name="sync, trigger, first", command="sync: queue of changes", source=_TRIGGER, before=(fill,), run=sync),
    Case(
        name="sync, trigger, later",
        command="sync: queue of changes",
        source=_TRIGGER,
        before=(fill, sync, edit),
        run=sync,
    ),
    Case(
        name="sync, trigger, other database, later",
        command="sync: queue of changes",
        source=_TRIGGER,
        before=(fill, sync, edit),
        run=sync,
        apart=True,
    ),
    Case(
        name="sync, chunks, later",
        command="sync: chunks",
        source=_CHUNKS,
        before=(fill, lengthen, sync, edit, shorten),
        run=sync,
    ),
    Case(name="audit --repair", command="audit --repair", source={}, before=(*_TWICE, damage), run=repair),
    Case(
        name="rebuild",
        command="rebuild",
        source={},
        before=(fill, sync, edit),
        run=build_and_switch,
        again=build_again,
        after=other_model,
    ),
    Case(
        name="rebuild, switch",
        command="rebuild: switch",
        source={},
        before=(fill, sync, build),
        run=build_and_switch,
        again=build_again,
        after=other_model,
    ),
    Case(
        name="rebuild --rollback",
        command="rebuild --rollback",
        source={},
        before=(fill, sync, build_and_switch),
        run=roll_back,
        again=roll_back_again,
    ),
    Case(
        name="rebuild --drop-old",
        command="rebuild --drop-old",
        source={},
        before=(fill, sync, build_and_switch),
        run=retire_for_good,
        after=other_model,
    ),
    Case(
        name="restore",
        command="restore",
        source={},
        before=(*_TWICE, lose_table),
        run=restore,
        again=restore_again,
    ),
    Case(name="prune", command="prune", source={}, before=(*_TWICE, sync), run=prune_all),
    Case(name="prune --compact", command="prune --compact", source={}, before=_TWICE, run=compact),
    Case(name="forget", command="forget", source={}, before=_TWICE, run=erase),
    Case(name="index --rebuild", command="index", source={}, before=(fill, sync), run=rebuild_index),
    Case(name="index, dropped", command="index", source={}, before=(fill, sync, drop_index), run=maintain),
    Case(
        name="changes --install",
        command="changes --install",
        source=_TRIGGER,
        before=(fill,),
        run=install_queue,
        after=None,
    ),
    Case(
        name="changes --remove",
        command="changes --remove",
        source=_TRIGGER,
        before=(fill, sync),
        run=remove_queue,
    ),
]
