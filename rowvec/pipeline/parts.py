"""What all parts of a pipeline file refuse: keys nobody knows, NUL characters, and secrets in plain text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator

LONGEST_NAME = 63
"""Bytes. Postgres cuts longer names without a word, and would then not find them by the name they were given."""

_TABLE_NAME = re.compile(r'(?:(?:"(?:[^"]|"")+"|[^".]+)\.)?(?:"(?:[^"]|"")+"|[^".]+)')

Text = Annotated[str, Field(min_length=1)]

IN_PLAIN_TEXT = "holds a secret in plain text; put it in an environment variable and write ${NAME} here"
REFERENCE = re.compile(r"\$\{\w+\}|\$\{prefect\.blocks\.secret\.[\w-]+\}|\{\{\s*prefect\.blocks\.secret\.[\w-]+\s*\}\}")
# As in a URL's query, a libpq DSN and Azure's connection strings; a value that is one whole reference ($) is none.
_NAMED_SECRET = re.compile(
    r"(?:^|[?&;\s])(?:\w*password|AccountKey|SharedAccessSignature|sig|api-key|\w*token)\s*=\s*(?!\$(?:[&;\s]|$))[^&;\s]",
    re.IGNORECASE,
)


def no_literal_secret(value: str | None) -> str | None:
    """A URL with a password or a signature in it would be stored with the flow's parameters, for all to read."""
    if value is None:
        return value
    plain = REFERENCE.sub("$", value)
    # All up to the last @: a password that was not percent-encoded may hold what else ends a URL's authority.
    _, _, password = plain.partition("//")[2].rpartition("@")[0].partition(":")
    is_port = re.match(r"\d{1,5}/", password)
    if (password not in ("", "$") and not is_port) or _NAMED_SECRET.search(plain):
        raise ValueError(IN_PLAIN_TEXT)
    return value


def no_literal_credential(value: str | None) -> str | None:
    """One reference, or a connection string whose secret part is one: a bare key or token looks like any other text."""
    if value is None or REFERENCE.sub("$", value).lstrip("?") == "$":
        return value
    if "=" not in value or REFERENCE.search(value) is None:
        raise ValueError(IN_PLAIN_TEXT)
    return no_literal_secret(value)


def _titled_by_kind(schema: dict[str, Any]) -> None:
    """A form writes a part's title on its tab: of a part of several kinds the kind, as the pipeline file has it."""
    kind = schema.get("properties", {}).get("kind", {}).get("const")
    if kind is not None:
        schema["title"] = kind


class Part(BaseModel):
    """Unknown keys are errors: a misspelt key must not be a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, json_schema_extra=_titled_by_kind)

    @field_validator("*")
    @classmethod
    def _no_nul(cls, value: Any) -> Any:
        texts = value if isinstance(value, (list, dict)) else [value]
        if any(isinstance(text, str) and "\0" in text for text in cast("Iterable[object]", texts)):
            raise ValueError("holds a NUL character, which Postgres has no text for")
        return value


def any_of(schema: dict[str, Any]) -> None:
    """Say of a part of several kinds that it is any of them, not one of them: forms are drawn of the one only.

    Which of them a value is follows from its ``kind`` all the same, for each of them allows one. A form opens with the
    one that has most of the value's keys, and with the first of equals: those with few keys stand first, and a
    deployment's parameters write out a key that the others do not have.
    """
    schema["anyOf"] = schema.pop("oneOf")
    del schema["discriminator"]


def table_name(value: str) -> str:
    if not _TABLE_NAME.fullmatch(value):
        raise ValueError(f"{value!r} is no table name; write schema.table, with double quotes where a name needs them")
    if any(len(name.encode()) > LONGEST_NAME for name in table_identifier(value)):
        raise ValueError(f"a name of more than {LONGEST_NAME} bytes is none that Postgres can keep; shorten it")
    return value


def table_identifier(name: str) -> tuple[str, str]:
    """Schema and table of ``schema.table``; ``public`` where no schema is named. Quotes as in SQL."""
    names = [
        m.group(1).replace('""', '"') if m.group(1) is not None else m.group(2)
        for m in re.finditer(r'"((?:[^"]|"")+)"|([^".]+)', name)
    ]
    return ("public", names[0]) if len(names) == 1 else (names[0], names[1])
