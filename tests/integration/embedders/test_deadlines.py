"""A request ends by its deadline, whatever drips: its own bytes, the headers, or the body of the answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rowvec.embedders.azure_vision.embedder import AzureVision
from rowvec.embedders.openai.images import OpenAIImages
from rowvec.embedders.openai.texts import OpenAIApi
from rowvec.embedders.protocol import Image
from rowvec.embedders.provider.budget import Reservation
from rowvec.errors import RetriableError
from rowvec.pipeline.embedders import AzureVisionEmbedder, OpenAIEmbedder, OpenAIImagesEmbedder
from tests.support.fake_clock import JumpingClock
from tests.support.servers.dripping import DrippingServer, Drips, dripping
from tests.support.servers.openai_server import KEY, Fault, serve
from tests.support.waiting import wait_for

SECONDS = 0.5
# No network buffer of this machine holds as much.
LARGE = 15 << 20


def settings(server: DrippingServer, kind: str, **more: Any) -> dict[str, Any]:
    """An embedder of one try at the server."""
    limits = {"timeout_seconds": SECONDS, "max_attempts": 1, "concurrency": 1}
    return {"kind": kind, "base_url": server.origin, **limits, **more}


# Resolved, as the flows pass it: the key itself in place of its reference.
RESOLVED = {"api_key": KEY}


def texts(server: DrippingServer) -> None:
    """Send many texts to OpenAI's protocol."""
    config = OpenAIEmbedder(**settings(server, "openai", model="m", dimensions=8)).model_copy(update=RESOLVED)
    for _ in OpenAIApi(config).embed([("word " * 1600) + str(i) for i in range(1800)]):
        pass


def images(server: DrippingServer) -> None:
    """Send a large image to a server of images."""
    config = OpenAIImagesEmbedder(**settings(server, "openai_images", model="m", dimensions=8)).model_copy(
        update=RESOLVED
    )
    for _ in OpenAIImages(config).embed_images(
        [Image(name="large", media_type="image/png", read=lambda: bytes(LARGE))]
    ):
        pass


def vision(server: DrippingServer) -> None:
    """Send a large image to Azure AI Vision."""
    config = AzureVisionEmbedder(**settings(server, "azure_vision")).model_copy(update=RESOLVED)
    for _ in AzureVision(config).embed_images([Image(name="large", media_type="image/png", read=lambda: bytes(LARGE))]):
        pass


@pytest.mark.parametrize("drips", ["headers", "body", "upload"])
@pytest.mark.parametrize("send", [texts, images, vision])
def test_a_request_ends_by_its_deadline_whatever_drips(send: Callable[[DrippingServer], None], drips: Drips) -> None:
    with dripping(drips) as server:
        started = time.monotonic()
        with pytest.raises(RetriableError):
            send(server)
        # Half of it is preparation: texts are counted, an image is encoded.
        assert time.monotonic() - started < 20
        if drips != "upload":
            # What is still in the network's buffers keeps a server that takes a request in drops from noticing the end.
            wait_for(lambda: server.seconds, seconds=10)
            assert max(server.seconds) < 20 * SECONDS


@dataclass(slots=True)
class Recorded:
    """A budget that remembers what was settled."""

    settled: list[int] = field(default_factory=list[int])

    def reserve(self, tokens: int) -> Reservation:
        """See ``BudgetHold``."""
        del tokens
        return Reservation(usd=0.0)

    def settle(self, hold: Reservation, tokens: int) -> None:
        """See ``BudgetHold``."""
        del hold
        self.settled.append(tokens)


def test_a_request_that_was_ended_is_tried_again_and_counts_as_billed() -> None:
    budget = Recorded()
    with serve(key=KEY, faults=[Fault(shape="drip", seconds=0.05)]) as server:
        limits: dict[str, Any] = {"timeout_seconds": SECONDS, "base_url": server.url, "dimensions": 8}
        config = OpenAIEmbedder(kind="openai", model="m", **limits).model_copy(update=RESOLVED)
        answers = list(OpenAIApi(config, JumpingClock()).embed(["one text"], budget))
    assert [len(answer.positions) for answer in answers] == [1]
    assert len(server.requests) == 2
    assert budget.settled[0] == budget.settled[1] > 0


def test_a_request_that_nobody_took_counts_as_not_billed() -> None:
    budget = Recorded()
    with dripping("body") as server:
        config = OpenAIEmbedder(**settings(server, "openai", model="m", dimensions=8)).model_copy(update=RESOLVED)
    with pytest.raises(RetriableError):
        list(OpenAIApi(config, JumpingClock()).embed(["one text"], budget))
    assert budget.settled == [0]


def test_a_transfer_of_a_batch_jobs_file_ends_by_its_deadline(tmp_path: Path) -> None:
    from rowvec.embedders.openai.batch_api import OpenAIBatches
    from rowvec.embedders.openai.client import OpenAIEndpoint, open_client
    from rowvec.embedders.openai.requests import ServerFacts
    from rowvec.embedders.rate_limit.limiter import SystemClock

    with dripping("body") as server:
        config = OpenAIEmbedder(**settings(server, "openai", model="m", dimensions=8)).model_copy(update=RESOLVED)
        with open_client(config, server.origin, KEY, lambda: lambda: "") as client:
            endpoint = OpenAIEndpoint(
                client=client, model="m", address="127.0.0.1", secret=KEY, dimensions=8, max_attempts=1
            )
            facts = ServerFacts(send_dimensions=True, ask_about_dimensions=False)
            batches = OpenAIBatches(endpoint, facts, transfer_seconds=SECONDS, clock=SystemClock())
            started = time.monotonic()
            with pytest.raises(RetriableError):
                batches.download("file-1", tmp_path / "answers")
            assert time.monotonic() - started < 20 * SECONDS
