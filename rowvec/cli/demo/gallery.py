"""The demo: a gallery of 240 paintings, synced three times and searched, with nothing but this package."""

from __future__ import annotations

import csv
import io
import shlex
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from rowvec.cli import render
from rowvec.cli.output import as_typed, out
from rowvec.operations import search
from rowvec.pipeline import Pipeline
from rowvec.pipeline.file import load
from rowvec.postgres.connection import Connection, connect, target_url
from rowvec.postgres.queries import query
from rowvec.runtime.home import home_folder
from rowvec.stages.report import SyncReport

QUESTIONS = (
    ("a small boat in a storm at sea", None),
    ("people dancing at night", "year >= 1850"),
    ("a quiet room with a woman reading", "type = 'interior' OR type = 'genre scene'"),
)

Flow = Callable[..., SyncReport]


def run(sync: Flow, *, quiet: bool) -> dict[str, Any]:
    """Create the gallery, sync it three times, search it three times; returns all reports and results."""
    file = pipeline_file()
    shutil.rmtree(file.parent / "artifacts", ignore_errors=True)
    pipeline = load(file)
    with connect(target_url(None)) as connection:
        _create_gallery(connection)
        reports = [_sync(sync, pipeline, "1. The first sync: every painting is embedded.", quiet)]
        connection.execute(query("demo", "curate"))
        reports.append(
            _sync(sync, pipeline, "2. Three bought, four redescribed, two revalued, five sold: only those.", quiet)
        )
        reports.append(_sync(sync, pipeline, "3. Nothing has changed: nothing is embedded.", quiet))
    results = {text: _search(pipeline, text, where, quiet) for text, where in QUESTIONS}
    if not quiet:
        command = f"{as_typed('rowvec')} search {shlex.quote(str(file))} sunflowers"
        out.print(f"\nThe pipeline file is {file}. Try:\n{command}", markup=False, highlight=False, soft_wrap=True)
    return {"syncs": [report.as_json() for report in reports], "searches": results}


def pipeline_file() -> Path:
    """The gallery's pipeline file, copied to a folder that can hold its artifacts too."""
    file = home_folder("demo") / "paintings.yaml"
    shutil.copyfile(str(files("rowvec.cli.demo") / "paintings.yaml"), file)
    return file


def create_gallery_once(url: str) -> None:
    """Create the gallery's table if it is missing; an existing one keeps all changes that were made in it."""
    with connect(url) as connection:
        if connection.execute(query("demo", "no_gallery")).fetchone() == (True,):
            _create_gallery(connection)


def _create_gallery(connection: Connection) -> None:
    connection.execute(query("demo", "empty_gallery"))
    text = (files("rowvec.cli.demo") / "paintings.csv").read_text("utf-8")
    rows = list(csv.reader(io.StringIO(text)))[1:]
    with connection.cursor() as cursor, cursor.copy(query("demo", "copy")) as copy:
        for row in rows:
            copy.write_row(row)


def _sync(sync: Flow, pipeline: Pipeline, title: str, quiet: bool) -> SyncReport:
    report = sync(pipeline=pipeline, cause="demo")
    if not quiet:
        out.print(f"\n{title}", style="bold", markup=False, highlight=False)
        render.sync(report)
    return report


def _search(pipeline: Pipeline, text: str, where: str | None, quiet: bool) -> dict[str, Any]:
    found = {"results": [hit.as_json() for hit in search.search(pipeline, text, 5, where=where)]}
    if not quiet:
        out.print()
        render.search(text if where is None else f"{text}” where “{where}", found["results"])
    return found
