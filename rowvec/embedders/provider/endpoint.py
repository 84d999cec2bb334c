"""Addresses of embedding services as a pipeline writes them: refused in our words, before a client quotes them."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from rowvec.errors import EmbedderRefused, EmbedderUnavailable, UsageError


def web_address(written: str | None, advice: str) -> str:
    """``embedder.base_url`` without the blanks around it; None stands for a reference to a variable that is missing.

    Raises ``UsageError``, which ends in ``advice``, where it is no address that can be asked.
    """
    url = (written or "").strip()
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        # What stands for a port and is none may be a piece of a password: it is not to be quoted, by httpx neither.
        is_address = False
    if not is_address:
        raise UsageError(f"embedder.base_url is no web address; {advice}")
    return url


ENTRA = "entra"
"""What a pipeline writes in place of a key."""


_SCOPE = "https://cognitiveservices.azure.com/.default"


def entra_token(service: str, role: str) -> Callable[[], str]:
    """Gives a token that is valid now; azure-identity keeps and renews it.

    The call raises ``EmbedderRefused`` where Entra ID gives none, naming the ``service`` and the ``role`` that it
    takes, and ``EmbedderUnavailable`` where it does not answer.
    """
    # Late: half a second, and most pipelines have a key.
    from azure.core.exceptions import AzureError, ClientAuthenticationError
    from azure.identity import DefaultAzureCredential, get_bearer_token_provider

    provider = get_bearer_token_provider(DefaultAzureCredential(), _SCOPE)

    def token() -> str:
        try:
            return provider()
        except ClientAuthenticationError:
            raise EmbedderRefused(
                f"Entra ID gives no token for {service}: run `az login`, or give this machine a managed identity "
                f"with the role {role}"
            ) from None
        except AzureError as error:
            raise EmbedderUnavailable(f"Entra ID does not answer: {type(error).__name__}") from None

    return token


def header_value(key: str) -> str:
    """The key without the line end that it was copied with. A header takes neither that nor anything but ASCII.

    Raises ``UsageError``.
    """
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(
            "the key in embedder.api_key is empty or holds characters no key has; set its variable to the key alone"
        )
    return key
