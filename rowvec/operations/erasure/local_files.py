"""Files of killed runs on this machine: rows and vectors on their way to the store."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from rowvec.ledger.runs import RunId
from rowvec.ledger.workdir import workdir
from rowvec.operations.erasure.work import Work
from rowvec.postgres.queries import query
from rowvec.runtime.home import home, home_folder
from rowvec.sources.files.temp_folder import temporary_folder

# A folder of a command is deleted when the command ends; no command takes longer.
_TEMPORARY = "tmp????????"
_OLD_SECONDS = 24 * 60 * 60


def leftover_files(work: Work, run_id: RunId | None) -> list[Path]:
    """The folders of runs of the pipeline that are over, and temporary folders that are older than a day.

    ``run_id``: the run that is under way.
    """
    rows = work.connection.execute(query("erasure", "runs", generations=work.ids_sql)).fetchall()
    folders = [workdir(work.connection, number) for (number,) in rows if number != run_id]
    before = time.time() - _OLD_SECONDS
    passing = [folder for folder in home().glob(_TEMPORARY) if folder.is_dir() and folder.stat().st_mtime < before]
    return [folder for folder in folders if folder.is_dir()] + passing


def delete_files(folders: list[Path]) -> int:
    """Delete them, and what killed readers of sources have left; returns how many folders there were."""
    for folder in folders:
        shutil.rmtree(folder)
    with temporary_folder(home_folder("spool")):
        return len(folders)
