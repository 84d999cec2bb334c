"""The OpenAI embedder over real HTTP against a server that fails in all the ways providers do."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from collections import Counter
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rowvec.embedders import embed_query, open_embedder
from rowvec.embedders.openai.texts import OpenAIApi
from rowvec.embedders.protocol import Answer
from rowvec.embedders.rate_limit.limiter import LONGEST_REST
from rowvec.errors import (
    EmbedderRefused,
    EmbedderUnavailable,
    FatalError,
    QuotaExhausted,
    RateLimited,
    RowError,
    RowvecError,
    SourceError,
    UsageError,
)
from rowvec.pipeline.embedders import AzureOpenAIEmbedder, OpenAIEmbedder
from rowvec.vectors.layout import Vectors, dense
from tests.support.fake_clock import JumpingClock
from tests.support.servers.openai_server import (
    KEY,
    Fault,
    OpenAIServer,
    Request,
    failing,
    quota,
    rate_limited,
    serve,
    slow_down,
    vector,
)
from tests.support.waiting import wait_for

SMALL = "text-embedding-3-small"
ADA = "text-embedding-ada-002"
TEXTS = [f"the text of row {i}" for i in range(100)]


def _config(server: OpenAIServer, key: str = KEY, **settings: Any) -> OpenAIEmbedder:
    values: dict[str, Any] = {"model": SMALL, "dimensions": 32, "base_url": server.url, "concurrency": 1, **settings}
    # Resolved, as the flows pass it: the key itself in place of its reference.
    return OpenAIEmbedder(kind="openai", **values).model_copy(update={"api_key": key})


def _embedder(server: OpenAIServer, *, clock: JumpingClock | None = None, **settings: Any) -> OpenAIApi:
    return OpenAIApi(_config(server, **settings), clock or JumpingClock())


def _positions(answers: Iterator[Answer], received: list[int]) -> None:
    for answer in answers:
        received += answer.positions.tolist()


def _vectors(answers: Iterator[Answer], dimensions: int = 32) -> tuple[dict[int, Vectors], dict[int, RowError]]:
    """Vector by position, error by position; each position once."""
    vectors: dict[int, Vectors] = {}
    rejected: dict[int, RowError] = {}
    for answer in answers:
        found = dense(answer.vectors)
        assert found.shape == (len(answer.positions), dimensions)
        assert found.dtype == np.float32
        for position, row in zip(answer.positions.tolist(), found, strict=True):
            assert position not in vectors
            vectors[position] = row
        assert not rejected.keys() & answer.rejected.keys()
        rejected |= answer.rejected
    assert not vectors.keys() & rejected.keys()
    return vectors, rejected


def _assert_right(vectors: dict[int, Vectors], texts: list[str], but: Set[int] = frozenset()) -> None:
    assert vectors.keys() == set(range(len(texts))) - but
    for position, row in vectors.items():
        np.testing.assert_array_equal(row, vector(SMALL, texts[position], len(row)))


# Correct answers


@pytest.mark.parametrize("floats", [False, True])
def test_vectors_belong_to_their_texts(floats: bool) -> None:
    with serve(floats=floats) as server:
        vectors, rejected = _vectors(_embedder(server, max_batch_inputs=7, concurrency=4).embed(TEXTS))
    _assert_right(vectors, TEXTS)
    assert not rejected
    assert set(server.sent.values()) == {1}
    assert all(len(request.texts) <= 7 for request in server.requests)
    assert {request.encoding_format for request in server.requests} == {"base64"}


def test_tokens_are_those_the_provider_bills() -> None:
    with serve() as server:
        embedder = _embedder(server, max_batch_tokens=50, max_input_tokens=50)
        billed = sum(answer.billed for answer in embedder.embed(TEXTS))
    assert billed == server.tokens_billed == embedder.count_tokens(TEXTS)
    assert embedder.cost(1_000_000) == pytest.approx(0.02)


def test_texts_are_read_lazily_and_requests_bounded() -> None:
    drawn = 0

    def texts() -> Iterator[str]:
        nonlocal drawn
        for i in range(1000):
            drawn += 1
            yield f"text {i}"

    with serve(latency=0.01) as server:
        answers = _embedder(server, max_batch_inputs=5, concurrency=3).embed(texts())
        received = 0
        for answer in answers:
            received += len(answer.positions)
            assert drawn <= received + 3 * 5 + 1
    assert received == 1000
    assert 1 < server.most_at_once <= 3


def test_shuffled_answers_are_put_in_order() -> None:
    with serve(faults=[Fault(shape="shuffled", times=-1)]) as server:
        vectors, _ = _vectors(_embedder(server).embed(TEXTS))
    _assert_right(vectors, TEXTS)
    assert len(server.requests) == 1


def test_dimensions_are_sent_only_if_the_model_knows_them() -> None:
    with serve(key=None) as server:
        _vectors(_embedder(server, model=ADA, dimensions=1536).embed(TEXTS), 1536)
        _vectors(_embedder(server).embed(TEXTS))
    assert [request.dimensions for request in server.requests] == [None, 32]


def test_a_compatible_server_that_cannot_shorten_is_asked_once_with_dimensions() -> None:
    with serve(dimensions_field=False, native=32) as server:
        embedder = _embedder(server, model="nomic-embed-text", max_batch_inputs=10)
        vectors, _ = _vectors(embedder.embed(TEXTS))
        _vectors(embedder.embed(TEXTS))
    assert len(vectors) == 100
    assert [request.dimensions for request in server.requests] == [32] + [None] * 20
    assert set(server.paid.values()) == {2}


@pytest.mark.parametrize(("model", "dimensions"), [(ADA, 256), (SMALL, 1537), ("text-embedding-3-large", 3073)])
def test_dimensions_no_model_has_are_refused_before_anything_is_sent(model: str, dimensions: int) -> None:
    with serve() as server, pytest.raises(UsageError, match="dimensions"):
        _embedder(server, model=model, dimensions=dimensions)


def test_azure_speaks_to_the_deployment() -> None:
    with serve() as server:
        config = AzureOpenAIEmbedder(kind="azure_openai", model="my-deployment", dimensions=32, base_url=server.origin)
        embedder = open_embedder(config.model_copy(update={"api_key": KEY}))
        assert embedder.identity.provider == "azure_openai"
        vectors, _ = _vectors(embedder.embed(TEXTS))
    assert len(vectors) == 100
    assert {request.path for request in server.requests} == {"/openai/deployments/my-deployment/embeddings"}
    assert {request.key for request in server.requests} == {KEY}


# Texts that cannot be sent


def test_texts_no_embedder_can_take_are_rejected_unsent() -> None:
    texts = ["one", "half a \ud800 pair", "nul \0", "two <|endoftext|>", "word " * 60]
    with serve() as server:
        vectors, rejected = _vectors(_embedder(server, max_input_tokens=50).embed(texts))
    assert vectors.keys() == {0, 3}
    assert {position: error.reason for position, error in rejected.items()} == {
        1: "invalid_input",
        2: "invalid_input",
        4: "too_long",
    }
    assert server.texts == ["one", "two <|endoftext|>"]


def test_a_stream_of_nothing_but_rejects_is_reported() -> None:
    with serve() as server:
        vectors, rejected = _vectors(_embedder(server, max_input_tokens=5).embed(["word " * 60] * 3))
    assert not vectors
    assert rejected.keys() == {0, 1, 2}
    assert not server.requests


def test_a_long_text_is_cut_if_the_pipeline_says_so() -> None:
    with serve() as server:
        embedder = _embedder(server, max_input_tokens=50, on_too_long="truncate")
        vectors, rejected = _vectors(embedder.embed(["word " * 60]))
    assert vectors.keys() == {0}
    assert not rejected
    assert server.tokens_billed == 50 == embedder.count_tokens(["word " * 60])


def test_a_poisoned_text_is_found_and_the_others_are_embedded() -> None:
    texts = [*TEXTS[:63], "POISON", *TEXTS[63:]]
    with serve(poison="POISON") as server:
        vectors, rejected = _vectors(_embedder(server).embed(texts))
    _assert_right(vectors, texts, but={63})
    assert rejected[63].reason == "invalid_input"
    assert set(server.paid.values()) == {1}, "nobody is embedded twice"
    assert len(server.requests) <= 2 * 7 + 1, "one request for each half on the way to the text"


def test_many_poisoned_texts_are_all_found() -> None:
    bad = {3, 4, 50, 99}
    texts = [f"POISON {i}" if i in bad else text for i, text in enumerate(TEXTS)]
    with serve(poison="POISON") as server:
        vectors, rejected = _vectors(_embedder(server, max_batch_inputs=20, concurrency=4).embed(texts))
    _assert_right(vectors, texts, but=bad)
    assert rejected.keys() == bad


def test_a_server_that_refuses_every_text_stops_the_run() -> None:
    refusing = Fault(status=400, message="no embeddings here", times=-1)
    with serve(faults=[refusing]) as server, pytest.raises(EmbedderRefused, match="every text: no embeddings here"):
        _vectors(_embedder(server).embed(TEXTS))
    assert len(server.requests) < 12, "not each text of the batch was tried"


# Unusable answers


@pytest.mark.parametrize(
    "shape", ["short", "long", "duplicate_index", "empty", "html", "junk", "cut", "wrong_dimensions"]
)
def test_a_bad_answer_is_asked_for_again(shape: Any) -> None:
    with serve(faults=[Fault(shape=shape, times=2)]) as server:
        vectors, rejected = _vectors(_embedder(server).embed(TEXTS))
    _assert_right(vectors, TEXTS)
    assert not rejected
    assert set(server.sent.values()) == {3}


@pytest.mark.parametrize("shape", ["short", "empty", "html", "cut"])
def test_bad_answers_without_end_are_no_endless_loop(shape: Any) -> None:
    with serve(faults=[Fault(shape=shape, times=-1)]) as server, pytest.raises(EmbedderUnavailable):
        _vectors(_embedder(server, max_attempts=4).embed(TEXTS))
    assert len(server.requests) == 4


def test_a_short_answer_is_counted() -> None:
    with (
        serve(faults=[Fault(shape="short", times=-1)]) as server,
        pytest.raises(EmbedderUnavailable, match="99 vectors for 100 texts"),
    ):
        _vectors(_embedder(server, max_attempts=1).embed(TEXTS))


def test_a_model_of_other_dimensions_is_named() -> None:
    with (
        serve(faults=[Fault(shape="wrong_dimensions", times=-1)]) as server,
        pytest.raises(FatalError, match=rf"{SMALL}.* 33 dimensions.* 32"),
    ):
        _vectors(_embedder(server).embed(TEXTS))
    assert len(server.requests) == 3, "each of these answers is paid for"


def test_a_hanging_server_is_given_up_and_asked_again() -> None:
    with serve(faults=[Fault(shape="hang", seconds=1.0)]) as server:
        vectors, _ = _vectors(_embedder(server, timeout_seconds=0.3).embed(TEXTS))
        _assert_right(vectors, TEXTS)


@pytest.mark.parametrize(("spoil", "detail"), [("nan", "NaN"), ("inf", "infinity"), ("zero", "zero"), ("null", "NaN")])
def test_an_unusable_vector_rejects_one_row(spoil: Any, detail: str) -> None:
    with serve(faults=[Fault(spoil=spoil, marker="of row 17", times=-1)]) as server:
        vectors, rejected = _vectors(_embedder(server).embed(TEXTS))
    _assert_right(vectors, TEXTS, but={17})
    assert rejected[17].reason == "invalid_vector"
    assert detail in rejected[17].detail
    assert server.sent == Counter({text: 3 if text == TEXTS[17] else 1 for text in TEXTS})


def test_a_vector_that_is_unusable_once_is_requested_again() -> None:
    with serve(faults=[Fault(spoil="nan", marker="of row 17")]) as server:
        vectors, rejected = _vectors(_embedder(server).embed(TEXTS))
    _assert_right(vectors, TEXTS)
    assert not rejected
    assert server.sent[TEXTS[17]] == 2


# Refusals


@pytest.mark.parametrize("status", [408, 409, 500, 503, 529])
def test_temporary_failures_are_retried(status: int) -> None:
    clock = JumpingClock()
    with serve(faults=[failing(status, times=3)]) as server:
        vectors, _ = _vectors(_embedder(server, clock=clock).embed(TEXTS))
    _assert_right(vectors, TEXTS)
    assert len(server.requests) == 4
    first, _, third = clock.waits
    assert first >= 0.5
    assert third >= 2.0, "the wait grows"


def test_failures_that_last_end_the_run() -> None:
    with serve(faults=[failing(503, times=-1)]) as server, pytest.raises(EmbedderUnavailable, match="503"):
        _vectors(_embedder(server, max_attempts=5).embed(TEXTS))
    assert len(server.requests) == 5


def test_a_server_that_is_not_there_ends_the_run() -> None:
    with serve() as server:
        embedder = _embedder(server, max_attempts=2)
    with pytest.raises(EmbedderUnavailable, match="does not answer"):
        _vectors(embedder.embed(TEXTS))


@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_permanent_failures_end_the_run_at_once(status: int) -> None:
    with serve(faults=[failing(status, times=-1)]) as server, pytest.raises(EmbedderRefused, match=r"at 127\.0\.0\.1"):
        _vectors(_embedder(server, max_batch_inputs=10).embed(TEXTS))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "code",
    ["insufficient_quota", "credit_balance_exhausted", "project_spend_limit_exceeded", "monthly_usage_limit_exceeded"],
)
def test_no_quota_ends_the_run_at_once(code: str) -> None:
    with serve(faults=[quota(code)]) as server, pytest.raises(QuotaExhausted, match=code):
        _vectors(_embedder(server, max_batch_inputs=10).embed(TEXTS))
    assert len(server.requests) == 1


def test_requests_in_flight_when_the_quota_ends_are_kept_and_nothing_follows() -> None:
    hold = threading.Event()
    with serve(faults=[Fault(status=429, code="insufficient_quota", marker="of row 5")]) as server:
        server.hold = hold
        answers = _embedder(server, max_batch_inputs=10, concurrency=4).embed(TEXTS)
        threading.Timer(0.3, hold.set).start()
        received: list[int] = []
        with pytest.raises(QuotaExhausted):
            _positions(answers, received)
    assert {TEXTS[position] for position in received} == set(server.paid)
    assert received, "the other requests under way were answered"
    assert len(server.requests) <= 4


def test_retry_after_is_honoured_in_milliseconds_first() -> None:
    clock = JumpingClock()
    with serve(faults=[rate_limited(7, milliseconds=250), rate_limited(150)]) as server:
        vectors, _ = _vectors(_embedder(server, clock=clock).embed(TEXTS))
    _assert_right(vectors, TEXTS)
    assert sum(clock.waits) == pytest.approx(150.25)


def test_a_wait_of_hours_ends_the_run() -> None:
    with serve(faults=[rate_limited(LONGEST_REST + 1, times=-1)]) as server, pytest.raises(RateLimited) as raised:
        _vectors(_embedder(server).embed(TEXTS))
    assert raised.value.retry_after == LONGEST_REST + 1
    assert len(server.requests) == 1


def test_being_refused_while_others_get_through_is_no_failure() -> None:
    texts = ["unlucky", *(f"text {i}" for i in range(200))]
    unlucky = Fault(status=429, code="rate_limit_exceeded", headers={"Retry-After": "0"}, marker="unlucky", times=6)
    with serve(faults=[unlucky], latency=0.01) as server:
        vectors, _ = _vectors(_embedder(server, max_attempts=4, max_batch_inputs=1, concurrency=8).embed(texts))
    _assert_right(vectors, texts)
    assert server.sent["unlucky"] == 7


def test_a_rate_limit_without_end_is_no_endless_loop() -> None:
    with serve(faults=[rate_limited(1, times=-1)]) as server, pytest.raises(RateLimited):
        _vectors(_embedder(server, max_attempts=6).embed(TEXTS))
    assert len(server.requests) == 6


def test_slow_down_lowers_the_rate() -> None:
    clock = JumpingClock()
    with serve(faults=[Fault(status=429, code="slow_down", after=3)]) as server:
        vectors, _ = _vectors(_embedder(server, clock=clock, max_batch_inputs=5).embed(TEXTS))
    _assert_right(vectors, TEXTS)
    assert len(server.requests) == 21
    assert len(clock.waits) > 10, "the requests after it are spaced"


def test_slow_down_is_survived() -> None:
    with serve(faults=[slow_down(times=3)]) as server:
        vectors, _ = _vectors(_embedder(server).embed(TEXTS))
    _assert_right(vectors, TEXTS)


def _rate(requests: list[Request]) -> float:
    """Answered requests per minute, between the first and the last."""
    times = sorted(request.at for request in requests if request.status == 200)
    return (len(times) - 1) / (times[-1] - times[0]) * 60


# With a limit that is known, each request has 200 ms: a busy machine can do that too.
@pytest.mark.parametrize(("known", "per_minute", "requests"), [(True, 300, 20), (False, 1200, 80)])
def test_a_rate_limit_is_kept_and_used(known: bool, per_minute: int, requests: int) -> None:
    texts = [f"text {i}" for i in range(requests)]
    with serve(requests_per_minute=per_minute, burst_seconds=1.0 if known else 0.2) as server:
        limit = per_minute if known else None
        config = _config(server, max_batch_inputs=1, concurrency=8, requests_per_minute=limit)
        vectors, _ = _vectors(open_embedder(config).embed(texts))
    _assert_right(vectors, texts)
    refused = sum(request.status == 429 for request in server.requests)
    assert refused <= (3 if known else 15)
    assert set(server.paid.values()) == {1}
    if known:
        assert _rate(server.requests) >= 0.9 * per_minute


def test_a_token_limit_is_kept() -> None:
    with serve(tokens_per_minute=30_000, burst_seconds=15) as server:
        embedder = _embedder(server, tokens_per_minute=30_000, max_input_tokens=1000, concurrency=1)
        vectors, _ = _vectors(embedder.embed(TEXTS * 3))
    assert len(vectors) == 300
    assert {request.status for request in server.requests} == {200}


# Messages and secrets


@pytest.mark.parametrize("key", ["sk-test-0123456789", "0123456789abcdef0123456789abcdef"])
@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
def test_the_key_is_never_shown(key: str, status: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    quoting = Fault(status=status, message=f"You sent {key}, or sk-te***89 in short.", times=-1)
    with serve(key=None, faults=[quoting]) as server, pytest.raises(RowvecError) as raised:
        _vectors(OpenAIApi(_config(server, key=key, max_attempts=2), JumpingClock()).embed(TEXTS))
    shown = "".join(traceback.format_exception(raised.value))
    assert "You sent ***, or *** in short." in shown
    assert key not in shown
    assert key not in caplog.text


def test_a_wrong_key_is_named_by_its_place_in_the_pipeline() -> None:
    with serve(key="another") as server, pytest.raises(EmbedderRefused, match=r"embedder\.api_key"):
        _vectors(_embedder(server).embed(TEXTS))


@pytest.mark.parametrize("key", ["", " ", "sk-one two", "sk-tést"])
def test_an_invalid_key_is_refused(key: str) -> None:
    with serve() as server, pytest.raises(UsageError, match=r"embedder\.api_key"):
        open_embedder(_config(server, key=key))


def test_a_key_copied_with_its_line_end_works() -> None:
    with serve() as server:
        embedder = open_embedder(_config(server, key=f"{KEY}\n"))
        assert len(embed_query(embedder, "a question")) == 32


def test_an_address_that_is_not_one_is_refused() -> None:
    with serve() as server, pytest.raises(UsageError, match="base_url"):
        _embedder(server, base_url="localhost:8000/v1")


@pytest.mark.parametrize("address", ["https://me:pa/ss@host", "http://[::1", "http://host:0", "ftp://host"])
def test_an_invalid_address_is_refused_and_not_quoted(address: str) -> None:
    """An invalid port may be a piece of a password, and a client would quote it."""
    with serve() as server:
        resolved = _config(server).model_copy(update={"base_url": address})
    with pytest.raises(UsageError) as refused:
        OpenAIApi(resolved, JumpingClock())
    # The message is complete, and holds nothing of the address.
    assert str(refused.value) == (
        "embedder.base_url is no web address; write https://HOST/v1, or leave it out for OpenAI"
    )


def test_a_reader_that_stops_stops_the_requests() -> None:
    with serve() as server:
        answers = _embedder(server, max_batch_inputs=1, concurrency=2).embed(TEXTS)
        next(answers)
        answers.close()  # pyright: ignore[reportAttributeAccessIssue] # it is a generator
        sent = len(server.requests)
        assert sent <= 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("embed")]


def test_a_source_that_fails_half_way_loses_no_answer() -> None:
    with serve() as server:
        server.hold = hold = threading.Event()

        def texts() -> Iterator[str]:
            yield from TEXTS[:20]
            wait_for(lambda: server.stats()["in_flight"] == 2)
            hold.set()
            raise SourceError("the source went away")

        received: list[int] = []
        with pytest.raises(SourceError):
            _positions(_embedder(server, max_batch_inputs=10, concurrency=4).embed(texts()), received)
    assert sorted(received) == list(range(20))


def test_a_query_has_one_vector_or_an_error() -> None:
    with serve(poison="POISON") as server:
        embedder = _embedder(server)
        np.testing.assert_array_equal(embed_query(embedder, "a question"), vector(SMALL, "a question", 32))
        with pytest.raises(UsageError, match="query has no vector"):
            embed_query(embedder, "POISON")
        with pytest.raises(UsageError, match="empty"):
            embed_query(embedder, "  ")


def test_calls_at_the_same_time_share_the_concurrency() -> None:
    with serve() as server, ThreadPoolExecutor(2) as threads:
        server.hold = threading.Event()
        embedder = _embedder(server, concurrency=3, max_batch_inputs=1)
        texts = [[f"{side} {n}" for n in range(9)] for side in ("left", "right")]
        results = [threads.submit(_vectors, embedder.embed(own)) for own in texts]
        wait_for(lambda: server.stats()["in_flight"] == 3)
        time.sleep(0.5)  # long enough for one more request, if it were sent
        assert server.stats()["in_flight"] == 3
        server.hold.set()
        for own, result in zip(texts, results, strict=True):
            vectors, rejected = result.result()
            _assert_right(vectors, own)
            assert rejected == {}
    assert set(server.paid.values()) == {1}


def test_a_run_that_embeds_nothing_imports_no_client() -> None:
    # What such a run does with the embedder, after the flow is imported.
    program = """
import sys
import rowvec_flows.sync
from rowvec.embedders import open_embedder
from rowvec.pipeline.embedders import OpenAIEmbedder
part = OpenAIEmbedder(kind="openai", model="text-embedding-3-small", dimensions=256)
embedder = open_embedder(part.model_copy(update={"api_key": "sk-any"}))
embedder.identity, embedder.cost(1)
print([name for name in ("openai", "bpe_openai", "azure.identity", "wordllama") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603 # ours
    assert done.stdout.strip() == "[]"


def test_it_runs_as_a_process_of_its_own() -> None:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "tests.support.servers.openai_server", "--port", "0", "--poison", "POISON"]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 # our own module
        try:
            assert process.stdout is not None
            origin = f"http://127.0.0.1:{int(process.stdout.readline())}"
            faults = json.dumps([asdict(rate_limited(milliseconds=5))]).encode()
            urllib.request.urlopen(f"{origin}/faults", faults).close()  # noqa: S310 # our own server
            config = OpenAIEmbedder(kind="openai", model=SMALL, dimensions=32, base_url=f"{origin}/v1")
            embedder = open_embedder(config.model_copy(update={"api_key": "any"}))
            vectors, rejected = _vectors(embedder.embed([*TEXTS[:3], "POISON"]))
            with urllib.request.urlopen(f"{origin}/stats") as response:  # noqa: S310 # our own server
                stats = json.load(response)
        finally:
            process.terminate()
    _assert_right(vectors, TEXTS[:3])
    assert rejected.keys() == {3}
    assert stats["statuses"] == {"429": 1, "400": 3, "200": 2}
    assert stats["paid"] == 3
    assert stats["paid_twice"] == []
