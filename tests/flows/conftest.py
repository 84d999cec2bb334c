"""What the tests of flows share."""

from __future__ import annotations

from tests.support import cli_process

prefect_api = cli_process.prefect_api
