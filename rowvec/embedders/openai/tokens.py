"""How many tokens a text has for OpenAI's embedding models, counted offline, and where to cut one that has too many."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Protocol, cast

# What bpe-openai encodes in one call is limited (a million characters, 200,000 tokens); a piece is well below.
_PIECE_CHARS = 100_000

# The longest token of cl100k_base is 128 bytes (spaces): no prefix longer than this can be under the limit.
_MAX_TOKEN_CHARS = 128


class _Encoding(Protocol):
    """The part of bpe-openai's untyped ``Encoding`` that is used."""

    def encode_ordinary(self, text: str) -> list[int]: ...

    def decode_bytes(self, tokens: list[int]) -> bytes: ...


ENCODING = "cl100k_base"
"""text-embedding-3 and ada-002 share this one. For models of compatible servers it is an estimate."""


@cache
def _encoding() -> _Encoding:
    with warnings.catch_warnings():
        # On import it reads its vocabularies (half a second, 90 MB) through a function that Python 3.11 deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        import bpe_openai
    return cast("_Encoding", bpe_openai.get_encoding(ENCODING))


def count(text: str) -> int:
    """Tokens of a text without surrogates; special tokens such as ``<|endoftext|>`` count as the text they are.

    Exact up to 100,000 characters; beyond, at most one token a piece too many.
    """
    encode = _encoding().encode_ordinary
    return sum(len(encode(text[i : i + _PIECE_CHARS])) for i in range(0, len(text), _PIECE_CHARS))


def truncate(text: str, limit: int) -> str:
    """The longest prefix found of at most ``limit`` tokens that ends at a whole character."""
    text = text[: limit * _MAX_TOKEN_CHARS]
    encoding = _encoding()
    ids: list[int] = []
    for i in range(0, len(text), _PIECE_CHARS):
        ids += encoding.encode_ordinary(text[i : i + _PIECE_CHARS])
        if len(ids) > limit:
            break
    # A prefix of the tokens may tokenize anew into more of them: cut until the text itself fits.
    keep = min(limit, len(ids))
    while keep > 0:
        cut = encoding.decode_bytes(ids[:keep]).decode(errors="ignore")
        if count(cut) <= limit:
            return cut
        keep -= 1
    return ""
