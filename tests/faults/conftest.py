"""Fixtures that all tests of faults share."""

from __future__ import annotations

import pytest

from tests.support.cli_process import PrefectServer
from tests.support.fault_outcomes import Rowvec


@pytest.fixture
def rowvec(prefect_server: PrefectServer) -> Rowvec:
    """The command, against the session's Prefect server."""
    return Rowvec(prefect_server)
