"""``ROWVEC_HOME``: the folder of the embedded server and of all local files."""

from __future__ import annotations

import os
from pathlib import Path

from rowvec.errors import MachineError
from rowvec.runtime.private import make_folder, private_folder


def home() -> Path:
    """``ROWVEC_HOME``, by default ``.rowvec`` in the current folder; created, for its owner alone, if it is missing.

    Raises ``MachineError`` if it cannot be created, or if the default folder belongs to another user, who could read
    what is written there. A folder that ROWVEC_HOME names may belong to another user only if root has named it.
    """
    named = os.environ.get("ROWVEC_HOME")
    folder = Path(named or ".rowvec").absolute()
    try:
        make_folder(folder)
        owner = folder.stat().st_uid
    except OSError as error:
        raise MachineError(
            f"the folder {folder} for the files of rowvec cannot be made ({error.strerror}); set ROWVEC_HOME to a "
            "folder that can be written"
        ) from error
    if owner not in (os.geteuid(), 0) and not (named and os.geteuid() == 0):
        raise MachineError(
            f"the folder {folder} belongs to another user, who could read and change what is kept there; set "
            "ROWVEC_HOME to a folder of your own"
        )
    return folder


def home_folder(*names: str) -> Path:
    """A folder in ``ROWVEC_HOME``, created if it is missing; only its owner may read it.

    Raises what ``home`` and ``rowvec.runtime.private.private_folder`` raise.
    """
    folder = home()
    for name in names:
        folder = private_folder(folder / name)
    return folder
