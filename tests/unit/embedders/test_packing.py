"""Texts are packed into requests in order, lazily, and within the provider's limits."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from rowvec.embedders.provider import tokens
from rowvec.embedders.provider.packing import RequestLimits, Sized, halves, limits_of, pack

sizes = st.lists(st.integers(1, 60), max_size=80)
limits = st.builds(RequestLimits, inputs=st.integers(1, 10), tokens=st.integers(60, 200))


def _sized(counts: list[int]) -> list[Sized]:
    return [Sized(position, f"text {position}", count) for position, count in enumerate(counts)]


@settings(deadline=None)
@given(sizes, limits)
def test_each_text_is_sent_once_in_order_and_within_the_limits(counts: list[int], limits: RequestLimits) -> None:
    texts = _sized(counts)
    batches = list(pack(texts, limits))
    assert list(itertools.chain.from_iterable(batches)) == texts
    for batch in batches:
        assert 0 < len(batch) <= limits.inputs
        assert sum(text.tokens for text in batch) <= limits.tokens


@settings(deadline=None)
@given(sizes, limits)
def test_no_two_neighbours_would_fit_one_request(counts: list[int], limits: RequestLimits) -> None:
    batches = list(pack(_sized(counts), limits))
    for left, right in itertools.pairwise(batches):
        full = len(left) == limits.inputs
        assert full or sum(text.tokens for text in left) + right[0].tokens > limits.tokens


@settings(deadline=None)
@given(sizes, limits)
def test_at_most_one_text_is_read_ahead(counts: list[int], limits: RequestLimits) -> None:
    drawn, given_out = 0, 0

    def texts():
        nonlocal drawn
        for text in _sized(counts):
            drawn += 1
            yield text

    for batch in pack(texts(), limits):
        given_out += len(batch)
        assert drawn <= given_out + 1


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=40))
def test_halves_lose_nothing(counts: list[int]) -> None:
    batch = tuple(_sized(counts))
    left, right = halves(batch)
    assert left
    assert right
    assert left + right == batch


@settings(deadline=None)
@given(
    st.integers(1, 2048),
    st.integers(1, 300_000),
    st.none() | st.integers(1, 100_000),
    st.none() | st.integers(1, 10**8),
)
def test_a_request_never_holds_more_than_a_minutes_tokens(
    inputs: int, size: int, requests_per_minute: int | None, tokens_per_minute: int | None
) -> None:
    found = limits_of(inputs, size, requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute)
    assert found.inputs == inputs
    assert 1 <= found.tokens <= min(size, tokens_per_minute or size)


@settings(deadline=None)
@given(st.text(max_size=200), st.integers(1, 40))
def test_a_truncated_text_is_a_prefix_within_the_limit(text: str, limit: int) -> None:
    cut = tokens.truncate(text, limit)
    assert text.startswith(cut)
    assert tokens.count(cut) <= limit
    if tokens.count(text) <= limit:
        assert cut == text


def test_special_tokens_are_text() -> None:
    assert tokens.count("<|endoftext|>") > 1
    assert tokens.truncate("<|endoftext|>" * 50, 20).startswith("<|endoftext|>")


def test_a_long_text_is_counted_and_cut() -> None:
    text = "row vector " * 300_000
    assert 600_000 <= tokens.count(text) <= 600_100
    assert tokens.count(tokens.truncate(text, 8192)) == 8192
