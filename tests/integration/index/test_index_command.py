"""``rowvec index``: the index is maintained or tuned, and syncs follow the choice."""

from __future__ import annotations

from pathlib import Path

import pytest

from rowvec.cli.commands.index import check_plot, draw
from rowvec.errors import PipelineBusy, UsageError
from rowvec.index.tuning.tuner import Budget
from rowvec.ledger.runs import running
from rowvec.operations.index import maintain, tune
from rowvec.operations.search import search
from rowvec.pipeline import Pipeline
from rowvec.pipeline.indexes import Index
from rowvec.postgres.connection import Connection
from tests.integration.index.test_tuner import SMALL
from tests.support.paintings import fill, sync

BITS = {"index": Index(kind="hnsw", on="bits", oversampling=32)}


@pytest.mark.usefixtures("two_candidates")
def test_a_tuned_choice_is_what_the_next_sync_builds_and_searches_by(
    source: Connection, paintings: Pipeline, tmp_path: Path
) -> None:
    fill(source, 1_200, start=51)
    sync(paintings)
    assert maintain(paintings)["index"] is None
    tuning = tune(paintings, SMALL)
    # For so few rows it is the exact search, unless the machine is busy.
    assert tuning.choice.kind == "none" or any(tuning.is_choice(measured) for measured in tuning.measured)
    # As if the quickest had been this one.
    chosen = next(m for m in tuning.measured if m.choice.kind == "hnsw" and m.choice.on != "bits" and m.recall >= 0.95)
    source.execute(
        "UPDATE rowvec.tunings SET chosen = (SELECT m -> 'choice' FROM jsonb_array_elements(measured) AS m"
        " WHERE m ->> 'name' = %s)",
        (chosen.name,),
    )
    report = sync(paintings)
    assert report.recall_at_k is not None
    seen = maintain(paintings)
    assert (seen["kind"], seen["on"], seen["built"]) == (chosen.choice.kind, chosen.choice.on, False)
    assert len(search(paintings, "the number 7", 3)) == 3
    shown = source.execute("SELECT index_name, held, tuned_choice ->> 'on', state FROM rowvec.indexes").fetchall()
    assert shown == [(seen["index"], chosen.choice.on, chosen.choice.on, "live")]
    # If the pipeline names its index, that index is built.
    named = maintain(paintings.model_copy(update=BITS))
    assert (named["on"], named["built"]) == ("bits", True)
    again = maintain(paintings.model_copy(update=BITS), rebuild=True)
    assert again["built_because"]["why"] == "asked"
    for ending in ("png", "svg"):
        draw(tuning, tmp_path / f"tuned.{ending}")
        assert (tmp_path / f"tuned.{ending}").stat().st_size > 10_000
    for wrong in (tmp_path / "no" / "such" / "folder.png", tmp_path / "tuned.words", tmp_path / "tuned"):
        with pytest.raises(UsageError, match="--plot"):
            check_plot(wrong)


def test_nothing_is_built_under_a_run_and_nothing_tuned_without_a_table(
    source: Connection, paintings: Pipeline
) -> None:
    with pytest.raises(UsageError, match="rowvec sync first"):
        maintain(paintings)
    with pytest.raises(UsageError, match="rowvec sync first"):
        tune(paintings, Budget())
    sync(paintings)
    with running(paintings, "test"), pytest.raises(PipelineBusy):
        maintain(paintings)
