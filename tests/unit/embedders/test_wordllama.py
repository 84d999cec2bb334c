"""The wordllama embedder: its vectors are those of the library, and do not depend on the other texts."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import wordllama
from hypothesis import given, settings
from hypothesis import strategies as st

from rowvec.embedders import embed_query, open_embedder
from rowvec.embedders import wordllama as module
from rowvec.embedders.protocol import Embedder
from rowvec.pipeline import embedders
from rowvec.vectors.layout import Vectors, dense

TEXTS = ["The Night Watch", "a field of poppies near Argenteuil", "日本 🦖", "x", "<s> <unk>", "word " * 3000]
LONG = "storm at sea " * 2000 + "tax law " * 2000 + "poppies " * 2000


def _local(dimensions: int = 256) -> Embedder:
    return open_embedder(embedders.LocalEmbedder(kind="local").model_copy(update={"dimensions": dimensions}))


def _vectors(texts: list[str], dimensions: int = 256) -> Vectors:
    answers = list(_local(dimensions).embed(texts))
    assert np.concatenate([answer.positions for answer in answers]).tolist() == list(range(len(texts)))
    return np.concatenate([dense(answer.vectors) for answer in answers])


@pytest.mark.parametrize("dimensions", [64, 128, 256])
def test_vectors_are_those_of_wordllama(dimensions: int) -> None:
    model = wordllama.WordLlama.load(
        cache_dir=Path(wordllama.__file__).parent, disable_download=True, trunc_dim=dimensions
    )
    texts = [*TEXTS, LONG]
    np.testing.assert_allclose(_vectors(texts, dimensions), model.embed(texts, norm=True), atol=1e-4)


def test_vectors_are_of_length_one() -> None:
    np.testing.assert_allclose(np.linalg.norm(_vectors(TEXTS), axis=1), 1, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.permutations(TEXTS), st.integers(0, 5))
def test_a_vector_does_not_depend_on_its_neighbours_to_the_bit(texts: list[str], drop: int) -> None:
    alone = {text: _vectors([text])[0] for text in TEXTS}
    for text, row in zip(texts[drop:], _vectors(texts[drop:]), strict=True):
        np.testing.assert_array_equal(row, alone[text])


def test_related_texts_are_near() -> None:
    query, near, far = _vectors(["a painting of the sea", "waves and ships in a storm", "tax law for companies"])
    assert query @ near > query @ far + 0.1


def test_answers_are_bounded_and_texts_read_lazily() -> None:
    drawn = 0

    def texts():
        nonlocal drawn
        for i in range(5000):
            drawn += 1
            yield f"text {i}"

    sizes: list[int] = []
    for answer in _local().embed(texts()):
        sizes.append(len(answer.positions))
        assert drawn <= sum(sizes)
    assert sizes == [2048, 2048, 904]


def test_a_text_of_megabytes_has_a_vector() -> None:
    long = "the sea and the storm " * 100_000
    rows = _vectors([long, "x" * 300_000, "the sea and the storm"])
    assert rows[0] @ rows[2] > 0.99


@settings(deadline=None)
@given(st.text(alphabet=" ab日", max_size=300), st.integers(4, 40))
def test_pieces_lose_nothing_but_the_spaces_they_are_cut_at(text: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE_CHARS", size)
        pieces = list(module.pieces_of(text))
    assert all(0 < len(piece) <= size for piece in pieces)
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")


def test_a_text_that_cannot_be_embedded_is_rejected() -> None:
    (answer,) = _local().embed(["one", "half a \ud800 pair", "nul \0", "two", ""])
    assert answer.positions.tolist() == [0, 3]
    assert {position: error.reason for position, error in answer.rejected.items()} == {
        1: "invalid_input",
        2: "invalid_input",
        4: "invalid_vector",
    }


def test_nothing_is_paid_for() -> None:
    embedder = _local()
    assert not embedder.paid
    assert embedder.count_tokens(TEXTS) == 0
    assert embedder.cost(1_000_000) == 0
    assert embedder.identity.provider == "local"


def test_a_query_has_the_vector_of_its_text() -> None:
    np.testing.assert_array_equal(embed_query(_local(64), "the sea"), _vectors(["the sea"], 64)[0])


def test_the_root_logger_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", logging.WARNING)
    for name in [name for name in sys.modules if name.split(".")[0] == "wordllama"]:
        monkeypatch.delitem(sys.modules, name)
    module.load_model.cache_clear()
    _local()
    _vectors(["one"])
    assert root.handlers == []
    assert root.level == logging.WARNING
