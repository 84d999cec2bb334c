"""Database sessions that a test's commands share."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from rowvec.postgres.kept import connections_kept


@pytest.fixture(autouse=True)
def sessions_stay_open() -> Generator[None]:
    """One sync takes the sessions that the one before has left: a new one reads the server's whole catalog first.

    A session keeps nothing between two transactions. Commands and flows are processes of their own, and open their own.
    """
    with connections_kept():
        yield
