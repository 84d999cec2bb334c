"""Vectors of texts by wordllama, a static model inside its wheel: semantic search with no network and no cost."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from rowvec.embedders.budget import UNLIMITED, BudgetHold
from rowvec.embedders.checks import defect, refusal, usable
from rowvec.embedders.protocol import Answer, Unbilled, identity_of
from rowvec.errors import RowError
from rowvec.pipeline import embedders
from rowvec.vectors.layout import Vectors

# 1: texts are cut into pieces of _PIECE_CHARS, the vector is the sum over all tokens, scaled to length 1.
_PREPROCESSING = 1

# The most texts, and about the most characters, in one answer: they bound the memory.
_ANSWER_TEXTS = 2048
_ANSWER_CHARS = 4_000_000

# The tokenizer takes a text whole and needs about a hundred bytes per character; a token's vector is 1 KB. The pieces
# of a long text are tokenized separately, so that 10 MB of text need no more memory than a page does.
_PIECE_CHARS = 16_384
_BLOCK_CHARS = 262_144
# The vectors of 2,048 tokens, 2 MB, stay in the processor's cache: a fifth faster than blocks of 32,768.
_BLOCK_TOKENS = 2_048


class LocalModel(Unbilled):
    """wordllama's l2_supercat, 256 dimensions or a Matryoshka prefix of them."""

    def __init__(self, config: embedders.LocalEmbedder) -> None:
        """The model itself is loaded by the first ``embed``."""
        super().__init__(identity_of(config, _PREPROCESSING))
        self._config = config
        self._dimensions = config.dimensions

    def embed(self, texts: Iterable[str], budget: BudgetHold = UNLIMITED) -> Iterator[Answer]:
        """See ``Embedder``. Vectors have length 1; to the bit, they do not depend on which texts come with theirs."""
        return self._embed(texts, self._config.document_prefix)

    def embed_queries(self, texts: Iterable[str]) -> Iterator[Answer]:
        """See ``Embedder``."""
        return self._embed(texts, self._config.query_prefix)

    def _embed(self, texts: Iterable[str], prefix: str) -> Iterator[Answer]:
        model = load_model(self._dimensions)
        for start, part in _parts(texts):
            rejected: dict[int, RowError] = {}
            for i, text in enumerate(part):
                unreadable = refusal(text)
                part[i] = prefix + text
                if unreadable is not None:
                    rejected[start + i], part[i] = unreadable, ""
            vectors = _embed(model, part)
            good = usable(vectors)
            for i in np.flatnonzero(~good):
                rejected.setdefault(start + int(i), RowError("invalid_vector", defect(vectors[i])))
            yield Answer(positions=start + np.flatnonzero(good), vectors=vectors[good], rejected=rejected)


@dataclass(frozen=True, slots=True)
class _Model:
    tokenizer: Any
    """A ``tokenizers.Tokenizer``."""
    matrix: Vectors
    """``(32000, d)``: one vector per token."""


@cache
def load_model(dimensions: int) -> _Model:
    """The tokenizer and the token vectors, cut to ``dimensions``; loaded once per process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    import wordllama

    # Importing wordllama configures the root logger, which only the application should do: undo that.
    root.handlers[:] = handlers
    root.setLevel(level)
    model = wordllama.WordLlama.load(
        cache_dir=Path(wordllama.__file__).parent, disable_download=True, dim=256, trunc_dim=dimensions
    )
    model.tokenizer.no_padding()
    return _Model(model.tokenizer, model.embedding)


def _parts(texts: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """The texts in lists bounded in number and size, each with the position of its first text."""
    start, part, size = 0, list[str](), 0
    for text in texts:
        part.append(text)
        size += len(text)
        if len(part) == _ANSWER_TEXTS or size >= _ANSWER_CHARS:
            yield start, part
            start, part, size = start + len(part), [], 0
    if part:
        yield start, part


def _embed(model: _Model, texts: list[str]) -> Vectors:
    """``(n, d)``: sums over the texts' tokens, scaled to length 1; a text without tokens gets zeros."""
    sums = np.zeros((len(texts), model.matrix.shape[1]), np.float32)
    for owners, pieces in _blocks(texts):
        encoded = model.tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        ids = [e.ids for e in encoded]
        for first, last in _runs([len(i) for i in ids]):
            lengths = np.array([len(i) for i in ids[first:last]])
            tokens = np.fromiter(chain.from_iterable(ids[first:last]), np.int64, int(lengths.sum()))
            starts = np.cumsum(lengths) - lengths
            # Every piece has at least one token. np.add.at, because several pieces may belong to one long text.
            piece_sums = np.add.reduceat(model.matrix[tokens], starts, axis=0)
            np.add.at(sums, owners[first:last], piece_sums)
    norms = np.sqrt(np.einsum("ij,ij->i", sums, sums))[:, np.newaxis]
    return np.divide(sums, norms, out=sums, where=norms > 0)


def _blocks(texts: list[str]) -> Iterator[tuple[list[int], list[str]]]:
    """The pieces of the texts, and the index of the text of each, in lists of bounded size. Empty texts have none."""
    owners, pieces, size = list[int](), list[str](), 0
    for owner, text in enumerate(texts):
        for piece in pieces_of(text):
            owners.append(owner)
            pieces.append(piece)
            size += len(piece)
            if size >= _BLOCK_CHARS:
                yield owners, pieces
                owners, pieces, size = [], [], 0
    if pieces:
        yield owners, pieces


def pieces_of(text: str) -> Iterator[str]:
    """The text, or if it is long, its pieces, cut at spaces; the tokenizer puts a space before each piece itself."""
    start = 0
    while len(text) - start > _PIECE_CHARS:
        space = text.rfind(" ", start + _PIECE_CHARS // 2, start + _PIECE_CHARS)
        end = start + _PIECE_CHARS if space < 0 else space
        yield text[start:end]
        start = end if space < 0 else end + 1
    if start < len(text):
        yield text[start:]


def _runs(lengths: list[int]) -> Iterator[tuple[int, int]]:
    """Ranges of pieces that have at most ``_BLOCK_TOKENS`` tokens together, or are a single piece."""
    first, size = 0, 0
    for i, length in enumerate(lengths):
        if size and size + length > _BLOCK_TOKENS:
            yield first, i
            first, size = i, 0
        size += length
    if lengths:
        yield first, len(lengths)
