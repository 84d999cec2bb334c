"""The pipeline: what is embedded, how, and where it goes. One YAML file, and the parameter of every flow."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import Field, field_validator, model_validator

from rowvec.pipeline.embedder_kinds import EMBEDDERS
from rowvec.pipeline.embedders import Embedder, PaidEmbedder
from rowvec.pipeline.index_kinds import INDEXES
from rowvec.pipeline.indexes import Index, PluginIndex
from rowvec.pipeline.kinds import ByKind
from rowvec.pipeline.partitioning import ShortOrWhole
from rowvec.pipeline.parts import (
    Duration,
    Part,
    Text,
    has_schema,
    no_literal_credential,
    no_literal_secret,
    seconds_of,
    table_identifier,
    table_name,
)
from rowvec.pipeline.sources import RENAME, Source
from rowvec.vectors.bits import bits_for
from rowvec.vectors.layout import MOST_DIMENSIONS, Precision

HYBRID_COLUMNS = frozenset({"score", "vector_rank", "text_rank"})
"""Columns that a hybrid search adds to its results."""

LONGEST_PIPELINE_NAME = 40

IMAGE_EMBEDDERS = ("azure_vision", "openai_images", "local_image")
"""Kinds of embedders that make vectors of images."""


class Target(Part):
    """The vector table."""

    url: str | None = Field(
        default=None,
        repr=False,
        description="The database's DSN, as ${NAME}. Left out: ROWVEC_DATABASE_URL, else the embedded Postgres.",
    )
    direct_url: str | None = Field(
        default=None,
        repr=False,
        description="With a pooler in transaction mode before the database: the DSN of the same database without the "
        "pooler, as ${NAME}. Indexes are built there, with memory and workers of their own. Left out: through the "
        "pooler, with those of the server.",
    )
    table: str = Field(
        description="The vector table, with its schema: vectors.articles. Created if it does not exist; an existing "
        "table must be one that rowvec made for this pipeline."
    )
    precision: Precision = Field(
        default="float32",
        description="float32 (vector), float16 (halfvec), or sparse (sparsevec), for which the source has the vectors.",
    )
    bits: bool = Field(
        default=True,
        description="Keep the bits of each vector next to it, in embedding_bits: as many per dimension as index.bits "
        "says; not possible for sparse vectors.",
    )
    metric: Literal["cosine", "l2", "inner_product"] = Field(
        default="cosine", description="The distance for searches: cosine, l2 or inner_product."
    )
    distribution_column: Text | None = Field(
        default=None,
        description="With Citus: the column of the key by which the table is spread over the nodes. Left out, or where "
        "the database has no Citus: an ordinary table.",
    )
    partition_by: ShortOrWhole | None = Field(
        default=None,
        description="Split the table into partitions, each with an index of its own, so that a search with a filter on "
        "these columns reads one of them: [tenant] for one partition per tenant, or the keys below. Left out: an "
        "ordinary table. rowvec rebuild changes it.",
    )

    _url_has_no_secret = field_validator("url", "direct_url")(no_literal_secret)

    @model_validator(mode="before")
    @classmethod
    def _sparse_has_no_bits(cls, given: Any) -> Any:
        """Switch bits off for sparse vectors if the key is left out: the default is for dense vectors."""
        if isinstance(given, dict) and cast("dict[str, Any]", given).get("precision") == "sparse":
            return {"bits": False, **given}
        return given

    @field_validator("table")
    @classmethod
    def _table_parses(cls, value: str) -> str:
        schema, _ = table_identifier(table_name(value))
        if not has_schema(value):
            raise ValueError(
                f"{value!r} has no schema; write vectors.{value}, or public.{value} if the vector table is there"
            )
        if schema in ("rowvec", "information_schema") or schema.startswith("pg_"):
            raise ValueError(f"the schema {schema} is not for vector tables; name another one, such as vectors")
        return value

    @model_validator(mode="after")
    def _bits_of_dense_vectors(self) -> Target:
        if self.bits and self.precision == "sparse":
            raise ValueError(
                "bits is true, and pgvector makes none of sparse vectors; set it to false, or leave it out"
            )
        return self


class Artifacts(Part):
    """Where artifacts and manifests are kept."""

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
    erase_deleted_after: Duration | None = Field(
        default=None,
        description="rowvec forget FILE --apply erases the traces of rows that the source deleted longer ago than "
        "this: 30d. No restore brings such a row back then. Left out: only those of the keys that it is given.",
    )

    @property
    def erase_seconds(self) -> int | None:
        """``erase_deleted_after`` in seconds."""
        return None if self.erase_deleted_after is None else seconds_of(self.erase_deleted_after)

    _no_secret = field_validator("url")(no_literal_secret)
    _credential_is_a_reference = field_validator("credential")(no_literal_credential)


class Search(Part):
    """What is kept for searches in addition to the vectors."""

    hybrid: bool = Field(
        default=False,
        description="Keep a full text index as well, so that a search can rank by words and vectors together.",
    )
    language: str = Field(
        default="english",
        pattern=r"^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?$",
        description="With hybrid: a text search configuration of the target database (english, german, simple).",
    )


class Recall(Part):
    """The recall@k an index must reach against exact search."""

    k: int = Field(default=10, ge=1, le=1000, description="Neighbours looked at.")
    at_least: float = Field(default=0.95, ge=0, le=1, description="The run fails below.")
    queries: int = Field(default=100, ge=1, le=10_000, description="Rows sampled as queries.")


DeleteFraction = Annotated[float, Field(ge=0, le=1)]


class Validation(Part):
    """The checks that must hold before a run succeeds."""

    recall: Recall = Field(default=Recall(), description="Recall of the index against exact search.")
    max_delete_fraction: DeleteFraction = Field(
        default=0.3,
        description="A run that would delete a larger share of the vector table stops and asks.",
    )


class Freshness(Part):
    """How long a change may wait."""

    alarm_after: Duration | None = Field(
        default=None,
        description="With source.changes.by: trigger: an event is sent if a change waits longer than this: 10m, 1h. "
        "Left out: none is.",
    )

    @property
    def alarm_seconds(self) -> int | None:
        """``alarm_after`` in seconds."""
        return None if self.alarm_after is None else seconds_of(self.alarm_after)


What = Literal["texts", "images"]


BILLED: dict[What, str] = {"texts": "tokens", "images": "transactions"}
"""The unit that an embedder bills, by what is embedded. Reports call the number ``tokens`` in both cases."""


class Pipeline(Part):
    """One vector table and where its vectors come from."""

    name: str = Field(
        pattern=r"^[a-z][a-z0-9_-]{0,39}$",
        description="Lower case; names runs and artifacts. It belongs to one vector table of a database: rowvec rename "
        "gives a pipeline another name, and rowvec adopt gives a name to another table.",
    )
    source: Source = Field(description="The rows.")
    embedder: Annotated[Embedder, ByKind(EMBEDDERS)] = Field(description="What makes a vector of a text.")
    target: Target = Field(description="The vector table.")
    artifacts: Artifacts = Field(default=Artifacts(), description="Where artifacts and manifests are kept.")
    index: Annotated[Index | PluginIndex, ByKind(INDEXES)] = Field(
        default=Index(), description="The index on the vectors."
    )
    search: Search = Field(default=Search(), description="What is kept for searches in addition to the vectors.")
    validation: Validation = Field(default=Validation(), description="The checks that must hold before a run succeeds.")
    freshness: Freshness = Field(default=Freshness(), description="How long a change may wait.")

    def with_delete_limit(self, fraction: float | None) -> Pipeline:
        """The pipeline with another ``validation.max_delete_fraction``; itself for None."""
        if fraction is None:
            return self
        validation = self.validation.model_copy(update={"max_delete_fraction": fraction})
        return self.model_copy(update={"validation": validation})

    @property
    def bits(self) -> int:
        """Bits per dimension that a new vector table keeps; 0: none."""
        if not self.target.bits:
            return 0
        return bits_for(self.embedder.dimensions) if self.index.bits == "auto" else self.index.bits

    @property
    def what(self) -> What:
        """What the pipeline embeds."""
        return "images" if self.source.kind == "images" else "texts"

    @model_validator(mode="after")
    def _content_or_vectors(self) -> Pipeline:
        self._check_images()
        self._check_target_is_not_source()
        if self.source.content is None and self.embedder.kind != "column":
            raise ValueError("source.content is needed: the template of the text to embed")
        if self.index.on == "bits" and not self.target.bits:
            raise ValueError("index.on is bits, but target.bits is false")
        if self.index.bits != "auto" and not self.target.bits:
            raise ValueError(f"index.bits is {self.index.bits}, but target.bits is false")
        self._check_chunks()
        self._check_freshness()
        column = self.target.distribution_column
        if column is not None and column not in self.source.key:
            raise ValueError(f"target.distribution_column, {column!r}, is no column of source.key, which Citus wants")
        self._check_partitions()
        self._check_layout()
        taken = HYBRID_COLUMNS.intersection((*self.source.key, *self.source.metadata)) if self.search.hybrid else ()
        if taken:
            raise ValueError(f"column {min(taken)!r} has the name of a column that hybrid search gives; {RENAME}")
        return self

    def _check_partitions(self) -> None:
        parts = self.target.partition_by
        if parts is None:
            return
        if others := [column for column in parts.columns if column not in self.source.key]:
            raise ValueError(
                f"target.partition_by names {others[0]!r}, which is no column of source.key, and the primary key of a "
                f"partitioned table holds the columns it is split by: add {others[0]!r} to source.key"
            )
        if self.target.distribution_column is not None:
            raise ValueError("target.partition_by and target.distribution_column exclude each other: leave one out")

    def _check_target_is_not_source(self) -> None:
        source, target = self.source, self.target
        if source.kind != "postgres" or source.table is None or source.url not in (None, target.url):
            return
        if table_identifier(source.table) == table_identifier(target.table):
            raise ValueError(f"target.table is the source itself, {source.table}; name another table for the vectors")

    def _check_images(self) -> None:
        images, kind = self.what == "images", self.embedder.kind
        if images and kind not in (*IMAGE_EMBEDDERS, "column"):
            raise ValueError(
                f"source.kind is images, and an embedder of kind {kind} takes texts; use "
                f"{' or '.join(IMAGE_EMBEDDERS)}, or column where the source has the vectors"
            )
        if not images and kind in IMAGE_EMBEDDERS:
            raise ValueError(f"an embedder of kind {kind} takes images; set source.kind to images")
        if kind == "azure_vision" and self.target.metric != "cosine":
            # Their length is near 92 for images and less for texts: any other distance would rank them by length.
            raise ValueError(
                f"target.metric is {self.target.metric}, and vectors of azure_vision differ in length: only cosine "
                "ranks them by what they show"
            )
        if images and self.search.hybrid:
            raise ValueError("search.hybrid ranks by words, and images have none; leave it out")

    def _check_layout(self) -> None:
        dimensions = self.embedder.dimensions
        if self.target.precision != "sparse":
            if dimensions > MOST_DIMENSIONS:
                raise ValueError(
                    f"embedder.dimensions is {dimensions:,}, and pgvector holds no more than {MOST_DIMENSIONS:,} "
                    "unless target.precision is sparse"
                )
            return
        if self.embedder.kind != "column":
            raise ValueError(
                f"target.precision is sparse, and the embedder {self.embedder.kind} gives dense vectors; sparse ones "
                "come from the source, with the embedder column"
            )
        if self.index.kind == "ivfflat":
            raise ValueError("index.kind is ivfflat, which pgvector cannot build on sparse vectors; set it to auto")

    def _check_freshness(self) -> None:
        if self.freshness.alarm_after is not None and not self.source.is_queued:
            raise ValueError(
                "freshness.alarm_after is set, and only a queue of changes knows how long a change has waited: set "
                "source.changes.by to trigger, or leave freshness out"
            )

    def _check_chunks(self) -> None:
        chunks, embedder = self.source.chunks, self.embedder
        if chunks is None:
            return
        if embedder.kind == "column":
            raise ValueError("source.chunks is set, and the vectors come with the rows: there is nothing to split")
        if isinstance(embedder, PaidEmbedder) and chunks.tokens > embedder.max_input_tokens:
            raise ValueError(
                f"source.chunks.tokens, {chunks.tokens}, is more than embedder.max_input_tokens, "
                f"{embedder.max_input_tokens}"
            )


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the pipeline file, with the keys of installed plug-ins."""
    schema = INDEXES.with_plugins(EMBEDDERS.with_plugins(Pipeline.model_json_schema()))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
