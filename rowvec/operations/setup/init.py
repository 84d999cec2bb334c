"""The init command: a commented pipeline file for a table, a CSV or Parquet file, or a folder of images."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rowvec.errors import UsageError
from rowvec.operations.setup import columns, draft
from rowvec.operations.setup.draft import Around, Draft
from rowvec.pipeline.file import parse
from rowvec.pipeline.parts import table_name
from rowvec.postgres.connection import connect, lost_connections_are_retriable, target_url
from rowvec.postgres.queries import query

# A URL, or the keywords of libpq.
_POSTGRES = re.compile(r"^postgres(?:ql)?://|^\s*[a-z_]+\s*=")
_FORMATS: dict[str, Literal["csv", "parquet"]] = {".csv": "csv", ".parquet": "parquet"}
_LISTED = 20
_VARIABLE = "ROWVEC_DATABASE_URL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A pipeline file that was written."""

    file: Path
    draft: Draft
    sets: str | None
    """The variable that must be set to the URL that was given; None if it is set to it."""


def write_draft(source: str, table: str | None, into: Path | None) -> Written:
    """Write a pipeline file for a source: the URL of a database with a table, a table, a file, or a folder of images.

    A table without a URL is looked for in the target's database. ``into``: by default NAME.yaml in the current folder;
    an existing file is never replaced. No URL is written, because it may hold a password. Raises ``UsageError`` if the
    source is not there or cannot have a key, and what ``connect`` raises.
    """
    path = Path(source)
    if _POSTGRES.match(source) or not path.exists():
        made = _of_database(source, table)
    elif table is not None:
        raise UsageError(f"{source} is a file or a folder and has no table {table}; leave the table out")
    else:
        made = _of_path(path, (into.absolute().parent if into else Path.cwd()))
    file = into or Path(f"{made.name}.yaml")
    parse(made.text, file)
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(made.text)
    except FileExistsError:
        raise UsageError(
            f"{file} exists, and nothing was written; give another name with -o, or move it away"
        ) from None
    except OSError as error:
        raise UsageError(f"{file} cannot be written ({error.strerror}); give another name with -o") from None
    is_set = not _POSTGRES.match(source) or os.environ.get(_VARIABLE) == source
    return Written(file=file, draft=made, sets=None if is_set else _VARIABLE)


def _of_database(source: str, table: str | None) -> Draft:
    url = source if _POSTGRES.match(source) else None
    if url is None:
        if table is not None or "://" in source or Path(source).suffix.lower() in _FORMATS or "/" in source:
            raise UsageError(
                f"{source if '://' not in source else 'the source'} is no file, no folder and no URL of a database; "
                "write postgresql://user@host/database schema.table, a table, or a path that is there"
            )
        table = source
    named = _checked(table) if table is not None else None
    with lost_connections_are_retriable(), connect(target_url(url), application="rowvec init") as connection:
        if named is None:
            known = [f"{s}.{t}" for s, t in connection.execute(query("source", "relations")).fetchall()]
            raise UsageError(
                f"name a table after the URL; the database has {', '.join(sorted(known)[:_LISTED]) or 'none'}"
            )
        return draft.of_table(named, columns.of_table(connection, named), _around(url))


def _checked(table: str) -> str:
    try:
        return table_name(table)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _of_path(path: Path, folder: Path) -> Draft:
    written = os.path.relpath(path, folder)
    if path.is_dir():
        return draft.of_images(written, path.resolve().name, _around(None))
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise UsageError(f"{path} is neither a .csv nor a .parquet file nor a folder of images; name one of these")
    return draft.of_file(kind, written, path.stem, columns.of_file(path, kind), _around(None))


def _around(url: str | None) -> Around:
    return Around(openai=bool(os.environ.get("OPENAI_API_KEY")), named_database=bool(url or os.environ.get(_VARIABLE)))
