"""rowvec is compared with a model of it: random sequences of edits, runs, kills and faults.

``ROWVEC_SEED=123 pytest tests/faults/test_model.py -m soak`` plays one sequence again.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psycopg
import pytest

from tests.support.cli_process import PrefectServer
from tests.support.forked_runs import CountingServer, Forks, counting_server, forks
from tests.support.random_sequences import DIMENSIONS, MODEL, UNTRUSTED, Played, Stage, compose
from tests.support.reference_model import Bill, Stored, refused, wanted
from tests.support.servers.openai_server import vector

pytestmark = pytest.mark.flow

Play = Callable[[int], None]

SHORT = (43,)
LONG = [int(os.environ["ROWVEC_SEED"])] if "ROWVEC_SEED" in os.environ else range(1000, 2000)
OFTEN = 100
"""The number of sequences between two prints of the figures."""

_PROBE = "a"
"""The text that rowvec sends to distinguish a poisonous text from a server that accepts no text; no row holds it."""
_SPOILED = ("short", "html")
"""Faults whose answers are billed by the provider but cannot be used."""


@dataclass(slots=True)
class Judge:
    """Checks after each run that everything holds that must hold."""

    stage: Stage
    bill: Bill = field(default_factory=Bill)

    def look(self, played: Played) -> None:
        """Check everything that must hold after this run."""
        stage, job, outcome = self.stage, played.run.job, played.outcome
        self.bill.excused |= stage.lost
        if job != "audit":
            self.bill.ever |= {content for content, _, _ in wanted(stage.rows).values()}
        spoiled = Counter(text for fault, texts in played.befallen if fault.shape in _SPOILED for text in texts)
        paid = played.sent - spoiled - Counter({_PROBE: played.sent[_PROBE]})
        stage.counts["texts paid"] += paid.total()
        self.bill.pay(paid, played.kept_before, stage.kept(), played.in_flight)
        if job == "audit":
            self._audit(played)
        elif outcome.state == "done":
            self._table(repaired=job == "repair")
            assert job == "sync" or outcome.report["consistent"], f"inconsistent after a repair: {outcome.report}"
        else:
            self._failure(played)
            found, must = stage.stored(), wanted(stage.rows)
            assert found in (played.before, must), f"neither as it was nor as it should be: {_differences(found, must)}"

    def end(self) -> None:
        """Check what must hold at the end of a sequence, after its last run has succeeded."""
        self.bill.close()
        self.stage.counts["texts ever"] += len(self.bill.ever)
        self.stage.counts["texts in flight at an interruption, at most"] += self.bill.in_flight
        self.stage.counts["texts paid again, in flight at an interruption or destroyed"] += self.bill.again
        left = self.stage.connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'rowvec'::regnamespace AND relname ~ '^(plan|staging)_'"
        ).fetchall()
        assert not left, f"left behind: {left}"
        running = self.stage.connection.execute("SELECT run_id FROM rowvec.runs WHERE state = 'running'").fetchall()
        assert not running, f"runs that are over and say that they run: {running}"

    def _failure(self, played: Played) -> None:
        """Check that the run failed for a known reason."""
        run, outcome = played.run, played.outcome
        if outcome.state == "killed":
            assert played.interrupted, "it was killed, and not by us"
            return
        allowed: set[str] = set()
        if played.interrupted:
            allowed |= {"DatabaseUnavailable"}
        if any(fault.code == "insufficient_quota" for fault, _ in played.befallen):
            allowed |= {"QuotaExhausted"}
        if run.job == "repair" and played.before is None:
            allowed |= {"UsageError"}
        if run.job == "sync" and any(taint.column in UNTRUSTED for taint in self.stage.taints):
            allowed |= {"Inconsistent"}
        assert outcome.error in allowed, f"it failed with {outcome.error}: {outcome.message}"

    def _table(self, *, repaired: bool) -> None:
        """The vector table is f(source), each embedding is the server's, and the rejects are the poisonous rows."""
        stage, connection = self.stage, self.stage.connection
        rows = connection.execute("SELECT id, title, description, author, year FROM paintings").fetchall()
        known = {id_: (p.title, p.description, p.author, p.year) for id_, p in stage.rows.items()}
        assert {row[0]: row[1:] for row in rows} == known, "the model has lost the source"
        stored, must = stage.stored(), wanted(stage.rows)
        assert stored == must, f"the vector table is not f(source): {_differences(stored, must)}"
        # A vector that was tampered with may be copied to another row with its text until an audit has found it.
        tainted = {must[t.id][0] for t in stage.taints if t.column in UNTRUSTED and t.id in must}
        for id_, embedding in connection.execute("SELECT id, embedding::text FROM vectors.paintings").fetchall():
            if repaired or must[id_][0] not in tainted:
                found = np.array(embedding.strip("[]").split(","), np.float32)
                given = vector(MODEL, must[id_][0], DIMENSIONS)
                assert np.allclose(found, given, rtol=0, atol=1e-6), f"row {id_} has another vector than it was given"
        rejects = connection.execute("SELECT (key ->> 0)::int, reason FROM rowvec.rejects").fetchall()
        assert dict(rejects) == dict.fromkeys(refused(stage.rows), "invalid_input"), f"other rejects: {rejects}"

    def _audit(self, played: Played) -> None:
        """An audit names every wrong row and object, and finds nothing if everything is right."""
        stage, outcome = self.stage, played.outcome
        if played.before is None:
            assert outcome.error in ("UsageError", "TargetError"), f"an audit of no table: {outcome}"
            return
        assert outcome.state == "done", f"an audit failed: {outcome}"
        found, must = outcome.report, wanted(stage.rows)
        named = {int(row["key"][0]) for row in found["rows"]}
        differing = {id_ for id_ in must.keys() | played.before.keys() if must.get(id_) != played.before.get(id_)}
        tampered = {taint.id for taint in stage.taints if taint.column != "row gone"}
        unnamed = sorted((differing | tampered) - named)
        assert not unnamed, f"an audit does not name {unnamed}: {found}"
        lost = set(stage.artifacts(whole=False))
        assert lost <= {gone["name"] for gone in found["objects"]}, f"an audit does not name {sorted(lost)}: {found}"
        if stage.sound and not (differing or lost or self._unsettled()):
            assert found["consistent"], f"an audit finds what is not there: {found}"

    def _unsettled(self) -> bool:
        """Whether work is left for the next run, or vectors of the table are in no artifact."""
        rejects = self.stage.connection.execute("SELECT (key ->> 0)::int FROM rowvec.rejects").fetchall()
        rows = self.stage.connection.execute("SELECT content, fingerprint FROM vectors.paintings").fetchall()
        void = any(known != self.stage.fingerprint(content) for content, known in rows)
        alone = {content for content, _ in rows} - self.stage.in_artifacts()
        return void or bool(alone) or {id_ for (id_,) in rejects} != set(refused(self.stage.rows))


@pytest.fixture(scope="module")
def forking(prefect_server: PrefectServer) -> Generator[Forks]:
    """The process that forks the runs."""
    with forks(prefect_server.api) as opened:
        yield opened


@pytest.fixture(scope="module")
def server() -> Generator[CountingServer]:
    """The embedder's server."""
    with counting_server() as opened:
        yield opened


@pytest.fixture(scope="module")
def counts(tell: Callable[[str], None]) -> Generator[Counter[str]]:
    """The figures of all sequences; after a long run they are printed."""
    kept = Counter[str]()
    yield kept
    if kept["sequences"] > len(SHORT):
        tell(_listed(kept))


@pytest.fixture
def play(
    forking: Forks,
    server: CountingServer,
    counts: Counter[str],
    tell: Callable[[str], None],
    database_url: str,
    direct_url: str,
    tmp_path: Path,
) -> Play:
    """A function that plays the sequence of a seed."""

    def of(seed: int) -> None:
        sequence = compose(seed)
        with psycopg.connect(direct_url, autocommit=True) as connection:
            stage = Stage(forking, server, database_url, tmp_path, sequence, connection, counts)
            judge = Judge(stage)
            try:
                for played in stage.play():
                    judge.look(played)
                judge.end()
            except AssertionError as error:
                counts["sequences that failed"] += 1
                lines = "\n".join(f"{i:3}. {line}" for i, line in enumerate(stage.story, 1))
                again = f"again: ROWVEC_SEED={seed} pytest tests/faults/test_model.py -m soak"
                drawn = f"index: {sequence.index}, bits: {sequence.bits}, split: {sequence.split}"
                message = f"{error}\n{drawn}\n{lines}\n{again}"
                tell(message)
                raise AssertionError(message) from None
            finally:
                counts["sequences"] += 1
                if not counts["sequences"] % OFTEN:
                    tell(_listed(counts))

    return of


@pytest.mark.parametrize("seed", SHORT)
def test_nothing_goes_wrong_in_a_few_sequences(seed: int, play: Play) -> None:
    play(seed)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", LONG)
def test_nothing_goes_wrong_in_a_thousand_sequences(seed: int, play: Play) -> None:
    play(seed)


def _listed(counts: Counter[str]) -> str:
    return "\n".join(f"{name}: {number:,}" for name, number in sorted(counts.items()))


def _differences(found: dict[int, Stored] | None, must: dict[int, Stored]) -> str:
    if found is None:
        return "there is no table"
    some = sorted(id_ for id_ in found.keys() | must.keys() if found.get(id_) != must.get(id_))[:5]
    return ", ".join(f"row {id_}: found {found.get(id_)}, must be {must.get(id_)}" for id_ in some)
