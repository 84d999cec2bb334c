"""Where the embedded Postgres has its socket: with its data, or in a private folder if that path is too long."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from rowvec.errors import MachineError
from rowvec.postgres.embedded.cluster import Cluster
from rowvec.runtime.private import is_private, write_private

_SOCKET = ".s.PGSQL.5432"
# unix(7): sun_path has 108 bytes on Linux and 104 on macOS, the NUL at the end included.
_LONGEST = 107 if sys.platform == "linux" else 103
_RECORD = "socket-folder"


def socket_folder(cluster: Cluster, beside: Path) -> Path:
    """A folder for the socket that only the server's owner can enter.

    The folder of the data is one. If its path is too long, the folder gets a name at random in the system's temporary
    folder, so that no other user can put one there first; ``beside`` holds a record of it. Raises ``MachineError`` if
    the temporary folder's path is too long too.
    """
    if _fits(cluster.folder):
        return cluster.folder
    made = _recorded(beside)
    if made is not None and is_private(made, cluster.owner):
        return made
    for parent in (None, "/tmp"):  # noqa: S108 # mkdtemp makes a private folder in it
        made = Path(tempfile.mkdtemp(prefix="rowvec-", dir=parent))
        if _fits(made):
            os.chown(made, cluster.owner, -1)
            write_private(beside / _RECORD, str(made))
            return made
        made.rmdir()
    raise MachineError(
        f"the path of a socket in {cluster.folder} would be longer than {_LONGEST} bytes, and so would one in "
        f"{tempfile.gettempdir()}; set ROWVEC_HOME or TMPDIR to a shorter path"
    )


def remove_socket_folder(beside: Path) -> None:
    """Remove the folder that ``socket_folder`` has made, if it did; the server must have ended."""
    made = _recorded(beside)
    if made is not None:
        with suppress(OSError):
            made.rmdir()
        (beside / _RECORD).unlink(missing_ok=True)


def _fits(folder: Path) -> bool:
    return len(os.fsencode(folder / _SOCKET)) <= _LONGEST


def _recorded(beside: Path) -> Path | None:
    try:
        return Path((beside / _RECORD).read_text("utf-8"))
    except FileNotFoundError:
        return None
