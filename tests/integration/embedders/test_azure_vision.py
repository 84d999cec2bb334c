"""The Azure AI Vision embedder over real HTTP against a server that fails in all the ways the service does."""

from __future__ import annotations

import hashlib
import io
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image as pillow
import pytest
from pydantic import ValidationError

from rowvec.embedders import embed_image_query, embed_query, open_embedder, open_image_embedder
from rowvec.embedders.azure_vision.embedder import AzureVision
from rowvec.embedders.protocol import Answer, Image
from rowvec.errors import (
    EmbedderRefused,
    EmbedderUnavailable,
    QuotaExhausted,
    RateLimited,
    RowError,
    SourceError,
    UsageError,
)
from rowvec.pipeline.embedders import AzureVisionEmbedder
from rowvec.vectors.layout import dense
from tests.support.fake_clock import JumpingClock
from tests.support.servers.azure_vision import IMAGE_NORM, KEY, Fault, VisionServer, out_of_quota, serve, throttled


def png(number: int) -> bytes:
    """A small image; each number gives another one."""
    out = io.BytesIO()
    pillow.new("RGB", (16, 16), (number % 256, number // 256, 90)).save(out, "PNG")
    return out.getvalue()


def image(number: int, content: bytes | None = None) -> Image:
    return Image(name=f"{number}.png", media_type="image/png", read=lambda: png(number) if content is None else content)


def config(server: VisionServer, **settings: Any) -> AzureVisionEmbedder:
    written: dict[str, Any] = {"base_url": server.url, "concurrency": 1, **settings}
    key = written.pop("key", KEY)
    # Resolved, as the flows pass it: the key itself in place of its reference.
    return AzureVisionEmbedder(kind="azure_vision", **written).model_copy(update={"api_key": key})


def embedder(server: VisionServer, clock: JumpingClock | None = None, **settings: Any) -> AzureVision:
    return AzureVision(config(server, **settings), clock or JumpingClock())


def gathered(answers: Iterator[Answer]) -> tuple[dict[int, np.ndarray[Any, Any]], dict[int, RowError], int]:
    """Vectors and rejects by position, and transactions."""
    vectors: dict[int, np.ndarray[Any, Any]] = {}
    rejected: dict[int, RowError] = {}
    transactions = 0
    for answer in answers:
        for position, vector in zip(answer.positions.tolist(), dense(answer.vectors), strict=True):
            assert position not in vectors
            vectors[position] = vector
        rejected |= answer.rejected
        transactions += answer.billed
    return vectors, rejected, transactions


def test_images_are_sent_as_bytes_and_their_vectors_kept_as_they_are() -> None:
    with serve() as server:
        vectors, rejected, transactions = gathered(
            embedder(server, concurrency=4).embed_images(image(i) for i in range(20))
        )
        assert sorted(vectors) == list(range(20))
        assert not rejected
        assert transactions == 20 == len(server.requests)
        for i, vector in vectors.items():
            assert vector.dtype == np.float32
            assert np.array_equal(vector, server.meant("Image", png(i)).astype(np.float32))
            assert np.linalg.norm(vector) == pytest.approx(IMAGE_NORM, rel=1e-5)
        request = server.requests[0]
    assert request.what == "Image"
    assert request.content_type == "application/octet-stream"
    assert request.query == {"api-version": "2024-02-01", "model-version": "2023-04-15"}
    assert request.key == KEY


def test_a_text_finds_the_image_that_shows_it() -> None:
    with serve() as server:
        server.shows[hashlib.sha256(png(3)).hexdigest()] = "a red circle"
        opened = open_embedder(config(server))
        query = dense(embed_query(opened, "a red circle"))
        vectors, _, _ = gathered(embedder(server).embed_images([image(1), image(3)]))
    cosines = {i: float(v @ query / np.linalg.norm(v) / np.linalg.norm(query)) for i, v in vectors.items()}
    assert cosines[1] == pytest.approx(1, abs=1e-5)
    assert abs(cosines[0]) < 0.2


def test_an_image_is_a_query_too() -> None:
    with serve() as server:
        query = dense(embed_image_query(open_image_embedder(config(server)), image(7)))
        assert np.array_equal(query, server.meant("Image", png(7)).astype(np.float32))
        with pytest.raises(UsageError, match=r"8\.png has no vector .*InvalidImageFormat"):
            embed_image_query(open_image_embedder(config(server)), image(8, b"no image"))


@pytest.mark.parametrize(
    ("content", "reason", "message"),
    [
        (b"no image", "invalid_input", "InvalidImageFormat"),
        (b"\x89PNG" + bytes(20 * 2**20), "image_too_large", "20,971,524 bytes"),
    ],
    ids=["no image", "too large"],
)
def test_a_bad_image_is_rejected_alone(content: bytes, reason: str, message: str) -> None:
    with serve() as server:
        images = [image(0, content), image(1), image(2)]
        vectors, rejected, transactions = gathered(embedder(server).embed_images(images))
        sizes = [len(request.content) for request in server.requests]
    assert sorted(vectors) == [1, 2]
    assert transactions == 2
    assert rejected[0].reason == reason
    assert "0.png" in rejected[0].detail
    assert message in rejected[0].detail
    assert max(sizes) < 20 * 2**20


def test_an_unreadable_image_is_rejected_alone_and_a_lost_store_ends_the_run() -> None:
    def unreadable() -> bytes:
        raise RowError("unreadable", "gone")

    def lost() -> bytes:
        raise SourceError("the store is gone")

    with serve() as server:
        gone = Image(name="gone.png", media_type="image/png", read=unreadable)
        vectors, rejected, _ = gathered(embedder(server).embed_images([gone, image(1)]))
        assert sorted(vectors) == [1]
        assert rejected[0].detail == "gone.png: gone"
        broken = Image(name="lost.png", media_type="image/png", read=lost)
        with pytest.raises(SourceError, match="the store is gone"):
            list(embedder(server).embed_images([broken]))


def test_a_429_makes_all_threads_wait_as_long_as_it_asks() -> None:
    clock = JumpingClock()
    with serve(faults=[throttled(7, times=2)]) as server:
        vectors, _, transactions = gathered(embedder(server, clock).embed_images(image(i) for i in range(5)))
    assert len(vectors) == 5 == transactions
    assert sum(wait >= 6.9 for wait in clock.waits) == 2


def test_a_429_without_end_ends_the_run() -> None:
    with serve(faults=[throttled(times=-1)]) as server, pytest.raises(RateLimited, match="slower pace"):
        list(embedder(server, max_attempts=3).embed_images([image(1)]))
    assert len(server.requests) == 3


def test_the_limit_of_requests_per_second_is_kept() -> None:
    clock = JumpingClock()
    with serve() as server:
        list(embedder(server, clock, requests_per_second=10).embed_images(image(i) for i in range(21)))
    # 20 gaps of a tenth of a second, plus the headroom.
    assert clock.time == pytest.approx(2 / 0.97, rel=0.01)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=500),
        Fault(status=503, code="ServiceUnavailable"),
        Fault(shape="html"),
        Fault(shape="cut"),
        Fault(shape="no_model"),
        Fault(shape="short"),
        Fault(shape="nan"),
        Fault(shape="null"),
        Fault(shape="zero"),
    ],
    ids=lambda fault: fault.shape or str(fault.status),
)
def test_temporary_failures_are_retried(fault: Fault) -> None:
    with serve(faults=[fault]) as server:
        vectors, rejected, _ = gathered(embedder(server).embed_images([image(1)]))
        assert np.array_equal(vectors[0], server.meant("Image", png(1)).astype(np.float32))
    assert not rejected
    assert len(server.requests) == 2


def test_a_connection_that_hangs_is_given_up() -> None:
    with serve(faults=[Fault(shape="hang", seconds=1.0)]) as server:
        vectors, _, _ = gathered(embedder(server, timeout_seconds=0.2).embed_images([image(1)]))
    assert list(vectors) == [0]


def test_a_server_that_is_not_there_is_named_by_its_address() -> None:
    with serve() as server:
        address = server.url
    settings = AzureVisionEmbedder(kind="azure_vision", base_url=address, max_attempts=2)
    with pytest.raises(EmbedderUnavailable, match="does not answer: ConnectError"):
        list(AzureVision(settings.model_copy(update={"api_key": KEY}), JumpingClock()).embed_images([image(1)]))


def test_an_unusable_vector_is_rejected_and_its_transactions_are_counted() -> None:
    with serve(faults=[Fault(shape="zero", times=-1, marker=png(1))]) as server:
        vectors, rejected, transactions = gathered(embedder(server).embed_images([image(1), image(2)]))
    assert list(vectors) == [1]
    assert rejected[0].detail == "1.png: the vector is zero, 3 times"
    assert transactions == 4 == server.billed


def test_wrong_dimensions_every_time_end_the_run() -> None:
    faults = [Fault(shape="short", times=-1)]
    with serve(faults=faults) as server, pytest.raises(EmbedderRefused, match="1,023 dimensions"):
        list(embedder(server).embed_images([image(1)]))
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("settings", "faults", "message"),
    [
        ({"key": "wrong"}, [], "does not accept the key"),
        ({}, [Fault(status=403, code="403", message="No access", times=-1)], "may not use 2023-04-15"),
        ({}, [Fault(shape="other_model", times=-1)], "answer is by '2022-04-11'"),
        ({"api_version": "1999-01-01"}, [], "refuses everything: .*api-version is not supported"),
        ({"model": "1999-01-01"}, [], "refuses everything: .*model-version is not supported"),
    ],
    ids=["key", "permission", "another model", "api version", "model version"],
)
def test_permanent_failures_end_the_run(settings: dict[str, Any], faults: list[Fault], message: str) -> None:
    with serve(faults=faults) as server, pytest.raises(EmbedderRefused, match=message) as raised:
        list(embedder(server, **settings).embed_images([image(1), image(2)]))
    shown = "".join(traceback.format_exception(raised.value))
    assert settings.get("key", KEY) not in str(raised.value)
    assert KEY not in shown
    assert len(server.requests) <= 2


def test_a_used_up_quota_ends_the_run() -> None:
    with serve(faults=[out_of_quota()]) as server, pytest.raises(QuotaExhausted, match="no calls left: Out of call"):
        list(embedder(server).embed_images([image(1)]))
    assert len(server.requests) == 1


def test_an_unknown_400_blames_the_image_once_others_pass() -> None:
    with serve(faults=[Fault(status=400, code="InvalidRequest", message="odd", marker=png(1))]) as server:
        vectors, rejected, _ = gathered(embedder(server).embed_images([image(0), image(1), image(2)]))
    assert sorted(vectors) == [0, 2]
    assert "odd" in rejected[1].detail


def test_texts_are_sent_one_per_request_and_unsendable_ones_rejected() -> None:
    with serve() as server:
        vectors, rejected, _ = gathered(embedder(server).embed(["a", "b\0", "c"]))
    assert sorted(vectors) == [0, 2]
    assert rejected[1].reason == "invalid_input"
    assert [request.what for request in server.requests] == ["Text", "Text"]


def test_concurrency_is_a_limit_and_is_reached() -> None:
    with serve(latency=0.02) as server:
        list(embedder(server, concurrency=4).embed_images(image(i) for i in range(24)))
    assert server.most_at_once == 4


def test_images_are_read_only_when_it_is_their_turn() -> None:
    read = list[int]()

    def reading(i: int) -> Image:
        def content() -> bytes:
            read.append(i)
            return png(i)

        return Image(name=f"{i}.png", media_type="image/png", read=content)

    drawn = list[int]()

    def images() -> Iterator[Image]:
        for i in range(100):
            drawn.append(i)
            yield reading(i)

    with serve() as server:
        answers = iter(embedder(server, concurrency=2).embed_images(images()))
        next(answers)
        assert len(drawn) <= 4
        assert len(read) <= 4
        rest = sum(1 for _ in answers)
    assert rest == 99


def test_plan_and_bill() -> None:
    with serve() as server:
        opened = embedder(server, cost_per_thousand_transactions=0.1)
    assert opened.paid
    assert opened.count_tokens(["sha256:00"] * 5000) == 5000
    assert opened.cost(5000) == pytest.approx(0.5)
    assert embedder(server).cost(5000) == 0
    assert str(opened.identity) == "azure_vision 2023-04-15 with 1,024 dimensions"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"api_key": "0123456789abcdef"}, "plain text"),
        ({"model": "latest"}, "pattern"),
        ({"dimensions": 512}, "1024"),
        ({"base_url": "https://me:secret@host"}, "plain text"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AzureVisionEmbedder.model_validate({"kind": "azure_vision", "base_url": "https://host", **settings})


def test_the_word_entra_is_not_a_key() -> None:
    settings = AzureVisionEmbedder(kind="azure_vision", base_url="https://host", api_key="entra")
    assert AzureVision(settings).identity.dimensions == 1024


def test_an_address_that_is_not_one_is_refused() -> None:
    with pytest.raises(UsageError, match=r"embedder\.base_url is no web address"):
        AzureVision(AzureVisionEmbedder(kind="azure_vision", base_url="host").model_copy(update={"api_key": KEY}))
