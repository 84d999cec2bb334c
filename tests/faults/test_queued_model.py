"""Random writes past and beside a queue of changes, syncs, kills: after each run the rows it answers for are right.

``ROWVEC_SEED=123 pytest tests/faults/test_queued_model.py -m soak`` plays one sequence again, and ``1000-1199`` these
200 sequences.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from rowvec.errors import DatabaseUnavailable, SourceError, TargetError
from rowvec.pipeline import Pipeline
from rowvec.postgres import connection as postgres
from rowvec.postgres.connection import connect
from rowvec.postgres.migrations import install
from rowvec.postgres.queries import blocks
from rowvec.postgres.vector_table import find_table, stored_table
from rowvec.stages import order, retries
from rowvec.stages.report import PART, QUEUE, SyncReport
from rowvec.stages.totals import totals
from tests.support import paintings as gallery
from tests.support.queued_sequences import Client, Writers
from tests.support.servers.disposable import own_postgres
from tests.support.statement_faults import Died, StatementFault, befalling

SHORT = (3, 4)
_FIRST, _, _LAST = os.environ.get("ROWVEC_SEED", "1000-1999").partition("-")
LONG = range(int(_FIRST), int(_LAST or _FIRST) + 1)
APART = (2, 4)
"""Seeds with these last digits, modulo 5, have the source in another database than the vector table."""
OFTEN = 100
"""The number of sequences between two prints of the figures."""

_LATEST_STATEMENT = 160
"""A run has about so many statements."""

Row = tuple[str, str | None, int | None]


@dataclass(slots=True)
class Judge:
    """Knows what must hold after each run."""

    source: Client
    target: Client
    edited: set[int] = field(default_factory=set[int])
    """Keys whose vectors somebody has edited since a whole comparison."""

    def wanted(self) -> dict[int, Row]:
        """f(source), as it is committed."""
        rows = self.source.execute(
            "SELECT id, coalesce(title, '') || E'\\n' || coalesce(description, '') AS content, author, year"
            " FROM paintings WHERE coalesce(title, '') || coalesce(description, '') ~ '[^ \\t\\n\\r\\f\\v]'"
        )
        return {row[0]: row[1:] for row in rows}

    def stored(self) -> dict[int, Row]:
        """The vector table."""
        if self.target.execute("SELECT to_regclass('vectors.paintings')").fetchone() == (None,):
            return {}
        rows = self.target.execute("SELECT id, content, author, year FROM vectors.paintings")
        return {row[0]: row[1:] for row in rows}

    def queued(self) -> set[int | None]:
        """The keys of the queue; None for a TRUNCATE."""
        found = self.source.execute("SELECT relname FROM pg_class WHERE relname LIKE 'queue\\_%'").fetchone()
        if found is None:
            return set()
        rows = self.source.execute(sql.SQL("SELECT id FROM {}").format(sql.Identifier("rowvec_changes", found[0])))
        return {row[0] for row in rows}

    def differing(self) -> set[int]:
        """Keys whose vector is not what the source says."""
        wanted, stored = self.wanted(), self.stored()
        return {id_ for id_ in wanted.keys() | stored.keys() if wanted.get(id_) != stored.get(id_)}


@dataclass(slots=True)
class Before:
    """How it was before a run."""

    differing: set[int]
    queued: set[int | None]
    bypassed: bool
    """Whether something had happened that the queue does not show."""
    undisturbed: bool = True
    """Whether nothing happened during the run, and no transaction was open."""


@dataclass(slots=True)
class Sequence:
    """One random sequence, and what is checked along its way."""

    seed: int
    source: str
    """The DSN of the source's database."""
    target: str
    """The DSN of the vector table's, which may be another one."""
    pipeline: Pipeline
    counts: Counter[str]
    chance: random.Random = field(init=False)
    writers: Writers = field(init=False)
    judge: Judge = field(init=False)
    owed: bool = False
    """Whether a run did not end that would have had to compare everything."""

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        partitioned = self.chance.random() < 0.3
        self.writers = Writers(self.source, self.chance, self.counts, partitioned)

    @property
    def story(self) -> list[str]:
        """What has happened."""
        return self.writers.story

    def play(self) -> None:
        """Raises ``AssertionError`` if something is wrong."""
        with (
            psycopg.connect(self.source, autocommit=True) as source,
            psycopg.connect(self.target, autocommit=True) as target,
        ):
            self.judge = Judge(source, target)
            try:
                self._play()
            finally:
                self.writers.end()

    def _play(self) -> None:
        self.writers.begin()
        for _ in range(self.chance.randint(2, 4)):
            for _ in range(self.chance.randint(1, 12)):
                self.writers.act()
            self._edit_vectors()
            self._run()
        self.writers.settle()
        self._run(plainly=True)
        assert not self.judge.queued(), "entries are left of transactions that are over"
        self._due()
        self._run(plainly=True)
        assert not self.judge.differing(), "a whole comparison has left rows as they should not be"

    def _edit_vectors(self) -> None:
        stored = sorted(self.judge.stored())
        if not stored or self.chance.random() > 0.1:
            return
        keys = self.chance.sample(stored, min(len(stored), 2))
        self.story.append(f"the vectors of {keys} are edited")
        self.counts["vectors edited"] += 1
        self.judge.target.execute("UPDATE vectors.paintings SET year = -1 WHERE id = ANY (%s)", (keys[:1],))
        self.judge.target.execute("DELETE FROM vectors.paintings WHERE id = ANY (%s)", (keys[1:],))
        self.judge.edited |= set(keys)

    def _due(self) -> None:
        self.story.append("the whole comparison is due")
        self.judge.target.execute("UPDATE rowvec.changes SET verified_at = verified_at - interval '2 days'")

    def _run(self, *, plainly: bool = False) -> None:
        if self.chance.random() < 0.25:
            self._due()
        if not plainly and self.chance.random() < 0.08:
            self._be_killed()
            return
        before = Before(
            self.judge.differing(),
            self.judge.queued(),
            self.writers.bypassed or self.owed,
            undisturbed=self.writers.quiet,
        )
        what = (
            None if plainly else self.chance.choice((None, None, "die", "cut", "lose_answer", "meanwhile", "meanwhile"))
        )
        number = self.chance.randint(1, _LATEST_STATEMENT)
        fault = StatementFault(number, what or "meanwhile", self._meanwhile if what else lambda: None)
        self.writers.bypassed = False
        self.story.append(f"sync {what or ''} {number if what else ''}")
        try:
            with befalling(fault):
                report = order.sync(self.pipeline, "model", order.in_process(retries.retrying()))
        except Died:
            self.counts["kills"] += 1
            self.judge.target.execute("UPDATE rowvec.run_leases SET held = false")
            self._ended(before, "died")
        except DatabaseUnavailable as error:
            if not fault.happened and self.writers.quiet:
                raise AssertionError(f"a run failed: {error}") from error
            self.judge.target.execute("UPDATE rowvec.run_leases SET held = false")
            self._ended(before, f"failed: {error}")
        except (SourceError, TargetError) as error:
            # The queue was dropped, or emptied, while the run was at work.
            if not (fault.happened and self.writers.bypassed):
                raise AssertionError(f"a run failed: {error}") from error
            self._ended(before, f"failed: {error}")
        else:
            before.undisturbed &= not (fault.happened and what == "meanwhile")
            self._look(before, report)
            self.owed = False
        # What happens during a run is seen by it, or by the next one.
        self.writers.bypassed = False

    def _ended(self, before: Before, how: str) -> None:
        self.counts["runs that did not end"] += 1
        self.story.append(how)
        self._owe(bypassed=before.bypassed)

    def _owe(self, *, bypassed: bool) -> None:
        """What happened before a run that has not ended is left to the next one, unless the run has merged."""
        last = "SELECT merged_at FROM rowvec.runs ORDER BY run_id DESC LIMIT 1"
        self.owed = bypassed and self.judge.target.execute(last).fetchone() in (None, (None,))
        self.writers.bypassed = False

    def _meanwhile(self) -> None:
        for _ in range(self.chance.randint(1, 4)):
            self.writers.act()

    def _be_killed(self) -> None:
        """A run in a process of its own, and its SIGKILL."""
        self.story.append("a sync is killed")
        self.counts["kills of a process"] += 1
        child = os.fork()
        if not child:
            try:
                order.sync(self.pipeline, "model")
            finally:
                os._exit(0)
        time.sleep(self.chance.uniform(0.05, 0.8))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        self._owe(bypassed=self.writers.bypassed or self.owed)

    def _look(self, before: Before, report: SyncReport) -> None:
        check = next(check for check in report.checks if check.name in (PART, QUEUE))
        by_queue = check.name == PART
        self.counts["runs by the queue" if by_queue else "runs that compared everything"] += 1
        self.story.append(f"   {'by the queue' if by_queue else 'everything'}: {check.detail}")
        assert not (by_queue and before.bypassed), "a run relied on a queue that does not show everything"
        judge, bypassed = self.judge, self.writers.bypassed
        left, differing = judge.queued(), judge.differing()
        if not by_queue:
            self._look_at_missed(before, check.value)
            judge.edited.clear()
        if not bypassed:
            wrong = differing - left - judge.edited
            assert not wrong or None in left, f"rows that the run answers for are wrong: {sorted(wrong)}"
        if before.undisturbed:
            assert not left, f"entries are left: {left}"
            keys = re.match(r"([\d,]+) queued key", check.detail)
            assert not keys or int(keys[1]) == len(before.queued - {None}), f"other keys than {before.queued}"
            assert judge.edited or not differing, f"rows are wrong: {sorted(differing)}"
        if not judge.edited and not bypassed:
            self._look_at_totals(report)

    def _look_at_missed(self, before: Before, missed: float | None) -> None:
        if missed is None:
            return
        self.counts["whole comparisons by time"] += 1
        if before.undisturbed:
            unnoticed = before.differing - before.queued
            assert missed == len(unnoticed), f"{missed} missed, and {sorted(unnoticed)} were not queued"
        # Without an edit, and with each write through the triggers, nothing may be missed.
        assert not missed or self.judge.edited or before.bypassed, f"{missed} missed"
        self.counts["missed by the queue"] += int(missed)

    def _look_at_totals(self, report: SyncReport) -> None:
        with connect(self.target) as connection:
            table = stored_table(connection, self.pipeline)
            find_table(connection, table)
            assert totals(connection, table, table.identifier) == (report.rows, report.checksum), "other totals"


@pytest.fixture(scope="module")
def template() -> Generator[str]:
    """The DSN of a server that allows prepared transactions; its database ``template`` has rowvec's schema."""
    with own_postgres() as server:
        with psycopg.connect(server.url, autocommit=True) as admin:
            admin.execute("ALTER SYSTEM SET max_prepared_transactions = 20")
            admin.execute("ALTER SYSTEM SET fsync = off")
            admin.execute("CREATE DATABASE template")
        server.kill()
        server.start()
        with connect(make_conninfo(server.url, dbname="template")) as connection:
            install(connection)
        yield server.url


@pytest.fixture(scope="module")
def counts(tell: Callable[[str], None]) -> Generator[Counter[str]]:
    """The figures of all sequences; after a long run they are printed."""
    kept = Counter[str]()
    yield kept
    if kept["sequences"] > len(SHORT):
        tell(_listed(kept))


@pytest.fixture
def play(
    template: str,
    counts: Counter[str],
    tell: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[int], None]:
    """A function that plays the sequence of a seed."""
    monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ROWVEC_LEASE_SECONDS", "5")
    monkeypatch.setattr(postgres, "LOCK_PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(retries, "WAITS_SECONDS", (0.0, 0.0))
    # An open transaction of an application stays open for as long as a run waits for it.
    monkeypatch.setitem(blocks("changes"), "patience", "SET LOCAL lock_timeout = '30ms'")

    def of(seed: int) -> None:
        names = [f"sequence_{seed}", *([f"source_{seed}"] if seed % 5 in APART else [])]
        urls = [make_conninfo(template, dbname=name) for name in names]
        pipeline = gallery.pipeline(
            str(tmp_path / "artifacts"),
            source={"changes": {"by": "trigger"}, "url": urls[-1]},
            target={"url": urls[0]},
            index={"kind": "none"},
            validation={"max_delete_fraction": 1},
        )
        with psycopg.connect(template, autocommit=True) as admin:
            for name in names:
                admin.execute(f"CREATE DATABASE {name} TEMPLATE template STRATEGY file_copy".encode())
            counts["source in another database"] += len(names) - 1
            sequence = Sequence(seed, urls[-1], urls[0], pipeline, counts)
            try:
                sequence.play()
            except AssertionError as error:
                counts["sequences that failed"] += 1
                lines = "\n".join(f"{i:3}. {line}" for i, line in enumerate(sequence.story, 1))
                again = f"again: ROWVEC_SEED={seed} pytest tests/faults/test_queued_model.py -m soak"
                message = f"{error}\n{lines}\n{again}"
                tell(message)
                raise AssertionError(message) from None
            finally:
                counts["sequences"] += 1
                for name in names:
                    _drop(admin, name)
                if not counts["sequences"] % OFTEN:
                    tell(_listed(counts))

    return of


def _drop(admin: Client, database: str) -> None:
    """Drop a database, with the transactions that a failed sequence has left prepared in it."""
    found = admin.execute("SELECT gid FROM pg_prepared_xacts WHERE database = %s", (database,)).fetchall()
    with psycopg.connect(make_conninfo(admin.info.dsn, dbname=database), autocommit=True) as inside:
        for (name,) in found:
            inside.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(name)))
    admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database)))


@pytest.mark.parametrize("seed", SHORT)
def test_nothing_goes_wrong_in_a_few_sequences(seed: int, play: Callable[[int], None]) -> None:
    play(seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", LONG)
def test_nothing_goes_wrong_in_many_sequences(seed: int, play: Callable[[int], None]) -> None:
    play(seed)


def _listed(counts: Counter[str]) -> str:
    return "\n".join(f"{number:9,}  {name}" for name, number in sorted(counts.items()))
