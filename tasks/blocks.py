"""Reads secrets from Prefect blocks, for pipelines that name them as ``{{ prefect.blocks.secret.NAME }}``."""

from __future__ import annotations

from typing import cast

from prefect.blocks.system import Secret
from rowvec_tasks.server import is_configured

from rowvec.errors import UsageError


def read_secret(name: str) -> str:
    """The value of a Secret block. It is loaded where it is used, so that it is never a parameter or a result.

    Raises ``UsageError`` if there is no such block, or no server that could have it: a server that Prefect would start
    here has the user's own database, which is not ours to open.
    """
    if not is_configured():
        raise UsageError(
            f"the Secret block {name!r} is in a Prefect server, and none is configured: set PREFECT_API_URL, or name "
            "an environment variable in its place"
        )
    try:
        block = cast("Secret[str]", Secret.load(name))
    except ValueError:
        raise UsageError(f"there is no Secret block {name!r}; create it in the Prefect UI under Blocks") from None
    return block.get()
