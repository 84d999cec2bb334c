"""A journal entry's rows are counted as Postgres counts them, wherever its text is cut."""

from __future__ import annotations

import csv
import io

from hypothesis import given, settings
from hypothesis import strategies as st

from rowvec.ledger.journal import CsvRows
from tests.support.examples import examples

_cells = st.text(st.sampled_from('a",\n'), max_size=5)


@given(st.lists(st.lists(_cells, min_size=2, max_size=3)), st.lists(st.integers(0, 40)))
@settings(max_examples=examples(100))
def test_rows_are_counted_whatever_their_values_are_and_wherever_the_text_is_cut(
    rows: list[list[str]], cuts: list[int]
) -> None:
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(rows)
    content = written.getvalue().encode()
    counter, counted = CsvRows(), 0
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(content)], strict=True):
        counted = counter.count(content[start:end])
    assert counted == len(rows)
