"""A source outside the target's database: it sends the hashes of all rows, and then the rows that changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import pyarrow as pa

from rowvec.errors import RowError
from rowvec.postgres.columns import PgColumn
from rowvec.sources.diff import Block, Changes

Action = Literal["new", "changed", "metadata_only"]
ACTIONS: tuple[Action, ...] = ("new", "changed", "metadata_only")

Reject = tuple[str, RowError]
"""The key as a JSON array of texts, and why its row is rejected."""


@dataclass(frozen=True, slots=True)
class SeenImage:
    """An image that a row shows."""

    content: str
    """As the row has it: ``sha256:`` and 64 hex digits."""
    place: str
    """As the source writes it: a path, or a blob's URL."""
    media_type: str
    bytes: int


class HashedSource(Protocol):
    """A source that is being read: another database, files, or images.

    It is one snapshot, from the first pair to the last row.
    """

    @property
    def key(self) -> tuple[PgColumn, ...]:
        """The key columns with their Postgres types."""
        ...

    @property
    def metadata(self) -> tuple[PgColumn, ...]:
        """The metadata columns with their Postgres types."""
        ...

    def pairs(self) -> Iterator[Block]:
        """The hashes of every row that must have a vector, ascending by key digest."""
        ...

    def mark(self, changes: Changes) -> None:
        """Remember what the diff found in one stretch; call it for every stretch, in order."""
        ...

    def rows(self) -> Iterator[pa.RecordBatch]:
        """The rows that were marked as new, changed, or changed in their metadata; once, after the last mark.

        Columns: ``rowvec_action``; key and metadata as ``PgColumn.arrow_field`` says; ``content``; ``rowvec_vector``
        (text; NULL except with the column embedder); ``fingerprint``; ``metadata_hash``. Raises ``SourceError`` if the
        source has changed since the pairs were read.
        """
        ...

    def images(self, *, everything: bool = False) -> Iterator[list[SeenImage]]:
        """The images of the rows that were marked as new or changed, or of all rows; none if the source has texts."""
        ...

    def rejects(self) -> Iterator[Reject]:
        """The rows that cannot have a vector of their own; call it after ``rows``."""
        ...

    @property
    def blank(self) -> int:
        """How many rows have a key and nothing to embed; read it after ``pairs``."""
        ...


def row_schema(key: tuple[PgColumn, ...], metadata: tuple[PgColumn, ...]) -> pa.Schema:
    """The schema of the batches that ``rows`` yields."""
    return pa.schema(
        [
            pa.field("rowvec_action", pa.string()),
            *(column.arrow_field for column in (*key, *metadata)),
            pa.field("content", pa.large_string()),
            pa.field("rowvec_vector", pa.large_string()),
            pa.field("fingerprint", pa.binary()),
            pa.field("metadata_hash", pa.binary()),
        ]
    )
