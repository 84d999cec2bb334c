"""What a plug-in brings: a model of texts. rowvec packs, paces and retries, isolates bad rows, and checks vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

from rowvec.embedders.provider.refusal import Refusal
from rowvec.embedders.provider.response import Reply
from rowvec.errors import EmbedderRefused, EmbedderUnavailable, QuotaExhausted, RateLimited, RowError, UsageError
from rowvec.pipeline.embedder_kinds import EmbedderKind
from rowvec.pipeline.embedders import PaidPluginEmbedder, PluginEmbedder
from rowvec.vectors.layout import Vectors

__all__ = [
    "EmbedderKind",
    "EmbedderRefused",
    "EmbedderUnavailable",
    "PaidPluginEmbedder",
    "PluginEmbedder",
    "Purpose",
    "QuotaExhausted",
    "RateLimited",
    "Refusal",
    "Reply",
    "RowError",
    "TextModel",
    "UsageError",
]

Purpose = Literal["document", "query"]
"""What a text is: one to be found, or one to search by."""


class TextModel(ABC):
    """Makes vectors of lists of texts; opened once per process with the pipeline's ``embedder`` part.

    If the part is a ``PaidPluginEmbedder``, many threads call ``embed`` at once; else one thread does.
    """

    version: ClassVar[int] = 1
    """Part of each fingerprint. Increase it when the same settings begin to give other vectors."""

    most_texts: ClassVar[int] = 128
    """The most texts of one call, if the part is no ``PaidPluginEmbedder``; that has ``max_batch_inputs``."""

    def __init__(self, config: Any) -> None:
        """``config``: the part, with references resolved. Raises ``UsageError`` if it cannot work. Loads nothing yet:
        commands that embed nothing need the identity only."""
        self.config = config

    @abstractmethod
    def embed(self, texts: list[str], purpose: Purpose) -> Vectors | Reply | Refusal:
        """``(n, d)`` float32, one row per text, in their order; prefixes are there already. A ``Reply`` adds the tokens
        that were billed. A ``Refusal`` is what a server answered instead: rowvec reads from its status and headers
        whether to wait, to stop, or to reject a row.

        Raises ``RowError`` if it cannot take one of the texts: rowvec then finds out which. ``RateLimited`` and
        ``EmbedderUnavailable`` are tried again, after ``retry_after`` seconds if they name them. ``EmbedderRefused``
        and ``QuotaExhausted`` end the run. Any other exception ends it too, with the name of the plug-in.
        """

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, for packing and for the plan; OpenAI's count if it is not overridden."""
        from rowvec.embedders.provider import tokens  # late: its vocabulary takes half a second to load

        return tokens.count(text)

    def usd_per_million_tokens(self) -> float | None:
        """The list price in US dollars, if the pipeline names none; None if it is unknown."""
        return None

    @property
    def account(self) -> str:
        """Whose rate limits apply, beside the model's and the key's: the server's address, or the provider's name."""
        return getattr(self.config, "base_url", None) or self.config.kind
