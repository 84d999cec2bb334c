"""Images by servers that speak OpenAI's embeddings protocol, over HTTP: vLLM's messages and Jina's input objects."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image as pillow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rowvec.embedders import embed_image_query, embed_query, open_embedder, open_image_embedder
from rowvec.embedders.openai.image_inputs import RequestTemplate, body, media_type_of
from rowvec.embedders.openai.images import OpenAIImages
from rowvec.embedders.protocol import Answer, Image
from rowvec.embedders.provider.refusal import meaning, refusal_in
from rowvec.errors import (
    BudgetExceeded,
    EmbedderRefused,
    EmbedderUnavailable,
    QuotaExhausted,
    RateLimited,
    RowError,
    SourceError,
    UsageError,
)
from rowvec.operations.search import search
from rowvec.pipeline import Pipeline
from rowvec.pipeline.embedders import OpenAIImagesEmbedder
from rowvec.postgres.connection import Connection
from rowvec.stages.dry_run import plan
from rowvec.vectors.layout import Vectors, dense
from tests.support.fake_clock import JumpingClock
from tests.support.images import fill, save
from tests.support.paintings import sync
from tests.support.servers.openai_image_inputs import inputs_of, meant
from tests.support.servers.openai_server import KEY, Fault, OpenAIServer, failing, quota, rate_limited, serve, vector

MODEL = "clip"
DIMENSIONS = 32


def png(number: int, side: int = 16) -> bytes:
    """A small image; each number gives another one."""
    out = io.BytesIO()
    pillow.new("RGB", (side, side), (number % 256, number // 256, 90)).save(out, "PNG")
    return out.getvalue()


def image(number: int, content: bytes | None = None) -> Image:
    return Image(name=f"{number}.png", media_type="image/png", read=lambda: png(number) if content is None else content)


def config(server: OpenAIServer, **settings: Any) -> OpenAIImagesEmbedder:
    values: dict[str, Any] = {
        "model": MODEL, "dimensions": DIMENSIONS, "base_url": server.url, "concurrency": 1, **settings,
    }  # fmt: skip
    key = values.pop("key", KEY)
    # Resolved, as the flows pass it: the key itself in place of its reference.
    return OpenAIImagesEmbedder(kind="openai_images", **values).model_copy(update={"api_key": key})


def embedder(server: OpenAIServer, clock: JumpingClock | None = None, **settings: Any) -> OpenAIImages:
    return OpenAIImages(config(server, **settings), clock or JumpingClock())


def gathered(answers: Iterator[Answer]) -> tuple[dict[int, Vectors], dict[int, RowError], int]:
    """Vectors and rejects by position, each position once, and transactions."""
    vectors: dict[int, Vectors] = {}
    rejected: dict[int, RowError] = {}
    transactions = 0
    for answer in answers:
        found = dense(answer.vectors)
        assert found.shape == (len(answer.positions), DIMENSIONS)
        for position, row in zip(answer.positions.tolist(), found, strict=True):
            assert position not in vectors
            vectors[position] = row
        assert not rejected.keys() & answer.rejected.keys()
        rejected |= answer.rejected
        transactions += answer.billed
    assert not vectors.keys() & rejected.keys()
    return vectors, rejected, transactions


def expected(content: bytes) -> Vectors:
    """The vector that the server gives for an image."""
    return vector(MODEL, meant(content), DIMENSIONS)


# Requests


@pytest.mark.parametrize(("form", "inputs"), [("messages", 1), ("input", 3)])
def test_vectors_belong_to_their_images(form: str, inputs: int) -> None:
    with serve() as server:
        opened = embedder(server, form=form, concurrency=4, max_batch_inputs=3)
        vectors, rejected, transactions = gathered(opened.embed_images(image(i) for i in range(20)))
    assert sorted(vectors) == list(range(20))
    for i, row in vectors.items():
        np.testing.assert_array_equal(row, expected(png(i)))
    assert not rejected
    assert transactions == 20
    assert {len(request.texts) for request in server.requests} <= {inputs, 20 % inputs}
    assert {request.key for request in server.requests} == {KEY}


def test_messages_are_as_vllm_documents_them() -> None:
    wording = RequestTemplate(model="m", form="messages", instruction="Represent the given image.", system="Be exact.")
    assert body(wording, [png(1)], 8) == {
        "model": "m",
        "dimensions": 8,
        "encoding_format": "float",
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be exact."}]},
            {
                "role": "user",
                "content": [
                    {
                        "type": "image_url",
                        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png(1)).decode()}"},
                    },
                    {"type": "text", "text": "Represent the given image."},
                ],
            },
        ],
    }
    opened = RequestTemplate(model="m", form="messages", instruction="no part of a text", query="Query: {text}")
    assert body(opened, ["a cat {text}"], None) == {
        "model": "m",
        "encoding_format": "float",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Query: a cat {text}"}]}],
    }


def test_input_objects_are_as_jina_documents_them() -> None:
    wording = RequestTemplate(
        model="m", form="input", extra={"task": "retrieval.passage", "normalized": True},
        query_extra={"task": "retrieval.query"},
    )  # fmt: skip
    assert body(wording, [png(1), png(2)], 8) == {
        "model": "m",
        "dimensions": 8,
        "task": "retrieval.passage",
        "normalized": True,
        "input": [{"image": base64.b64encode(png(number)).decode()} for number in (1, 2)],
    }
    assert body(wording, ["a cat"], None) == {
        "model": "m",
        "task": "retrieval.query",
        "normalized": True,
        "input": [{"text": "a cat"}],
    }


@given(
    contents=st.lists(st.binary(max_size=40).map(lambda tail: b"\x89PNG" + tail), min_size=1, max_size=4)
    | st.lists(st.text(min_size=1).filter(str.isascii), min_size=1, max_size=4),
    form=st.sampled_from(["messages", "input"]),
)
def test_what_is_sent_can_be_read_back(contents: list[bytes | str], form: Any) -> None:
    if form == "messages":
        contents = contents[:1]
    sent = json.loads(json.dumps(body(RequestTemplate(model="m", form=form), contents, 8)))
    assert inputs_of(sent, {}) == [one if isinstance(one, str) else meant(one) for one in contents]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "ICO"])
def test_the_data_url_says_what_an_image_is_by_its_bytes(kind: str) -> None:
    out = io.BytesIO()
    pillow.new("RGB", (16, 16)).save(out, kind)
    assert media_type_of(out.getvalue()) == {"ICO": "image/x-icon"}.get(kind, f"image/{kind.lower()}")
    assert media_type_of(b"else") == "application/octet-stream"


def test_without_a_key_none_is_sent() -> None:
    with serve(key=None) as server:
        assert gathered(embedder(server, key=None).embed_images([image(1)]))[2] == 1
    assert server.requests[0].key == ""


def test_a_text_finds_the_image_that_shows_it() -> None:
    with serve() as server:
        server.shows[hashlib.sha256(png(3)).hexdigest()] = "a red circle"
        query = dense(embed_query(open_embedder(config(server)), "a red circle"))
        vectors, _, _ = gathered(embedder(server).embed_images([image(1), image(3)]))
        by_image = dense(embed_image_query(open_image_embedder(config(server)), image(7)))
    np.testing.assert_array_equal(vectors[1], query)
    assert abs(float(vectors[0] @ query)) < 0.6
    np.testing.assert_array_equal(by_image, expected(png(7)))


def test_the_identity_depends_on_the_template_of_images_and_not_of_queries() -> None:
    with serve() as server:
        plain = embedder(server)
        ways: list[dict[str, Any]] = [
            {"instruction": "Represent it."},
            {"system": "Be exact."},
            {"extra": {"task": "a"}},
            {"form": "input"},
            {"dimensions": 16},
        ]
        others = [embedder(server, **way) for way in ways]
        assert len({one.identity for one in [plain, *others]}) == 6
        same: list[dict[str, Any]] = [
            {"query": "Query: {text}"},
            {"query_extra": {"a": 1}},
            {"base_url": "http://b/v1"},
        ]
        assert {embedder(server, **way).identity for way in same} == {plain.identity}
        with_words = gathered(others[0].embed_images([image(1)]))[0][0]
        assert not np.array_equal(with_words, expected(png(1)))


def test_dimensions_are_not_sent_again_if_the_model_has_only_one_length() -> None:
    with serve(dimensions_field=False, native=DIMENSIONS) as server:
        vectors, _, _ = gathered(embedder(server).embed_images(image(i) for i in range(4)))
    assert len(vectors) == 4
    assert [request.dimensions for request in server.requests] == [DIMENSIONS, None, None, None, None]


# Failures


@pytest.mark.parametrize("form", ["messages", "input"])
def test_a_bad_image_is_rejected_alone(form: str) -> None:
    with serve() as server:
        images = [image(i, b"no image" if i == 5 else None) for i in range(9)]
        vectors, rejected, transactions = gathered(embedder(server, form=form).embed_images(images))
    assert sorted(vectors) == [0, 1, 2, 3, 4, 6, 7, 8]
    assert transactions == 8
    assert rejected[5].reason == "invalid_input"
    assert rejected[5].detail == "5.png: cannot identify image file"


def test_the_first_image_may_be_the_bad_one() -> None:
    with serve() as server:
        vectors, rejected, _ = gathered(embedder(server).embed_images([image(0, b"no image"), image(1)]))
    assert (list(vectors), list(rejected)) == ([1], [0])


def test_an_unreadable_image_is_rejected_alone_and_a_lost_store_ends_the_run() -> None:
    def unreadable() -> bytes:
        raise RowError("unreadable", "gone")

    def lost() -> bytes:
        raise SourceError("the store is gone")

    with serve() as server:
        gone = Image(name="gone.png", media_type="image/png", read=unreadable)
        images = [gone, image(1), image(2)]
        vectors, rejected, _ = gathered(embedder(server, form="input").embed_images(images))
        assert sorted(vectors) == [1, 2]
        assert rejected[0].detail == "gone.png: gone"
        with pytest.raises(SourceError, match="the store is gone"):
            list(embedder(server).embed_images([Image(name="lost.png", media_type="image/png", read=lost)]))


@pytest.mark.parametrize("message", ["Image dimensions 10x10 are not supported", "unsupported dimensions: 10x10"])
def test_an_image_whose_own_dimensions_are_refused_is_rejected_alone(message: str) -> None:
    fault = Fault(status=400, message=message, times=-1, marker=meant(png(1)))
    with serve(faults=[fault], dimensions_field=True, native=DIMENSIONS) as server:
        vectors, rejected, _ = gathered(embedder(server).embed_images(image(i) for i in range(3)))
    assert sorted(vectors) == [0, 2]
    assert rejected[1].detail == f"1.png: {message}"


def test_an_image_that_the_server_finds_too_large_is_called_so() -> None:
    too_large = Fault(status=413, message="Request Entity Too Large", times=-1, marker=meant(png(1)))
    with serve(faults=[too_large]) as server:
        vectors, rejected, _ = gathered(embedder(server).embed_images([image(0), image(1)]))
    assert list(vectors) == [0]
    assert rejected[1].reason == "image_too_large"


@pytest.mark.parametrize(
    "fault",
    [
        failing(500),
        failing(503),
        failing(408),
        rate_limited(1),
        *(Fault(shape=shape) for shape in ("html", "cut", "junk", "short", "empty", "wrong_dimensions")),
        *(Fault(spoil=spoil) for spoil in ("nan", "inf", "zero", "null")),
    ],
    ids=lambda fault: fault.shape or fault.spoil or str(fault.status),
)
def test_temporary_failures_are_retried(fault: Fault) -> None:
    with serve(faults=[fault]) as server:
        vectors, rejected, _ = gathered(embedder(server).embed_images([image(1)]))
    np.testing.assert_array_equal(vectors[0], expected(png(1)))
    assert not rejected
    assert len(server.requests) == 2


def test_a_429_makes_all_threads_wait_as_long_as_it_asks() -> None:
    clock = JumpingClock()
    with serve(faults=[rate_limited(7, times=2)]) as server:
        vectors, _, _ = gathered(embedder(server, clock).embed_images(image(i) for i in range(5)))
    assert len(vectors) == 5
    assert sum(wait >= 6.9 for wait in clock.waits) == 2


def test_the_limit_of_requests_per_minute_is_kept() -> None:
    clock = JumpingClock()
    with serve() as server:
        list(embedder(server, clock, requests_per_minute=60).embed_images(image(i) for i in range(21)))
    # 20 gaps of a second, plus the headroom.
    assert clock.time == pytest.approx(20 / 0.97, rel=0.01)


def test_a_connection_that_hangs_is_given_up() -> None:
    with serve(faults=[Fault(shape="hang", seconds=1.0)]) as server:
        vectors, _, _ = gathered(embedder(server, timeout_seconds=0.2).embed_images([image(1)]))
    assert list(vectors) == [0]


def test_a_server_that_is_not_there_is_named_by_its_address() -> None:
    with serve() as server:
        settings = config(server, max_attempts=2)
    with pytest.raises(EmbedderUnavailable, match=r"at 127\.0\.0\.1 does not answer: ConnectError"):
        list(OpenAIImages(settings, JumpingClock()).embed_images([image(1)]))


def test_an_unusable_vector_is_rejected_and_its_transactions_are_counted() -> None:
    with serve(faults=[Fault(spoil="zero", times=-1, marker=meant(png(1)))]) as server:
        vectors, rejected, transactions = gathered(embedder(server).embed_images([image(1), image(2)]))
    assert list(vectors) == [1]
    assert rejected[0].detail == "1.png: the vector is zero, 3 times"
    assert transactions == 4


@pytest.mark.parametrize(
    ("settings", "faults", "error", "message"),
    [
        ({"key": "wrong"}, [], EmbedderRefused, "does not accept the key"),
        ({"key": None}, [], EmbedderRefused, "does not accept the key"),
        ({}, [Fault(status=404, code=404, message="no such model", times=-1)], EmbedderRefused, "no model clip"),
        ({}, [Fault(shape="wrong_dimensions", times=-1)], EmbedderRefused, "set embedder.dimensions to 33"),
        ({}, [Fault(status=400, message="no chat template", times=-1)], EmbedderRefused, "every image: no chat temp"),
        ({}, [quota()], QuotaExhausted, "no quota left"),
        ({}, [Fault(status=403, code="AUTHZ_INSUFFICIENT_BALANCE", times=-1)], QuotaExhausted, "no quota left"),
        ({"max_attempts": 3}, [rate_limited(times=-1)], RateLimited, "slower pace"),
        # vLLM's codes are numbers.
        ({"max_attempts": 3}, [Fault(status=429, code=429, times=-1)], RateLimited, "slower pace"),
    ],
    ids=["key", "no key", "model", "dimensions", "all refused", "quota", "balance", "rate", "rate by number"],
)
def test_permanent_failures_end_the_run(
    settings: dict[str, Any], faults: list[Fault], error: type[Exception], message: str
) -> None:
    with serve(faults=faults) as server, pytest.raises(error, match=message) as raised:
        list(embedder(server, **settings).embed_images([image(1), image(2)]))
    shown = "".join(traceback.format_exception(raised.value))
    assert KEY not in shown
    assert len(server.requests) <= 4


def test_another_model_s_answer_is_refused() -> None:
    with serve() as server:
        opened = embedder(server)
        list(opened.embed_images([image(1)]))
        server.answers_as = "another"
        with pytest.raises(EmbedderRefused, match="answer is by another, not clip"):
            list(opened.embed_images([image(2)]))


@pytest.mark.parametrize(
    ("status", "sent", "kind", "sentence"),
    [
        (400, {"error": {"message": "bad image", "type": "BadRequestError", "code": 400}}, RowError, "bad image"),
        (400, {"object": "error", "message": "bad image", "param": None, "code": 400}, RowError, "bad image"),
        (422, {"detail": "bad image"}, RowError, "bad image"),
        (
            422,
            {"detail": [{"loc": ["body", "task"], "msg": "Extra inputs are not permitted"}]},
            RowError,
            "task: Extra inputs are not permitted",
        ),
        (401, {"error": "Unauthorized"}, EmbedderRefused, "Unauthorized"),
        (403, {"code": "AUTHZ_INSUFFICIENT_BALANCE", "message": "top up"}, QuotaExhausted, "top up"),
        (502, "<html>Bad Gateway</html>", EmbedderUnavailable, "502"),
        (400, ["sk-secret-key-of-mine"], RowError, "refused with 400"),
        (400, {"error": {"message": "you sent Bearer THEKEY\0\n"}}, RowError, "you sent Bearer ***"),
    ],
)
def test_a_refusal_is_understood_in_every_form(status: int, sent: object, kind: type[Exception], sentence: str) -> None:
    content = sent.encode() if isinstance(sent, str) else json.dumps(sent).encode()
    refused = refusal_in(status, content, httpx.Headers(), secret="THEKEY")  # noqa: S106 # not a secret
    error = meaning(refused, model="m", address="host")
    assert isinstance(error, kind)
    assert sentence in (error.detail if isinstance(error, RowError) else str(error))


@given(content=st.binary(max_size=60) | st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["error", "detail", "message", "code", "loc", "msg"]), inner, max_size=4),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_refusal_can_be_read(content: bytes) -> None:
    meaning(refusal_in(400, content, httpx.Headers(), secret=""), model="m", address="host")


# Memory, pace and settings


def test_images_are_read_only_when_it_is_their_turn() -> None:
    drawn, read = list[int](), list[int]()

    def images() -> Iterator[Image]:
        for i in range(100):
            drawn.append(i)
            yield Image(name=f"{i}", media_type="image/png", read=lambda i=i: (read.append(i), png(i))[1])

    with serve() as server:
        answers = iter(embedder(server, concurrency=2, form="input", max_batch_inputs=2).embed_images(images()))
        next(answers)
        assert len(drawn) <= 8
        assert len(read) <= 8
        assert sum(1 for _ in answers) == 49


def test_a_request_is_sent_before_its_images_are_many_bytes() -> None:
    large = b"\x89PNG" + bytes(5 << 20)
    with serve() as server:
        images = [image(i, large + bytes([i])) for i in range(5)]
        vectors, _, _ = gathered(embedder(server, form="input").embed_images(images))
    assert len(vectors) == 5
    assert [len(request.texts) for request in server.requests] == [2, 2, 1]


def test_concurrency_is_a_limit_and_is_reached() -> None:
    with serve(latency=0.02) as server:
        list(embedder(server, concurrency=4).embed_images(image(i) for i in range(24)))
    assert server.most_at_once == 4


def test_plan_and_bill() -> None:
    with serve() as server:
        opened = embedder(server, cost_per_thousand_transactions=0.1)
        vectors, rejected, _ = gathered(opened.embed(["a", "b\0", "c"]))
    assert sorted(vectors) == [0, 2]
    assert rejected[1].reason == "invalid_input"
    assert opened.paid
    assert opened.count_tokens(["sha256:00"] * 5000) == 5000
    assert opened.cost(5000) == pytest.approx(0.5)
    assert embedder(server).cost(5000) == 0
    assert str(opened.identity) == "openai_images clip with 32 dimensions"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"api_key": "0123456789abcdef"}, "plain text"),
        ({"base_url": "https://me:secret@host"}, "plain text"),
        ({"query": "no place"}, r"no \{text\} in it"),
        ({"extra": {"input": "x"}}, "input is a field that rowvec writes itself"),
        ({"query_extra": {"model": "x"}}, "model is a field that rowvec writes itself"),
        ({"form": "input", "instruction": "x"}, "with form: input leave them out"),
        ({"form": "chat"}, "'messages' or 'input'"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OpenAIImagesEmbedder.model_validate(
            {"kind": "openai_images", "model": "m", "dimensions": 8, "base_url": "https://host/v1", **settings}
        )


def test_an_address_that_is_not_one_is_refused() -> None:
    settings = OpenAIImagesEmbedder(kind="openai_images", model="m", dimensions=8, base_url="host")
    for url in ("host", None, "http://[::1/v1", "http://host:port/v1", "http://me:pass/word@host/v1"):
        with pytest.raises(UsageError, match=r"embedder\.base_url is no web address") as refused:
            OpenAIImages(settings.model_copy(update={"base_url": url}))
        assert "pass" not in "".join(traceback.format_exception(refused.value))


# Whole syncs


def pipeline(folder: Path, server: OpenAIServer, **settings: Any) -> Pipeline:
    """A folder of images, embedded by the server."""
    return Pipeline.model_validate(
        {
            "name": "drawn",
            "source": {
                "kind": "images",
                "path": str(folder / "drawn"),
                "key": ["image_file"],
                "content": {"image": "image_file"},
            },
            "embedder": {
                "kind": "openai_images",
                "model": MODEL,
                "dimensions": DIMENSIONS,
                "base_url": server.url,
                "api_key": "${IMAGES_KEY}",
                **settings,
            },
            "target": {"table": "vectors.drawn"},
            "artifacts": {"url": str(folder / "artifacts")},
        }
    )


@pytest.mark.parametrize("form", ["messages", "input"])
def test_a_folder_is_kept_in_step_and_searched_by_text_and_image(
    source: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    del source
    monkeypatch.setenv("IMAGES_KEY", KEY)
    files = fill(tmp_path / "drawn", 24)
    with serve() as server:
        wanted = pipeline(tmp_path, server, form=form, cost_per_thousand_transactions=0.1)
        server.shows[hashlib.sha256(files[3].read_bytes()).hexdigest()] = "a lighthouse"
        assert plan(wanted).tokens == 24
        report = sync(wanted)
        assert report.consistent
        assert (report.embedded, report.tokens) == (24, 24)
        assert report.cost_usd == pytest.approx(0.0024)
        # One image is replaced, one renamed, one deleted: only the replaced one is billed.
        save(900, files[0])
        files[1].rename(files[1].with_stem("renamed"))
        files[2].unlink()
        again = sync(wanted)
        assert again.consistent
        assert (again.embedded, again.reused, again.deleted) == (1, 1, 2)
        assert set(server.paid.values()) == {1}
        (best, *_) = [hit.as_json() for hit in search(wanted, "a lighthouse", 3)]
        assert (best["image_file"], round(best["distance"], 5)) == (
            files[3].relative_to(tmp_path / "drawn").as_posix(),
            0,
        )
        (best, *_) = [hit.as_json() for hit in search(wanted, files[7], 3)]
        assert best["image_file"] == files[7].relative_to(tmp_path / "drawn").as_posix()
        another = pipeline(tmp_path, server, form=form, extra={"task": "another"})
        with pytest.raises(UsageError, match="asks for the same model with other preprocessing: rowvec rebuild"):
            sync(another)


@pytest.mark.usefixtures("source")
def test_a_budget_ends_the_run_and_what_was_paid_for_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGES_KEY", KEY)
    fill(tmp_path / "drawn", 12)
    with serve() as server:
        with pytest.raises(UsageError, match=r"set embedder\.cost_per_thousand_transactions"):
            sync(pipeline(tmp_path, server, budget={"per_run": 1.0}))
        poor = pipeline(tmp_path, server, cost_per_thousand_transactions=1.0, budget={"per_run": 0.005})
        with pytest.raises(BudgetExceeded):
            sync(poor)
        assert sync(pipeline(tmp_path, server)).embedded == 7
        assert sum(server.paid.values()) == 12
