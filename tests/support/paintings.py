"""A small source table, its pipeline, and a sync of it without an orchestrator."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rowvec.errors import Inconsistent
from rowvec.operations.rebuild import RebuildReport, Steps, begin_rebuild, compare, judge, live_pipeline, switch
from rowvec.operations.rebuild import rebuild as in_order
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, connect
from rowvec.stages import index, merge, order, validate
from rowvec.stages.extract import stage as extract
from rowvec.stages.report import SyncReport

SOURCE = """
    CREATE TABLE paintings (id int PRIMARY KEY, title text, description text, author text, year int)
"""

Client = psycopg.Connection[tuple[Any, ...]]
"""A session of an application, or of rowvec."""


def fill(connection: Client, rows: int, start: int = 1) -> None:
    """Rows with distinct texts."""
    connection.execute(
        "INSERT INTO paintings SELECT i, 'Painting ' || i, 'It shows the number ' || i, 'Author ' || i %% 7, 1900 + i"
        " FROM generate_series(%s::int, %s::int) AS i",
        (start, start + rows - 1),
    )


def pipeline(artifacts: str, **parts: dict[str, Any]) -> Pipeline:
    """The pipeline over ``paintings``; ``parts`` replace or extend its parts."""
    written: dict[str, Any] = {
        "name": "paintings",
        "source": {
            "kind": "postgres",
            "table": "public.paintings",
            "key": ["id"],
            "content": "{title}\n{description}",
            "metadata": ["author", "year"],
        },
        "embedder": {"kind": "local", "dimensions": 64},
        "target": {"table": "vectors.paintings"},
        "artifacts": {"url": artifacts},
    }
    for part, changes in parts.items():
        written[part] = changes if "kind" in changes else {**written.get(part, {}), **changes}
    return Pipeline.model_validate(written)


def sync(pipeline: Pipeline) -> SyncReport:
    """One sync without an orchestrator. Raises ``Inconsistent`` as the flow does."""
    return order.sync(pipeline, "test")


REBUILD_STEPS = Steps(
    begin=begin_rebuild, sync=sync, live_pipeline=live_pipeline, compare=compare, judge=judge, switch=switch
)


def rebuild(
    pipeline: Pipeline, max_cost: float | None = None, *, to_switch: bool = True, questions: Path | None = None
) -> RebuildReport:
    """One rebuild without an orchestrator."""
    return in_order(pipeline, max_cost, REBUILD_STEPS, to_switch=to_switch, questions=questions)


def vectors(connection: Client) -> dict[int, tuple[str, str, str]]:
    """What the vector table holds: content, author, embedding by id."""
    rows = connection.execute("SELECT id, content, author, embedding::text FROM vectors.paintings").fetchall()
    return {id_: (content, author, embedding) for id_, content, author, embedding in rows}


def assert_in_step(connection: Client) -> None:
    """The vector table is what the source says, by content and metadata of every row, judged by plain SQL."""
    wrong = connection.execute(
        "SELECT coalesce(s.id, t.id) FROM"
        " (SELECT * FROM paintings WHERE coalesce(title, '') || coalesce(description, '') ~ '[^ \\t\\n\\r\\f\\v]') AS s"
        " FULL JOIN vectors.paintings AS t ON s.id = t.id"
        " WHERE coalesce(s.title, '') || E'\\n' || coalesce(s.description, '') IS DISTINCT FROM t.content"
        " OR s.author IS DISTINCT FROM t.author OR s.year IS DISTINCT FROM t.year"
    ).fetchall()
    assert wrong == []


class Died(BaseException):
    """The end of a process that nothing catches."""


@contextmanager
def dying_after(stage: str, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """The process that runs this stage dies as soon as the stage is done; the body of the context must run it."""
    modules: dict[str, Any] = {
        **order.BATCH_STAGES,
        "extract": extract,
        "merge": merge,
        "index": index,
        "validate": validate,
    }
    real = modules[stage].run

    def die(*arguments: object) -> None:
        real(*arguments)
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(modules[stage], "run", die)
        with pytest.raises(Died):
            yield


@contextmanager
def writer(url: str) -> Generator[Connection]:
    """Another client of the same database."""
    with connect(url) as connection:
        yield connection


__all__ = ["Inconsistent", "assert_in_step", "fill", "pipeline", "sync", "vectors", "writer"]
