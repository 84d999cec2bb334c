"""The pipeline: what is embedded, how, and where it goes. One YAML file, and the parameter of every flow."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rowvec import template

CHUNK = "chunk"
"""The number of a row's chunk, from 0: the last column of the key where contents are split."""

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
"""Columns the vector table has of its own; a key or metadata column cannot take their names."""

HYBRID_COLUMNS = frozenset({"score", "vector_rank", "text_rank"})
"""Columns that a hybrid search adds to its results."""

_SYSTEM_COLUMNS = frozenset({"tableoid", "ctid", "xmin", "xmax", "cmin", "cmax"})
"""Columns that every table of Postgres has; a file or a query may call one of its own so."""

_LONGEST_NAME = 63
"""Bytes. Postgres cuts longer names without a word, and would then not find them by the name they were given."""

_TABLE_NAME = re.compile(r'(?:(?:"(?:[^"]|"")+"|[^".]+)\.)?(?:"(?:[^"]|"")+"|[^".]+)')

_RENAME = "rename it in a query, or in the file"

Text = Annotated[str, Field(min_length=1)]


_IN_PLAIN_TEXT = "holds a secret in plain text; put it in an environment variable and write ${NAME} here"
_REFERENCE = re.compile(r"\$\{\w+\}|\{\{\s*prefect\.blocks\.secret\.[\w-]+\s*\}\}")
# As in a URL's query, a libpq DSN and Azure's connection strings; a value that is one whole reference ($) is none.
_NAMED_SECRET = re.compile(
    r"(?:^|[?&;\s])(?:\w*password|AccountKey|SharedAccessSignature|sig|api-key|\w*token)\s*=\s*(?!\$(?:[&;\s]|$))[^&;\s]",
    re.IGNORECASE,
)


def _no_literal_secret(value: str | None) -> str | None:
    """A URL with a password or a signature in it would be stored with the flow's parameters, for all to read."""
    if value is None:
        return value
    plain = _REFERENCE.sub("$", value)
    # All up to the last @: a password that was not percent-encoded may hold what else ends a URL's authority.
    _, _, password = plain.partition("//")[2].rpartition("@")[0].partition(":")
    is_port = re.match(r"\d{1,5}/", password)
    if (password not in ("", "$") and not is_port) or _NAMED_SECRET.search(plain):
        raise ValueError(_IN_PLAIN_TEXT)
    return value


def _no_literal_credential(value: str | None) -> str | None:
    """One reference, or a connection string whose secret part is one: a bare key or token looks like any other text."""
    if value is None or _REFERENCE.sub("$", value).lstrip("?") == "$":
        return value
    if "=" not in value or _REFERENCE.search(value) is None:
        raise ValueError(_IN_PLAIN_TEXT)
    return _no_literal_secret(value)


class _Part(BaseModel):
    """Unknown keys are errors: a misspelt key must not be a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @field_validator("*")
    @classmethod
    def _no_nul(cls, value: Any) -> Any:
        texts = value if isinstance(value, (list, dict)) else [value]
        if any(isinstance(text, str) and "\0" in text for text in cast("Iterable[object]", texts)):
            raise ValueError("holds a NUL character, which Postgres has no text for")
        return value


class Chunks(_Part):
    """Long contents in several vectors, one a chunk."""

    tokens: int = Field(
        default=512, ge=16, le=8192, description="The most tokens a chunk has, as the embedder counts them."
    )
    overlap: int = Field(
        default=64, ge=0, description="Tokens a chunk repeats of the one before, at most; up to half of tokens."
    )

    @model_validator(mode="after")
    def _overlap_leaves_room(self) -> Chunks:
        if self.overlap > self.tokens // 2:
            raise ValueError(f"overlap {self.overlap} is more than half of tokens {self.tokens}")
        return self


class _RowSource(_Part):
    key: list[Text] = Field(min_length=1, description="The columns that tell a row from every other. One or more.")
    content: str | None = Field(
        default=None,
        description='Template of the text to embed: column names in braces, e.g. "{title}\\n{body}". NULL renders as '
        "the empty string. Optional only with the column embedder.",
    )
    metadata: list[Text] = Field(
        default=[],
        description="Columns carried along for filtering and display. A change in them costs no embedding.",
    )
    empty: Literal["skip", "reject", "fail"] = Field(
        default="skip",
        description="What becomes of a row whose content is empty or white space only: skip (no vector, and an old "
        "one goes), reject (the same, and the row is listed in the rejects), fail (the run stops before it spends).",
    )

    chunks: Chunks | None = Field(
        default=None,
        description="Splits contents into chunks, each with a vector of its own; the vector table's key then ends in "
        "the chunk's number. Left out: one vector a row, whatever its length.",
    )

    @property
    def vector_key(self) -> tuple[str, ...]:
        """The key of the vector table."""
        return (*self.key, CHUNK) if self.chunks else tuple(self.key)

    @field_validator("content")
    @classmethod
    def _content_parses(cls, value: str | None) -> str | None:
        if value is not None:
            template.parse(value)
        return value

    @model_validator(mode="after")
    def _columns_are_ours_to_name(self) -> _RowSource:
        named = [*self.key, *self.metadata]
        for name in named:
            if name in RESERVED_COLUMNS or name.startswith("rowvec_"):
                raise ValueError(f"column {name!r} has the name of a column of the vector table; {_RENAME}")
            if name in _SYSTEM_COLUMNS:
                raise ValueError(f"column {name!r} has the name of a system column of Postgres; {_RENAME}")
            if len(name.encode()) > _LONGEST_NAME:
                raise ValueError(
                    f"column {name[:20]!r}... has a name of more than {_LONGEST_NAME} bytes, which Postgres would cut; "
                    + _RENAME
                )
            if named.count(name) > 1:
                raise ValueError(f"column {name!r} is named twice in key and metadata")
        return self


class PostgresSource(_RowSource):
    """Rows of a table or a query, rendered and hashed by the database that holds them."""

    kind: Literal["postgres"]
    table: str | None = Field(default=None, description="The table or view, with its schema: public.articles.")
    query: str | None = Field(default=None, description="A SELECT instead of a table.")
    url: str | None = Field(
        default=None,
        repr=False,
        description="The database's DSN, as ${NAME}. Left out: the target's database.",
    )

    _url_has_no_secret = field_validator("url")(_no_literal_secret)

    @field_validator("table")
    @classmethod
    def _table_parses(cls, value: str | None) -> str | None:
        return value if value is None else _table_name(value)

    @model_validator(mode="after")
    def _one_of_table_and_query(self) -> PostgresSource:
        if (self.table is None) == (self.query is None):
            raise ValueError("name either table or query")
        return self


class _FileSource(_RowSource):
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

    _path_has_no_secret = field_validator("path")(_no_literal_secret)
    _credential_is_a_reference = field_validator("credential")(_no_literal_credential)


class CsvSource(_FileSource):
    """Rows of CSV files with a header line, UTF-8."""

    kind: Literal["csv"]
    delimiter: str = Field(
        default=",",
        pattern=r"^[\x01-\x09\x0b\x0c\x0e-\x21\x23-\x7f]$",
        description="The ASCII character between fields; not a quote, nor the end of a line.",
    )
    types: dict[str, Literal["text", "bigint", "double precision", "boolean", "date", "timestamptz"]] = Field(
        default={}, description="Postgres types of key and metadata columns; what is not named is text."
    )


class ParquetSource(_FileSource):
    """Rows of Parquet files; columns keep their types."""

    kind: Literal["parquet"]


Source = Annotated[PostgresSource | CsvSource | ParquetSource, Field(discriminator="kind")]


class OpenAIEmbedder(_Part):
    """OpenAI, or any server that speaks its protocol, by base_url."""

    kind: Literal["openai"]
    model: Text = Field(description="The model's name, e.g. text-embedding-3-small.")
    dimensions: int = Field(
        gt=0, le=16000, description="Length of the vectors; text-embedding-3 and later can shorten."
    )
    base_url: str | None = Field(default=None, repr=False, description="A compatible server; left out: OpenAI itself.")
    api_key: str = Field(
        default="${OPENAI_API_KEY}", repr=False, description="Always a reference, never the key itself."
    )
    on_too_long: Literal["reject", "truncate"] = Field(
        default="reject",
        description="What becomes of a text over max_input_tokens: set aside, or cut to that many tokens.",
    )
    max_input_tokens: int = Field(default=8192, gt=0, description="Tokens the model takes in one input.")
    max_batch_inputs: int = Field(default=2048, gt=0, le=2048, description="Inputs in one request.")
    max_batch_tokens: int = Field(default=300_000, gt=0, description="Tokens in one request, over all inputs.")
    concurrency: int = Field(default=8, gt=0, le=256, description="Requests in flight at once.")
    requests_per_minute: int | None = Field(
        default=None, gt=0, description="The account's limit; paced to it when given."
    )
    tokens_per_minute: int | None = Field(
        default=None, gt=0, description="The account's limit; paced to it when given."
    )
    timeout_seconds: float = Field(default=60.0, gt=0, description="For one request.")
    max_attempts: int = Field(default=8, gt=0, description="Tries of one request before the run fails.")
    cost_per_million_tokens: float | None = Field(
        default=None,
        ge=0,
        description="In US dollars; left out: the list price of a known model, else unknown (0).",
    )

    @field_validator("api_key")
    @classmethod
    def _key_is_a_reference(cls, value: str) -> str:
        if not _REFERENCE.fullmatch(value):
            raise ValueError(_IN_PLAIN_TEXT)
        return value

    _base_url_has_no_secret = field_validator("base_url")(_no_literal_secret)


class AzureOpenAIEmbedder(OpenAIEmbedder):
    """Azure OpenAI: base_url is the resource's endpoint, model the deployment's name."""

    kind: Literal["azure_openai"]  # pyright: ignore[reportIncompatibleVariableOverride] # each kind has its own tag
    api_key: str = Field(
        default="${AZURE_OPENAI_API_KEY}",
        repr=False,
        description="A reference to the key, or the word entra for Entra ID through azure-identity.",
    )
    api_version: str = Field(default="2024-10-21", description="The REST API's version.")

    @field_validator("api_key")
    @classmethod
    def _key_is_a_reference(cls, value: str) -> str:
        return value if value == "entra" else OpenAIEmbedder._key_is_a_reference(value)

    @model_validator(mode="after")
    def _has_an_endpoint(self) -> AzureOpenAIEmbedder:
        if self.base_url is None:
            raise ValueError("azure_openai needs base_url, the resource's endpoint")
        return self


class LocalEmbedder(_Part):
    """wordllama: a static model inside its wheel; no network, no cost."""

    kind: Literal["local"]
    model: Literal["wordllama"] = Field(default="wordllama", description="The only one so far.")
    dimensions: Literal[64, 128, 256] = Field(
        default=256, description="64, 128 or 256: a Matryoshka prefix of the 256-d model."
    )


class ColumnEmbedder(_Part):
    """The source has the vectors already; they are checked like any other."""

    kind: Literal["column"]
    column: Text = Field(description="The column with the vector: list, fixed-size list, pgvector, or text.")
    dimensions: int = Field(gt=0, le=16000, description="Length of the vectors.")
    model: str = Field(default="column", description="What made the vectors; part of their identity.")


Embedder = Annotated[OpenAIEmbedder | AzureOpenAIEmbedder | LocalEmbedder | ColumnEmbedder, Field(discriminator="kind")]


class Target(_Part):
    """The vector table."""

    url: str | None = Field(
        default=None,
        repr=False,
        description="The database's DSN, as ${NAME}. Left out: ROWVEC_DATABASE_URL, else the embedded Postgres.",
    )
    table: str = Field(description="The vector table, with its schema: vectors.articles. Made when missing.")
    precision: Literal["float32", "float16"] = Field(
        default="float32", description="float32 (vector) or float16 (halfvec)."
    )
    bits: bool = Field(default=True, description="Keep bit(n), one bit a dimension, beside the embedding.")
    metric: Literal["cosine", "l2", "inner_product"] = Field(
        default="cosine", description="The distance searched by: cosine, l2 or inner_product."
    )

    _url_has_no_secret = field_validator("url")(_no_literal_secret)

    @field_validator("table")
    @classmethod
    def _table_parses(cls, value: str) -> str:
        schema, _ = table_identifier(_table_name(value))
        if schema in ("rowvec", "information_schema") or schema.startswith("pg_"):
            raise ValueError(f"the schema {schema} is not for vector tables; name another one, such as vectors")
        return value


class Artifacts(_Part):
    """Where what was paid for is kept."""

    url: str = Field(
        default="./artifacts",
        repr=False,
        description="A folder, or https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX. A relative folder is "
        "relative to the pipeline file.",
    )
    credential: str | None = Field(
        default=None,
        repr=False,
        description="For a blob URL: a connection string, an account key or a SAS token, as ${NAME}. Left out: "
        "azure-identity.",
    )

    _no_secret = field_validator("url")(_no_literal_secret)
    _credential_is_a_reference = field_validator("credential")(_no_literal_credential)


class Index(_Part):
    """How the vectors are found fast."""

    kind: Literal["auto", "none", "hnsw", "ivfflat"] = Field(
        default="auto", description="auto (by rows and dimensions, or as tuned), none, hnsw or ivfflat."
    )
    on: Literal["auto", "bits", "float"] = Field(
        default="auto", description="What the index is built on: auto, bits or float."
    )
    m: int = Field(default=16, ge=2, le=100, description="HNSW: links a node.")
    ef_construction: int | None = Field(
        default=None, ge=4, le=1000, description="HNSW: candidates while building; left out: 64, and 128 on bits."
    )
    lists: int | None = Field(default=None, ge=1, le=32768, description="IVFFlat: lists; left out: by rows.")
    oversampling: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Bits: shortlist of k times this, reranked exactly; left out: 8, and 4 from 1,024 dimensions up.",
    )


class Search(_Part):
    """What stands beside the vectors for those who search."""

    hybrid: bool = Field(
        default=False, description="Keep a full text index too, and rank words and vectors together on demand."
    )
    language: str = Field(
        default="english",
        pattern=r"^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?$",
        description="With hybrid: a text search configuration of the target database (english, german, simple).",
    )


class Recall(_Part):
    """The recall@k an index must reach against exact search."""

    k: int = Field(default=10, ge=1, le=1000, description="Neighbours looked at.")
    at_least: float = Field(default=0.95, ge=0, le=1, description="The run fails below.")
    queries: int = Field(default=100, ge=1, le=10_000, description="Rows sampled as queries.")


class Validation(_Part):
    """What must hold before a run calls itself done."""

    recall: Recall = Field(default=Recall(), description="Recall of the index against exact search.")
    max_delete_fraction: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="A run that would delete a larger share of the vector table stops and asks.",
    )


class Pipeline(_Part):
    """One vector table and where its vectors come from."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$", description="Lower case; names runs, plans and artifacts.")
    source: Source = Field(description="The rows.")
    embedder: Embedder = Field(description="What makes a vector of a text.")
    target: Target = Field(description="The vector table.")
    artifacts: Artifacts = Field(default=Artifacts(), description="Where what was paid for is kept.")
    index: Index = Field(default=Index(), description="How the vectors are found fast.")
    search: Search = Field(default=Search(), description="What stands beside the vectors for those who search.")
    validation: Validation = Field(default=Validation(), description="What must hold before a run calls itself done.")

    @model_validator(mode="after")
    def _content_or_vectors(self) -> Pipeline:
        if self.source.content is None and self.embedder.kind != "column":
            raise ValueError("source.content is needed: the template of the text to embed")
        if self.index.on == "bits" and not self.target.bits:
            raise ValueError("index.on is bits, but target.bits is false")
        self._check_chunks()
        taken = HYBRID_COLUMNS.intersection((*self.source.key, *self.source.metadata)) if self.search.hybrid else ()
        if taken:
            raise ValueError(f"column {min(taken)!r} has the name of a column that hybrid search gives; {_RENAME}")
        return self

    def _check_chunks(self) -> None:
        chunks, embedder = self.source.chunks, self.embedder
        if chunks is None:
            return
        if embedder.kind == "column":
            raise ValueError("source.chunks is set, and the vectors come with the rows: there is nothing to split")
        if isinstance(embedder, OpenAIEmbedder) and chunks.tokens > embedder.max_input_tokens:
            raise ValueError(
                f"source.chunks.tokens, {chunks.tokens}, is more than embedder.max_input_tokens, "
                f"{embedder.max_input_tokens}"
            )


def _table_name(value: str) -> str:
    if not _TABLE_NAME.fullmatch(value):
        raise ValueError(f"{value!r} is no table name; write schema.table, with double quotes where a name needs them")
    if any(len(name.encode()) > _LONGEST_NAME for name in table_identifier(value)):
        raise ValueError(f"a name of more than {_LONGEST_NAME} bytes is none that Postgres can keep; shorten it")
    return value


def table_identifier(name: str) -> tuple[str, str]:
    """Schema and table of ``schema.table``; ``public`` where no schema is named. Quotes as in SQL."""
    names = [
        m.group(1).replace('""', '"') if m.group(1) is not None else m.group(2)
        for m in re.finditer(r'"((?:[^"]|"")+)"|([^".]+)', name)
    ]
    return ("public", names[0]) if len(names) == 1 else (names[0], names[1])


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the pipeline file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Pipeline.model_json_schema()}
