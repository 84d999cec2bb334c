"""The SQL is in ``sql/*.sql``, in named blocks; this module finds a block and fills in its identifiers."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import LiteralString, cast

from psycopg import sql

from rowvec.postgres.names import PGVECTOR, ScratchTable

_NAME = re.compile(r"^-- name: (\w+)(?: --.*)?$", re.MULTILINE)


SCRATCH = (
    "candidates",
    "entry_rows",
    "erased",
    "findings",
    "held",
    "journal_entry",
    "journal_state",
    "kept_images",
    "keyless",
    "lately",
    "needed",
    "restored_vectors",
    "run_numbers",
    "shown_images",
    "spared",
    "traces",
)
"""The scratch tables that blocks name; see ``ScratchTable``."""

_EVERYWHERE: dict[str, sql.Composable] = {"pgvector": PGVECTOR, **{name: ScratchTable(name) for name in SCRATCH}}


@cache
def blocks(file: str) -> dict[str, LiteralString]:
    """All named blocks of ``sql/<file>.sql``. A block starts with ``-- name: word`` and ends at the next one."""
    # The package's own files are as literal as its code, and no other file is read here.
    text = cast("LiteralString", (files("rowvec.sql") / f"{file}.sql").read_text("utf-8"))
    starts = list(_NAME.finditer(text))
    ends = [match.start() for match in starts[1:]] + [len(text)]
    return {m.group(1): text[m.end() : end].strip() for m, end in zip(starts, ends, strict=True)}


def query(file: str, name: str, /, **parts: sql.Composable) -> sql.Composed:
    """The block ``name`` of ``sql/<file>.sql`` with each ``{part}`` filled by an identifier, literal or composition.

    ``{pgvector}`` is the schema of pgvector, and the names of ``SCRATCH`` are scratch tables, in each block. A block
    writes literal braces twice. Only blocks whose identifiers are rowvec's own may have parameters (``%(name)s``):
    psycopg looks for them in the whole text, and a user's column may be called ``100%``. In all other blocks values
    are literals.
    """
    return sql.SQL(blocks(file)[name]).format(**{**_EVERYWHERE, **parts})
