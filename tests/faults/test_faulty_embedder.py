"""An embedder that answers the real command wrongly over HTTP: nothing is paid for twice.

What each fault does to a single request is in integration/embedders/test_openai_texts.py.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from rowvec.errors import EmbedderRefused
from rowvec.postgres.connection import Connection
from tests.support import paintings
from tests.support.cli_process import write_pipeline
from tests.support.fault_outcomes import Rowvec, failed, paid, succeeded
from tests.support.paintings import assert_in_step, sync
from tests.support.servers.openai_server import KEY, Fault, OpenAIServer, failing, quota, rate_limited, serve, slow_down

pytestmark = pytest.mark.flow


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Generator[OpenAIServer]:
    """The embedder, with its key in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(key=KEY, poison="POISON") as opened:
        yield opened


@pytest.fixture
def file(server: OpenAIServer, tmp_path: Path) -> Path:
    """The gallery's pipeline with an embedder that costs money."""
    return write_pipeline(paid(server, str(tmp_path / "artifacts")), tmp_path)


def test_passing_faults_are_retried_and_answers_out_of_order_are_sorted(
    source: Connection, server: OpenAIServer, tmp_path: Path, rowvec: Rowvec
) -> None:
    """One fault of each kind in one run; only answers that cannot be used are paid for twice.

    All requests are sent at once, so that no request meets more than two or three faults: each one doubles its wait.
    """
    pipeline = paid(server, str(tmp_path / "artifacts"))
    at_once = pipeline.embedder.model_copy(update={"concurrency": 16})
    file = write_pipeline(pipeline.model_copy(update={"embedder": at_once}), tmp_path)
    server.add(
        rate_limited(0.2),
        rate_limited(milliseconds=100),
        rate_limited(),
        slow_down(),
        failing(500),
        failing(503),
        failing(408),
        failing(409),
        Fault(shape="cut"),
        Fault(shape="short"),
        Fault(shape="long"),
        Fault(shape="shuffled", times=3),
        Fault(shape="duplicate_index"),
        Fault(shape="html"),
        Fault(shape="junk"),
        Fault(shape="empty"),
        Fault(spoil="nan", marker="Painting 7\n"),
    )
    report = succeeded(rowvec("sync", file))
    assert (report["embedded"], report["rejected"], report["consistent"]) == (50, 0, True)
    assert_in_step(source)
    sent = len(server.requests)
    # Answers that are billed but cannot be used: short, long, duplicate index, HTML, junk and empty with four texts
    # each, and one NaN.
    assert 50 <= sum(server.paid.values()) <= 50 + 6 * 4 + 1
    assert succeeded(rowvec("sync", file))["embedded"] == 0
    assert len(server.requests) == sent


def test_rows_that_never_get_a_vector_are_rejected_and_the_others_are_not(
    source: Connection, server: OpenAIServer, file: Path, rowvec: Rowvec
) -> None:
    source.execute("UPDATE paintings SET title = 'POISON' WHERE id = 1")
    for i, spoil in enumerate(("nan", "inf", "zero"), 2):
        source.execute("UPDATE paintings SET title = %s WHERE id = %s", (f"SPOILT {spoil}", i))
        server.add(Fault(spoil=spoil, marker=f"SPOILT {spoil}", times=-1))
    report = succeeded(rowvec("sync", file))
    assert (report["embedded"], report["rejected"], report["rows"]) == (46, 4, 46)
    rejects = {r["key"][0]: r for r in succeeded(rowvec("rejects", file))["rejects"]}
    reasons = {key: (r["reason"], r["detail"].partition(",")[0]) for key, r in rejects.items()}
    assert reasons.pop("1")[0] == "invalid_input"
    assert reasons == {
        "2": ("invalid_vector", "the vector holds NaN"),
        "3": ("invalid_vector", "the vector holds an infinity"),
        "4": ("invalid_vector", "the vector is zero"),
    }


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        pytest.param(quota(), ["quota"], marks=pytest.mark.soak),
        pytest.param(quota("credit_balance_exhausted"), ["credit"], marks=pytest.mark.soak),
        (Fault(status=401, code="invalid_api_key", message="Incorrect API key.", times=-1), ["embedder.api_key"]),
        pytest.param(Fault(status=403, message="No access.", times=-1), ["No access"], marks=pytest.mark.soak),
        (Fault(shape="wrong_dimensions", times=-1), ["dimensions"]),
    ],
    ids=["quota", "credit", "401", "403", "dimensions"],
)
def test_lasting_faults_end_the_run_with_one_sentence_and_keep_what_was_paid(
    source: Connection, server: OpenAIServer, file: Path, rowvec: Rowvec, fault: Fault, words: list[str]
) -> None:
    server.add(replace(fault, after=3))
    ended = rowvec("sync", file)
    failed(source, ended)
    assert any(word.lower() in ended.stderr.lower() for word in words), ended.stderr
    assert KEY not in ended.stderr
    kept = source.execute("SELECT count(*) FROM rowvec.answers").fetchone()
    assert kept is not None
    assert kept[0] >= 3 * 4
    tried = len(server.requests)
    assert tried <= 12  # the number of requests is bounded
    server.reset()
    report = succeeded(rowvec("sync", file))
    assert (report["embedded"], sum(server.paid.values())) == (50 - kept[0], 50 - kept[0])
    assert_in_step(source)


def test_another_model_of_the_same_dimensions_is_refused(
    source: Connection, server: OpenAIServer, file: Path, rowvec: Rowvec
) -> None:
    server.answers_as = "text-embedding-ada-002"
    failed(source, rowvec("sync", file), "asked for text-embedding-3-small", "is by text-embedding-ada-002")
    assert source.execute("SELECT count(*) FROM rowvec.answers").fetchone() == (0,)


def test_a_model_that_changes_in_the_middle_of_a_run_is_refused(
    source: Connection, server: OpenAIServer, tmp_path: Path
) -> None:
    """The server is not OpenAI's, so rowvec does not know its model names."""
    embedder = {"kind": "openai", "model": "ours", "dimensions": 96, "base_url": server.url, "max_batch_inputs": 4}
    pipeline = paintings.pipeline(str(tmp_path / "artifacts"), embedder=embedder)
    server.answers_as = "ours-2026-01"
    assert sync(pipeline).embedded == 50
    source.execute("UPDATE paintings SET title = 'other' || id")
    server.answers_as = "ours-2026-02"
    with pytest.raises(EmbedderRefused, match=r"asked for ours and the answer is by ours-2026-02, not ours-2026-01"):
        sync(pipeline)


@pytest.mark.soak
def test_a_provider_that_never_answers_gets_a_bounded_number_of_requests(
    source: Connection, server: OpenAIServer, file: Path, rowvec: Rowvec
) -> None:
    """Failures do not make a run send requests without end."""
    server.add(failing(500, times=-1))
    failed(source, rowvec.start("sync", file).wait(600))
    # Two concurrent requests, ten tries of each, in five tries of the stage.
    assert len(server.requests) <= 2 * 10 * 5
