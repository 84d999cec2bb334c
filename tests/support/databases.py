"""Databases that a test has besides its own."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

_numbers = itertools.count(1)


@cache
def administrator(server: str) -> psycopg.Connection[TupleRow]:
    """A session to make and drop databases in: one for all tests of this process, because each new one costs."""
    return psycopg.connect(server, autocommit=True)


@contextmanager
def database(server: str, template: str = "template1") -> Generator[str]:
    """The DSN of a new database, with the role of the server's DSN; it is dropped when the context ends."""
    name = f"another_{next(_numbers)}"
    # Copying the files takes half of the time that the default strategy takes, which writes each page to the log.
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
    administrator(server).execute(create.format(sql.Identifier(name), sql.Identifier(template)))
    try:
        yield make_conninfo(server, dbname=name)
    finally:
        administrator(server).execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
