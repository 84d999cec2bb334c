"""What all parts of a pipeline file refuse: unknown keys, NUL characters, and secrets in plain text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator

LONGEST_NAME = 63
"""Bytes. Postgres cuts longer names silently, and a lookup by the full name then finds nothing."""

_TABLE_NAME = re.compile(r'(?:(?:"(?:[^"]|"")+"|[^".]+)\.)?(?:"(?:[^"]|"")+"|[^".]+)')

Text = Annotated[str, Field(min_length=1)]

Duration = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}[smhd]$")]
"""A whole number of seconds, minutes, hours or days: 30s, 10m, 12h, 1d."""
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

IN_PLAIN_TEXT = "holds a secret in plain text; put it in an environment variable and write ${NAME} here"
# The types of blocks that hold one secret, or what a connection is made with.
_BLOCK = (
    r"prefect\.blocks\.(?:secret|azure-blob-storage-credentials|(?:async-)?sqlalchemy-connector|database-credentials)"
    r"\.[\w-]+"
)
REFERENCE = re.compile(rf"\$\{{(?:(?P<variable>\w+)|(?P<block>{_BLOCK}))\}}|\{{\{{\s*(?P<braced>{_BLOCK})\s*\}}\}}")
"""A variable or a block. In our own files a block may also have two braces, as Prefect writes it. In a prefect.yaml
Prefect would then put the block's value into the parameters at deployment, where everybody can read it."""
# Secrets in a URL's query, a libpq DSN and Azure's connection strings; a value that is one reference ($) is not a
# secret.
_NAMED_SECRET = re.compile(
    r"(?:^|[?&;\s])(?:\w*password|AccountKey|SharedAccessSignature|sig|api-key|\w*token)\s*=\s*(?!\$(?:[&;\s]|$))[^&;\s]",
    re.IGNORECASE,
)


def seconds_of(duration: str) -> int:
    """A ``Duration`` in seconds."""
    return int(duration[:-1]) * _SECONDS[duration[-1]]


def no_literal_secret(value: str | None) -> str | None:
    """Refuse a URL with a password or a signature: it would be stored, readable, in the flow's parameters."""
    if value is None:
        return value
    plain = REFERENCE.sub("$", value)
    # Everything up to the last @: a password without percent-encoding may hold the characters that end an authority.
    _, _, password = plain.partition("//")[2].rpartition("@")[0].partition(":")
    is_port = re.match(r"\d{1,5}/", password)
    if (password not in ("", "$") and not is_port) or _NAMED_SECRET.search(plain):
        raise ValueError(IN_PLAIN_TEXT)
    return value


def no_literal_key(value: str | None) -> str | None:
    """Require a reference, or nothing."""
    if value is not None and not REFERENCE.fullmatch(value):
        raise ValueError(IN_PLAIN_TEXT)
    return value


def no_literal_credential(value: str | None) -> str | None:
    """Require a reference, or a connection string with a reference as its secret: a bare key looks like any text."""
    if value is None or REFERENCE.sub("$", value).lstrip("?") == "$":
        return value
    if "=" not in value or REFERENCE.search(value) is None:
        raise ValueError(IN_PLAIN_TEXT)
    return no_literal_secret(value)


def _titled_by_kind(schema: dict[str, Any]) -> None:
    """The title of one kind of a part that has several: the kind as written in the pipeline file."""
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


def table_name(value: str) -> str:
    if not _TABLE_NAME.fullmatch(value):
        raise ValueError(
            f"{value!r} is not a table name; write schema.table, with double quotes where a name needs them"
        )
    if any(len(name.encode()) > LONGEST_NAME for name in table_identifier(value)):
        raise ValueError(f"Postgres cannot keep a name of more than {LONGEST_NAME} bytes; shorten it")
    return value


def has_schema(name: str) -> bool:
    """Whether a table's name is written with its schema."""
    return len(_names(name)) > 1


def table_identifier(name: str) -> tuple[str, str]:
    """Schema and table of ``schema.table``; ``public`` if no schema is given. Quotes as in SQL."""
    names = _names(name)
    return ("public", names[0]) if len(names) == 1 else (names[0], names[1])


def _names(name: str) -> list[str]:
    return [
        m.group(1).replace('""', '"') if m.group(1) is not None else m.group(2)
        for m in re.finditer(r'"((?:[^"]|"")+)"|([^".]+)', name)
    ]
