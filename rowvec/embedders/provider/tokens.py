"""Counts the tokens of a text for OpenAI's embedding models, offline, and cuts a text that has too many."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Protocol, cast

# bpe-openai encodes at most a million characters and 200,000 tokens in one call; a piece is well below that.
_PIECE_CHARS = 100_000

# The longest token of cl100k_base is 128 bytes (spaces): a prefix of more than 128 characters per token
# is always over the limit.
_MAX_TOKEN_CHARS = 128


class _Encoding(Protocol):
    """The part of bpe-openai's untyped ``Encoding`` that is used."""

    def encode_ordinary(self, text: str) -> list[int]: ...

    def decode_bytes(self, tokens: list[int]) -> bytes: ...


ENCODING = "cl100k_base"
"""The encoding of text-embedding-3 and ada-002. For models of compatible servers it gives an estimate."""


@cache
def _encoding() -> _Encoding:
    with warnings.catch_warnings():
        # The import reads vocabularies (half a second, 90 MB) through a function that is deprecated in Python 3.11.
        warnings.simplefilter("ignore", DeprecationWarning)
        import bpe_openai
    return cast("_Encoding", bpe_openai.get_encoding(ENCODING))


def count(text: str) -> int:
    """Tokens of a text without surrogates; special tokens such as ``<|endoftext|>`` count as the text they are.

    Exact up to 100,000 characters. A longer text may count at most one token too many per 100,000 characters.
    """
    encode = _encoding().encode_ordinary
    return sum(len(encode(text[i : i + _PIECE_CHARS])) for i in range(0, len(text), _PIECE_CHARS))


def truncate(text: str, limit: int) -> str:
    """A prefix of at most ``limit`` tokens that ends at a whole character; about the longest there is."""
    text = text[: limit * _MAX_TOKEN_CHARS]
    encoding = _encoding()
    ids: list[int] = []
    for i in range(0, len(text), _PIECE_CHARS):
        ids += encoding.encode_ordinary(text[i : i + _PIECE_CHARS])
        if len(ids) > limit:
            break
    # The text of the first tokens may be more tokens when it is tokenized again: cut until the text itself fits.
    keep = min(limit, len(ids))
    while keep > 0:
        cut = encoding.decode_bytes(ids[:keep]).decode(errors="ignore")
        if count(cut) <= limit:
            return cut
        keep -= 1
    return ""
