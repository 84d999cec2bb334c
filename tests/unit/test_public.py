"""The public interface of ``import rowvec``: its names, its signatures, and that importing it costs nothing."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import rowvec
from rowvec import errors

PAGE = (Path(__file__).parents[2] / "docs/reference/python.md").read_text("utf-8")

SIGNATURES = {
    "audit": "(pipeline: Pipeline) -> Audit",
    "load": "(path: str | Path) -> Pipeline",
    "plan": "(pipeline: Pipeline, show: int = 0) -> PlanReport",
    "rejects": "(pipeline: Pipeline, *, retry: bool = False) -> RejectsReport",
    "search": (
        "(pipeline: Pipeline, query: str | Path, k: int = 10, *, where: str | None = None,"
        " mode: SearchMode = 'adaptive', words: str | None = None, vectors: bool = False,"
        " group_by: Literal[chunk, row] = chunk, neighbours: int = 0) -> list[Hit]"
    ),
    "show_pictures": (
        "(pipeline: Pipeline, query: str | Path, hits: Sequence[Hit], *, where: str | None = None,"
        " grid: Path | None = None, page: Path | None = None) -> None"
    ),
    "status": "(pipelines: Iterable[Pipeline]) -> tuple[PipelineStatus, ...]",
    "sync": "(pipeline: Pipeline, *, cause: str = 'python') -> SyncReport",
}
"""A change here is a change of the public interface: it needs a line in CHANGELOG.md."""

CLASSES = {
    "Audit", "BudgetOutlook", "Check", "Chunk", "Finding", "Hit", "LastRun", "LostObject", "Pipeline", "PipelineStatus",
    "PlanReport", "PlannedRow", "Reject", "RejectsReport", "SyncReport",
}  # fmt: skip


def test_the_public_names_are_these_and_each_has_its_signature() -> None:
    assert set(rowvec.__all__) == set(SIGNATURES) | CLASSES | {"SearchMode", "__version__", "errors"}
    found = {name: str(inspect.signature(getattr(rowvec, name))) for name in SIGNATURES}
    found = {name: written.replace("'", "").replace('"', "") for name, written in found.items()}
    assert found == {name: written.replace("'", "") for name, written in SIGNATURES.items()}
    assert all(inspect.isclass(getattr(rowvec, name)) for name in CLASSES)
    assert rowvec.errors is errors


@pytest.mark.parametrize("name", sorted({*rowvec.__all__} - {"__version__", "errors", "SearchMode"}))
def test_every_public_name_has_a_docstring_and_is_on_the_page(name: str) -> None:
    assert inspect.getdoc(getattr(rowvec, name))
    assert f"`{name}" in PAGE


def test_every_error_that_a_caller_may_catch_is_on_the_page() -> None:
    raised = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == "rowvec.errors"
    }
    # The first is of one row, and no call raises it; nothing that handles a failure may catch the second.
    inner = {"RowError", "RunCancelled"}
    assert sorted(name for name in raised - inner if f"`{name}`" not in PAGE) == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="snyc"):
        getattr(rowvec, "snyc")  # noqa: B009 # a type checker knows that there is none


def test_the_import_alone_loads_nothing_that_is_slow() -> None:
    code = "import sys, rowvec; print([m for m in sys.modules if m.split('.')[0] in %r or m.startswith('rowvec.')])"
    slow = {"prefect", "pyarrow", "psycopg", "pydantic", "numpy", "typer"}
    done = subprocess.run([sys.executable, "-c", code % (slow,)], capture_output=True, text=True, check=True)  # noqa: S603 # our own code
    assert ast.literal_eval(done.stdout) == []
    assert rowvec.__version__.count(".") >= 2
