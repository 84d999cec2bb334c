"""Reports the progress of an index build, from a second connection because the building connection is busy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from psycopg import errors as pg
from psycopg.conninfo import make_conninfo

from rowvec.errors import RowvecError
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable
from rowvec.runtime.beside import beside

Progress = Callable[[float, str], None]
"""Called with the share that is done, from 0 to 1, and Postgres's name of the phase."""

_POLL_SECONDS = 0.25


@contextmanager
def watched(connection: Connection, progress: Progress | None) -> Generator[None]:
    """Report the progress of the build that ``connection`` runs, from a second connection."""
    if progress is None:
        yield
        return
    info = connection.info
    url = make_conninfo(info.dsn, **({"password": info.password} if info.password else {}))
    with beside(partial(_watch, url, info.backend_pid, progress)):
        yield
    progress(1.0, "done")


def _watch(url: str, pid: int, progress: Progress, stop: threading.Event) -> None:
    # If the second connection cannot be opened or is lost, the build continues without progress reports.
    with suppress(RowvecError, pg.Error), connect(url, application="rowvec progress") as connection:
        while not stop.wait(_POLL_SECONDS):
            row = connection.execute(query("index", "build_of"), {"pid": pid}).fetchone()
            if row is not None:
                progress(*_share(row))


def wait_for_other_builds(connection: Connection, table: VectorTable, progress: Progress | None) -> None:
    """Wait until no other backend builds an index on this table. The client of such a build may have disconnected."""
    parameters = {"schema": table.schema, "table": table.name, "mine": connection.info.backend_pid}
    while True:
        row = connection.execute(query("index", "builds"), parameters).fetchone()
        if row is None:
            return
        if progress is not None:
            progress(*_share(row))
        time.sleep(_POLL_SECONDS)


def _share(row: tuple[Any, ...]) -> tuple[float, str]:
    _, phase, blocks, blocks_done, tuples, tuples_done = row
    done = [part / whole for whole, part in ((blocks, blocks_done), (tuples, tuples_done)) if whole and part]
    return min(max(done, default=0.0), 1.0), str(phase)
