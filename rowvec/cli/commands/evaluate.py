"""The command ``rowvec evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rowvec.cli.commands.options import AsJson, load
from rowvec.cli.output import emit, out, table
from rowvec.errors import UsageError

if TYPE_CHECKING:
    from rowvec.operations.relevance.evaluate import Estimates, Evaluation
    from rowvec.operations.relevance.measures import Estimate


def evaluate_searches(
    files: Annotated[list[Path], typer.Argument(help="One pipeline file, or two to compare.", show_default=False)],
    questions: Annotated[
        Path,
        typer.Option(
            help='A file with one JSON per line: {"question": "...", "relevant": [KEY, ...]}.', show_default=False
        ),
    ],
    k: Annotated[int, typer.Option("-k", min=1, max=1_000, help="How many results of each search count.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Ask labelled questions of a vector table, and measure how well the rows that answer them rank."""
    if len(files) > 2:
        raise UsageError("evaluate compares two pipelines; give one or two files")
    from rowvec.operations.relevance.evaluate import evaluate

    found = evaluate([load(file) for file in files], questions, k)
    emit(found.as_json(), as_json, lambda: _show(found))


def _show(found: Evaluation) -> None:
    from rowvec.operations.relevance.measures import MEASURES

    rows = [
        (name, mode, *(_interval(measures[measure]) for measure in MEASURES))
        for name, modes in found.pipelines
        for mode, measures in modes.items()
    ]
    rows += [
        ("difference", mode, *(_interval(measures[measure], signed=True) for measure in MEASURES))
        for mode, measures in found.differences.items()
    ]
    columns = ("pipeline", "mode", f"nDCG@{found.k}", f"MRR@{found.k}", f"recall@{found.k}")
    table(f"{found.questions:,} questions, with 95 % intervals", columns, rows)
    for mode, measures in found.differences.items():
        out.print(f"{mode}: {_verdict(measures)}", markup=False)


def _interval(value: Estimate, *, signed: bool = False) -> str:
    mean = f"{value.mean:+.3f}" if signed else f"{value.mean:.3f}"
    return f"{mean} ({value.low:.3f} to {value.high:.3f})"


def _verdict(measures: Estimates) -> str:
    ndcg = measures["ndcg"]
    if ndcg.is_better:
        return "the second pipeline answers better"
    if ndcg.is_worse:
        return "the second pipeline answers worse"
    return "these questions show no difference"
