"""Addresses of embedding services as a pipeline writes them: refused in our words, before a client quotes them."""

from __future__ import annotations

from urllib.parse import urlsplit

from rowvec.errors import UsageError


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
