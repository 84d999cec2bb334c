"""The public functions on a real database, as a script uses them."""

from __future__ import annotations

import numpy as np
import pytest

import rowvec
from rowvec.errors import DatabaseUnavailable, PipelineBusy, RowvecError, TargetError
from rowvec.ledger.runs import running
from rowvec.postgres.connection import Connection
from rowvec.stages import merge, retries
from tests.support import paintings as gallery


def test_a_script_plans_syncs_searches_and_asks_how_it_stands(source: Connection, paintings: rowvec.Pipeline) -> None:
    planned = rowvec.plan(paintings)
    assert (planned.new, planned.embedded, planned.cost_usd, planned.budget) == (50, 50, 0.0, None)
    report = rowvec.sync(paintings)
    assert (report.new, report.consistent) == (50, True)
    assert rowvec.audit(paintings).consistent
    assert rowvec.rejects(paintings).count == 0
    (one,) = rowvec.status([paintings])
    assert one.last_run
    assert (one.verdict, one.rows, one.last_run.cause) == ("consistent", 50, "python")
    hits = rowvec.search(paintings, "the number 7", k=3, where="year > 1905")
    assert len(hits) == 3
    assert all(hit.metadata["year"] > 1905 and hit.vector is None for hit in hits)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_hit_has_its_vector_if_it_is_asked_for(
    source: Connection, paintings: rowvec.Pipeline, precision: str
) -> None:
    made = gallery.pipeline(
        paintings.artifacts.url, target={"precision": precision}, search={"hybrid": True}, index={"kind": "hnsw"}
    )
    rowvec.sync(made)
    modes: tuple[rowvec.SearchMode, ...] = ("adaptive", "exact", "bits", "hybrid")
    found: list[rowvec.Hit] = []
    for mode in modes:
        plain = rowvec.search(made, "the number 7", k=5, mode=mode, where="year > 1905")
        hits = rowvec.search(made, "the number 7", k=5, mode=mode, where="year > 1905", vectors=True)
        assert hits == plain
        assert len(hits) == 5
        found += hits
    for hit in found:
        (stored,) = source.execute(
            "SELECT embedding::text FROM vectors.paintings WHERE id = %s", (hit.key["id"],)
        ).fetchone() or (None,)
        assert isinstance(hit.vector, np.ndarray)
        assert hit.vector.dtype == np.dtype(precision)
        np.testing.assert_array_equal(hit.vector, np.array(str(stored)[1:-1].split(","), hit.vector.dtype))


def test_a_stage_that_may_succeed_later_is_tried_again(
    source: Connection, paintings: rowvec.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "WAITS_SECONDS", (0.0, 0.0))
    real = merge.run
    failures: list[RowvecError] = [DatabaseUnavailable("it restarts"), DatabaseUnavailable("it restarts")]

    def failing(pipeline: rowvec.Pipeline, run: merge.Run) -> merge.Merged:
        if failures:
            raise failures.pop()
        return real(pipeline, run)

    monkeypatch.setattr(merge, "run", failing)
    assert rowvec.sync(paintings).consistent
    failures[:] = [TargetError("it is full"), TargetError("not reached")]
    with pytest.raises(TargetError, match="not reached"):
        rowvec.sync(paintings)
    assert len(failures) == 1  # an error that stays is raised at once


def test_a_pipeline_that_is_at_work_elsewhere_is_busy(source: Connection, paintings: rowvec.Pipeline) -> None:
    with running(paintings, "elsewhere"), pytest.raises(PipelineBusy):
        rowvec.sync(paintings)
