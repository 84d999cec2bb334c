"""Checks that an embedder keeps to what rowvec relies on; for the tests of a plug-in's author."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rowvec.embedders import open_embedder
from rowvec.embedders.protocol import Answer, Embedder
from rowvec.errors import RowvecError
from rowvec.pipeline.embedders import Embedder as EmbedderPart
from rowvec.pipeline.embedders import TextEmbedder

TEXTS = (
    "The sea is calm tonight.",
    "A market square in the rain, with umbrellas",
    "Ein Pferd, das über die Brücke geht",
    "SELECT 1; -- not a sentence",
    "x",
    "noon " * 60,
    "数は言葉ではない",
    "two lines\nand a tab\there",
)

# No model takes this many words in one piece; a model without a limit just embeds them.
_LONG = "word " * 100_000

# Kernels add numbers in another order if a batch has another size: the last digits of float32 may differ.
_TOLERANCE = 1e-3

Rows = dict[int, npt.NDArray[np.float32]]


def check_embedder(
    part: EmbedderPart, *others: EmbedderPart, texts: Sequence[str] = TEXTS, refused: str = _LONG
) -> None:
    """Raise ``AssertionError``, with one line per defect, unless the embedder of this part keeps to the protocol.

    ``part`` is the pipeline's ``embedder``, with references resolved. Each of ``others`` has other settings: if its
    vectors differ, its identity must differ too, or vectors of two settings would be mixed in one table. ``texts`` must
    have vectors, each its own. ``refused`` is a text that the embedder may refuse. The embedder embeds each text about
    eight times, which costs money if it is paid.
    """
    found = [*_defects(_Check(open_embedder(part), part, texts), refused, others)]
    if found:
        raise AssertionError("\n".join(f"- {defect}" for defect in found))


@dataclass(frozen=True, slots=True)
class _Check:
    embedder: Embedder
    part: EmbedderPart
    texts: Sequence[str]

    def vectors(self, texts: Sequence[str], embedder: Embedder | None = None) -> Rows:
        return _rows((embedder or self.embedder).embed(texts))[0]


def _defects(check: _Check, refused: str, others: Sequence[EmbedderPart]) -> Iterator[str]:
    try:
        yield from _identity(check)
        whole, rejected, answers = _received(check.embedder.embed(check.texts))
        yield from _answers(check, answers, "embed")
        yield from (f"the text {check.texts[i][:40]!r} is rejected: {rejected[i]}" for i in sorted(rejected))
        if len(whole) < len(check.texts):
            return
        yield from _order(check, whole)
        yield from _queries(check)
        yield from _isolation(check, whole, refused)
        yield from _settings(check, whole, others)
        yield from _prices(check, answers)
    except RowvecError as error:
        yield f"it stops the run with {type(error).__name__}: {error}"


def _identity(check: _Check) -> Iterator[str]:
    identity = check.embedder.identity
    if identity != open_embedder(check.part).identity:
        yield "its identity is another one each time it is opened: no vector would ever be reused"
    if (identity.provider, identity.model, identity.dimensions) != (
        check.part.kind,
        check.part.model,
        check.part.dimensions,
    ):
        yield f"its identity is {identity}, and the pipeline asks for another kind, model or dimensions"


def _answers(check: _Check, answers: list[Answer], what: str) -> Iterator[str]:
    for answer in answers:
        vectors = answer.vectors
        if not isinstance(vectors, np.ndarray) or vectors.dtype != np.float32:
            yield f"{what} gives vectors that are no array of float32"
        elif vectors.shape != (len(answer.positions), check.part.dimensions):
            yield f"{what} gives vectors of shape {vectors.shape} for {len(answer.positions)} texts of one answer"
        elif not np.isfinite(vectors).all() or not vectors.any(axis=1).all():
            yield f"{what} gives vectors that hold NaN or infinity, or are zero"
    seen = [i for answer in answers for i in (*answer.positions.tolist(), *answer.rejected)]
    if sorted(seen) != list(range(len(seen))):
        yield f"{what} does not put each text into exactly one answer"


def _order(check: _Check, whole: Rows) -> Iterator[str]:
    texts = check.texts
    again = check.vectors(texts)
    if any(not _same(whole[i], again[i]) for i in whole):
        yield "the same texts get other vectors the second time"
        return
    for i, text in enumerate(texts):
        alone = check.vectors([text])
        if 0 not in alone or not _same(whole[i], alone[0]):
            yield "a text gets another vector by itself than with other texts: vectors depend on the batch or its order"
            break
    backwards = check.vectors(list(reversed(texts)))
    if any(not _same(whole[i], backwards[len(texts) - 1 - i]) for i in whole):
        yield "the same texts in reverse order get other vectors"
    first, *rest = whole.values()
    if rest and all(_same(first, other) for other in rest):
        yield "all texts get the same vector"


def _queries(check: _Check) -> Iterator[str]:
    found, rejected, answers = _received(check.embedder.embed_queries(check.texts[:1]))
    yield from _answers(check, answers, "embed_queries")
    if 0 not in found:
        yield f"a query has no vector: {rejected.get(0, 'it is in no answer')}"


def _isolation(check: _Check, whole: Rows, refused: str) -> Iterator[str]:
    """Texts that no embedder takes, and one that this one may refuse, among good ones."""
    good = list(check.texts)
    mixed = [good[0], "a NUL \0 in it", *good[1:3], "half a pair \ud800", refused, *good[3:]]
    bad = (1, 4, 5)
    try:
        found, rejected = _rows(check.embedder.embed(mixed))
    except RowvecError as error:
        yield f"one bad text stops the run: {type(error).__name__}: {error}"
        return
    places = [i for i in range(len(mixed)) if i not in bad]
    lost = [i for i in places if i in rejected or i not in found or not _same(found[i], whole[places.index(i)])]
    if lost:
        yield f"{len(lost)} good texts are rejected, or get other vectors, because a bad one is among them"
    if not {1, 4} <= rejected.keys():
        yield "a text with a NUL or with half a surrogate pair gets a vector; Postgres could not store the text"


def _settings(check: _Check, whole: Rows, others: Sequence[EmbedderPart]) -> Iterator[str]:
    part = check.part
    for other in others:
        opened = open_embedder(other)
        if opened.identity == check.embedder.identity and not _all_same(whole, check.vectors(check.texts, opened)):
            changed = [key for key in type(other).model_fields if getattr(other, key) != getattr(part, key, None)]
            yield f"with another {' and '.join(changed)} the vectors differ and the identity does not"
    if isinstance(part, TextEmbedder):
        prefixed = open_embedder(part.model_copy(update={"document_prefix": "passage: "}))
        plain = open_embedder(part.model_copy(update={"document_prefix": ""}))
        if prefixed.identity.digest() == plain.identity.digest():
            yield "the identity does not change with document_prefix"
        expected = check.vectors([f"passage: {text}" for text in check.texts], plain)
        if not _all_same(check.vectors(check.texts, prefixed), expected):
            yield "document_prefix is not put before the texts"


def _prices(check: _Check, answers: list[Answer]) -> Iterator[str]:
    embedder, texts = check.embedder, list(check.texts)
    counts = [embedder.count_tokens([text]) for text in texts]
    if min(counts) < 0 or embedder.count_tokens(texts) != sum(counts):
        yield "count_tokens of several texts is not the sum over the texts, or is negative"
    if embedder.cost(0) != 0 or embedder.cost(1_000_000) < 0 or any(answer.billed < 0 for answer in answers):
        yield "a cost or the number of billed tokens is negative, or nothing costs something"
    if not embedder.paid and (embedder.cost(1_000_000) or any(answer.billed for answer in answers)):
        yield "it bills tokens, and says that it costs nothing"


def _rows(answers: Iterator[Answer]) -> tuple[Rows, dict[int, str]]:
    rows, rejected, _ = _received(answers)
    return rows, rejected


def _received(answers: Iterator[Answer]) -> tuple[Rows, dict[int, str], list[Answer]]:
    """Vector and reason by position, and the answers themselves."""
    rows: Rows = {}
    rejected: dict[int, str] = {}
    received = list(answers)
    for answer in received:
        if isinstance(answer.vectors, np.ndarray):
            rows.update(zip(answer.positions.tolist(), answer.vectors, strict=False))
        rejected |= {position: error.detail for position, error in answer.rejected.items()}
    return rows, rejected, received


def _all_same(one: Rows, other: Rows) -> bool:
    return one.keys() == other.keys() and all(_same(one[i], other[i]) for i in one)


def _same(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> bool:
    return one.shape == other.shape and bool(
        np.linalg.norm(one - other) <= _TOLERANCE * max(np.linalg.norm(one), np.linalg.norm(other))
    )
