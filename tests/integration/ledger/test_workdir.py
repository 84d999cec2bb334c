"""The working folders of runs: each database has its own in one home, and nothing of a run that is over stays there."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import ExitStack

import pytest

from rowvec.ledger.runs import running
from rowvec.ledger.workdir import database_name, workdir
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, connect
from rowvec.runtime.home import home
from rowvec.stages import binarize, embed, load, merge, upload
from rowvec.stages.batch import Batch
from rowvec.stages.extract import stage
from tests.support.databases import database
from tests.support.paintings import SOURCE, assert_in_step, dying_after, fill, sync


@pytest.fixture
def elsewhere(cluster: str) -> Generator[str]:
    """The DSN of another database of the same server, with other paintings."""
    with database(cluster, "template_rowvec") as url:
        with connect(url) as connection:
            connection.execute(SOURCE)
            fill(connection, 30, start=1001)
        yield url


def test_concurrent_runs_of_two_databases_keep_separate_files(
    source: Connection, paintings: Pipeline, elsewhere: str
) -> None:
    urls = [os.environ["ROWVEC_DATABASE_URL"], elsewhere]
    pipelines = [
        paintings.model_copy(update={"target": paintings.target.model_copy(update={"url": url})}) for url in urls
    ]
    with ExitStack() as stack:
        runs = [stack.enter_context(running(pipeline, "test")) for pipeline in pipelines]
        assert runs[0].run_id == runs[1].run_id
        both = list(zip(pipelines, runs, strict=True))
        for pipeline, run in both:
            assert stage.run(pipeline, run).batches == 1
        batches = [embed.run(pipeline, Batch.of(run, 0)) for pipeline, run in both]
        assert len(list(home().glob("spool/*/*/batch-0/embedded.arrow"))) == 2
        for (pipeline, run), embedded in zip(both, batches, strict=True):
            load.run(pipeline, upload.run(pipeline, binarize.run(pipeline, embedded)))
            assert merge.run(pipeline, run).missing == ()
    assert_in_step(source)
    with connect(elsewhere) as connection:
        assert_in_step(connection)
        assert connection.execute("SELECT count(*) FROM vectors.paintings").fetchone() == (30,)
        assert database_name(connection) != database_name(source)
        assert workdir(connection, runs[0].run_id).parent != workdir(source, runs[0].run_id).parent


def test_the_next_run_deletes_the_files_of_a_killed_one(
    source: Connection, paintings: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dying_after("embed", monkeypatch):
        sync(paintings)
    (left,) = home().glob("spool/*/*/batch-0/embedded.arrow")
    # A database that was set back does not know its latest runs.
    (left.parents[2] / "1000000").mkdir()
    sync(paintings)
    assert list(home().glob("spool/*/*")) == []
    assert_in_step(source)
