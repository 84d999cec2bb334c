"""No function takes so many parameters that a reader loses count: values that belong together travel as one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import rowvec

PACKAGES = ("index", "searches", "stages")
# Keyword-only parameters count; ``self`` and ``cls`` do not.
MOST = 7


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    named = function.args
    every = [one.arg for one in (*named.posonlyargs, *named.args, *named.kwonlyargs)]
    return [name for name in every if name not in ("self", "cls")]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_function_takes_more_parameters_than_a_reader_can_hold(package: str) -> None:
    modules = sorted((Path(rowvec.__file__).parent / package).rglob("*.py"))
    assert modules
    offenders = [
        f"{module.name}:{node.lineno} {node.name} takes {len(parameters(node))}"
        for module in modules
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and len(parameters(node)) > MOST
    ]
    assert not offenders, "\n".join(offenders)
