"""A Prefect server that is configured and does not answer is one sentence, before a run begins."""

from __future__ import annotations

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from rowvec_tasks import server

from rowvec.cli.prefect_server import prefect_api
from rowvec.errors import MachineError


def test_a_server_that_does_not_answer_is_named_without_its_secrets() -> None:
    address = "http://user:hunter2@127.0.0.1:1/api"
    with temporary_settings({PREFECT_API_URL: address}):
        assert server.is_configured()
        with pytest.raises(MachineError, match=r"no Prefect server answers at 127\.0\.0\.1 .* unset it") as refused:
            prefect_api().__enter__()
    assert "hunter2" not in str(refused.value)
