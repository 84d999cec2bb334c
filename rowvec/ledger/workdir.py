"""Where the files of a run are on their way to the blob store: in ROWVEC_HOME, by database, run and batch."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from rowvec.postgres.connection import Connection
from rowvec.runtime.home import home

_NAME_LENGTH = 12


def spool(connection: Connection, run_id: int) -> Path:
    """The folder of a run that is at work, made when missing; ``connection`` is to the target's database."""
    return made(database_name(connection), run_id)


def made(database: str, run_id: int) -> Path:
    """As ``spool``, of a database known by its name here."""
    folder = home() / "spool" / database / str(run_id)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def spooled(connection: Connection, run_id: int) -> Path:
    """The folder of a run that may be over, whether it is there or not."""
    return home() / "spool" / database_name(connection) / str(run_id)


def database_name(connection: Connection) -> str:
    """What a database is called here: the numbers of runs are a database's own, and one home may serve several."""
    where = connection.info
    return sha256(f"{where.host}\0{where.port}\0{where.dbname}".encode()).hexdigest()[:_NAME_LENGTH]
