"""Syncs through PgBouncer while runs are killed, servers restarted, and a standby is promoted.

In most of these tests the standby is synchronous: what is committed on the primary is on the standby too. With an
asynchronous one, Postgres itself loses the last commits at a promotion, and answers that were paid for among them;
docs/explanation/consistency.md says more.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Literal

import psycopg
import pytest
from psycopg import sql

from rowvec.errors import DatabaseUnavailable, LeaseLost, LedgerBehind
from rowvec.operations.adopt_store import adopt_store
from rowvec.operations.audit import audit
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import connect
from rowvec.stages.dry_run import plan
from tests.support import paintings
from tests.support.cli_process import PrefectServer
from tests.support.forked_runs import By, Fork, Forks, Outcome, forks
from tests.support.other_clients import UNTOUCHED, beside
from tests.support.reference_model import POISON, Author, Edit, refused, wanted
from tests.support.servers.openai_server import KEY, OpenAIServer, serve, vector
from tests.support.servers.pgbouncer import PgBouncer, pooling
from tests.support.servers.replicated import Replicated, replicated
from tests.support.waiting import wait_for

pytestmark = pytest.mark.flow

MODEL, DIMENSIONS = "text-embedding-3-small", 32
INPUTS, CONCURRENCY = 2, 2
IN_FLIGHT = INPUTS * CONCURRENCY
"""Texts that one interruption may cost."""

SEED = int(os.environ.get("ROWVEC_SEED", "1"))

_PROBE = "a"
"""The text that rowvec sends to tell a poisonous text from a server that takes none; no row holds it."""

What = Literal["kill", "restart", "crash", "pooler", "promote", "second run"]
WHATS: tuple[What, ...] = ("kill", "restart", "crash", "pooler", "promote", "second run")
STAGES = ("extract", "embed", "upload", "load", "merge", "index", "validate")

_UPSERT = """
    INSERT INTO paintings VALUES (%s, %s, %s, %s, %s) ON CONFLICT (id) DO UPDATE
    SET title = excluded.title, description = excluded.description, author = excluded.author, year = excluded.year
"""
_LEFT = """
    SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relname ~ '^(scratch|staging|plan)_[0-9]'
    UNION ALL SELECT 'run ' || run_id FROM rowvec.runs WHERE state = 'running'
"""


_FILL = (
    "INSERT INTO paintings SELECT i, 'Painting ' || i, 'It is blue', 'Author', 1900 FROM generate_series(1, 12) AS i"
)
_EDIT = "UPDATE paintings SET description = 'It is red' WHERE id <= 4"
_EDIT_OTHERS = "UPDATE paintings SET description = 'It is red' WHERE id > 8"
_COUNT_EDITED = "SELECT count(*) FROM vectors.paintings WHERE content LIKE '%It is red'"


def gallery_of(embedder: OpenAIServer, folder: Path) -> Pipeline:
    """The gallery's pipeline, with an embedder that costs money."""
    paid = {
        "kind": "openai",
        "model": MODEL,
        "dimensions": DIMENSIONS,
        "base_url": embedder.url,
        "max_batch_inputs": INPUTS,
        "concurrency": CONCURRENCY,
    }
    artifacts, validation = str(folder / "artifacts"), {"max_delete_fraction": 1.0}
    return paintings.pipeline(artifacts, embedder=paid, index={"kind": "hnsw"}, validation=validation)


@dataclass(frozen=True, slots=True)
class Event:
    """What happens to a sync, and when: at a number of requests, or at the first connection of a stage."""

    what: What
    at: int | str

    def __str__(self) -> str:
        return f"{self.what} at {self.at}"


@dataclass(slots=True)
class Scene:
    """The servers, the source as the model has it, and what has happened so far."""

    servers: Replicated
    pooler: PgBouncer
    embedder: OpenAIServer
    forks: Forks
    folder: Path
    author: Author
    story: list[str] = field(default_factory=list[str])
    counts: Counter[str] = field(default_factory=Counter[str])
    interruptions: int = 0
    ever: set[str] = field(default_factory=set[str])
    """Distinct texts that the source has held when a sync began."""

    @property
    def pipeline(self) -> Pipeline:
        """The gallery's, with an embedder that costs money."""
        return gallery_of(self.embedder, self.folder)

    def edit(self, *edits: Edit) -> None:
        """Change the source."""
        with psycopg.connect(self.servers.primary.url) as connection:
            for edit in edits:
                self.story.append(str(edit))
                for id_, p in edit.changes:
                    if p is None:
                        connection.execute("DELETE FROM paintings WHERE id = %s", (id_,))
                    else:
                        connection.execute(_UPSERT, (id_, p.title, p.description, p.author, p.year))
        self.ever |= {content for content, _, _ in wanted(self.author.rows).values()}

    def sync(self, event: Event | None = None, by: By = "plain") -> Outcome:
        """One sync, to which something happens, or nothing."""
        began, requests = time.monotonic(), len(self.embedder.requests)
        run = self._start(by)
        happened = event is not None and self._reached(run, event, requests)
        if event is not None and happened:
            self.interruptions += event.what != "second run"
            self._happen(event, run)
        outcome = run.wait()
        self.story.append(
            f"sync by {by}, {event if happened else 'nothing'}: {outcome}, {time.monotonic() - began:.1f} s"
        )
        self.counts[
            f"{event.what if event is not None and happened else 'nothing'}: {outcome.state} {outcome.error}"
        ] += 1
        if outcome.state == "done":
            self.judge_table()
        elif outcome.state == "failed":
            assert happened, self.told("it failed for no reason")
            assert outcome.error == "DatabaseUnavailable" or "staging has" in outcome.message, self.told(
                "an odd failure"
            )
        return outcome

    def judge_table(self) -> None:
        """The vector table is f(source), with the vectors that the embedder gave."""
        rows, must = (
            self.servers.primary.ask("SELECT id, content, author, year, embedding::text FROM vectors.paintings"),
            wanted(self.author.rows),
        )
        found = {id_: (content, author, year) for id_, content, author, year, _ in rows}
        assert found == must, self.told("the vector table is not f(source)")
        for _, content, _, _, embedding in rows:
            given = vector(MODEL, content, DIMENSIONS)
            assert [float(x) for x in embedding.strip("[]").split(",")] == pytest.approx(given.tolist(), abs=1e-6)
        rejects = self.servers.primary.ask("SELECT (key ->> 0)::int FROM rowvec.rejects")
        assert {id_ for (id_,) in rejects} == set(refused(self.author.rows)), self.told("other rejects")

    def judge_bill(self) -> None:
        """Nothing was paid twice but what was in flight, and no two runs have sent requests at the same time."""
        paid = self.embedder.paid
        del paid[_PROBE]
        assert set(paid) <= self.ever, self.told(f"paid for what was not asked for: {set(paid) - self.ever}")
        again = paid.total() - len(paid)
        self.counts["texts paid"], self.counts["texts paid again"] = paid.total(), again
        self.counts["texts in flight at an interruption, at most"] = IN_FLIGHT * self.interruptions
        assert again <= IN_FLIGHT * self.interruptions, self.told(f"{again} texts were paid for again")
        turns = [key for key, _ in groupby(request.key for request in self.embedder.requests)]
        assert len(turns) == len(set(turns)), self.told(f"runs were at work at once: {turns}")

    def judge_leftovers(self) -> None:
        """Nothing of a run is left in the database."""
        assert self.servers.primary.ask(_LEFT) == [], self.told("something is left")

    def told(self, what: str) -> str:
        """What failed, and all that was done before."""
        return "\n".join((what, *(f"{i:3}. {line}" for i, line in enumerate(self.story, 1))))

    def _start(self, by: By) -> Fork:
        # Each run has its own key, so that the embedder's server knows whose requests it gets.
        key = f"sk-run-{sum(line.startswith('start') for line in self.story):03}"
        self.story.append(f"start {key}")
        environment = {
            "ROWVEC_DATABASE_URL": self.pooler.url,
            "ROWVEC_HOME": str(self.folder / "home"),
            "OPENAI_API_KEY": key,
        }
        return self.forks.start("sync", by, self.pipeline, environment, self.folder / "log")

    def _reached(self, run: Fork, event: Event, before: int) -> bool:
        """Wait for the moment of an event; whether it came before the run was over."""
        at_work = "SELECT true FROM pg_stat_activity WHERE application_name LIKE %s"
        with psycopg.connect(self.servers.primary.url, autocommit=True) as connection:
            while run.at_work:
                if isinstance(event.at, int):
                    reached = len(self.embedder.requests) >= before + event.at
                else:
                    reached = bool(connection.execute(at_work, (f"rowvec {event.at}%",)).fetchone())
                if reached:
                    return True
                time.sleep(0.002)
        return False

    def _happen(self, event: Event, run: Fork) -> None:
        match event.what:
            case "kill":
                run.kill()
            case "restart":
                self.servers.primary.restart()
            case "crash":
                self.servers.primary.kill()
                self.servers.primary.start()
            case "pooler":
                self.pooler.restart()
            case "promote":
                self.servers.promote()
                self.pooler.lead_to(self.servers.primary.url)
            case "second run":
                second = self._start("plain").wait()
                self.story.append(f"the second run: {second}")
                assert second.state == "done" or second.error == "PipelineBusy", self.told("the second run")


@pytest.fixture
def scene(prefect_server: PrefectServer, tmp_path: Path) -> Generator[Callable[[int], Scene]]:
    """A function that opens the scene, with the author's seed."""
    with (
        replicated(synchronous=True) as servers,
        pooling(servers.primary.url) as pooler,
        serve(key=None, poison=POISON, latency=0.05) as embedder,
        forks(prefect_server.api) as forking,
    ):

        def opened(seed: int) -> Scene:
            made = Scene(servers, pooler, embedder, forking, tmp_path, Author(random.Random(seed)))
            servers.primary.ask(paintings.SOURCE)
            made.edit(made.author.first())
            return made

        yield opened


def test_three_syncs_a_kill_and_a_promotion(scene: Callable[[int], Scene]) -> None:
    playing = scene(1)
    with beside(playing.pooler.url) as seen:
        assert playing.sync(Event("kill", 3)).state == "killed"
        with connect(playing.pooler.url) as waiting:
            waiting.keep_rows("numbers", sql.SQL("SELECT i FROM generate_series(1, 3) AS i"))
            playing.sync(Event("promote", 2))
            # The pooler has not cut this client off, and its table, which is not logged, is empty now.
            with pytest.raises(psycopg.OperationalError, match="a standby has taken over"):
                list(waiting.kept_rows("numbers", 10))
        playing.edit(playing.author.rewrite())
        assert playing.sync().state == "done"
    assert playing.counts["promote: done "] + playing.counts["promote: failed DatabaseUnavailable"] == 1
    playing.judge_bill()
    playing.judge_leftovers()
    assert seen == {UNTOUCHED}, playing.told(f"other sessions: {seen}")


@pytest.mark.soak
def test_an_asynchronous_standby_that_lacks_the_last_commits_is_in_step_after_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        replicated(synchronous=False) as servers,
        pooling(servers.primary.url) as pooler,
        serve(key=KEY, latency=0.2) as embedder,
        ThreadPoolExecutor(1) as beside_us,
    ):
        monkeypatch.setenv("ROWVEC_DATABASE_URL", pooler.url)
        monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        pipeline = gallery_of(embedder, tmp_path)
        servers.primary.ask(paintings.SOURCE, _FILL)
        assert paintings.sync(pipeline).embedded == 12
        wait_for(servers.is_caught_up)
        servers.cut_off()
        servers.primary.ask(_EDIT)
        second = paintings.sync(pipeline)
        assert second.embedded == 4
        servers.primary.ask(_EDIT_OTHERS)
        paid = len(embedder.requests)
        working = beside_us.submit(paintings.sync, pipeline)
        wait_for(lambda: len(embedder.requests) > paid)
        # The standby has the first run, and neither the edits, nor the second run, nor the lease of the third.
        servers.promote()
        pooler.lead_to(servers.primary.url)
        with pytest.raises((LeaseLost, DatabaseUnavailable)):
            working.result()
        assert servers.primary.ask(_COUNT_EDITED) == [(0,)]
        # The application does its edits again.
        servers.primary.ask(_EDIT, _EDIT_OTHERS)
        # A history went on that this server does not know. The run that was at work has left nothing in the store: its
        # lease was gone before it could write.
        with pytest.raises(LedgerBehind, match=re.escape(str(second.manifest))):
            paintings.sync(pipeline)
        adopted = adopt_store(pipeline)
        assert adopted is not None
        assert (adopted.vectors, adopted.given_up) == (4, (second.manifest,))
        planned = plan(pipeline)
        report = paintings.sync(pipeline)
        # The store still has the second run's vectors. Answers of the third are gone with the commits of the primary.
        assert (report.consistent, report.changed, report.reused) == (True, 8, planned.reused)
        assert report.reused >= 4
        assert report.run_id > second.run_id
        assert audit(pipeline).consistent
        assert embedder.paid.total() <= 12 + 4 + 2 * 4
        assert servers.primary.ask(_LEFT) == []
        assert servers.primary.ask(_COUNT_EDITED) == [(8,)]


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_twenty_syncs_with_kills_restarts_and_promotions(
    scene: Callable[[int], Scene], capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(SEED)
    playing = scene(SEED)
    with beside(playing.pooler.url) as seen:
        for number in range(20):
            what = WHATS[number % len(WHATS)]
            at = chance.choice((1, 2, 3, *STAGES))
            playing.sync(Event(what, at), by="flow" if number % 4 == 3 else "plain")
            playing.judge_bill()
            if playing.servers.standby is None:
                playing.servers.add_standby()
            playing.edit(*(playing.author.edit() for _ in range(2)), playing.author.rewrite())
        assert playing.sync().state == "done", playing.told("the last sync")
    playing.judge_bill()
    playing.judge_leftovers()
    assert seen == {UNTOUCHED}, playing.told(f"other sessions: {seen}")
    figures = (f"{name}: {number}" for name, number in sorted(playing.counts.items()))
    with capsys.disabled():
        print(playing.told("\n".join(("", *figures))))  # the figures are what a soak is run for
