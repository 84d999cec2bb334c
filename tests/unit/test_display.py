"""What rows, files, stores and servers hold is shown to a person, and obeyed by neither a terminal nor a page."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
import unicodedata
import warnings
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from rowvec.cli import output, render
from rowvec.cli.progress_bars import shown_progress
from rowvec.cli.terminal import Terminal, stderr_shown
from rowvec.errors import TargetError
from rowvec.ledger.rejects import Reject
from rowvec.operations.rejects import RejectsReport
from rowvec.runtime.display import json_text, one_line, plain, shown
from rowvec.runtime.progress import tell

HOSTILE = (
    "\x1b]0;owned\x07\x1b]8;;http://evil/\x1b\\here\x1b]8;;\x1b\\\x1b[2J\x9b31m\x00\x08\r\x7f\x85\u202e\u2066\u200f\u2028"
    "[red]bold[/red][link=http://evil/]x[/link]:warning:"
)
MARKDOWN = '![x](http://evil/x)[y](http://e/y)<img src="http://evil/z">| a | b |`c`*d*_e_~f~&lt; http://e/ www.e.org'


def obeyed(text: str) -> list[str]:
    """The characters of a text that a terminal would obey; a line feed is ours."""
    wrong = {"\u2028", "\u2029", "\ufeff"}
    return [c for c in text if c != "\n" and (unicodedata.category(c) in ("Cc", "Cs") or c in wrong or _turns(c))]


def _turns(character: str) -> bool:
    return unicodedata.bidirectional(character) in {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"} or (
        character in "\u200e\u200f\u061c"
    )


@given(st.text() | st.lists(st.sampled_from([*HOSTILE])).map("".join))
@example(HOSTILE)
def test_no_text_holds_what_a_terminal_obeys_after_it_was_made_to_be_shown(text: str) -> None:
    assert [c for c in obeyed(shown(text)) if c != "\t"] == []
    assert obeyed(one_line(text)) == []
    assert "\n" not in one_line(text)
    written = json_text(json.dumps({"key": text}, ensure_ascii=False))
    assert obeyed(written) == []
    assert json.loads(written) == {"key": text}


@given(st.text(st.sampled_from([*MARKDOWN, *"\n\t#>-+=1.)(!~$\\'\""])) | st.text())
@example(MARKDOWN)
@example("1. one")
@example("# head\n\n- list\n***")
@example("=== \n---")
def test_a_page_of_markdown_displays_a_text_as_it_is(text: str) -> None:
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(f"{plain(text)}\n\nours")
    kinds = [token.type for token in tokens]
    assert kinds in (
        ["paragraph_open", "inline", "paragraph_close"] * 2,
        ["paragraph_open", "inline", "paragraph_close"],
    )
    if len(kinds) == 6:
        parts = tokens[1].children or []
        assert {part.type for part in parts} <= {"text", "text_special"}
        assert "".join(part.content for part in parts).strip() == one_line(text).strip()
    cells = MarkdownIt("commonmark").enable("table").parse(f"| a | b |\n|--|--|\n| {plain(text)} | x |")
    assert [token.type for token in cells].count("td_open") == 2


@pytest.mark.parametrize("text", ["see http://evil/x", "HTTPS://evil/", "www.evil.org", "WWW.evil.org", "a@evil.org"])
def test_a_bare_address_is_no_link(text: str) -> None:
    # GitHub's Markdown links these without brackets; a backslash in the address prevents it.
    assert "\\" in plain(text)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What reaches a terminal that shows colours."""
    seen = io.StringIO()
    seen.isatty = lambda: True
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("out", "err"):
        console = Terminal(stderr=name == "err")
        console.file = seen
        for module in (output, render):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, console)
    return seen


def foreign(text: str) -> list[str]:
    """What is obeyed and is not one of rich's own colours."""
    import re

    return obeyed(re.sub(r"\x1b\[[0-9;]*m", "", text))


def results() -> dict[str, Any]:
    key = {"id": HOSTILE, "author": MARKDOWN, "content": f"{HOSTILE}\nRun again", "distance": 0.1}
    return {"results": [key], "what": "texts"}


def test_no_table_and_no_sentence_of_a_command_passes_on_what_a_row_holds(terminal: io.StringIO) -> None:
    render.search(HOSTILE, results()["results"])
    found = {"reason": HOSTILE, "key": [HOSTILE, MARKDOWN], "detail": HOSTILE, "attempts": 1, "name": HOSTILE}
    times = {"first_seen": datetime.now(UTC), "last_seen": datetime.now(UTC)}
    reject = Reject(key=[HOSTILE, MARKDOWN], reason=HOSTILE, detail=HOSTILE, sqlstate=None, attempts=1, **times)
    render.rejects(RejectsReport(count=1, retried=0, rejects=(reject,)))
    counts: dict[str, Any] = dict.fromkeys(("missing", "stale", "orphaned", "corrupt", "repaired"), 1)
    render.audit({"consistent": False, **counts, "objects": [found], "rows": [found]})
    render.awaiting(HOSTILE)
    render.dropped([HOSTILE])
    render.rolled_back(HOSTILE, HOSTILE)
    output.fail(HOSTILE, as_json=False)
    written = terminal.getvalue()
    assert "\x1b[" in written  # the console's own colours are there
    assert foreign(written) == []
    for text in ("[red]bold[/red]", ":warning:", "\\x1b]0;owned", "\\u202e"):
        assert text in written.replace("\n", "").replace(" ", "")


def test_progress_passes_on_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for is_terminal in ("1", ""):
        monkeypatch.setenv("FORCE_COLOR", is_terminal)
        console, seen = Terminal(stderr=True), io.StringIO()
        console.file = seen
        with shown_progress(console):
            tell("embed", HOSTILE, 1, 2)
            time.sleep(0.3)  # bars are drawn ten times a second
            tell("embed", HOSTILE, 2, 2)
        assert "owned" in seen.getvalue()
        assert "\x1b]" not in seen.getvalue()
        assert "\u202e" not in seen.getvalue()


def test_an_error_is_one_line_and_its_message_is_harmless_wherever_it_goes(
    terminal: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    error = TargetError(f"the database refused: {HOSTILE}\nrowvec: Consistent.")
    assert [c for c in obeyed(str(error)) if c != "\n"] == []
    output.fail(str(error), as_json=True)
    assert terminal.getvalue().count("\n") == 1
    assert json.loads(capsys.readouterr().out) == {"error": str(error)}


def test_warnings_logs_and_usage_that_others_print_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with stderr_shown(Terminal(stderr=True)):
        logging.lastResort.handle(logging.makeLogRecord({"msg": HOSTILE, "levelno": 40}))  # pyright: ignore[reportOptionalMemberAccess] # nobody removed it
        warnings.showwarning(HOSTILE, UserWarning, "x.py", 1)
        sys.stderr.writelines([HOSTILE])
        assert not sys.stderr.isatty()
    assert obeyed(capsys.readouterr().err) == []
