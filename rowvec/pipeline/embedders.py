"""The embedder part of a pipeline file: what makes vectors, with which account, and how fast."""

# Each kind narrows its tag and other fields. That is safe because parts are frozen, which pyright does not see.
# pyright: reportIncompatibleVariableOverride=false

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from rowvec.pipeline.parts import IN_PLAIN_TEXT, REFERENCE, Part, Text, no_literal_key, no_literal_secret
from rowvec.vectors.layout import MOST_DIMENSIONS as MOST_DENSE
from rowvec.vectors.sparse import MOST_DIMENSIONS

MOST_PREFIX = 1000
"""Characters of a prefix. The longest that a known model asks for is an instruction of two sentences."""


class Budget(Part):
    """What a pipeline may spend on its embedder, in US dollars, over all its generations and machines."""

    per_run: float | None = Field(default=None, gt=0, description="The most that one run spends; left out: no limit.")
    per_month: float | None = Field(
        default=None, gt=0, description="The most that all runs of a calendar month (UTC) spend; left out: no limit."
    )


class BatchApi(Part):
    """OpenAI's Batch API: half the price, an answer within 24 hours."""

    at_least: int = Field(
        default=1000, gt=0, description="With fewer texts than this, the run embeds directly and makes no job."
    )
    fallback: Literal["batch", "direct"] = Field(
        default="batch",
        description="How texts that a job did not answer are sent again: in another job (three in all), or directly.",
    )
    wait_minutes: float = Field(
        default=10.0, ge=0, description="How long a run waits for its jobs before it leaves them to the next run."
    )
    patience_hours: float = Field(
        default=72.0,
        gt=0,
        description="This long after the first job, texts without an answer are embedded directly, so that a run can "
        "end.",
    )
    max_tokens: int | None = Field(
        default=None, gt=0, description="The account's limit of tokens in unfinished jobs; left out: no limit."
    )
    model: Text | None = Field(
        default=None, description="On Azure, the deployment that takes jobs; left out: embedder.model."
    )


class TextEmbedder(Part):
    """What every embedder of texts has."""

    kind: str
    model: Text = Field(description="The model's name.")
    dimensions: int = Field(gt=0, le=MOST_DENSE, description="Length of the vectors.")
    document_prefix: str = Field(
        default="",
        max_length=MOST_PREFIX,
        description='Stands before each text that is embedded, e.g. "passage: " for E5; part of every fingerprint.',
    )
    query_prefix: str = Field(
        default="",
        max_length=MOST_PREFIX,
        description='Stands before the text of a search, e.g. "query: " for E5; part of no fingerprint.',
    )


class PaidEmbedder(TextEmbedder):
    """What every embedder has that sends texts to a server: the limits of a request, the pace, and the price."""

    on_too_long: Literal["reject", "truncate"] = Field(
        default="reject",
        description="What happens to a text over max_input_tokens: it is rejected, or cut to that many tokens.",
    )
    max_input_tokens: int = Field(default=8192, gt=0, description="Tokens the model takes in one input.")
    # With 2,048, the most that a request takes, fewer requests would be in flight, and a kill would lose more answers.
    max_batch_inputs: int = Field(default=512, gt=0, le=2048, description="Inputs in one request; 2,048 at most.")
    max_batch_tokens: int = Field(default=300_000, gt=0, description="Tokens in one request, over all inputs.")
    concurrency: int = Field(default=8, gt=0, le=256, description="Requests in flight at once.")
    requests_per_minute: int | None = Field(
        default=None, gt=0, description="The account's limit; all processes of the account share it."
    )
    tokens_per_minute: int | None = Field(
        default=None, gt=0, description="The account's limit; all processes of the account share it."
    )
    timeout_seconds: float = Field(default=60.0, gt=0, description="For one request, to the last byte of its answer.")
    max_attempts: int = Field(default=8, gt=0, description="Attempts of one request before the run fails.")
    cost_per_million_tokens: float | None = Field(
        default=None,
        ge=0,
        description="In US dollars; left out: the list price of a known model, else unknown (0).",
    )
    budget: Budget | None = Field(
        default=None,
        description="The most that may be spent; a run stops before it would exceed it. Left out: no limit.",
    )


class OpenAIEmbedder(PaidEmbedder):
    """OpenAI, or any server with the same protocol, by base_url."""

    kind: Literal["openai"]
    model: Text = Field(description="The model's name, e.g. text-embedding-3-small.")
    dimensions: int = Field(
        gt=0, le=MOST_DENSE, description="Length of the vectors; text-embedding-3 and later can shorten."
    )
    base_url: str | None = Field(default=None, repr=False, description="A compatible server; left out: OpenAI itself.")
    api_key: str = Field(
        default="${OPENAI_API_KEY}", repr=False, description="Always a reference, never the key itself."
    )
    batch: bool | BatchApi = Field(
        default=False, description="Whether many texts go through the Batch API, at half the price: true, or settings."
    )

    @property
    def jobs(self) -> BatchApi | None:
        """The settings of the Batch API; None if it is not used."""
        if isinstance(self.batch, BatchApi):
            return self.batch
        return BatchApi() if self.batch else None

    @field_validator("api_key")
    @classmethod
    def _key_is_a_reference(cls, value: str) -> str:
        if not REFERENCE.fullmatch(value):
            raise ValueError(IN_PLAIN_TEXT)
        return value

    _base_url_has_no_secret = field_validator("base_url")(no_literal_secret)


class AzureOpenAIEmbedder(OpenAIEmbedder):
    """Azure OpenAI: base_url is the resource's endpoint, model the deployment's name."""

    kind: Literal["azure_openai"]
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


class LocalEmbedder(TextEmbedder):
    """wordllama: a static model inside its wheel; no network, no cost."""

    kind: Literal["local"]
    model: Literal["wordllama"] = Field(default="wordllama", description="The only one so far.")
    dimensions: Literal[64, 128, 256] = Field(
        default=256, description="64, 128 or 256: a Matryoshka prefix of the 256-d model."
    )


class ColumnEmbedder(Part):
    """The source has the vectors; they are checked like those of any other embedder."""

    kind: Literal["column"]
    column: Text = Field(
        description="The column with the vector: list, fixed-size list, pgvector, text, struct of indices and values."
    )
    dimensions: int = Field(
        gt=0, le=MOST_DIMENSIONS, description="Length of the vectors; over 16,000 with target.precision sparse only."
    )
    model: str = Field(default="column", description="What made the vectors; part of their identity.")


class AzureVisionEmbedder(Part):
    """Azure AI Vision: images and texts in one space of 1,024 dimensions; base_url is the resource's endpoint."""

    kind: Literal["azure_vision"]
    base_url: str = Field(repr=False, description="The resource's endpoint, https://NAME.cognitiveservices.azure.com.")
    api_key: str = Field(
        default="${AZURE_VISION_KEY}",
        repr=False,
        description="A reference to the key, or the word entra for Entra ID through azure-identity.",
    )
    model: str = Field(
        default="2023-04-15",
        pattern=r"^\d{4}-\d{2}-\d{2}(-preview)?$",
        description="The model-version, a date; part of every fingerprint, so never latest.",
    )
    dimensions: Literal[1024] = Field(default=1024, description="The service's own length, 1024.")
    api_version: str = Field(default="2024-02-01", description="The REST API's version.")
    concurrency: int = Field(default=8, gt=0, le=256, description="Requests in flight at once.")
    requests_per_second: float | None = Field(
        default=None, gt=0, description="The account's limit; all processes of the account share it."
    )
    timeout_seconds: float = Field(default=60.0, gt=0, description="For one request, to the last byte of its answer.")
    max_attempts: int = Field(default=8, gt=0, description="Attempts of one request before the run fails.")
    cost_per_thousand_transactions: float | None = Field(
        default=None, ge=0, description="In US dollars, one image or text is one transaction; left out: unknown (0)."
    )
    budget: Budget | None = Field(
        default=None,
        description="The most that may be spent; a run stops before it would exceed it. Left out: no limit.",
    )

    @field_validator("api_key")
    @classmethod
    def _key_is_a_reference(cls, value: str) -> str:
        if value != "entra" and not REFERENCE.fullmatch(value):
            raise ValueError(IN_PLAIN_TEXT)
        return value

    _base_url_has_no_secret = field_validator("base_url")(no_literal_secret)


class LocalImageEmbedder(Part):
    """A descriptor of colour, shape and texture: no network, no cost; it finds similar images and takes no text."""

    kind: Literal["local_image"]
    model: Literal["colour-texture"] = Field(default="colour-texture", description="The only one so far.")
    dimensions: Literal[256] = Field(default=256, description="The descriptor's own length, 256.")


Extra = dict[str, str | int | bool]


class OpenAIImagesEmbedder(Part):
    """Images and texts in one space, from a server that takes images in OpenAI's embeddings protocol: vLLM, Jina."""

    kind: Literal["openai_images"]
    model: Text = Field(description="The model's name as the server knows it.")
    dimensions: int = Field(
        gt=0, le=MOST_DENSE, description="Length of the vectors; checked, and requested if the server supports it."
    )
    base_url: str = Field(repr=False, description="The server's address before /embeddings: http://HOST:8000/v1.")
    api_key: str | None = Field(
        default=None, repr=False, description="A reference to the key, never the key itself; left out: none is sent."
    )
    form: Literal["messages", "input"] = Field(
        default="messages",
        description="How an image is sent: messages (vLLM's chat messages) or input (Jina's input objects).",
    )
    instruction: Text | None = Field(
        default=None, description="With messages: a text next to each image; part of every fingerprint."
    )
    system: Text | None = Field(
        default=None, description="With messages: a system message first; part of every fingerprint."
    )
    query: Text = Field(default="{text}", description="A template for the text of a search, e.g. Query: {text}.")
    extra: Extra = Field(
        default={}, description="More fields of each request, as the model wants them; part of every fingerprint."
    )
    query_extra: Extra = Field(default={}, description="More fields of requests for a search's text.")
    max_batch_inputs: int = Field(
        default=8, gt=0, le=512, description="With input: images in one request; messages hold one."
    )
    concurrency: int = Field(default=8, gt=0, le=256, description="Requests in flight at once.")
    requests_per_minute: int | None = Field(default=None, gt=0, description="The account's limit; requests keep to it.")
    timeout_seconds: float = Field(default=60.0, gt=0, description="For one request, to the last byte of its answer.")
    max_attempts: int = Field(default=8, gt=0, description="Attempts of one request before the run fails.")
    cost_per_thousand_transactions: float | None = Field(
        default=None, ge=0, description="In US dollars, one image or text is one transaction; left out: unknown (0)."
    )
    budget: Budget | None = Field(
        default=None,
        description="The most that may be spent; a run stops before it would exceed it. Left out: no limit.",
    )

    _key_is_a_reference = field_validator("api_key")(no_literal_key)

    @field_validator("query")
    @classmethod
    def _query_holds_the_text(cls, value: str) -> str:
        if "{text}" not in value:
            raise ValueError("has no {text} in it, which is where a search's text goes")
        return value

    @field_validator("extra", "query_extra")
    @classmethod
    def _extra_is_not_ours(cls, value: Extra) -> Extra:
        taken = {"model", "messages", "input", "dimensions", "encoding_format"}.intersection(value)
        if taken:
            raise ValueError(f"{min(taken)} is a field that rowvec writes itself; take it out")
        return value

    @model_validator(mode="after")
    def _words_are_in_messages(self) -> OpenAIImagesEmbedder:
        if self.form == "input" and (self.instruction or self.system):
            raise ValueError("instruction and system are texts of messages; with form: input leave them out")
        return self

    _base_url_has_no_secret = field_validator("base_url")(no_literal_secret)


class LitellmEmbedder(PaidEmbedder):
    """A provider that litellm speaks to, such as Cohere, Voyage, Gemini, Bedrock or Ollama."""

    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"query_extra"})

    kind: Literal["litellm"]
    model: Text = Field(description="Provider and model as litellm names them, e.g. cohere/embed-v4.0.")
    dimensions: int = Field(
        gt=0, le=MOST_DENSE, description="Length of the vectors; checked, and requested if the model can shorten."
    )
    base_url: str | None = Field(default=None, repr=False, description="The server; left out: the provider's own.")
    api_key: str | None = Field(
        default=None,
        repr=False,
        description="A reference to the key, never the key itself; left out: the provider's own variables, such as "
        "COHERE_API_KEY.",
    )
    max_batch_inputs: int = Field(
        default=96, gt=0, le=2048, description="Inputs in one request; Cohere takes 96, Gemini 100."
    )
    extra: Extra = Field(
        default={}, description="More fields of each request, as the provider wants them; part of every fingerprint."
    )
    query_extra: Extra = Field(default={}, description="More fields of requests for a search's text.")

    @field_validator("model")
    @classmethod
    def _model_names_its_provider(cls, value: str) -> str:
        if not all(value.partition("/")):
            raise ValueError(f"{value!r} names no provider; write PROVIDER/MODEL, e.g. cohere/embed-v4.0")
        return value

    _key_is_a_reference = field_validator("api_key")(no_literal_key)

    @field_validator("extra", "query_extra")
    @classmethod
    def _extra_is_not_ours(cls, value: Extra) -> Extra:
        taken = _LITELLM_FIELDS.intersection(value)
        if taken:
            raise ValueError(f"{min(taken)} is a field that rowvec writes itself, or a secret; take it out")
        return value

    _base_url_has_no_secret = field_validator("base_url")(no_literal_secret)


# What rowvec sets itself, and what would be a key in plain text, a second retry or another account.
_LITELLM_FIELDS = frozenset(
    {"model", "input", "dimensions", "api_base", "base_url", "api_key", "timeout", "max_retries", "num_retries"}
    | {"caching", "fallbacks", "mock_response", "custom_llm_provider", "client", "aembedding"}
    | {"aws_access_key_id", "aws_secret_access_key", "aws_session_token", "vertex_credentials", "azure_ad_token"}
)


class PluginEmbedder(TextEmbedder):
    """The keys that an embedder of a plug-in has at least; its own model is a subclass with more.

    Every key of the subclass is part of each fingerprint, if its value is not the default: another value means other
    vectors. ``NO_EFFECT`` names those that do not change a vector.
    """

    NO_EFFECT: ClassVar[frozenset[str]] = frozenset()


class PaidPluginEmbedder(PaidEmbedder, PluginEmbedder):
    """The same for a plug-in that sends texts to a server, with rowvec's pace, retries, prices and budget."""

    base_url: str | None = Field(default=None, repr=False, description="The server; left out: the provider's own.")
    api_key: str | None = Field(
        default=None, repr=False, description="A reference to the key, never the key itself; left out: none."
    )

    _key_is_a_reference = field_validator("api_key")(no_literal_key)
    _base_url_has_no_secret = field_validator("base_url")(no_literal_secret)


# ``rowvec.pipeline.embedder_kinds`` finds the model of a kind.
Embedder = (
    LocalEmbedder
    | LocalImageEmbedder
    | ColumnEmbedder
    | AzureVisionEmbedder
    | OpenAIImagesEmbedder
    | OpenAIEmbedder
    | AzureOpenAIEmbedder
    | LitellmEmbedder
    | PluginEmbedder
)
