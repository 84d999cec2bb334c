"""What a provider's refusal means for the run: wait, stop, or reject a row. Its code decides, not its sentence."""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, cast

from rowvec.errors import (
    EmbedderRefused,
    EmbedderUnavailable,
    QuotaExhausted,
    RateLimited,
    RowError,
    RowvecError,
)

# The account has no money or quota left. The first two and Jina's (last) are whole codes, the others are endings.
_QUOTA_CODES = (
    "insufficient_quota",
    "credit_balance_exhausted",
    "_spend_limit_exceeded",
    "_usage_limit_exceeded",
    "AUTHZ_INSUFFICIENT_BALANCE",
)

# If one of these fields is refused, the pipeline is wrong and not the text.
_OUR_FIELDS = ("model", "encoding_format", "user", "api-version")

# OpenAI and vLLM have their own sentences; a server that checks fields strictly names the field it does not know.
_NO_DIMENSIONS = re.compile(
    r"matryoshka|support[^.]*\bdimensions\b|\bdimensions\b[^.]*support|(?:extra|unknown|unexpected).*\bdimensions\b"
    r"|\bdimensions\b.*(?:extra|unknown|unexpected)",
    re.IGNORECASE,
)
# "Image dimensions 10x10 are not supported" is about one image, not about vectors.
_OF_AN_IMAGE = re.compile(r"\bimages?(?:'s)?\s+dimensions\b|\bdimensions\s+of\s+(?:\w+\s+)?images?\b", re.IGNORECASE)

LONGEST_MESSAGE = 300
_KEY = re.compile(r"\b(?:sk|sess|rk)-[\w*.-]+")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A response that is not a success, or no response at all."""

    status: int | None
    """None: the connection failed or timed out."""
    code: str
    kind: str
    """The field ``type`` of the error."""
    field: str
    message: str
    headers: Mapping[str, str]
    unanswered: bool = False
    """The request was sent, and no whole answer came: it may have been worked on, and billed."""

    @property
    def complaint(self) -> Literal["rate_limited", "slow_down"]:
        """Which kind of slowdown a 429 asks for."""
        return "slow_down" if "slow_down" in (self.code, self.kind) else "rate_limited"

    @property
    def about_dimensions(self) -> bool:
        """Whether the model cannot shorten its vectors, or the server does not know the field."""
        if self.status not in (400, 422):
            return False
        if self.field == "dimensions":
            return True
        return bool(_NO_DIMENSIONS.search(self.message)) and not _OF_AN_IMAGE.search(self.message)

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """Requests and tokens per minute, each None if the provider does not name it."""
        if "per day" in self.message:
            return None, None
        return self._limit("requests"), self._limit("tokens")

    def _limit(self, what: str) -> float | None:
        try:
            limit = float(self.headers.get(f"x-ratelimit-limit-{what}", ""))
        except ValueError:
            return None
        return limit if math.isfinite(limit) and limit >= 1 else None


def refusal_in(status: int, content: bytes, headers: Mapping[str, str], *, secret: str) -> Refusal:
    """The body of a refusal, without the key, in any of the forms that compatible servers use.

    OpenAI sends an object ``error``; older vLLM sends the fields of that object directly; Jina and FastAPI send
    ``detail``, a sentence or a list of fields and what is wrong with each.
    """
    try:
        body = cast("object", json.loads(content))
    except ValueError:
        body = None
    fields = cast("dict[str, object]", body) if isinstance(body, dict) else {}
    error = fields.get("error", fields)
    found = cast("dict[str, object]", error) if isinstance(error, dict) else {"message": error}
    code, kind, field = (str(found.get(name) or "") for name in ("code", "type", "param"))
    detail = found.get("message") or found.get("detail")
    if isinstance(detail, list):
        detail = "; ".join(map(_wrong_field, cast("list[object]", detail)))
    message = shown(detail if isinstance(detail, str) else "", secret)
    return Refusal(status, code, kind, field, message, headers)


def meaning(refused: Refusal, *, model: str, address: str) -> RowvecError:
    """Our own error for a refusal."""
    status, reason = refused.status, f": {refused.message}" if refused.message else ""
    if _is_quota(refused):
        return QuotaExhausted(
            f"the account at {address} has no quota left ({refused.code or refused.kind or status}){reason}; "
            "add credit or raise its limit, then run again: nothing embedded so far is lost"
        )
    if status is None:
        return EmbedderUnavailable(f"the embedder at {address} does not answer{reason}")
    if status == 429:
        if refused.message.lower().startswith("request too large"):
            return RowError("too_long", refused.message)
        wait = retry_after(refused.headers, time.time())
        return RateLimited(f"the embedder at {address} asks for a slower pace{reason}", retry_after=wait)
    if status in (400, 413, 422) and refused.field not in _OUR_FIELDS:
        too_long = status == 413 or re.search(r"context.length|too (?:long|large|many tokens)", refused.message)
        return RowError("too_long" if too_long else "invalid_input", refused.message or f"refused with {status}")
    if status in (408, 409) or status >= 500:
        wait = retry_after(refused.headers, time.time())
        return EmbedderUnavailable(f"the embedder at {address} answered {status}{reason}", retry_after=wait)
    return EmbedderRefused(_refused(status, model, address, reason))


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait, from ``retry-after-ms``, or else ``Retry-After`` in seconds or as a date; None without either.

    A date is compared with that of the answer itself; ``now``, in seconds since 1970 by this machine's clock, is for an
    answer without one.
    """
    for name, divisor in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            seconds = float(headers.get(name, "")) / divisor
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    with suppress(ValueError):
        now = email.utils.parsedate_to_datetime(headers.get("date", "")).timestamp()
    return max(0.0, date.timestamp() - now)


def _is_quota(refused: Refusal) -> bool:
    if refused.status not in (402, 403, 429):
        return False
    named = any(word.endswith(_QUOTA_CODES) for word in (refused.code, refused.kind))
    return named or refused.status == 402


def _refused(status: int, model: str, address: str, reason: str) -> str:
    if status == 401:
        return f"the embedder at {address} does not accept the key; check embedder.api_key{reason}"
    if status == 403:
        return f"the key may not use {model} at {address}; check its permissions and region{reason}"
    if status == 404:
        return f"there is no model {model} at {address}; check embedder.model and embedder.base_url{reason}"
    return f"the embedder at {address} refuses {model} as the pipeline asks for it ({status}){reason}"


def shown(message: str, secret: str) -> str:
    """A message that can be shown: without the key, and without characters that could not be stored with a reject.

    Providers quote what they were sent, even a NUL or half a surrogate pair.
    """
    if secret:
        message = message.replace(secret, "***")
    message = " ".join(_KEY.sub("***", message).split())
    return "".join(c for c in message if c.isprintable())[:LONGEST_MESSAGE]


def _wrong_field(one: object) -> str:
    """One of FastAPI's errors as ``dimensions: Extra inputs are not permitted``."""
    if not isinstance(one, dict):
        return str(one)
    error = cast("dict[str, object]", one)
    where = error.get("loc")
    names = [str(part) for part in cast("list[object]", where)] if isinstance(where, list) else []
    return f"{'.'.join(names[1:])}: {error.get('msg', '')}"


def own_sentence(body: object) -> str:
    """Only the provider's sentence; the client's own message repeats the whole body, even a whole HTML page."""
    if isinstance(body, dict):
        found = cast("dict[str, object]", body).get("message")
        return found if isinstance(found, str) else ""
    return ""
