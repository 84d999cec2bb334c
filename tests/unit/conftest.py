"""Unit tests need no server: a fixture that would start one fails here."""

from __future__ import annotations

from typing import NoReturn

import pytest

_FAILURE = "a unit test must not start a server; put it into tests/integration"


@pytest.fixture(scope="session")
def cluster() -> NoReturn:
    """Fail: unit tests have no Postgres."""
    pytest.fail(_FAILURE)


@pytest.fixture(scope="session")
def azurite() -> NoReturn:
    """Fail: unit tests have no blob server."""
    pytest.fail(_FAILURE)


@pytest.fixture(scope="session")
def prefect_server() -> NoReturn:
    """Fail: unit tests have no Prefect server."""
    pytest.fail(_FAILURE)
