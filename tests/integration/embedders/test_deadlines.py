"""A request ends by its deadline, whatever drips: its own bytes, the headers, or the body of the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rowvec.embedders.azure_vision.embedder import AzureVision
from rowvec.embedders.budget import Reservation
from rowvec.embedders.openai.images import OpenAIImages
from rowvec.embedders.openai.texts import OpenAIApi
from rowvec.embedders.protocol import Image
from rowvec.errors import RetriableError
from rowvec.pipeline.embedders import AzureVisionEmbedder, OpenAIEmbedder, OpenAIImagesEmbedder
from tests.support.fake_clock import JumpingClock
from tests.support.servers.dripping import DrippingServer, Drips, dripping
from tests.support.servers.openai_server import KEY, Fault, serve
from tests.support.waiting import wait_for

SECONDS = 0.5
# More than the buffers of the network hold, and than the server takes within the deadline.
LARGE = 15 << 20


def settings(server: DrippingServer, kind: str, **more: Any) -> dict[str, Any]:
    """An embedder of one try at the server."""
    limits = {"timeout_seconds": SECONDS, "max_attempts": 1, "concurrency": 1}
    return {"kind": kind, "base_url": server.origin, **limits, **more}


# Resolved, as the flows pass it: the key itself in place of its reference.
RESOLVED = {"api_key": KEY}


def texts(server: DrippingServer, size: int) -> None:
    """Send a text of so many bytes."""
    config = OpenAIEmbedder(**settings(server, "openai", model="m", dimensions=8)).model_copy(update=RESOLVED)
    for _ in OpenAIApi(config).embed(["a" * size]):
        pass


def images(server: DrippingServer, size: int) -> None:
    """Send an image to a server of images."""
    config = OpenAIImagesEmbedder(**settings(server, "openai_images", model="m", dimensions=8)).model_copy(
        update=RESOLVED
    )
    for _ in OpenAIImages(config).embed_images([Image(name="large", media_type="image/png", read=lambda: bytes(size))]):
        pass


def vision(server: DrippingServer, size: int) -> None:
    """Send an image to Azure AI Vision."""
    config = AzureVisionEmbedder(**settings(server, "azure_vision")).model_copy(update=RESOLVED)
    for _ in AzureVision(config).embed_images([Image(name="large", media_type="image/png", read=lambda: bytes(size))]):
        pass


@pytest.mark.parametrize("drips", ["headers", "body"])
@pytest.mark.parametrize("send", [texts, images, vision])
def test_a_request_ends_by_its_deadline_whatever_the_answer_drips(
    send: Callable[[DrippingServer, int], None], drips: Drips
) -> None:
    with dripping(drips) as server:
        with pytest.raises(RetriableError):
            send(server, 100)
        wait_for(lambda: server.seconds, seconds=20)
        assert max(server.seconds) < 20 * SECONDS


@pytest.mark.parametrize("send", [images, vision])
def test_a_request_that_is_taken_in_drops_ends_by_its_deadline(send: Callable[[DrippingServer, int], None]) -> None:
    with dripping("upload") as server:
        with pytest.raises(RetriableError):
            send(server, LARGE)
        assert server.taken < LARGE / 2


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
    from rowvec.embedders.provider.requests import ServerFacts
    from rowvec.embedders.rate_limit.limiter import SystemClock

    with dripping("body") as server:
        config = OpenAIEmbedder(**settings(server, "openai", model="m", dimensions=8)).model_copy(update=RESOLVED)
        with open_client(config, server.origin, KEY, lambda: lambda: "") as client:
            endpoint = OpenAIEndpoint(
                client=client, model="m", address="127.0.0.1", secret=KEY, dimensions=8, max_attempts=1
            )
            facts = ServerFacts(send_dimensions=True, ask_about_dimensions=False)
            batches = OpenAIBatches(endpoint, facts, transfer_seconds=SECONDS, clock=SystemClock())
            with pytest.raises(RetriableError):
                batches.download("file-1", tmp_path / "answers")
            wait_for(lambda: server.seconds, seconds=20)
            assert max(server.seconds) < 20 * SECONDS
