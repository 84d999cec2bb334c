"""A request for a token ends by its deadline, whatever the endpoint of the identities drips."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from azure.core.credentials import TokenCredential
from azure.core.exceptions import AzureError

from rowvec.embedders.provider.endpoint import entra_token
from rowvec.errors import RowvecError
from rowvec.runtime import azure_identity
from rowvec.runtime.azure_identity import TOKEN_DEADLINES
from rowvec.store.azure_account import credential_of, place_of
from tests.support.servers.dripping import DrippingServer, Drips, dripping

SECONDS = 0.2


def _no_wait(*_: object) -> None:
    """In place of the wait between two tries, whose number is Azure's own."""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines of a fraction of a second, and managed identities as the only ones there are."""
    monkeypatch.setattr(
        azure_identity, "TOKEN_DEADLINES", replace(TOKEN_DEADLINES, grace_seconds=SECONDS, slowest=1 << 40)
    )
    monkeypatch.setattr("azure.core.pipeline.policies.RetryPolicy.sleep", _no_wait)
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")


def as_app_service(server: DrippingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint of App Service and Container Apps."""
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"{server.origin}/msi/token")
    monkeypatch.setenv("IDENTITY_HEADER", "secret")


def as_virtual_machine(server: DrippingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint of virtual machines, Kubernetes nodes and Container Instances."""
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", server.origin)


@pytest.mark.parametrize(("endpoint", "drips"), [(as_app_service, "headers"), (as_virtual_machine, "body")])
def test_a_request_for_a_token_ends_by_its_deadline(
    endpoint: Callable[[DrippingServer, pytest.MonkeyPatch], None], drips: Drips, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dripping(drips) as server:
        endpoint(server, monkeypatch)
        started = time.monotonic()
        with pytest.raises(RowvecError):
            entra_token("the service", "the role")()
        assert time.monotonic() - started < 40 * SECONDS


def test_a_store_asks_for_tokens_with_the_same_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    with dripping("headers") as server:
        as_virtual_machine(server, monkeypatch)
        credential = credential_of(place_of("https://account.blob.core.windows.net/container"), None)
        assert isinstance(credential, TokenCredential)
        started = time.monotonic()
        with pytest.raises(AzureError):
            credential.get_token("https://storage.azure.com/.default")
        assert time.monotonic() - started < 40 * SECONDS
