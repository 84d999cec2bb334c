"""Vectors that the source brings in a column: read from their text, and checked like those of any embedder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from pydantic_core import from_json

from rowvec.embedders.budget import UNLIMITED, BudgetHold
from rowvec.embedders.checks import defect, usable
from rowvec.embedders.protocol import Answer, QueriesLikeDocuments, Unbilled, identity_of
from rowvec.embedders.sparse_text import is_sparse, read_sparse
from rowvec.errors import RowError
from rowvec.pipeline import embedders
from rowvec.vectors.layout import Vectors

_PREPROCESSING = 1

# Numbers in one answer: 4 MB of vectors, 10 MB of their text, and 32 MB while they are Python objects.
_ANSWER_NUMBERS = 1_000_000

_BRACKETS = {"[": "]", "{": "}"}


class SourceColumn(QueriesLikeDocuments, Unbilled):
    """A column that holds vectors: pgvector ``[1,2]``, an array ``{1,2}``, a JSON list, or numbers and spaces.

    Sparse vectors are read too: pgvector's ``{1:0.5,7:2}/9``. They stay sparse in the answers. How the source writes
    its vectors does not affect how the table stores them.
    """

    def __init__(self, config: embedders.ColumnEmbedder) -> None:
        super().__init__(identity_of(config, _PREPROCESSING))
        self._dimensions = config.dimensions

    def embed(self, texts: Iterable[str], budget: BudgetHold = UNLIMITED) -> Iterator[Answer]:
        """See ``Embedder``; each text is a vector, written as above."""
        position = 0
        for part in _parts(texts, self._dimensions):
            yield from _answers(part, position, self._dimensions)
            position += len(part)


def _parts(texts: Iterable[str], dimensions: int) -> Iterator[list[str]]:
    """The texts in lists of about ``_ANSWER_NUMBERS`` numbers; a text with more numbers is a list by itself."""
    part: list[str] = []
    numbers = 0
    for text in texts:
        part.append(text)
        numbers += 2 * text.count(":") if is_sparse(text) else dimensions
        if numbers >= _ANSWER_NUMBERS:
            yield part
            part, numbers = [], 0
    if part:
        yield part


def _answers(part: list[str], start: int, dimensions: int) -> Iterator[Answer]:
    """One answer, or two if some of the texts are sparse and some dense."""
    rejected: dict[int, RowError] = {}
    sparse = [position for position, text in enumerate(part) if is_sparse(text)]
    dense = [position for position, text in enumerate(part) if not is_sparse(text)]
    read = [
        reader([part[position] for position in positions], positions, dimensions, rejected)
        for positions, reader in ((dense, _read_dense), (sparse, read_sparse))
        if positions
    ]
    # The rejected texts go into the first answer, which may hold nothing else.
    errors = {start + position: error for position, error in rejected.items()}
    for found, vectors in [one for one in read if len(one[0])] or read[:1]:
        yield Answer(positions=start + found, vectors=vectors, rejected=errors)
        errors = {}


def _read_dense(
    texts: Sequence[str], positions: Sequence[int], dimensions: int, rejected: dict[int, RowError]
) -> tuple[npt.NDArray[np.int64], Vectors]:
    """Positions ``(n,)`` and vectors ``(n, d)`` of the texts with a usable vector; the others go to ``rejected``."""
    found, vectors = _parse(texts, positions, dimensions, rejected)
    good = usable(vectors)
    for i in np.flatnonzero(~good):
        rejected[int(found[i])] = RowError("invalid_vector", defect(vectors[i]))
    return found[good], vectors if good.all() else vectors[good]


def _parse(
    texts: Sequence[str], given: Sequence[int], dimensions: int, rejected: dict[int, RowError]
) -> tuple[npt.NDArray[np.int64], Vectors]:
    """Positions ``(n,)`` and vectors ``(n, d)`` of the texts that can be read; the others go to ``rejected``."""
    positions: list[int] = []
    insides: list[str] = []
    for position, text in zip(given, texts, strict=True):
        inside = _inside(text)
        found = inside.count(",") + 1 if inside else 0
        if found != dimensions:
            rejected[position] = RowError(
                "invalid_vector", f"the column holds {found:,} numbers, and the pipeline wants {dimensions:,}"
            )
        else:
            positions.append(position)
            insides.append(inside)
    numbers = _numbers(insides)
    if numbers is None or len(numbers) != len(insides) * dimensions:
        # At least one text is no vector. Read them one by one to find it: slow, but rare.
        for position, inside in zip(positions, insides, strict=True):
            alone = _numbers([inside])
            if alone is None or len(alone) != dimensions:
                rejected[position] = RowError("invalid_vector", f"the column holds no list of numbers: {inside[:40]!r}")
        kept = [(p, i) for p, i in zip(positions, insides, strict=True) if p not in rejected]
        positions, insides = [p for p, _ in kept], [i for _, i in kept]
        numbers = _numbers(insides)
    vectors = np.empty((0, dimensions), np.float32) if numbers is None else numbers.reshape(-1, dimensions)
    return np.array(positions, dtype=np.int64), vectors


def _inside(text: str) -> str:
    """The text between a vector's outer brackets, with commas between the numbers."""
    text = text.strip()
    if text and _BRACKETS.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
    return text if "," in text else ",".join(text.split())


def _numbers(insides: list[str]) -> Vectors | None:
    """``(m,)``: the numbers of all texts one after the other; None if one of them is not a number."""
    joined = ",".join(insides)
    try:
        # The fastest parser for what Postgres and JSON write.
        numbers = from_json(f"[{joined}]")
    except ValueError:
        # Slower, but it also reads what numpy writes: "1." and ".5".
        try:
            with np.errstate(over="ignore"):
                return np.fromstring(joined, dtype=np.float32, sep=",")
        except ValueError:
            return None
    try:
        with np.errstate(over="ignore"):
            return np.array(numbers, dtype=np.float32).reshape(-1)
    except (ValueError, TypeError):
        return None
