"""The folder for a run's files on their way to the blob store: in ROWVEC_HOME, by database, run and batch."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from rowvec.postgres.connection import Connection
from rowvec.runtime.home import home, home_folder

_NAME_LENGTH = 12
_SPOOL = "spool"


def make_workdir(connection: Connection, run_id: int) -> Path:
    """The folder of a run that is under way, created if it is missing; ``connection`` is to the target's database."""
    return make_workdir_in(database_name(connection), run_id)


def make_workdir_in(database: str, run_id: int) -> Path:
    """As ``make_workdir``, for a database given by its ``database_name``."""
    return home_folder(_SPOOL, database, str(run_id))


def workdir(connection: Connection, run_id: int) -> Path:
    """The folder of a run, which may be over; the folder may be missing."""
    return _folder(database_name(connection), run_id)


def runs_with_files(connection: Connection) -> list[int]:
    """The runs of the target's database that have a folder on this machine, whether they are over or not."""
    folders = (home() / _SPOOL / database_name(connection)).glob("*")
    return [int(folder.name) for folder in folders if folder.name.isdecimal()]


def database_name(connection: Connection) -> str:
    """The name of a database in ROWVEC_HOME: each database numbers its own runs, and one home may serve several."""
    where = connection.info
    return sha256(f"{where.host}\0{where.port}\0{where.dbname}".encode()).hexdigest()[:_NAME_LENGTH]


def _folder(database: str, run_id: int) -> Path:
    return home() / _SPOOL / database / str(run_id)
