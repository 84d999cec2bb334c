"""The check command: everything that a pipeline file names is looked at before a sync relies on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rowvec.errors import UsageError
from rowvec.operations.setup import services, target
from rowvec.operations.setup import source as sources
from rowvec.operations.setup.finding import Finding, fault, guarded, ok, warning
from rowvec.operations.setup.one_row import one_row
from rowvec.pipeline import Pipeline
from rowvec.pipeline.file import load
from rowvec.pipeline.references import Reference, references, resolve
from rowvec.postgres.connection import Connection, open_target
from rowvec.runtime.prefect_server import PrefectServer
from rowvec.runtime.suggestion import did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a check looks at, besides the file itself."""

    online: bool = True
    """Whether it asks servers."""
    embedder: bool = True
    """Whether the embedder embeds one tiny text, which a provider bills."""
    row: bool = False
    """Whether one row goes through all stages."""
    server: PrefectServer | None = None
    """The Prefect server that a sync would report to; None if it would start its own."""


def check(file: Path, scope: Scope) -> Iterator[Finding]:
    """The findings, as they are made; what depends on something that is faulty is left out."""
    try:
        pipeline = load(file)
    except UsageError as error:
        for line in str(error).splitlines():
            yield fault("file", line)
        return
    yield ok("file", f"{file} is the pipeline {pipeline.name}")
    missing = [found for found in references(pipeline) if not _is_set(found)]
    yield from _variables(pipeline, missing, fault if scope.online else warning)
    without = {reference.part for reference in missing}
    source = pipeline.source
    if source.kind != "postgres" and "source" not in without and (scope.online or "://" not in source.path):
        yield from _guarded("source", pipeline, "source", sources.files)
    if not scope.online:
        return
    faults = False
    for finding in _online(pipeline, scope, without):
        faults |= finding.state == "fault"
        yield finding
    if scope.row and not faults and not without:
        yield from guarded("one row", partial(one_row, pipeline))


def _online(pipeline: Pipeline, scope: Scope, without: set[str]) -> Iterator[Finding]:
    if "target" not in without:
        yield from guarded("target", partial(_database, pipeline, without))
    if "artifacts" not in without:
        yield from _guarded("store", pipeline, "artifacts", services.store)
    if scope.embedder and "embedder" not in without:
        yield from _guarded("embedder", pipeline, "embedder", services.embedder)
    yield from services.prefect(scope.server)


def _database(pipeline: Pipeline, without: set[str]) -> Iterator[Finding]:
    resolved = resolve(pipeline, frozenset({"target", "source"} - without))
    with open_target(resolved, "rowvec check") as connection:
        role = target.role_of(connection)
        yield ok("target", f"{role.name} is connected to the database {role.database}")
        yield from target.server(connection)
        yield from target.pgvector(connection, role)
        yield from target.privileges(connection, resolved, role)
        yield from target.connections(connection, role)
        if resolved.source.kind == "postgres" and "source" not in without:
            yield from guarded("source", partial(_table, connection, resolved))


def _table(connection: Connection, resolved: Pipeline) -> Iterator[Finding]:
    learned = sources.Learned()
    yield from sources.table(connection, resolved, learned)
    if learned.rows is not None:
        yield from target.memory(connection, resolved, learned.rows)


def _guarded(
    name: str, pipeline: Pipeline, part: str, look: Callable[[Pipeline], Iterator[Finding]]
) -> Iterator[Finding]:
    """The findings of ``look`` at a pipeline with one part resolved."""

    def resolved() -> Iterator[Finding]:
        yield from look(resolve(pipeline, frozenset({part})))

    return guarded(name, resolved)


def _variables(
    pipeline: Pipeline, missing: list[Reference], told: Callable[[str, str, str], Finding]
) -> Iterator[Finding]:
    for reference in missing:
        yield told(
            "variables",
            f"{reference.key}: the environment variable {reference.variable} is not set"
            f"{did_you_mean(reference.variable, os.environ)}",
            "export it, put it into a file and name that with --env-file, or name another one",
        )
    named = {reference.variable for reference in references(pipeline) if reference.variable}
    if not missing:
        yield ok("variables", f"{', '.join(sorted(named))}: set" if named else "the file names none")


def _is_set(reference: Reference) -> bool:
    return reference.optional or not reference.variable or bool(os.environ.get(reference.variable))
