"""Commands and keys of the pipeline file are documented, links lead somewhere, and every block of SQL is used."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import pytest
import typer.main
from pydantic import BaseModel

from rowvec.cli.app import app
from rowvec.pipeline import embedders, model, sources
from rowvec.stages.alarms import AlarmName
from tests.support.command_reference import PAGE, written_page

ROOT = Path(__file__).parents[2]
PARTS = [
    value
    for module in (model, sources, embedders)
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, BaseModel) and value.__module__ == module.__name__
]
KEYS = sorted({(part.__name__, key) for part in PARTS for key in part.model_fields if part is not model.Pipeline})


@pytest.mark.parametrize(("part", "key"), KEYS)
def test_every_key_of_the_pipeline_file_is_documented(part: str, key: str) -> None:
    assert f"`{key}`" in (ROOT / "docs/reference/pipeline.md").read_text("utf-8")


@pytest.mark.parametrize(("part", "key"), [k for k in KEYS if k[1] != "kind"])
def test_every_key_explains_itself_in_the_json_schema(part: str, key: str) -> None:
    field = next(p for p in PARTS if p.__name__ == part).model_fields[key]
    assert field.description
    assert field.description.endswith((".", "]."))


def test_every_command_that_a_page_shows_exists() -> None:
    commands = set(getattr(typer.main.get_command(app), "commands"))  # noqa: B009 # click's Group is untyped here
    shown: set[str] = set()
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for block in re.findall(
            r"^ *```(?:sh|console)\n(.*?)^ *```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL
        ):
            shown |= set(re.findall(r"^(?: *|\$ |\.venv/bin/)rowvec (\w+)", block, re.MULTILINE))
    assert {"sync", "deploy"} < shown <= commands


def test_every_variable_of_ours_is_documented() -> None:
    code = "".join(path.read_text("utf-8") for folder in ("rowvec", "flows", "tasks") for path in _modules(folder))
    page = (ROOT / "docs/reference/environment.md").read_text("utf-8")
    assert set(re.findall(r'"(ROWVEC_[A-Z_]+)"', code)) == set(
        re.findall(r"^\| `(ROWVEC_[A-Z_]+)`", page, re.MULTILINE)
    )


def test_every_table_of_the_ledger_is_documented() -> None:
    schema = (ROOT / "rowvec/sql/schema.sql").read_text("utf-8")
    made = re.findall(r"^CREATE (?:UNLOGGED )?(?:TABLE|VIEW) (?:IF NOT EXISTS )?(rowvec\.\w+)", schema, re.MULTILINE)
    page = (ROOT / "docs/reference/sql.md").read_text("utf-8")
    assert {name for name in made if f"`{name}`" not in page} == set()
    assert len(made) > 10


def test_every_event_is_documented() -> None:
    page = (ROOT / "docs/reference/events-and-metrics.md").read_text("utf-8")
    assert set(
        re.findall(r"^\| `(rowvec\.(?:sync|audit|changes)\.\w+)`", page.partition("## Spans")[0], re.MULTILINE)
    ) == set(get_args(AlarmName))


def test_every_metric_is_documented_and_on_the_dashboard() -> None:
    """Under the names that Prometheus gives them, which the page has in its last column."""
    code = (ROOT / "rowvec/stages/report.py").read_text("utf-8")
    page = (ROOT / "docs/reference/events-and-metrics.md").read_text("utf-8")
    rows = re.findall(r"^\| `(rowvec\.[\w.]+)` \|.*\| `(\w+)` \|$", page.partition("## Metrics")[2], re.MULTILINE)
    assert {metric for metric, _ in rows} == set(re.findall(r'create_\w+\(\s*"(rowvec\.[\w.]+)"', code))
    dashboard = json.loads((ROOT / "deployments/grafana/rowvec.json").read_text("utf-8"))
    asked = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    # A histogram is three series.
    series = {re.sub("_(?:sum|count|bucket)$", "", name) for name in re.findall(r"\b(rowvec_\w+)[{]", asked)}
    assert series == {name for _, name in rows}
    attributes = {f"rowvec_{name}" for name in re.findall(r'"rowvec\.(pipeline|kind|consistent|stage|k)"', code)}
    assert set(re.findall(r"\b(rowvec_\w+)(?:=|\))", asked)) <= attributes


def test_the_page_on_the_command_line_is_made_from_the_commands() -> None:
    assert PAGE.read_text("utf-8") == written_page(), "run python -m tests.support.command_reference"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_make_target_exists(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"(?:`|^)make ([\w-]+)", (ROOT / page).read_text("utf-8"), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_link_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), f"{page}: {link}"


def test_every_page_that_code_and_settings_name_exists() -> None:
    folders = ["rowvec", "flows", "tasks", "deployments", "tests"]
    files = [
        path for folder in folders for kind in ("py", "sql", "yaml") for path in (ROOT / folder).rglob(f"*.{kind}")
    ]
    named: set[str] = set()
    for file in [*files, ROOT / "Makefile", *ROOT.glob("*.toml"), *ROOT.glob("*.yaml")]:
        named |= set(re.findall(r"(?<![\w/.])docs/[\w/-]+\.md", file.read_text("utf-8")))
    assert len(named) > 10
    assert {page for page in named if not (ROOT / page).exists()} == set()


def test_lists_begin_after_a_blank_line() -> None:
    """GitHub needs none, the site does: without one it shows the items as one paragraph."""
    for page in (ROOT / "docs").rglob("*.md"):
        prose = re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        found = re.findall(r"^(?!- |\d+\. |[ \n]).+\n(?:- |\d+\. ).*", prose, re.MULTILINE)
        assert found == [], page


def test_the_glossary_defines_each_term_once() -> None:
    terms = re.findall(r"^\| \*\*(\w+)\*\* \|", (ROOT / "docs/reference/glossary.md").read_text("utf-8"), re.MULTILINE)
    assert terms == sorted(set(terms))
    needed = "row key content fingerprint batch artifact manifest journal generation reject pending run"
    assert set(needed.split()) <= set(terms)


def test_contributing_has_ten_rules_for_prose_each_with_an_example() -> None:
    prose = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("## Prose")[2]
    rules = re.findall(r"^\d+\. .*(?:\n   .*)*", prose, re.MULTILINE)
    assert len(rules) == 10
    assert [rule for rule in rules if not re.search(r'[Nn]ot "', rule)] == []


def test_every_named_block_of_sql_is_used() -> None:
    code = "".join(path.read_text("utf-8") for path in (ROOT / "rowvec").rglob("*.py"))
    for file in (ROOT / "rowvec/sql").glob("*.sql"):
        for name in re.findall(r"^-- name: (\w+)", file.read_text("utf-8"), re.MULTILINE):
            assert f'"{name}"' in code or name.startswith("migration_"), f"{file.name}: {name}"


def _modules(folder: str) -> Iterable[Path]:
    return (ROOT / folder).rglob("*.py")
