"""Checks the address and the key that a pipeline names, so that no client quotes them in its own error message."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from rowvec.errors import EmbedderRefused, EmbedderUnavailable, UsageError


def web_address(written: str | None, advice: str) -> str:
    """``embedder.base_url`` without the blanks around it; None means that its variable is not set.

    Raises ``UsageError``, whose message ends with ``advice``, if it is not an http or https address.
    """
    url = (written or "").strip()
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        # An invalid port may be a piece of a password: neither we nor httpx may quote it.
        is_address = False
    if not is_address:
        raise UsageError(f"embedder.base_url is no web address; {advice}")
    return url


ENTRA = "entra"
"""What a pipeline writes in place of a key to sign in by Entra ID."""


_SCOPE = "https://cognitiveservices.azure.com/.default"


def entra_token(service: str, role: str) -> Callable[[], str]:
    """A function that returns a valid token; azure-identity caches and renews it.

    The function raises ``EmbedderRefused`` if Entra ID gives no token; the message names the ``service`` and the
    ``role`` that it requires. It raises ``EmbedderUnavailable`` if Entra ID does not answer.
    """
    # A late import: it takes half a second, and most pipelines have a key.
    from azure.core.exceptions import AzureError, ClientAuthenticationError
    from azure.identity import get_bearer_token_provider

    from rowvec.runtime.azure_identity import default_credential

    provider = get_bearer_token_provider(default_credential(), _SCOPE)

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
    """The key without the line end that may have been copied with it: a header takes printable ASCII only.

    Raises ``UsageError`` if the key is empty or holds any other character.
    """
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(
            "the key in embedder.api_key is empty or holds characters no key has; set its variable to the key alone"
        )
    return key
