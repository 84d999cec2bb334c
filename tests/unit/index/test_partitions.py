"""What is said of a table that is split, from what is known of its partitions."""

from __future__ import annotations

from rowvec.index.partitions import lowest
from rowvec.index.recall import RecallReport


def report(recall: float | None) -> RecallReport:
    return RecallReport(recall=recall, low=0, high=1, k=10, queries=20, at_least=0.9, index=None)


def test_a_partition_whose_recall_cannot_be_measured_does_not_hide_that_of_the_others() -> None:
    assert lowest([report(None), report(1.0), report(0.97)]) == report(0.97)
    assert lowest([report(None), report(1.0)]) == report(1.0)
    assert lowest([report(None)]) == report(None)
    assert lowest([]) is None
