"""Vectors that the source brings with it: read from the text Postgres gives for them, and checked like any other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from pydantic_core import from_json

from rowvec.embedders.checks import defect, usable
from rowvec.embedders.protocol import Answer
from rowvec.embedders.provider.budget import FREE, Purse
from rowvec.embedders.sparse_text import is_sparse, read_sparse
from rowvec.errors import RowError
from rowvec.pipeline import embedders
from rowvec.vectors.fingerprint import Identity
from rowvec.vectors.layout import Vectors

_PREPROCESSING = 1

# Numbers in an answer: 4 MB of vectors, 10 MB of their text, and 32 MB while they are Python's numbers.
_ANSWER_NUMBERS = 1_000_000

_BRACKETS = {"[": "]", "{": "}"}


class SourceColumn:
    """A column that holds vectors: pgvector ``[1,2]``, an array ``{1,2}``, a JSON list, or numbers and spaces.

    Or sparse ones, pgvector's ``{1:0.5,7:2}/9``, which stay so in the answers. Whichever way a source writes its
    vectors, the table has them as it wants them.
    """

    def __init__(self, config: embedders.ColumnEmbedder) -> None:
        self._config = config

    @property
    def identity(self) -> Identity:
        """See ``Embedder``."""
        return Identity(
            provider="column",
            model=self._config.model,
            dimensions=self._config.dimensions,
            preprocessing=_PREPROCESSING,
        )

    @property
    def paid(self) -> bool:
        """Nothing is paid for."""
        return False

    def embed(self, texts: Iterable[str], purse: Purse = FREE) -> Iterator[Answer]:
        """See ``Embedder``; each text is that of a vector."""
        position = 0
        for part in _parts(texts, self._config.dimensions):
            yield from _answers(part, position, self._config.dimensions)
            position += len(part)

    def count_tokens(self, texts: list[str]) -> int:
        """0: nothing is billed."""
        del texts
        return 0

    def cost(self, tokens: int) -> float:
        """0."""
        del tokens
        return 0.0


def _parts(texts: Iterable[str], dimensions: int) -> Iterator[list[str]]:
    """The texts in parts of ``_ANSWER_NUMBERS`` numbers, or of one text that has more."""
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
    """One answer, or two where some of the texts are sparse and some dense."""
    rejected: dict[int, RowError] = {}
    sparse = [position for position, text in enumerate(part) if is_sparse(text)]
    dense = [position for position, text in enumerate(part) if not is_sparse(text)]
    read = [
        reader([part[position] for position in positions], positions, dimensions, rejected)
        for positions, reader in ((dense, _read_dense), (sparse, read_sparse))
        if positions
    ]
    # Those that cannot be read go with the first answer, which may bring no other.
    told = {start + position: error for position, error in rejected.items()}
    for found, vectors in [one for one in read if len(one[0])] or read[:1]:
        yield Answer(positions=start + found, vectors=vectors, rejected=told)
        told = {}


def _read_dense(
    texts: Sequence[str], positions: Sequence[int], dimensions: int, rejected: dict[int, RowError]
) -> tuple[npt.NDArray[np.int64], Vectors]:
    """Positions ``(n,)`` and vectors ``(n, d)`` of the texts that hold a sound one; the others go to ``rejected``."""
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
        # One of them is no vector. Which one is found by reading them one by one, which is slow and rare.
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
    """What is between a vector's outer brackets, with commas between the numbers."""
    text = text.strip()
    if text and _BRACKETS.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
    return text if "," in text else ",".join(text.split())


def _numbers(insides: list[str]) -> Vectors | None:
    """The numbers of all texts after each other; None where one of them is none."""
    joined = ",".join(insides)
    try:
        # The fastest reader there is for what Postgres and JSON write.
        numbers = from_json(f"[{joined}]")
    except ValueError:
        # Slower, and reads what numpy writes too: "1." and ".5".
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
