"""Drafts a pipeline file for a table, a file or a folder of images, and says in comments what it guessed and why.

A name in a database or a file may hold anything, so none is written as it is: in a value it is quoted as YAML needs it,
and in a comment it cannot end the line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from textwrap import wrap

from rowvec.errors import UsageError
from rowvec.operations.setup.columns import Column, Found
from rowvec.pipeline.model import HYBRID_COLUMNS, LONGEST_PIPELINE_NAME
from rowvec.pipeline.parts import LONGEST_NAME, table_identifier
from rowvec.pipeline.sources import RESERVED_COLUMNS

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What YAML 1.1 or 1.2 reads as something else than a text.
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})
_SQL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*")

# Texts of so many characters on the average are embedded; shorter ones are metadata, unless their name says otherwise.
_LONG_TEXT = 24
_LONGEST_METADATA = 64
_MOST_METADATA = 12
_TITLES = ("title", "name", "headline", "subject", "caption", "label")
_BODIES = ("body", "text", "content", "description", "abstract", "summary", "review", "comment", "message", "question")
_NO_CONTENT = re.compile(r"(?:^|_)(?:url|uri|link|path|file|email|hash|sha256|md5|token|slug|uuid|code|lang|locale)s?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A pipeline file that nobody has written yet."""

    name: str
    text: str
    guesses: tuple[str, ...]
    """One sentence each, as in the file's comments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What the surroundings of a draft have."""

    openai: bool
    """Whether there is a key for OpenAI; if not, the local model embeds."""
    named_database: bool
    """Whether a variable names the target's database; if not, it is the embedded Postgres."""


@dataclass(slots=True)
class _Lines:
    """The lines of a file, and the guesses in it."""

    lines: list[str] = field(default_factory=list[str])
    guesses: list[str] = field(default_factory=list[str])

    def add(self, *lines: str) -> None:
        self.lines += lines

    def guess(self, sentence: str) -> None:
        self.guesses.append(sentence)
        self.lines += wrap(
            sentence,
            118,
            initial_indent="  # ",
            subsequent_indent="  # ",
            break_long_words=False,
            break_on_hyphens=False,
        )


def of_table(table: str, found: Found, around: Around) -> Draft:
    """A pipeline over a table of the target's database.

    Raises ``UsageError`` if no column can be the key.
    """
    schema, name = table_identifier(table)
    lines = ["  kind: postgres", f"  table: {scalar('.'.join(_sql_name(part) for part in (schema, name)))}"]
    pipeline = pipeline_name(name)
    target = f"vectors.{pipeline}"
    return _draft(pipeline, lines, found, target if (schema, name) != ("vectors", pipeline) else f"{target}_2", around)


def of_file(kind: str, path: str, stem: str, found: Found, around: Around) -> Draft:
    """A pipeline over a CSV or Parquet file. Raises like ``of_table``."""
    lines = [f"  kind: {kind}", f"  path: {scalar(path)}  # relative to this file"]
    numbers = [column.name for column in found.columns if column.number]
    if numbers:
        types = ", ".join(f"{scalar(name)}: bigint" for name in numbers)
        lines += [
            "  # CSV has no types; these columns have only whole numbers in the first rows.",
            f"  types: {{{types}}}",
        ]
    pipeline = pipeline_name(stem)
    return _draft(pipeline, lines, found, f"vectors.{pipeline}", around)


def of_images(path: str, stem: str, around: Around) -> Draft:
    """A pipeline over a folder of images."""
    name = pipeline_name(stem)
    written = _Lines()
    written.add(*_head(name), "source:", "  kind: images", f"  path: {scalar(path)}  # relative to this file")
    written.guess("Each image file is a row; its name in the folder is the key.")
    written.add("  key: [image_file]", "  content: {image: image_file}", "  metadata: [width, height, media_type]")
    written.add("embedder:")
    written.guess(
        "local_image compares colours, shapes and textures without network and takes no text; azure_vision and "
        "openai_images embed images and texts in one space."
    )
    written.add("  kind: local_image", *_tail(f"vectors.{name}", around))
    return Draft(name=name, text="\n".join(written.lines) + "\n", guesses=tuple(written.guesses))


def _draft(name: str, source: list[str], found: Found, target: str, around: Around) -> Draft:
    written = _Lines()
    written.add(*_head(name), "source:", *source)
    key = _key(found, written)
    written.add(f"  key: [{', '.join(map(scalar, key))}]")
    content = _content(found, key)
    written.guess(_why_content(content))
    template = "\n".join("{" + column.name + "}" for column in content)
    written.add(f"  content: {quoted(template)}")
    metadata, more = _metadata(found, {*key, *(column.name for column in content)})
    if metadata:
        written.guess("Small columns, for filters and for display; a change in them costs no embedding.")
        written.add(f"  metadata: [{', '.join(map(scalar, metadata))}]")
    if more:
        written.guess(f"Not in this file, because of their type, length or name: {', '.join(map(quoted, more))}.")
    written.add("embedder:")
    if around.openai:
        written.guess("OPENAI_API_KEY is set, so OpenAI embeds; rowvec plan says what that costs, before it is spent.")
        written.add(
            "  kind: openai",
            "  # For a compatible server; if the variable is not set, OpenAI itself is asked.",
            "  base_url: ${OPENAI_BASE_URL}",
            "  model: text-embedding-3-small",
            "  dimensions: 1536",
        )
    else:
        written.guess(
            "A small model that runs here, without network or cost; for OpenAI's write kind openai, model "
            "text-embedding-3-small and dimensions 1536, and set OPENAI_API_KEY."
        )
        written.add("  kind: local", "  dimensions: 256")
    written.add(*_tail(target, around))
    return Draft(name=name, text="\n".join(written.lines) + "\n", guesses=tuple(written.guesses))


def _head(name: str) -> list[str]:
    return [
        "# Drafted by rowvec init: read what it guessed, correct it, then run rowvec check with this file.",
        "# rowvec schema prints all keys; docs/reference/pipeline.md explains them.",
        f"name: {scalar(name)}",
    ]


def _tail(target: str, around: Around) -> list[str]:
    url = [
        "  # The database is not named here, because its URL may hold a password: the variable has it.",
        "  url: ${ROWVEC_DATABASE_URL}",
    ]
    return [
        "target:",
        *(url if around.named_database else ["  # Without a url: the Postgres inside rowvec, in ROWVEC_HOME."]),
        f"  table: {scalar(target)}  # rowvec creates it",
        "artifacts:",
        "  # A folder, or https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX: what was paid for is kept here.",
        "  url: ./artifacts",
    ]


def _key(found: Found, written: _Lines) -> tuple[str, ...]:
    if found.key:
        written.guess(f"{', '.join(map(quoted, found.key))}: {found.key_from}.")
        key = found.key
    else:
        usable = [column.name for column in found.columns if column.kind != "other" and _is_free(column.name)]
        key = tuple(usable[:1])
        if not key:
            raise UsageError("no column can be the key of a row; write the pipeline file yourself, over a query")
        written.guess("Nothing guarantees a key here: see that this column is unique and never NULL, or name others.")
    for name in key:
        if not _is_free(name):
            raise UsageError(
                f"the key column {name!r} has the name of a column of rowvec's own; write the pipeline file yourself, "
                "with source.query in place of source.table, and rename the column there"
            )
    return key


def _content(found: Found, key: tuple[str, ...]) -> list[Column]:
    """The columns to embed, titles first."""
    texts = [
        column
        for column in found.columns
        if column.kind == "text" and column.name not in key and _fits_template(column.name)
    ]
    chosen = [column for column in texts if _is_content(column)]
    if not chosen:
        longest = sorted(texts, key=lambda column: -(column.width or 0))[:1]
        others = [column for column in found.columns if _fits_template(column.name)]
        chosen = longest or [c for c in others if c.name not in key][:1] or others[:1]
    if not chosen:
        raise UsageError(
            "no column's name can stand in a template, which takes no braces; rename one in a source.query"
        )
    return sorted(chosen, key=lambda column: not _named_like(column.name, _TITLES))


def _is_content(column: Column) -> bool:
    if _NO_CONTENT.search(column.name.lower()):
        return False
    return _named_like(column.name, (*_TITLES, *_BODIES)) or (column.width or 0) >= _LONG_TEXT


def _why_content(content: Iterable[Column]) -> str:
    parts = [
        quoted(column.name) + (f" (about {column.width:,.0f} characters)" if column.width is not None else "")
        for column in content
    ]
    return f"What is embedded, by type, name and length of the columns: {', '.join(parts)}."


def _metadata(found: Found, taken: set[str]) -> tuple[list[str], list[str]]:
    """The columns to carry along, and those that are left out."""
    chosen: list[str] = []
    more: list[str] = []
    for column in found.columns:
        if column.name in taken:
            continue
        small = column.kind == "scalar" or (
            column.kind == "text" and column.width is not None and column.width <= _LONGEST_METADATA
        )
        room = len(chosen) < _MOST_METADATA
        (chosen if small and room and _is_free(column.name) else more).append(column.name)
    return chosen, more


def _is_free(name: str) -> bool:
    """Whether the vector table may have a column of this name."""
    taken = name in RESERVED_COLUMNS or name in HYBRID_COLUMNS or name.startswith("rowvec_")
    return not taken and bool(name) and "\0" not in name and len(name.encode(errors="replace")) <= LONGEST_NAME


def _fits_template(name: str) -> bool:
    return bool(name) and not any(sign in name for sign in "{}\0")


def _named_like(name: str, words: tuple[str, ...]) -> bool:
    return any(part in words for part in re.split(r"[^a-z]+", name.lower()))


def pipeline_name(name: str) -> str:
    """A name that a pipeline may have, as near to this one as it can be."""
    kept = re.sub(r"[^a-z0-9_-]+", "_", name.lower()).strip("_-")
    kept = kept if re.match(r"[a-z]", kept) else f"p_{kept}".rstrip("_")
    return kept[:LONGEST_PIPELINE_NAME].rstrip("_-")


def _sql_name(name: str) -> str:
    return name if _SQL_NAME.fullmatch(name) else '"' + name.replace('"', '""') + '"'


def scalar(text: str) -> str:
    """A text as a YAML value: plain if nobody can misread it, else quoted."""
    parts = text.split(".")
    plain = all(_PLAIN.fullmatch(part) for part in parts) and text.lower() not in _WORDS
    return text if plain else quoted(text)


def quoted(text: str) -> str:
    """A text as a double-quoted YAML value in one line, with all that is no printable character as an escape."""
    return '"' + "".join(_escaped(sign) for sign in text) + '"'


def _escaped(sign: str) -> str:
    if sign in '"\\':
        return f"\\{sign}"
    if sign == "\n":
        return "\\n"
    if sign.isprintable():
        return sign
    number = ord(sign)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
