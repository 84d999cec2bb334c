"""A request to blob storage ends by its deadline, whatever drips; the deadline grows with the bytes that it moves."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rowvec.errors import StoreUnavailable
from rowvec.sources.files.download import fetch
from rowvec.sources.images.blobs import BlobPlaces
from rowvec.store import azure, azure_account
from rowvec.store.azure import open_container
from rowvec.store.azure_account import DEADLINES
from tests.support.servers.dripping import DrippingServer, Drips, dripping

CREDENTIAL = "a2V5"  # not a secret
SECONDS = 0.5
LARGE = 16 << 20


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines of half a second, and no second try of the client."""
    monkeypatch.setattr(azure_account, "DEADLINES", replace(DEADLINES, grace_seconds=SECONDS, slowest=1 << 40))
    monkeypatch.setattr(azure, "_RETRIES", 0)


def url(server: DrippingServer) -> str:
    """A container at the server."""
    return f"{server.origin}/account/container"


def put(server: DrippingServer, folder: Path) -> None:
    """Upload an object."""
    content = bytes(LARGE)
    open_container(url(server), CREDENTIAL).put_bytes("a.parquet", content, hashlib.sha256(content).hexdigest())


def get(server: DrippingServer, folder: Path) -> None:
    """Download an object."""
    open_container(url(server), CREDENTIAL).get("a.parquet", folder / "a.parquet", "", at_most=LARGE)


def names(server: DrippingServer, folder: Path) -> None:
    """List objects."""
    list(open_container(url(server), CREDENTIAL).names())


@pytest.mark.parametrize("drips", ["headers", "body", "upload"])
@pytest.mark.parametrize("ask", [put, get, names])
def test_a_request_to_the_store_ends_by_its_deadline(
    ask: Callable[[DrippingServer, Path], None], drips: Drips, tmp_path: Path
) -> None:
    with dripping(drips) as server:
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            ask(server, tmp_path)
        assert time.monotonic() - started < 40 * SECONDS


def _no_wait(*_: object) -> None:
    """In place of a wait."""


def test_a_file_of_the_source_and_an_image_end_by_their_deadlines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(azure_account, "DEADLINES", replace(DEADLINES, grace_seconds=0.1, slowest=1 << 40))
    # The SDK's own policy waits for 15 s and more between its tries.
    monkeypatch.setattr("azure.storage.blob._shared.policies.StorageRetryPolicy.sleep", _no_wait)
    with dripping("body", every=0.2) as server:
        with pytest.raises(StoreUnavailable):
            fetch(f"{url(server)}/a.csv", tmp_path, credential=CREDENTIAL)
        with pytest.raises(StoreUnavailable):
            BlobPlaces.at(url(server), CREDENTIAL, 1 << 20).read("a.png")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 60 + 8 * 16),
        ({"x-ms-range": "bytes=0-4194303"}, 60 + 4 * 16),
        ({"Content-Length": str(4 << 20), "x-ms-range": "bytes=1-1048576"}, 60 + 5 * 16),
    ],
)
def test_a_deadline_grows_with_the_bytes_that_a_request_moves(headers: dict[str, str], seconds: int) -> None:
    assert DEADLINES.seconds(headers) == seconds
