"""Unit tests need no server: what would start one fails here."""

from __future__ import annotations

from typing import NoReturn

import pytest

_FAILURE = "a unit test must not start a server; put it into tests/integration"


@pytest.fixture(scope="session")
def cluster() -> NoReturn:
    """No Postgres."""
    pytest.fail(_FAILURE)


@pytest.fixture(scope="session")
def azurite() -> NoReturn:
    """No blob server."""
    pytest.fail(_FAILURE)


@pytest.fixture(scope="session")
def prefect_server() -> NoReturn:
    """No Prefect server."""
    pytest.fail(_FAILURE)
