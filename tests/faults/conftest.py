"""Fixtures that all tests of faults share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.cli_process import PrefectServer
from tests.support.fault_outcomes import Rowvec


@pytest.fixture
def rowvec(prefect_server: PrefectServer) -> Rowvec:
    """The command, against the session's Prefect server."""
    return Rowvec(prefect_server)


@pytest.fixture(scope="module")
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """A function that writes to the terminal at once, so that a person can watch a long run."""
    plugins = request.config.pluginmanager
    reporter: Any = plugins.get_plugin("terminalreporter")
    capture: Any = plugins.get_plugin("capturemanager")

    def say(message: str) -> None:
        if reporter is not None and capture is not None:
            with capture.global_and_fixture_disabled():
                reporter.write_line(f"\n{message}")

    return say
