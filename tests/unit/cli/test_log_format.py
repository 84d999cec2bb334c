"""With ``--log-format json``, every line on the standard error is one JSON object, also those of Prefect and Python."""

from __future__ import annotations

import json
import logging
import sys

import pytest
from prefect.logging.handlers import PrefectConsoleHandler

from rowvec.cli.terminal import Terminal, stderr_shown


def written_by_all(terminal: Terminal) -> None:
    """What a command, Prefect and any other library write, and a fault of ours that ends it."""
    with stderr_shown(terminal):
        terminal.print("embed batch 0: done")
        record = logging.makeLogRecord({"name": "prefect", "levelno": 30, "msg": "two\x1b lines\nof Prefect"})
        PrefectConsoleHandler().emit(record)
        sys.stderr.write("begun, ")
        sys.stderr.write("and ended\n\n")
        sys.stderr.write("never ended")
        raise LookupError("a fault of ours")


def test_prefects_log_and_tracebacks_are_objects_too(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(stderr=True)
    terminal.as_json = True
    with pytest.raises(SystemExit, match="1"):
        written_by_all(terminal)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert all(set(line) == {"time", "level", "message"} for line in lines)
    messages = [line["message"] for line in lines]
    assert messages[:4] == ["embed batch 0: done", "two\x1b lines", "of Prefect", "begun, and ended"]
    assert messages[4].startswith("never ended")
    assert messages[-1] == "LookupError: a fault of ours"
    assert [line["level"] for line in lines] == ["info", *["warning"] * (len(lines) - 1)]


def test_without_it_texts_are_as_they_are_and_a_fault_is_raised(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LookupError):
        written_by_all(Terminal(stderr=True))
    assert "begun, and ended\n\nnever ended" in capsys.readouterr().err
