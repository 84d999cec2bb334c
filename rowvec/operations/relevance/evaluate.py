"""What ``rowvec evaluate`` does: asks labelled questions of one vector table, or of two, and compares the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rowvec.embedders import open_embedder
from rowvec.embedders.protocol import Embedder
from rowvec.errors import LessRelevant, UsageError
from rowvec.index.tuning.results import present_index
from rowvec.ledger import pipelines
from rowvec.ledger.generations import effective
from rowvec.operations.relevance.labels import Key, Labelled, read_labelled
from rowvec.operations.relevance.measures import MEASURES, Estimate, Measure, Scores, estimate, scores
from rowvec.operations.search import SearchMode
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import Connection, open_target
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable, stored_table
from rowvec.searches.hybrid import Hybrid, hybrid_search
from rowvec.searches.query import Hit, search
from rowvec.searches.request import SearchRequest
from rowvec.vectors.layout import Embeddings

# Hits per row in a table of chunks, because several chunks of one row may be near.
_HITS_PER_ROW = 4

Estimates = dict[Measure, Estimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """How well one vector table answers."""

    pipeline: str
    modes: dict[SearchMode, Scores]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The outcome; ``as_json`` is what ``rowvec evaluate --json`` prints."""

    k: int
    questions: int
    pipelines: tuple[tuple[str, dict[SearchMode, Estimates]], ...]
    """The name of each pipeline, and its estimates by mode."""
    differences: dict[SearchMode, Estimates]
    """Of two pipelines, the second less the first, question by question; empty for one."""

    def as_json(self) -> dict[str, Any]:
        """The evaluation as one JSON object."""
        return {
            "k": self.k,
            "questions": self.questions,
            "pipelines": [{"pipeline": name, "modes": _written(modes)} for name, modes in self.pipelines],
            "differences": _written(self.differences),
        }


def evaluate(pipelines_: Sequence[Pipeline], path: Path, k: int) -> Evaluation:
    """Ask the labelled questions in the file ``path`` of each pipeline's vector table, in every mode that it has.

    Reads only; each question costs one query embedding per pipeline. Raises ``UsageError`` for a file that cannot be
    used, and what ``search`` raises.
    """
    columns, *others = (len(pipeline.source.key) for pipeline in pipelines_)
    if others and others[0] != columns:
        raise UsageError(
            f"the pipelines have keys of {columns} and {others[0]} columns; compare tables of the same rows"
        )
    questions = read_labelled(path, columns)
    return compared([judge(effective(pipeline), questions, k) for pipeline in pipelines_], len(questions), k)


def compare_generations(live: Pipeline, following: Pipeline, path: Path, *, to_switch: bool) -> Evaluation:
    """Ask the questions of the live generation and of the next one.

    With ``to_switch``, raises ``LessRelevant`` if the next one is worse in one mode: if the whole interval of the
    difference of nDCG is below zero. Raises what ``evaluate`` raises.
    """
    k = live.validation.recall.k
    questions = read_labelled(path, len(live.source.key))
    found = compared([judge(one, questions, k) for one in (live, following)], len(questions), k)
    worse = {mode: one["ndcg"] for mode, one in found.differences.items() if one["ndcg"].is_worse}
    if worse and to_switch:
        listed = "; ".join(
            f"{mode}: nDCG@{k} changes by {one.mean:+.3f} ({one.low:+.3f} to {one.high:+.3f})"
            for mode, one in worse.items()
        )
        raise LessRelevant(
            f"the next generation of {live.name} answers the {len(questions):,} questions worse ({listed}), so the "
            "live one stays; to switch all the same, run rowvec rebuild again without --questions"
        )
    return found


def judge(pipeline: Pipeline, questions: Sequence[Labelled], k: int) -> Judged:
    """Ask the questions of one vector table: exactly, through its index, and by words and vectors if it has hybrid."""
    resolved = resolve(pipeline)
    embedder = open_embedder(resolved.embedder)
    modes: list[SearchMode] = ["exact", "adaptive"]
    if pipeline.search.hybrid:
        modes.append("hybrid")
    answers: dict[SearchMode, list[list[Key]]] = {mode: [] for mode in modes}
    with open_target(resolved, "rowvec evaluate") as connection:
        table = stored_table(connection, resolved)
        if pipelines.is_readable(connection, "pipelines", "identity"):
            pipelines.check_identity(connection, pipeline, embedder.identity)
        choice = present_index(connection, table, resolved.index)
        asked = _Asked(connection, table, choice, Hybrid(language=resolved.search.language), k)
        for one, vector in zip(questions, _vectors(embedder, [one.question for one in questions]), strict=True):
            for mode in modes:
                answers[mode].append(_rows(asked, one.question, vector, mode))
    return Judged(pipeline=pipeline.name, modes={mode: scores(questions, answers[mode], k) for mode in modes})


def compared(judged: Sequence[Judged], questions: int, k: int) -> Evaluation:
    """The estimates of each, and of two their difference in the modes that both have."""
    differences: dict[SearchMode, Estimates] = {}
    if len(judged) > 1:
        first, second = judged[0].modes, judged[1].modes
        differences = {
            mode: {name: estimate(second[mode][name] - first[mode][name]) for name in MEASURES}
            for mode in first
            if mode in second
        }
    return Evaluation(
        k=k,
        questions=questions,
        pipelines=tuple(
            (
                one.pipeline,
                {mode: {name: estimate(found[name]) for name in MEASURES} for mode, found in one.modes.items()},
            )
            for one in judged
        ),
        differences=differences,
    )


def _vectors(embedder: Embedder, texts: list[str]) -> list[Embeddings]:
    """The vector of each text, as a search would have it; equal texts are embedded once."""
    distinct = list(dict.fromkeys(texts))
    found: dict[str, Embeddings] = {}
    for answer in embedder.embed_queries(distinct):
        for position, refusal in answer.rejected.items():
            raise UsageError(f"the question {distinct[position]!r} has no vector ({refusal.detail}); leave it out")
        found |= {distinct[position]: answer.vectors[row] for row, position in enumerate(answer.positions.tolist())}
    return [found[text] for text in texts]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A vector table that is asked."""

    connection: Connection
    table: VectorTable
    choice: IndexChoice
    hybrid: Hybrid
    k: int


def _rows(asked: _Asked, question: str, vector: Embeddings, mode: SearchMode) -> list[Key]:
    """Keys of the source's rows that a search finds, the best one first, each once."""
    table = asked.table
    chunked = len(table.row_key) < len(table.key)
    request = SearchRequest(vector, asked.k * (_HITS_PER_ROW if chunked else 1))
    hits: list[Hit]
    if mode == "hybrid":
        hits = hybrid_search(asked.connection, table, asked.choice, asked.hybrid, question, request)
    else:
        request = SearchRequest(vector, request.k, "exact" if mode == "exact" else "adaptive")
        hits = search(asked.connection, table, asked.choice, request)
    names = [column.name for column in table.row_key]
    return list(dict.fromkeys(tuple(str(hit.key[name]) for name in names) for hit in hits))


def _written(modes: dict[SearchMode, Estimates]) -> dict[str, Any]:
    return {mode: {name: asdict(found) for name, found in measures.items()} for mode, measures in modes.items()}
