"""Takes one row of the source through all stages, into a scratch table that is dropped afterwards.

It is a real sync of a pipeline whose source is one row, with a name, a table and a folder in the store of its own. What
it leaves in the ledger is deleted too; only the provider's bill knows of it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from psycopg import sql

from rowvec.ledger.generations import list_generations, url_of_target
from rowvec.ledger.held_lease import exclusively_on
from rowvec.operations.setup.finding import Finding, fault, ok
from rowvec.operations.switch import drop
from rowvec.pipeline import Pipeline, template
from rowvec.pipeline.model import LONGEST_PIPELINE_NAME
from rowvec.pipeline.parts import table_identifier
from rowvec.pipeline.references import resolve
from rowvec.pipeline.sources import CsvSource, ImagesSource, ParquetSource, PostgresSource
from rowvec.postgres.connection import Connection, open_target
from rowvec.postgres.fragments import cut_name
from rowvec.postgres.migrations import has_ledger
from rowvec.postgres.queries import query
from rowvec.runtime.figures import dollars
from rowvec.runtime.home import home_folder
from rowvec.sources.other_database import connected
from rowvec.sources.postgres import describe, is_in_target_database
from rowvec.stages import order
from rowvec.store.open import open_store

_PREFIX = "check-"
# Rows of a file that are looked at for one with a key and a content.
_LOOKED_AT = 1_000


def one_row(pipeline: Pipeline) -> Iterator[Finding]:
    """Sync one row as the pipeline would, search for it, and remove all of it.

    The references of ``pipeline`` must be unresolved. Raises what a sync raises.
    """
    started = time.monotonic()
    with _source_of_one_row(pipeline) as source:
        if source is None:
            yield fault("one row", "the source has no row with a key and a content", "write one, then check again")
            return
        scratch = _scratch(pipeline, source)
        _remove(scratch)
        try:
            report = order.sync(scratch, "check")
            with open_target(resolve(scratch, frozenset({"target"})), "rowvec check") as connection:
                found = _found(connection, scratch) if report.rows else 0
        finally:
            _remove(scratch)
    if not report.rows or not found:
        why = "it was rejected" if report.rejected else "it has no vector"
        yield fault(
            "one row", f"one row went through all stages, and {why}", "`rowvec plan FILE` says what a sync does"
        )
        return
    yield ok(
        "one row",
        f"one row was embedded, binarized, uploaded, loaded, indexed and found in {time.monotonic() - started:.1f} s, "
        f"for {dollars(report.cost_usd)}; its table and all else of it were removed",
    )


def _scratch(pipeline: Pipeline, source: Any) -> Pipeline:
    name = f"{_PREFIX}{pipeline.name}"[:LONGEST_PIPELINE_NAME]
    schema = sql.Identifier(table_identifier(pipeline.target.table)[0]).as_string()
    embedder = pipeline.embedder
    changes: dict[str, Any] = {
        "name": name,
        "source": source,
        # A job at a provider's Batch API takes hours.
        "embedder": embedder.model_copy(update={"batch": False}) if hasattr(embedder, "batch") else embedder,
        "target": pipeline.target.model_copy(update={"table": f'{schema}."rowvec_{name}"'}),
        "artifacts": pipeline.artifacts.model_copy(
            update={"url": f"{pipeline.artifacts.url.rstrip('/')}/rowvec-{name}"}
        ),
    }
    return pipeline.model_copy(update=changes)


def _found(connection: Connection, scratch: Pipeline) -> int:
    schema, table = table_identifier(scratch.target.table)
    parts = {
        "function": sql.Identifier(schema, cut_name(table, "_search")),
        "table": sql.Identifier(schema, table),
    }
    row = connection.execute(query("setup", "find_itself", **parts)).fetchone()
    return row[0] if row else 0


def _remove(scratch: Pipeline) -> None:
    """Remove all that a scratch pipeline has left, now or in a check that was killed.

    Raises ``PipelineBusy`` if another check of the pipeline is at work.
    """
    resolved = resolve(scratch, frozenset({"target", "artifacts"}))
    with open_target(resolved, "rowvec check") as connection:
        for generation in list_generations(connection, scratch.name) if has_ledger(connection) else ():
            with exclusively_on(connection, url_of_target(scratch), generation.name, generation.pipeline_id):
                drop(connection, generation)
            values = {
                "pipeline_id": generation.pipeline_id,
                "name": scratch.name,
                "schema": generation.schema,
                "table": generation.table,
            }
            forget = query("setup", "forget", **{name: sql.Literal(value) for name, value in values.items()})
            connection.execute(forget)
    store = open_store(resolved.artifacts)
    for name in list(store.names()):
        store.delete(name)


@contextmanager
def _source_of_one_row(pipeline: Pipeline) -> Generator[Any]:
    """The source with one row of it; None if it has no row with a key and a content."""
    source = pipeline.source
    if source.kind == "postgres":
        yield _of_table(pipeline, source)
        return
    # Late: pyarrow's readers of files.
    from rowvec.runtime.home import temporary_folder

    resolved: Any = resolve(pipeline, frozenset({"source"})).source
    with temporary_folder(home_folder("spool")) as place:
        if source.kind == "images" and Path(source.path).is_dir():
            yield _of_folder(source, place)
        else:
            yield _of_file(source, resolved, place)


def _of_table(pipeline: Pipeline, source: PostgresSource) -> PostgresSource | None:
    resolved = resolve(pipeline, frozenset({"source", "target"}))
    here: Any = resolved.source
    with open_target(resolved, "rowvec check") as target, ExitStack() as opened:
        connection = target
        if not is_in_target_database(resolved):
            connection = opened.enter_context(connected(here.url or ""))
        described = describe(connection, resolved, here, b"")
        columns = [(sql.Identifier(column.name), column.type_sql) for column in described.key]
        whole_key = sql.SQL(" AND ").join(sql.SQL("{} IS NOT NULL").format(name) for name, _ in columns)
        key = connection.execute(
            query(
                "setup",
                "one_key",
                key=sql.SQL(", ").join(sql.SQL("{}::text").format(name) for name, _ in columns),
                relation=described.relation,
                something=described.something,
                whole_key=whole_key,
            )
        ).fetchone()
        if key is None:
            return None
        is_key = sql.SQL(" AND ").join(
            sql.SQL("{} = {}::{}").format(name, sql.Literal(text), pg_type)
            for (name, pg_type), text in zip(columns, key, strict=True)
        )
        written = query("setup", "one_row", relation=described.relation, is_key=is_key).as_string(connection)
    return source.model_copy(update={"table": None, "query": written})


def _of_folder(source: ImagesSource, place: Path) -> ImagesSource | None:
    from rowvec.sources.files.source import file_format

    for batch in file_format(source).batches(Path(source.path), ["image_file"]):
        name = Path(batch.column(0)[0].as_py())
        (place / "images" / name).parent.mkdir(parents=True)
        shutil.copyfile(Path(source.path) / name, place / "images" / name)
        return source.model_copy(update={"path": str(place / "images")})
    return None


def _of_file(source: Any, resolved: Any, place: Path) -> ParquetSource | ImagesSource | None:
    from pyarrow import parquet

    from rowvec.sources.files.download import fetcher
    from rowvec.sources.files.source import file_format, local_paths
    from rowvec.sources.images.file import is_url

    paths = fetcher(resolved.credential)(resolved.path, place) if is_url(resolved.path) else local_paths(resolved)
    read, into = file_format(resolved), place / "one-row.parquet"
    for batch in read.batches(paths[0], read.schema(paths[0]).names):
        for number, row in enumerate(batch.slice(0, _LOOKED_AT).to_pylist()):
            if _has_content(source, row):
                parquet.write_table(pa.Table.from_batches([batch.slice(number, 1)]), into)
                return _parquet(source, into)
    return None


def _has_content(source: CsvSource | ParquetSource | ImagesSource, row: dict[str, Any]) -> bool:
    if any(row[name] is None for name in source.key):
        return False
    if source.kind == "images":
        return row[source.content.image] is not None
    texts = {name: None if value is None else str(value) for name, value in row.items()}
    return source.content is None or bool(template.parse(source.content).render(texts).strip())


def _parquet(source: CsvSource | ParquetSource | ImagesSource, file: Path) -> ParquetSource | ImagesSource:
    if source.kind == "images":
        return source.model_copy(update={"path": str(file), "images": source.images or source.path.rpartition("/")[0]})
    return ParquetSource(
        kind="parquet",
        path=str(file),
        key=source.key,
        metadata=source.metadata,
        content=source.content,
        empty=source.empty,
        chunks=source.chunks,
    )
