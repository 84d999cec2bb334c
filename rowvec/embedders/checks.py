"""What no embedder can take, whatever its kind: text that is no Unicode, or that Postgres could not store."""

from __future__ import annotations

from rowvec.errors import RowError


def refusal(text: str) -> RowError | None:
    """Why the text cannot be embedded anywhere, or None."""
    if "\0" in text:
        return RowError("invalid_input", f"the text holds a NUL character (at {text.index(chr(0)):,})")
    # A str of ASCII, by far the most frequent, is known to be one without a look at its characters.
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return RowError("invalid_input", f"the text holds half a surrogate pair (at {error.start:,})")
    return None
