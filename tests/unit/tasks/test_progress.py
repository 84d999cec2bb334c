"""The published progress of a run, for reports of its batches in any order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rowvec_tasks.progress import Progress

ROUNDS = st.lists(st.integers(min_value=1, max_value=6), min_size=1, max_size=3)


@given(ROUNDS, st.data())
def test_batches_add_up_to_a_hundred_over_all_rounds(rounds: list[int], data: st.DataObject) -> None:
    progress, before = Progress(), 0.0
    for batches in rounds:
        progress.expect(batches)
        before = 0.0  # progress may be lower than in the previous round, because more work is known now
        for number in data.draw(st.permutations(range(batches))):
            for done in (0, 1, 2):
                progress("embed", f"batch {number}", done, 2)
                percent, _ = progress.shares()["embed"]
                assert before <= percent <= 100
                before = percent
    percent, sentence = progress.shares()["embed"]
    assert percent == 100
    assert sentence == f"embed: {sum(rounds)} of {sum(rounds)} batches done"


def test_phases_of_an_index_are_shown_one_after_the_other() -> None:
    progress = Progress()
    progress("index", "initializing", 100, 100)
    progress("index", "building index: loading tuples", 30, 100)
    assert progress.shares()["index"] == (30.0, "index: building index: loading tuples")
