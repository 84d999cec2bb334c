"""A table fits a terminal of 80 columns without cutting its words."""

from __future__ import annotations

import pytest

from rowvec.cli import output

NONE = dict.fromkeys(("changed", "metadata only", "deleted", "empty", "rejected", "pending"), 0)
COUNTS = {"new": 69_202, **NONE, "unchanged": 1_000_000}
STATUS = {
    "pipeline": "artworks",
    "verdict": "consistent",
    "rows": 2_990,
    "pending": 0,
    "rejected": 0,
    "this month": "$0",
    "last run": "11-30 20:06",
    "next sync": "11-30 20:55",
}


@pytest.mark.parametrize("row", [COUNTS, STATUS])
def test_no_word_is_cut(
    row: dict[str, object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output.out, "_width", 80)
    output.table("Run 1", row, [row.values()], right=row)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    shown = [f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()]
    for word in " ".join((*row, *shown)).split():
        assert word in printed


def test_nothing_is_lost_in_a_terminal_that_is_too_narrow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output.out, "_width", 30)
    output.table("Run 1", COUNTS, [COUNTS.values()], right=COUNTS)
    cells = capsys.readouterr().out.split("┩")[1]
    assert sum(letter.isdigit() for letter in cells) == sum(len(str(count)) for count in COUNTS.values())
