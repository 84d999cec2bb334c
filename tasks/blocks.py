"""Secrets kept in Prefect blocks, for pipelines that name them as ``{{ prefect.blocks.secret.NAME }}``."""

from __future__ import annotations

from typing import cast

from prefect.blocks.system import Secret

from rowvec.errors import UsageError


def read_secret(name: str) -> str:
    """The value of a Secret block; loaded where it is used, and never made a parameter or a result."""
    try:
        block = cast("Secret[str]", Secret.load(name))
    except ValueError:
        raise UsageError(f"there is no Secret block {name!r}; create it in the Prefect UI under Blocks") from None
    return block.get()
