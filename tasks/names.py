"""Names of artifacts, resources and assets in the form that Prefect accepts."""

from __future__ import annotations

import re
from urllib.parse import quote

from psycopg.conninfo import conninfo_to_dict

from rowvec.errors import RowvecError
from rowvec.pipeline import Pipeline
from rowvec.pipeline.parts import table_identifier
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import target_url


def artifact_key(pipeline: str, what: str) -> str:
    """The key of an artifact: lower case, digits and dashes. A pipeline's runs share it, so the UI keeps a history."""
    return f"{re.sub(r'[_.]', '-', pipeline)}-{what}"


def vector_asset(pipeline: Pipeline) -> str:
    """The vector table as an asset: ``postgres://HOST/DATABASE/SCHEMA.TABLE``, without secrets."""
    resolved = resolve(pipeline, frozenset({"target"}))
    return _postgres_asset(resolved.target.url, ".".join(table_identifier(pipeline.target.table)))


def source_asset(pipeline: Pipeline) -> str:
    """The source as an asset: a table, a query named after its pipeline, or files."""
    source = pipeline.source
    if source.kind != "postgres":
        return source.path if "://" in source.path and "$" not in source.path else f"file://{quote(source.path)}"
    try:
        resolved = resolve(pipeline, frozenset({"source", "target"}))
        url = getattr(resolved.source, "url", None) or resolved.target.url
    except RowvecError:
        url = None
    named = ".".join(table_identifier(source.table)) if source.table else f"query-of-{pipeline.name}"
    return _postgres_asset(url, named)


def _postgres_asset(url: str | None, name: str) -> str:
    parts = conninfo_to_dict(target_url(url))
    host = str(parts.get("host") or "localhost")
    where = "localhost" if host.startswith(("/", "@")) else host
    return f"postgres://{quote(where)}/{quote(str(parts.get('dbname') or 'postgres'))}/{quote(name)}"
