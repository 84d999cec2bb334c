"""What an earlier program does to leave a ledger with everything in it that a migration has to carry.

``make.py`` runs this file with the code of an earlier commit: it uses only what every one of them has. The tests take
the pipelines from here.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import psycopg

STORE, EMBEDDER = "STATE_STORE", "STATE_EMBEDDER"
"""Environment variables to which the pipelines refer: the folder of the store, the embedder's ``base_url``."""
GENERATIONS, CHUNKS, QUEUE = 4, 4, 12
"""The first states with generations, with chunks and with a queue of changes."""
TEXTS_PER_REQUEST = 4
WAITING = "A letter that waits in the queue"
"""The one text that no earlier program has asked for, and that none was asked for in vain."""

Client = psycopg.Connection[tuple[Any, ...]]

_SOURCES = """
    CREATE TABLE paintings (id int PRIMARY KEY, title text, description text, author text, year int);
    INSERT INTO paintings
        SELECT i, 'Painting ' || i, 'It shows the number ' || i, 'Author ' || i % 7, 1900 + i
        FROM generate_series(1, 20) AS i;
    UPDATE paintings SET description = repeat('far too long for this model ', 12) WHERE id = 7;
    UPDATE paintings SET title = ' ', description = NULL WHERE id = 8;
    UPDATE paintings SET title = 'Twice', description = 'the same' WHERE id IN (9, 10);
    CREATE TABLE notes (id int PRIMARY KEY, body text);
    INSERT INTO notes
        SELECT i, 'Note ' || i || '. ' || repeat('The sea of the year ' || i || ' is calm and wide. ', 2 * i)
        FROM generate_series(1, 3) AS i;
    CREATE TABLE letters (id int PRIMARY KEY, body text);
    INSERT INTO letters SELECT i, 'Letter ' || i FROM generate_series(1, 5) AS i;
"""
_EDITS = """
    UPDATE paintings SET title = 'Edited ' || id WHERE id IN (1, 2);
    UPDATE paintings SET author = 'Somebody' WHERE id = 3;
    DELETE FROM paintings WHERE id = 4;
    UPDATE paintings SET title = '', description = NULL WHERE id = 5;
    UPDATE paintings SET id = 106 WHERE id = 6;
    INSERT INTO paintings SELECT i, 'Painting ' || i, 'It is new', NULL, NULL FROM generate_series(21, 22) AS i;
    UPDATE notes SET body = body || ' It has one more sentence.' WHERE id = 2;
    UPDATE letters SET body = 'Letter 1, edited' WHERE id = 1;
"""
_BEFORE_THE_FAILURE = """
    UPDATE paintings SET title = 'Merged, and in no manifest' WHERE id = 11;
    DELETE FROM paintings WHERE id = 12;
    INSERT INTO paintings VALUES (23, 'Painting 23', 'In no manifest either', 'Author 2', 1923);
"""
# One more than a request takes: the answer to the first request is paid for and kept, the second one is in flight.
_BEFORE_THE_KILL = """
    INSERT INTO paintings SELECT i, 'Late ' || i, 'It comes last', NULL, NULL FROM generate_series(24, 28) AS i;
    DELETE FROM paintings WHERE id = 13;
"""


def settings(name: str, number: int) -> dict[str, Any]:
    """The pipeline file of one table at the end of the scene, for a program whose ledger has the state ``number``."""
    return _settings(name, rebuilt=name == "paintings" and number >= GENERATIONS)


def names(number: int) -> list[str]:
    """The pipelines that a program with the ledger's state ``number`` can have."""
    return [
        "paintings",
        *(["notes"] if number >= CHUNKS else []),
        *(["letters"] if number >= QUEUE else []),
    ]


def _settings(name: str, *, rebuilt: bool = False) -> dict[str, Any]:
    source: dict[str, Any] = {
        "paintings": {"content": "{title}\n{description}", "metadata": ["author", "year"]},
        "notes": {"content": "{body}", "chunks": {"tokens": 16, "overlap": 0}},
        "letters": {"content": "{body}", "changes": {"by": "trigger"}},
    }[name]
    return {
        "name": name,
        "source": {"kind": "postgres", "table": f"public.{name}", "key": ["id"], **source},
        "embedder": {
            "kind": "openai",
            "model": "text-embedding-3-large" if rebuilt else "text-embedding-3-small",
            "dimensions": 24 if rebuilt else 16,
            "base_url": f"${{{EMBEDDER}}}",
            "max_batch_inputs": TEXTS_PER_REQUEST,
            "max_input_tokens": 40,
            "concurrency": 1,
        },
        "target": {"table": f"vectors.{name}"},
        "artifacts": {"url": f"${{{STORE}}}"},
        "index": {"kind": "hnsw", "on": "float"},
        "validation": {"max_delete_fraction": 0.5},
    }


def _play(number: int) -> None:
    """Leave everything; returns only if the process was not killed in its last run."""
    try:
        from tests.support import paintings as old
    except ImportError:
        from tests import gallery as old  # pyright: ignore[reportAttributeAccessIssue] # its name in the first commits
    from rowvec.pipeline import Pipeline

    def pipeline(name: str, *, rebuilt: bool = False) -> Pipeline:
        return Pipeline.model_validate(_settings(name, rebuilt=rebuilt))

    with psycopg.connect(os.environ["ROWVEC_DATABASE_URL"], autocommit=True) as connection:
        connection.execute(_SOURCES)
        for name in names(number):
            old.sync(pipeline(name))
        connection.execute(_EDITS)
        for name in names(number):
            old.sync(pipeline(name))
        rebuilt = number >= GENERATIONS
        if rebuilt:
            old.rebuild(pipeline("paintings", rebuilt=True))
        connection.execute("UPDATE letters SET body = %s WHERE id = 2", (WAITING,))
        connection.execute(_BEFORE_THE_FAILURE)
        with _no_room_for_a_manifest():
            old.sync(pipeline("paintings", rebuilt=rebuilt))
        connection.execute(_BEFORE_THE_KILL)
    print("the last run begins", flush=True)
    sys.stdin.readline()
    old.sync(pipeline("paintings", rebuilt=rebuilt))


@contextmanager
def _no_room_for_a_manifest() -> Generator[None]:
    """The run in the context must fail by it."""
    full = True

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if full and event in ("os.link", "os.rename") and any("/manifests/" in str(one) for one in arguments):
            raise OSError(errno.ENOSPC, "No space left on device")

    sys.addaudithook(refuse)
    try:
        yield
    except Exception as error:  # noqa: BLE001 # each version has errors of its own
        print(f"failed as it should: {type(error).__name__}: {error}", file=sys.stderr)
    else:
        raise AssertionError("the run could write its manifest")
    finally:
        full = False


if __name__ == "__main__":
    _play(int(sys.argv[1]))
