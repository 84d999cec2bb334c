"""A table fits a terminal of 80 columns without cutting its words."""

from __future__ import annotations

import pytest

from rowvec.cli import output

NONE = dict.fromkeys(("changed", "metadata only", "deleted", "empty", "rejected", "pending"), 0)
COUNTS = {"new": 69_202, **NONE, "unchanged": 1_000_000}


def test_no_word_of_a_report_is_cut(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(output.out, "_width", 80)
    output.table("Run 1", COUNTS, [COUNTS.values()], right=COUNTS)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    for word in (*" ".join(COUNTS).split(), "69,202", "1,000,000"):
        assert word in printed
