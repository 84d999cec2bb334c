"""The kind litellm: the real library against a server that speaks the protocols of three providers, and fails."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest

from rowvec.embedders import embed_query, litellm_model, open_embedder
from rowvec.embedders.conformance import check_embedder
from rowvec.embedders.litellm_model import LitellmModel
from rowvec.embedders.text_requests import PaidTextRequests
from rowvec.errors import (
    EmbedderRefused,
    EmbedderUnavailable,
    QuotaExhausted,
    RateLimited,
    RowError,
    RowvecError,
    UsageError,
)
from rowvec.pipeline.embedders import LitellmEmbedder
from rowvec.vectors.layout import dense
from tests.support.fake_clock import JumpingClock
from tests.support.servers.litellm_providers import ProvidersServer, serve
from tests.support.servers.openai_server import KEY, Fault, failing, rate_limited, vector

TEXTS = [f"the text of row {i}" for i in range(10)]

# See ``litellm_model``: pytest resets the filter that it sets.
pytestmark = pytest.mark.filterwarnings("ignore:.* is using the `ReadOnly` qualifier:UserWarning")

MODELS = {
    "cohere/embed-v4.0": "/v2/embed",
    "ollama/nomic-embed-text": "",
    "openai/text-embedding-3-small": "/v1",
}


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    """litellm, imported while no connection can be made."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("litellm asks the network while it is imported")

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        litellm_model._library()  # pyright: ignore[reportPrivateUsage] # as the first text does


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def server() -> Generator[ProvidersServer]:
    with serve(native=32) as opened:
        yield opened


def part(server: ProvidersServer, model: str, **settings: Any) -> LitellmEmbedder:
    """Resolved, as the flows pass it: the key itself in place of its reference."""
    values: dict[str, Any] = {"dimensions": 32, "base_url": server.origin + MODELS[model], "concurrency": 1, **settings}
    return LitellmEmbedder(kind="litellm", model=model, **values).model_copy(
        update={"api_key": settings.get("key", KEY)}
    )


def embedder(server: ProvidersServer, model: str, **settings: Any) -> PaidTextRequests:
    config = part(server, model, **settings)
    return PaidTextRequests(config, LitellmModel(config), JumpingClock())


def outcome(opened: PaidTextRequests, texts: list[str]) -> tuple[dict[int, Any], dict[int, RowError]]:
    """Vector by position, error by position."""
    vectors: dict[int, Any] = {}
    rejected: dict[int, RowError] = {}
    for answer in opened.embed(texts):
        vectors |= dict(zip(answer.positions.tolist(), dense(answer.vectors), strict=True))
        rejected |= answer.rejected
    assert sorted([*vectors, *rejected]) == list(range(len(texts)))
    return vectors, rejected


def test_vectors_belong_to_their_texts(server: ProvidersServer, model: str) -> None:
    opened = embedder(server, model, max_batch_inputs=4, document_prefix="d: ")
    answers = list(opened.embed(TEXTS))
    found = {i: row for a in answers for i, row in zip(a.positions.tolist(), dense(a.vectors), strict=True)}
    for i, text in enumerate(TEXTS):
        np.testing.assert_allclose(found[i], vector(model.partition("/")[2], f"d: {text}", 32), rtol=1e-6)
    assert {len(request.texts) for request in server.requests} == {4, 2}
    assert {request.key for request in server.requests} <= {KEY, f"bearer {KEY}"}
    assert sum(answer.billed for answer in answers) == server.tokens_billed == opened.count_tokens(TEXTS)


def test_texts_are_never_cut_and_queries_are_told_apart(server: ProvidersServer, model: str) -> None:
    opened = embedder(server, model, query_prefix="q: ", query_extra={"user": "searcher"} if "openai" in model else {})
    outcome(opened, TEXTS[:1])
    embed_query(opened, "a query")
    document, query = server.bodies
    assert server.texts[1] == "q: a query"
    if model.startswith("cohere"):
        assert (document["truncate"], document["input_type"], query["input_type"]) == (
            "NONE",
            "search_document",
            "search_query",
        )
    elif model.startswith("ollama"):
        assert document["truncate"] is False
    else:
        assert "user" not in document
        assert query["user"] == "searcher"


def test_retries_are_ours_and_wait_as_long_as_the_server_says(server: ProvidersServer, model: str) -> None:
    server.add(rate_limited(7), failing(503), Fault(shape="short"), Fault(shape="cut"))
    opened = embedder(server, model)
    clock = opened._clock  # pyright: ignore[reportPrivateUsage] # the test's own
    before = clock.now()
    vectors, rejected = outcome(opened, TEXTS)
    assert (len(vectors), rejected) == (10, {})
    assert len(server.requests) == 5, "one request each, no second one by litellm"
    assert clock.now() - before >= 7


@pytest.mark.parametrize(
    ("fault", "error", "sentence"),
    [
        (
            Fault(status=401, code="invalid_api_key", message=f"Incorrect API key: {KEY}.", times=-1),
            EmbedderRefused,
            "key",
        ),
        (Fault(status=404, message="model not found", times=-1), EmbedderRefused, "there is no model"),
        (Fault(status=402, message="no credit", times=-1), QuotaExhausted, "no quota left"),
        (rate_limited(5000, times=-1), RateLimited, "slower pace"),
        (failing(500, times=-1), EmbedderUnavailable, "answered 50[03]"),
        (Fault(shape="wrong_dimensions", times=-1), EmbedderRefused, "33 dimensions, and the pipeline wants 32"),
    ],
)
def test_refusals_have_the_branch_of_their_status(
    server: ProvidersServer, model: str, fault: Fault, error: type[RowvecError], sentence: str
) -> None:
    server.add(fault)
    with pytest.raises(error, match=sentence) as raised:
        outcome(embedder(server, model, max_attempts=2), TEXTS)
    assert KEY not in "".join(traceback.format_exception(raised.value))
    assert len(server.requests) <= 3


def test_a_text_that_the_provider_refuses_is_rejected_alone(server: ProvidersServer, model: str) -> None:
    server.poison = "row 3"
    vectors, rejected = outcome(embedder(server, model), TEXTS)
    assert rejected.keys() == {3}
    assert len(vectors) == 9


def test_a_text_that_is_too_long_for_the_model_is_rejected_alone(server: ProvidersServer, model: str) -> None:
    texts = [*TEXTS[:3], "long " * 9000]
    vectors, rejected = outcome(embedder(server, model, max_input_tokens=20_000), texts)
    assert (sorted(vectors), rejected[3].reason) == ([0, 1, 2], "too_long")
    # Beyond our own limit it is not even sent.
    sent = len(server.requests)
    _, rejected = outcome(embedder(server, model, max_input_tokens=100), texts[3:])
    assert (rejected[0].reason, len(server.requests)) == ("too_long", sent)


def test_a_vector_with_nan_or_nothing_in_it_is_rejected(server: ProvidersServer) -> None:
    server.add(Fault(spoil="nan", marker="row 2", times=-1), Fault(spoil="zero", marker="row 5", times=-1))
    _, rejected = outcome(embedder(server, "ollama/nomic-embed-text", max_batch_inputs=1), TEXTS)
    assert {position: error.reason for position, error in rejected.items()} == dict.fromkeys((2, 5), "invalid_vector")


@pytest.mark.parametrize("shape", ["hang", "drip"])
def test_a_request_ends_by_its_deadline(server: ProvidersServer, model: str, shape: Any) -> None:
    server.add(Fault(shape=shape, seconds=0.3 if shape == "drip" else 3.0, times=-1))
    opened = embedder(server, model, timeout_seconds=0.6, max_attempts=1)
    opened._model.embed(["warm"], "document")  # pyright: ignore[reportPrivateUsage] # the import is no part of it
    started = time.monotonic()
    with pytest.raises(EmbedderUnavailable, match="does not answer"):
        outcome(opened, TEXTS)
    assert time.monotonic() - started < 3


def test_it_passes_the_conformance_test(server: ProvidersServer) -> None:
    config = part(server, "ollama/nomic-embed-text")
    check_embedder(
        config, part(server, "ollama/nomic-embed-text", query_extra={"keep_alive": "1m"}), refused="x " * 9000
    )


def test_prices_are_those_of_litellms_list_and_else_unknown(server: ProvidersServer) -> None:
    assert embedder(server, "cohere/embed-v4.0").cost(1_000_000) == pytest.approx(0.12)
    assert embedder(server, "ollama/nomic-embed-text").cost(1_000_000) == 0
    assert embedder(server, "cohere/embed-v4.0", cost_per_million_tokens=3).cost(1_000_000) == 3


def test_identity_has_the_fields_that_change_vectors(server: ProvidersServer) -> None:
    plain = embedder(server, "cohere/embed-v4.0").identity
    assert (plain.provider, plain.model, plain.preprocessing) == ("litellm", "cohere/embed-v4.0", 1)
    assert embedder(server, "cohere/embed-v4.0", query_extra={"a": 1}, concurrency=3).identity == plain
    assert embedder(server, "cohere/embed-v4.0", extra={"input_type": "clustering"}).identity != plain


def test_opening_and_pricing_do_not_import_litellm() -> None:
    program = """
import sys
from rowvec.embedders import open_embedder
from rowvec.pipeline.embedders import LitellmEmbedder
opened = open_embedder(LitellmEmbedder(kind="litellm", model="cohere/embed-v4.0", dimensions=8))
print(opened.identity, opened.cost(1), "litellm" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)  # noqa: S603 # ours
    assert done.stdout == "litellm cohere/embed-v4.0 with 8 dimensions 1.2e-07 False\n", done.stderr


def test_without_the_extra_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: str) -> None:
        return None

    monkeypatch.setattr("rowvec.embedders.litellm_model.find_spec", nothing)
    with pytest.raises(UsageError, match=r"pip install 'rowvec\[litellm\]'"):
        open_embedder(LitellmEmbedder(kind="litellm", model="cohere/embed-v4.0", dimensions=8))
