"""Says whether row level security decides which rows of a source its reader is shown: what is hidden has no vector."""

from __future__ import annotations

import re
from contextlib import nullcontext

from psycopg import errors as pg

from rowvec.errors import SourceError, TargetError
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.queries import query
from rowvec.sources.postgres import is_in_target_database, relation_of

_TABLE = re.compile(r'"(.+)"')


def restriction(target: Connection, pipeline: Pipeline) -> str | None:
    """One sentence if policies decide which rows the run is shown; None if it is shown every row, or reads files.

    The database itself answers, so that views, partitions and the rights of a view's owner count as they do in a read.
    What lies behind a foreign table or inside a function is not known. Raises ``SourceError`` or
    ``DatabaseUnavailable`` if the source's database does not answer.
    """
    source = pipeline.source
    if source.kind != "postgres":
        return None
    here = nullcontext(target) if is_in_target_database(pipeline) else _opened(source.url or "")
    with here as connection:
        try:
            with connection.transaction(force_rollback=True):
                connection.execute(query("source", "see_all"))
                connection.execute(query("source", "would_read", relation=relation_of(source)))
        except pg.InsufficientPrivilege as error:
            named = _TABLE.search(error.diag.message_primary or "")
            table = named[1] if named else "the source"
            return (
                f"row level security of {table} decides which rows this role is shown, and a row that it hides has no "
                "vector; if each row should have one, give the role BYPASSRLS, or make it the owner of the table"
            )
    return None


def _opened(url: str) -> Connection:
    try:
        return connect(url, application="rowvec source")
    except TargetError as error:
        raise SourceError(f"source.url: {error}") from None
