"""The content template: the texts that it renders, and the templates that are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowvec.pipeline.template import Column, parse


def test_null_renders_as_the_empty_string() -> None:
    assert parse("{a} by {b}").render({"a": None, "b": "x"}) == " by x"


@given(st.text())
def test_any_text_renders_as_itself_once_its_braces_are_doubled(text: str) -> None:
    assert parse(text.replace("{", "{{").replace("}", "}}")).render({}) == text


@pytest.mark.parametrize("name", ["a.__class__", "a[0]", "a!r", "a:>9999999", " a ", "select", 'we"ird', "日本"])
def test_a_name_is_taken_whole(name: str) -> None:
    assert parse(f"{{{name}}}").parts == (Column(name),)


@pytest.mark.parametrize("text", ["{", "}", "{a", "a}", "{}", "{a{b}}"])
def test_broken_braces_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="character"):
        parse(text)
