"""What Azure AI Vision's refusals mean for the run: wait, stop, or reject an image."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ValidationError

from rowvec.embedders.provider.refusal import Refusal, meaning
from rowvec.errors import QuotaExhausted, RowError, RowvecError

# Parts of the codes that blame the image or text: InvalidImageFormat, InvalidImageSize, NotSupportedImage ...
_ABOUT_THE_IMAGE = re.compile(
    r"InvalidImage|NotSupportedImage|UnsupportedMediaType|ImageDecod|InputTooLong|InvalidText"
)

# Sent with 403 if the free tier's month is used up: "Out of call volume quota".
_NO_QUOTA = re.compile(r"call volume quota", re.IGNORECASE)

_LONGEST_MESSAGE = 300


class _Detail(BaseModel):
    code: str = ""
    message: str = ""
    innererror: _Detail | None = None


class _Body(BaseModel):
    error: _Detail


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """The codes of an error, the innermost first, and its message."""

    codes: tuple[str, ...]
    message: str

    @property
    def blames_the_input(self) -> bool:
        """Whether a code says that the image (or text) is what is wrong."""
        return any(_ABOUT_THE_IMAGE.search(code) for code in self.codes)


def read_error(content: bytes, headers: Mapping[str, str], *, secret: str) -> ErrorDetails:
    """The details of an error, without the key. The API gateway's errors have no inner ones, a proxy's are not JSON."""
    try:
        detail: _Detail | None = _Body.model_validate_json(content).error
    except ValidationError:
        detail = None
    codes, message = list[str](), ""
    while detail is not None:
        codes.insert(0, detail.code)
        message, detail = detail.message or message, detail.innererror
    codes.append(headers.get("x-ms-error-code", ""))
    shown = " ".join(message.split())
    shown = shown.replace(secret, "***") if secret else shown
    shown = "".join(c for c in shown if c.isprintable())[:_LONGEST_MESSAGE]
    return ErrorDetails(tuple(code for code in codes if code), shown)


def vision_error(
    status: int | None, details: ErrorDetails, headers: Mapping[str, str], *, model: str, address: str
) -> RowvecError:
    """Our own error for a refusal; ``status`` is None if there was no answer."""
    code = details.codes[0] if details.codes else ""
    if status == 403 and _NO_QUOTA.search(details.message):
        return QuotaExhausted(
            f"the account at {address} has no calls left: {details.message}; wait for its next period or take a larger "
            "tier, then run again: nothing embedded so far is lost"
        )
    if status in (400, 413, 415, 422):
        return RowError(
            "invalid_input", " ".join((f"refused with {status}", *details.codes[:1])) + f": {details.message}"
        )
    refused = Refusal(status=status, code=code, kind="", field="", message=details.message or code, headers=headers)
    return meaning(refused, model=model, address=address)
