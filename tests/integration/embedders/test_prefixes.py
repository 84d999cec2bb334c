"""Prefixes of documents and of queries: the model sees them, the fingerprint covers one of them, no row stores them."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rowvec.embedders import embed_query, open_embedder
from rowvec.embedders.openai.texts import OpenAIApi
from rowvec.embedders.provider import tokens
from rowvec.errors import UsageError
from rowvec.operations import search
from rowvec.operations.restore import restoring
from rowvec.pipeline import Pipeline
from rowvec.pipeline.embedders import LocalEmbedder, OpenAIEmbedder
from rowvec.pipeline.sources import Chunks
from rowvec.postgres.connection import Connection
from rowvec.stages import dry_run
from rowvec.stages.extract.splitting import splitting
from rowvec.vectors.layout import dense
from tests.support import paintings
from tests.support.paintings import assert_in_step, sync
from tests.support.servers.openai_server import KEY, OpenAIServer, serve

PREFIXES: dict[str, Any] = {"document_prefix": "passage: ", "query_prefix": "query: "}
MODEL: dict[str, Any] = {"kind": "openai", "model": "text-embedding-3-small", "dimensions": 32}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Generator[OpenAIServer]:
    """The provider, with its key in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(key=KEY) as opened:
        yield opened


def pipeline(server: OpenAIServer, tmp_path: Path, **embedder: Any) -> Pipeline:
    """The gallery's pipeline with both prefixes."""
    return paintings.pipeline(
        str(tmp_path / "artifacts"), embedder={**MODEL, "base_url": server.url, **PREFIXES, **embedder}
    )


def api(server: OpenAIServer, **settings: Any) -> OpenAIApi:
    """An embedder with both prefixes."""
    values: dict[str, Any] = {**MODEL, "base_url": server.url, "concurrency": 1, **PREFIXES, **settings}
    config = OpenAIEmbedder(**values)
    return OpenAIApi(config.model_copy(update={"api_key": KEY}))


def test_requests_are_packed_and_counted_with_the_prefix(server: OpenAIServer) -> None:
    texts = [f"row {i}" for i in range(20)]
    each = tokens.count("passage: row 1")
    embedder = api(server, max_batch_tokens=5 * each, max_input_tokens=5 * each)
    billed = sum(answer.billed for answer in embedder.embed(texts))
    assert server.texts == [f"passage: {text}" for text in texts]
    assert {len(request.texts) for request in server.requests} == {5}
    assert billed == server.tokens_billed == embedder.count_tokens(texts)


def test_a_text_that_is_too_long_only_with_its_prefix_is_rejected_or_cut_at_its_end(server: OpenAIServer) -> None:
    text = "word " * 20
    limit = tokens.count(text)
    (answer,) = api(server, max_input_tokens=limit).embed([text])
    assert answer.rejected[0].reason == "too_long"
    list(api(server, max_input_tokens=limit, on_too_long="truncate").embed([text]))
    (sent,) = server.texts
    assert sent.startswith("passage: word")
    assert tokens.count(sent) <= limit


def test_local_vectors_are_those_of_the_text_with_its_prefix() -> None:
    plain = LocalEmbedder(kind="local", dimensions=64)
    with_prefixes = open_embedder(plain.model_copy(update=PREFIXES))
    (answer,) = with_prefixes.embed(["the sea"])
    expected = embed_query(open_embedder(plain), "passage: the sea")
    np.testing.assert_array_equal(dense(answer.vectors)[0], expected)
    found = embed_query(with_prefixes, "the sea")
    np.testing.assert_array_equal(found, embed_query(open_embedder(plain), "query: the sea"))


def test_a_sync_stores_contents_without_the_prefix(source: Connection, server: OpenAIServer, tmp_path: Path) -> None:
    source.execute("UPDATE paintings SET title = 'the same', description = NULL WHERE id <= 10")
    asked = pipeline(server, tmp_path)
    planned = dry_run.plan(asked)
    report = sync(asked)
    assert report.tokens == server.tokens_billed == planned.tokens
    assert all(text.startswith("passage: ") for text in server.texts)
    assert sorted(server.texts) == sorted(set(server.texts))
    assert_in_step(source)
    contents = source.execute("SELECT content FROM vectors.paintings").fetchall()
    assert {f"passage: {content}" for (content,) in contents} == set(server.texts)
    sent = len(server.texts)
    search.search(asked, "a storm at sea", k=3, where=None, mode="exact")
    assert server.texts[sent:] == ["query: a storm at sea"]


def test_jobs_of_the_batch_api_send_the_prefix(source: Connection, server: OpenAIServer, tmp_path: Path) -> None:
    report = sync(pipeline(server, tmp_path, batch={"at_least": 5, "wait_minutes": 1}))
    assert {request.path for request in server.requests} == {"/v1/batches"}
    assert all(text.startswith("passage: ") for text in server.texts)
    assert report.tokens == server.tokens_billed


def test_another_document_prefix_is_another_model(source: Connection, server: OpenAIServer, tmp_path: Path) -> None:
    sync(pipeline(server, tmp_path, document_prefix=""))
    assert sync(pipeline(server, tmp_path, document_prefix="", query_prefix="")).embedded == 0
    changed = pipeline(server, tmp_path)
    for job in (sync, dry_run.plan):
        with pytest.raises(UsageError, match="32 dimensions and the document_prefix 'passage: ': rowvec rebuild"):
            job(changed)
    with pytest.raises(UsageError, match=r"the pipeline paintings asks for .* and the document_prefix 'passage: '"):
        restoring(changed, None).__enter__()


def test_chunks_leave_room_for_the_prefix() -> None:
    config = OpenAIEmbedder(**MODEL, **PREFIXES, max_input_tokens=64)
    prefix = tokens.count("passage: ")
    splitting(Chunks(tokens=64 - prefix, overlap=8), config)
    with pytest.raises(UsageError, match=f"lower source.chunks.tokens to {64 - prefix}$"):
        splitting(Chunks(tokens=65 - prefix, overlap=8), config)
