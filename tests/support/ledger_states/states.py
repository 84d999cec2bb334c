"""The archives: which commit has made each one, and how one becomes a database and a store again."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

FOLDER = Path(__file__).parents[2] / "integration/ledger/states"

COMMITS = {
    1: "041a710",
    2: "f98db2a",
    4: "ba4c1ef",
    5: "7052360",
    6: "5112b03",
    7: "aca99bd",
    8: "e2bb690",
    9: "d613378",
    11: "73d69b4",
    12: "bdf89b4",
    13: "4186361",
    14: "88d67ab",
    15: "80de313",
    16: "388a5d0",
    17: "d6a4b87",
    18: "53c81a7",
    19: "b0e7616",
    20: "7849e8e",
}
"""The newest commit with each state of the ledger. None had 3 or 10: these migrations came together with others."""

# A dump has other numbers of relations than the database that it was made of, and is of another server. An upgrade does
# not change these, so they are made the same again.
_SAME_INDEXES = """
    UPDATE rowvec.index_builds SET index_oid = coalesce(to_regclass(format('%I.%I', table_schema, index_name)), 0)
"""
_SAME_VECTORS = """
    UPDATE rowvec.changes AS c SET vectors = to_regclass(format('%I.%I', p.table_schema, p.table_name))
    FROM rowvec.pipelines AS p WHERE p.pipeline_id = c.pipeline_id
"""
_SAME_SERVER = """
    UPDATE rowvec.stores SET
        server = (SELECT system_identifier::text FROM pg_control_system()),
        database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_CORRECTIONS = {4: _SAME_INDEXES, 11: _SAME_SERVER, 12: _SAME_VECTORS}
"""By the first state that needs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What an earlier program has left."""

    number: int
    """Of its newest migration."""
    store: Path
    in_flight: tuple[str, ...]
    """The texts whose request was not answered when the last run was killed."""


def archive(number: int) -> Path:
    """The file of a state."""
    return FOLDER / f"{number:02}.tar.xz"


def load(number: int, url: str, folder: Path) -> State:
    """Make the database and the store again as the earlier program has left them.

    ``url``: an empty database with pgvector in ``public``, as superuser; a ledger in it is dropped.
    """
    with tarfile.open(archive(number)) as packed:
        packed.extractall(folder, filter="data")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS rowvec CASCADE")
        connection.execute((folder / "dump.sql").read_bytes())
        connection.execute("RESET ALL")
        for first, statement in _CORRECTIONS.items():
            if number >= first:
                connection.execute(statement.encode())
    facts: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    return State(number=number, store=folder / "store", in_flight=tuple(facts["in_flight"]))
