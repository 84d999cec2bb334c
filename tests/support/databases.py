"""Databases that a test has besides its own."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from contextlib import contextmanager

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

_numbers = itertools.count(1)


@contextmanager
def database(server: str, template: str = "template1") -> Generator[str]:
    """The DSN of a new database, with the role of the server's DSN; it is dropped when the context ends."""
    name = f"another_{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as administrator:
        # Copying the files takes half of the time that the default strategy takes, which writes each page to the log.
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
        administrator.execute(create.format(sql.Identifier(name), sql.Identifier(template)))
    try:
        yield make_conninfo(server, dbname=name)
    finally:
        with psycopg.connect(server, autocommit=True) as administrator:
            administrator.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
