"""Sends requests by OpenAI's own client.

A module of its own, because the client takes half a second to import and a sync with nothing to embed needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

import httpx2
import openai

from rowvec.embedders.provider.deadline import DeadlineTransport, is_before_sending
from rowvec.embedders.provider.endpoint import ENTRA
from rowvec.embedders.provider.packing import Sized
from rowvec.embedders.provider.refusal import Refusal, own_sentence, shown
from rowvec.embedders.provider.requests import EndpointSettings
from rowvec.pipeline.embedders import AzureOpenAIEmbedder, OpenAIEmbedder


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAIEndpoint(EndpointSettings):
    """An endpoint that OpenAI's client sends requests to."""

    client: openai.OpenAI
    secret: str = field(repr=False)
    """The key, to keep it out of messages."""

    def post(self, part: tuple[Sized, ...], with_dimensions: bool) -> bytes | Refusal:
        """See ``requests.Post``."""
        try:
            response = self.client.embeddings.with_raw_response.create(
                model=self.model,
                input=[text.text for text in part],
                dimensions=self.dimensions if with_dimensions else openai.omit,
                encoding_format="base64",
            )
        except openai.APIError as error:
            # Returned, not raised, so that no traceback ever leads to the client's exception, which may quote the key.
            return refusal(error, secret=self.secret)
        return response.content


def open_client(
    config: OpenAIEmbedder, base_url: str, secret: str, entra_token: Callable[[], Callable[[], str]]
) -> openai.OpenAI:
    """A client without retries of its own; ``entra_token`` is called only if the pipeline signs in by Entra ID."""
    timeout = config.timeout_seconds
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=config.concurrency)
    http = openai.DefaultHttpxClient(transport=DeadlineTransport(limits=limits), timeout=timeout)
    if not isinstance(config, AzureOpenAIEmbedder):
        return openai.OpenAI(api_key=secret, base_url=base_url, max_retries=0, timeout=timeout, http_client=http)
    if secret == ENTRA:
        return openai.AzureOpenAI(
            azure_endpoint=base_url,
            api_version=config.api_version,
            azure_ad_token_provider=entra_token(),
            max_retries=0,
            timeout=timeout,
            http_client=http,
        )
    return openai.AzureOpenAI(
        azure_endpoint=base_url,
        api_version=config.api_version,
        api_key=secret,
        max_retries=0,
        timeout=timeout,
        http_client=http,
    )


def refusal(error: openai.APIError, *, secret: str) -> Refusal:
    """The details of the client's exception, without the key."""
    message, status, headers = error.message, None, cast("Mapping[str, str]", {})
    if isinstance(error, openai.APIStatusError):
        status, headers = error.status_code, error.response.headers
        message = own_sentence(error.body) or message
    message = shown(message, secret)
    # A request that was sent and not answered may have been worked on, and billed.
    unanswered = isinstance(error, openai.APIConnectionError) and not is_before_sending(error.__cause__)
    return Refusal(
        status, error.code or "", error.type or "", error.param or "", message, headers, unanswered=unanswered
    )
