"""``docs/explanation/architecture.md`` agrees with the tree: it names every package, and every path it names exists."""

from __future__ import annotations

import re
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/explanation/architecture.md").read_text("utf-8")
MODULES = [path for folder in ("rowvec", "tasks", "flows") for path in (ROOT / folder).rglob("*.py")]
PACKAGES = sorted({path.parent.relative_to(ROOT).as_posix() for path in MODULES} - {"rowvec"})
MOST_LINES = 400
MOST_ENTRIES = 17


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_has_one_sentence(package: str) -> None:
    (sentence,) = re.findall(rf"^\| `{package}/` \| (.+) \|$", PAGE, re.MULTILINE)
    assert sentence.endswith(".")


def test_every_path_on_the_page_exists() -> None:
    paths = re.findall(r"`((?:rowvec|tasks|flows|tests|docs|typings|deployments|benchmarks)/[\w/.]*)`", PAGE)
    assert len(paths) > len(PACKAGES)
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
)
def test_every_module_that_a_page_names_exists(page: str) -> None:
    named = re.findall(r"`((?:rowvec|tasks|flows|tests)/[\w/]+\.(?:py|sql))`", (ROOT / page).read_text("utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_layers_on_the_page_are_those_of_the_contract() -> None:
    contract = re.search(r'name = "imports only go down".*?layers = \[(.*?)\]', _project(), re.DOTALL)
    assert contract
    layers = [
        f"{name.replace('.', '/')}/" for name in re.findall(r"(rowvec\.\w+)", contract[1]) if name != "rowvec.errors"
    ]
    table = [name for name in re.findall(r"^\| `(rowvec/\w+/)` \|", PAGE, re.MULTILINE) if name != "rowvec/sql/"]
    assert table == layers


def test_no_imports_go_in_a_circle() -> None:
    """Imports inside functions and for type checking alone count too."""
    graph = grimp.build_graph("rowvec", "rowvec_tasks", "rowvec_flows")
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imports) > len(MODULES) // 2
    TopologicalSorter(imports).prepare()  # raises CycleError with the modules of a circle


def test_the_top_of_the_core_can_be_read_at_a_glance() -> None:
    entries = {path.name for path in (ROOT / "rowvec").iterdir()} - {"py.typed", "__pycache__"}
    assert len(entries) <= MOST_ENTRIES


def test_no_module_is_too_long() -> None:
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text("utf-8").splitlines()) for path in MODULES}
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}


def _project() -> str:
    return (ROOT / "pyproject.toml").read_text("utf-8")
