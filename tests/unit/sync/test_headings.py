"""Chunks of structured contents: no chunk crosses a heading, and each says where it stands."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from rowvec.embedders.provider import tokens
from rowvec.stages.extract.headings import markdown_of, sections
from rowvec.stages.extract.splitting import Splitting

GUIDE = """Before all.

# Guide
Welcome.

## Install ##
### On Linux
### On a *Mac*

Use brew.

> # Quoted
> is no heading

```
# a comment
```

Use
===
- one
"""

_LINES = st.one_of(
    # A heading without a text, and what CommonMark replaces, have cases of their own.
    st.text(st.characters(exclude_characters="#\0", exclude_categories=["Cs"]), max_size=30),
    st.sampled_from(["# One", "## Two ##", "###### Six", "Setext\n===", "```", "> # quoted", "- item", "", "a " * 90]),
    st.integers(1, 40).map(lambda words: "# " + "heading " * words),
)


def how(size: int, overlap: int = 0, written: str = "markdown") -> Splitting:
    return Splitting(tokens=size, overlap=overlap, encoding=tokens.ENCODING, count=tokens.count, format=written)  # pyright: ignore[reportArgumentType] # checked by the pipeline


def test_each_section_has_its_path_and_only_headings_of_the_text_itself_count() -> None:
    found = [(section.path, section.text.strip()[:9], section.alone) for section in sections(GUIDE)]
    assert found == [
        ((), "Before al", True),
        (("Guide",), "Welcome.", False),
        (("Guide", "Install"), "", False),
        (("Guide", "Install", "On Linux"), "", True),
        (("Guide", "Install", "On a *Mac*"), "Use brew.", True),
        (("Use",), "- one", True),
    ]


def test_no_chunk_crosses_a_heading_and_each_begins_with_its_path() -> None:
    assert [chunk.splitlines()[0] for chunk in how(64).split(GUIDE)] == [
        "Before all.",
        "Guide",
        "Guide > Install > On Linux",
        "Guide > Install > On a *Mac*",
        "Use",
    ]
    long = f"# Guide\n\n## Use\n\n{'Turn the handle to the left. ' * 40}"
    made = how(48, 12).split(long)
    assert len(made) > 5
    assert {chunk.partition("\n\n")[0] for chunk in made} == {"Guide > Use"}
    bodies = [chunk.partition("\n\n")[2] for chunk in made]
    # Each repeats words of the one before.
    assert all(after.split()[0] in before for before, after in itertools.pairwise(bodies))


def test_a_path_that_is_too_long_loses_its_outer_headings_and_a_heading_that_is_too_long_is_text() -> None:
    deep = "# The very first of all the headings\n## The second\n### Third\nText."
    assert how(16).split(deep) == ["The second > Third\n\nText."]
    endless = f"# {'heading ' * 60}\nText."
    made = how(16).split(endless)
    assert " ".join(" ".join(made).split()) == " ".join(endless.removeprefix("# ").split())


def signs(text: str) -> str:
    """A text without white space and without what marks a heading."""
    return "".join(sign for sign in text if not sign.isspace() and sign not in "#=-")


@settings(max_examples=80)
@given(st.lists(_LINES, max_size=30).map("\n".join), st.sampled_from([(16, 0), (16, 8), (48, 8), (48, 0)]))
def test_sections_and_chunks_of_any_markdown_hold_all_of_it_and_no_chunk_is_too_long(
    text: str, size: tuple[int, int]
) -> None:
    found = list(sections(text))
    whole = [(section.path[-1] if section.path else "") + section.text for section in found]
    assert signs("".join(whole)) == signs(text)
    made = how(*size).split(text)
    assert all(tokens.count(chunk) <= size[0] for chunk in made)
    if not size[1] and text.strip():
        paths = {" > ".join(section.path[at:]) for section in found for at in range(len(section.path))}
        bodies = [body if head in paths else chunk for chunk in made for head, _, body in [chunk.partition("\n\n")]]
        assert set(signs("".join(bodies))) >= set(signs("".join(section.text for section in found)))


def test_html_becomes_markdown_without_what_nobody_reads() -> None:
    page = (
        "<html><head><style>p {}</style></head><body><h1>Guide</h1><p>Two * <b>bold</b> a_b</p>"
        "<script>alert(1)</script><ul><li>one</li></ul></body></html>"
    )
    assert markdown_of(page) == "# Guide\n\nTwo * **bold** a_b\n\n* one"
    assert how(32, written="html").split(page) == ["Guide\n\nTwo * **bold** a_b\n\n* one"]


def test_a_heading_without_a_text_ends_the_section_above_and_adds_nothing_to_the_path() -> None:
    assert how(32).split("# One\na\n##\nb\n# \nc") == ["One\n\na", "One\n\nb", "c"]


def test_html_of_any_depth_gives_its_text() -> None:
    assert markdown_of("<div>" * 5_000 + "deep" + "</div>" * 5_000) == "deep"


def test_what_reads_the_structure_is_part_of_the_digest_and_plain_text_keeps_its_own() -> None:
    digests = [how(48, 8, written).digest() for written in ("text", "markdown", "html")]
    assert len(set(digests)) == 3
    assert digests[0] == Splitting(tokens=48, overlap=8, encoding=tokens.ENCODING, count=tokens.count).digest()
