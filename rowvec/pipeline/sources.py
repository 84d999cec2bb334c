"""The source part of a pipeline file: where rows are, what their key is, and which of their columns are embedded."""

from __future__ import annotations

from typing import Annotated, Literal, cast

from pydantic import Field, field_validator, model_validator

from rowvec.pipeline import template
from rowvec.pipeline.parts import (
    LONGEST_NAME,
    Duration,
    Part,
    Text,
    no_literal_credential,
    no_literal_secret,
    seconds_of,
    table_name,
)

CHUNK = "chunk"
"""The number of a row's chunk, from 0: the last column of the key if contents are split."""

RESERVED_COLUMNS = frozenset(
    {
        "content",
        "embedding",
        "embedding_bits",
        "fingerprint",
        "metadata_hash",
        "run_id",
        "embedded_at",
        CHUNK,
        "distance",
    }
)
"""The vector table's own columns; a key or metadata column cannot have their names."""

_SYSTEM_COLUMNS = frozenset({"tableoid", "ctid", "xmin", "xmax", "cmin", "cmax"})
"""Columns that every Postgres table has; a file or a query may have a column with such a name."""

MOST_IMAGE_BYTES = 500_000_000
"""The largest ``max_bytes`` of a source of images."""

RENAME = "rename it in a query, or in the file"


class Chunks(Part):
    """Splitting of long contents into chunks, with one vector per chunk."""

    tokens: int = Field(
        default=512, ge=16, le=8192, description="The most tokens of one chunk, by the embedder's count."
    )
    overlap: int = Field(
        default=64,
        ge=0,
        description="The most tokens that a chunk repeats from the chunk before; up to half of tokens.",
    )
    format: Literal["text", "markdown", "html"] = Field(
        default="text",
        description="How the content is written. markdown, html: no chunk crosses a heading, and each begins with the "
        "path of the headings above it, as in Guide > Installation. HTML becomes Markdown, without scripts and styles.",
    )

    @model_validator(mode="after")
    def _overlap_leaves_room(self) -> Chunks:
        if self.overlap > self.tokens // 2:
            raise ValueError(f"overlap {self.overlap} is more than half of tokens {self.tokens}")
        return self


class Changes(Part):
    """How a run finds the rows that have changed."""

    by: Literal["compare", "trigger"] = Field(
        default="compare",
        description="compare: each run compares the whole source with the vector table. trigger: triggers on the "
        "source's table queue the keys of changed rows, and a run compares only these.",
    )
    verify_every: Duration = Field(
        default="1d",
        description="With by: trigger: after so long the next run compares the whole source, whatever the queue says: "
        "30m, 12h, 1d.",
    )

    @property
    def verify_seconds(self) -> int:
        """``verify_every`` in seconds."""
        return seconds_of(self.verify_every)


_ONLY_OF_A_TABLE = "source.changes.by: trigger needs kind: postgres and a table, which can have triggers"


class _RowSource(Part):
    key: list[Text] = Field(min_length=1, description="The columns that identify a row. One or more.")
    metadata: list[Text] = Field(
        default=[],
        description="Columns carried along for filtering and display. A change in them costs no embedding.",
    )
    empty: Literal["skip", "reject", "fail"] = Field(
        default="skip",
        description="What happens to a row whose content is empty or white space only: skip (no vector, and an old "
        "one is deleted), reject (the same, and the row is in the rejects), fail (the run stops before it pays).",
    )

    chunks: Chunks | None = Field(
        default=None,
        description="Splits contents into chunks, each with a vector of its own; the vector table's key then ends in "
        "the chunk's number. Left out: one vector per row, whatever its length.",
    )

    @property
    def vector_key(self) -> tuple[str, ...]:
        """The key of the vector table."""
        return (*self.key, CHUNK) if self.chunks else tuple(self.key)

    @property
    def is_queued(self) -> bool:
        """Whether triggers queue the keys of changed rows."""
        return False

    @model_validator(mode="before")
    @classmethod
    def _files_have_no_triggers(cls, data: object) -> object:
        if not isinstance(data, dict) or data.get("kind") in (None, "postgres") or "changes" not in data:
            return cast("object", data)
        # What has no triggers is compared: a source of another kind may say so.
        given = cast("dict[str, object]", data)
        if Changes.model_validate(given["changes"]).by == "trigger":
            raise ValueError(f"{_ONLY_OF_A_TABLE}; leave source.changes out")
        return {key: value for key, value in given.items() if key != "changes"}

    @model_validator(mode="after")
    def _columns_are_ours_to_name(self) -> _RowSource:
        named = [*self.key, *self.metadata]
        for name in named:
            if name in RESERVED_COLUMNS or name.startswith("rowvec_"):
                raise ValueError(f"column {name!r} has the name of a column of the vector table; {RENAME}")
            if name in _SYSTEM_COLUMNS:
                raise ValueError(f"column {name!r} has the name of a system column of Postgres; {RENAME}")
            if len(name.encode()) > LONGEST_NAME:
                raise ValueError(
                    f"column {name[:20]!r}... has a name of more than {LONGEST_NAME} bytes, which Postgres would cut; "
                    + RENAME
                )
            if named.count(name) > 1:
                raise ValueError(f"column {name!r} is named twice in key and metadata")
        return self


class _TextSource(_RowSource):
    content: str | None = Field(
        default=None,
        description='Template of the text to embed: column names in braces, e.g. "{title}\\n{body}". NULL renders as '
        "the empty string. Optional only with the column embedder.",
    )

    @field_validator("content")
    @classmethod
    def _content_parses(cls, value: str | None) -> str | None:
        if value is not None:
            template.parse(value)
        return value


class PostgresSource(_TextSource):
    """Rows of a table or a query, rendered and hashed by the database that holds them."""

    kind: Literal["postgres"]
    table: str | None = Field(default=None, description="The table or view, with its schema: public.articles.")
    query: str | None = Field(default=None, description="A SELECT instead of a table.")
    url: str | None = Field(
        default=None,
        repr=False,
        description="The database's DSN, as ${NAME}. Left out: the target's database.",
    )

    changes: Changes = Field(
        default=Changes(), description="How a run finds the rows that have changed: by comparing, or by triggers."
    )

    _url_has_no_secret = field_validator("url")(no_literal_secret)

    @property
    def is_queued(self) -> bool:
        """Whether triggers queue the keys of changed rows."""
        return self.changes.by == "trigger"

    @field_validator("table")
    @classmethod
    def _table_parses(cls, value: str | None) -> str | None:
        return value if value is None else table_name(value)

    @model_validator(mode="after")
    def _one_of_table_and_query(self) -> PostgresSource:
        if (self.table is None) == (self.query is None):
            raise ValueError("name either table or query")
        return self

    @model_validator(mode="after")
    def _triggers_have_a_table(self) -> PostgresSource:
        if self.is_queued and self.table is None:
            raise ValueError(f"{_ONLY_OF_A_TABLE}; with a query, leave source.changes out")
        if self.changes.by == "trigger" and self.chunks is not None:
            raise ValueError("source.changes.by: trigger does not work with source.chunks yet; leave one of them out")
        return self


class _FileSource(_TextSource):
    path: str = Field(
        repr=False,
        description="A file, a glob (read in the order of names), or a blob URL. A relative path is relative to the "
        "pipeline file.",
    )
    credential: str | None = Field(
        default=None,
        repr=False,
        description="For a blob URL: SAS or connection string, as ${NAME}. Left out: azure-identity.",
    )

    _path_has_no_secret = field_validator("path")(no_literal_secret)
    _credential_is_a_reference = field_validator("credential")(no_literal_credential)


class _Delimited(Part):
    delimiter: str = Field(
        default=",",
        pattern=r"^[\x01-\x09\x0b\x0c\x0e-\x21\x23-\x7f]$",
        description="The ASCII character between fields; not a quote, nor the end of a line.",
    )
    types: dict[str, Literal["text", "bigint", "double precision", "boolean", "date", "timestamptz"]] = Field(
        default={}, description="Postgres types of key and metadata columns; what is not named is text."
    )


class CsvSource(_FileSource, _Delimited):
    """Rows of CSV files with a header line, UTF-8."""

    kind: Literal["csv"]


class ParquetSource(_FileSource):
    """Rows of Parquet files; columns keep their types."""

    kind: Literal["parquet"]


class ImageContent(Part):
    """The column that names a row's image."""

    image: Text = Field(description="The column with the image: its path, or its blob URL.")


class ImagesSource(_RowSource, _Delimited):
    """A folder of images, or a CSV or Parquet file with a column that names each row's image."""

    kind: Literal["images"]
    path: str = Field(
        repr=False,
        description="A folder, read with all its folders; or a CSV or Parquet file, a glob of them, or its blob URL. A "
        "relative path is relative to the pipeline file.",
    )
    content: ImageContent = Field(description="Where the image is: {image: COLUMN}.")
    images: str | None = Field(
        default=None,
        repr=False,
        description="With a CSV or Parquet file: the folder, or blob URL, that its images are in. Left out: the folder "
        "or container prefix that the file itself is in.",
    )
    credential: str | None = Field(
        default=None,
        repr=False,
        description="For blob URLs: SAS or connection string, as ${NAME}. Left out: azure-identity.",
    )
    max_bytes: int = Field(
        default=20_000_000, gt=0, le=MOST_IMAGE_BYTES, description="A larger image file is rejected without reading it."
    )
    max_pixels: int = Field(
        default=50_000_000,
        gt=0,
        le=89_000_000,
        description="An image that claims more pixels is rejected before it is decoded.",
    )

    _path_has_no_secret = field_validator("path", "images")(no_literal_secret)
    _credential_is_a_reference = field_validator("credential")(no_literal_credential)

    @model_validator(mode="after")
    def _is_not_split(self) -> ImagesSource:
        if self.chunks is not None:
            raise ValueError("chunks are for texts; an image has one vector")
        return self


Source = Annotated[PostgresSource | ParquetSource | CsvSource | ImagesSource, Field(discriminator="kind")]
