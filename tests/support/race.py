"""Writers and readers that never rest, and a judge that knows every state the source has ever been in.

Each transaction of a writer appends to ``history`` what became of the keys it touched, under one lock: commits have an
order, so whatever snapshot anybody takes of the source is the state after some number of them. A vector table must be
one of these states, and none that was over when the run read the source for the last time.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

import psycopg
import pytest

from tests.support.paintings import Client
from tests.support.servers.openai_server import vector

HISTORY = """
    CREATE TABLE commits (seq bigint PRIMARY KEY, at timestamptz NOT NULL);
    CREATE TABLE history (seq bigint, id int, title text, description text, author text, year int, gone boolean)
"""

BREATH_SECONDS = 0.05
"""Between a writer's transactions. Without it every row changes several times in each round, the vector table is all
but empty, and the writers have the processor to themselves."""

_LOCK = 0x52616365
_WORDS = ("red", "green", "blue", "gold", "", " ", "same")


@dataclass(frozen=True, slots=True)
class Painting:
    """A row that should have a vector."""

    content: str
    author: str | None
    year: int | None


State = dict[int, Painting]


@dataclass(frozen=True, slots=True)
class Commit:
    """One transaction of a writer: when it held the lock, and what became of each key it touched."""

    seq: int
    at: datetime
    changes: tuple[tuple[int, Painting | None], ...]


@dataclass(frozen=True, slots=True)
class Lag:
    """What a state has and the vector table has not (yet)."""

    missing: int
    """Rows without a vector."""
    metadata: int
    """Rows whose metadata is another by now."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a vector table compares with the states that the source has been in."""

    states: int
    """How many states were possible."""
    agreeing: tuple[Lag, ...]
    """How far it is behind each of the states that all its rows are rows of."""
    nearest: tuple[int, ...]
    """Keys that are stale or orphaned by the state that has the fewest of them."""


@dataclass(slots=True)
class Threads:
    """Threads that go round until they are told to stop; the first error of any of them is the test's."""

    stop: threading.Event = field(default_factory=threading.Event)
    errors: list[BaseException] = field(default_factory=list[BaseException])
    rounds: int = 0

    def check(self) -> None:
        """Raise what any of them raised."""
        if self.errors:
            raise self.errors[0]


@contextmanager
def running(*turns: Callable[[], object], breath: float = 0.0) -> Generator[Threads]:
    """Call each of ``turns`` again and again in a thread of its own meanwhile, with so many seconds between calls."""
    threads = Threads()

    def go(turn: Callable[[], object]) -> None:
        try:
            while not threads.stop.wait(breath):
                turn()
                threads.rounds += 1
        except BaseException as error:  # noqa: BLE001 # a thread can report it in no other way
            threads.errors.append(error)
            threads.stop.set()

    started = [threading.Thread(target=go, args=(turn,), daemon=True) for turn in turns]
    for thread in started:
        thread.start()
    try:
        yield threads
    finally:
        threads.stop.set()
        for thread in started:
            thread.join(60)
    threads.check()


@dataclass(slots=True)
class Writer:
    """One client that changes ``paintings`` at random, a few rows a transaction.

    Low keys are written often and high ones seldom, as in real tables: a sync finds rows that moved under it, and rows
    that did not.
    """

    connection: Client
    chance: random.Random
    keys: int

    def write(self) -> None:
        """One transaction."""
        self._transact(*self._drawn())

    def _key(self) -> int:
        return 1 + int(self.keys * self.chance.random() ** 3)

    def _drawn(self) -> tuple[str, dict[str, object]]:
        chance, a, b, c = self.chance, self._key(), self._key(), self._key()
        word, number = chance.choice(_WORDS), chance.randrange(1_000_000)
        values: dict[str, object] = {"a": a, "b": b, "c": c, "word": word, "number": number}
        return chance.choice(_STATEMENTS), values

    def _transact(self, statement: str, values: dict[str, object]) -> None:
        with self.connection.transaction():
            self.connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            self.connection.execute(statement.encode(), values)
            self.connection.execute(_LOG, {"touched": [values["a"], values["b"], values["c"]]})


# Title and description change together in some and alone in others; B may become what A was before.
_STATEMENTS = (
    "INSERT INTO paintings VALUES (%(a)s, 'New ' || %(number)s, %(word)s, 'a', %(number)s),"
    " (%(b)s, %(word)s, 'same', 'b', 1) ON CONFLICT DO NOTHING",
    "UPDATE paintings SET title = 'Edited ' || %(number)s WHERE id = %(a)s",
    "UPDATE paintings SET title = %(word)s, description = 'same' WHERE id IN (%(a)s, %(b)s)",
    "UPDATE paintings SET title = NULL, description = NULL WHERE id = %(a)s",
    "UPDATE paintings SET author = %(word)s, year = %(number)s WHERE id IN (%(a)s, %(b)s)",
    "DELETE FROM paintings WHERE id = %(a)s",
    "UPDATE paintings SET id = %(b)s WHERE id = %(a)s AND NOT EXISTS (SELECT FROM paintings WHERE id = %(b)s)",
    "UPDATE paintings AS p SET title = o.title, description = o.description FROM paintings AS o"
    " WHERE (p.id, o.id) IN ((%(a)s, %(b)s), (%(b)s, %(a)s))",
    "UPDATE paintings AS p SET title = o.title, description = o.description FROM paintings AS o"
    " WHERE %(a)s <> %(b)s AND %(b)s <> %(c)s AND %(a)s <> %(c)s"
    " AND (p.id, o.id) IN ((%(a)s, %(b)s), (%(b)s, %(c)s), (%(c)s, %(a)s))",
)

_LOG = """
    WITH this AS (
        INSERT INTO commits SELECT coalesce(max(seq), 0) + 1, clock_timestamp() FROM commits RETURNING seq
    )
    INSERT INTO history
    SELECT seq, touched.id, p.title, p.description, p.author, p.year, p.id IS NULL
    FROM this, (SELECT DISTINCT id FROM unnest(%(touched)s::int[]) AS id) AS touched
    LEFT JOIN paintings AS p ON p.id = touched.id
"""


def start_history(connection: Client) -> None:
    """The first commit: the rows that are there before any writer starts."""
    connection.execute(HISTORY.encode())
    with connection.transaction():
        connection.execute("INSERT INTO commits VALUES (0, clock_timestamp())")
        connection.execute("INSERT INTO history SELECT 0, *, false FROM paintings")


@contextmanager
def writers(
    url: str, seed: int, *, number: int = 2, keys: int = 400, breath: float = BREATH_SECONDS
) -> Generator[Threads]:
    """Some writers at work on the source at ``url`` meanwhile; the seed gives each of them its own stream of edits."""
    opened = [psycopg.connect(url, autocommit=True) for _ in range(number)]
    made = [Writer(c, random.Random(f"{seed} {i}"), keys) for i, c in enumerate(opened)]
    try:
        with running(*(writer.write for writer in made), breath=breath) as threads:
            yield threads
    finally:
        for connection in opened:
            connection.close()


def commits(connection: Client) -> list[Commit]:
    """All that the source has been through, in order."""
    changes: dict[int, list[tuple[int, Painting | None]]] = {}
    rows = connection.execute("SELECT * FROM history ORDER BY seq").fetchall()
    for seq, id_, title, description, author, year, gone in rows:
        content = f"{title or ''}\n{description or ''}"
        present = not gone and content.strip(" \t\n\r\f\v")
        changes.setdefault(seq, []).append((id_, Painting(content, author, year) if present else None))
    listed = connection.execute("SELECT seq, at FROM commits ORDER BY seq").fetchall()
    return [Commit(seq, at, tuple(changes.get(seq, ()))) for seq, at in listed]


def final(history: Iterable[Commit]) -> State:
    """The state after all of them."""
    state: State = {}
    for commit in history:
        for key, painting in commit.changes:
            if painting is None:
                state.pop(key, None)
            else:
                state[key] = painting
    return state


def judge(history: Iterable[Commit], stored: State, since: datetime, until: datetime) -> Verdict:
    """Compare what a vector table holds with every state the source was in from ``since`` to ``until``.

    Both are times of the database's clock. A commit noted after ``until`` was not seen; one whose follower noted the
    lock before ``since`` was over by then, and must have been seen.
    """
    state: State = {}
    wrong = set(stored)
    agreeing: list[Lag] = []
    nearest: set[int] | None = None
    states = 0
    listed = list(history)
    for i, commit in enumerate(listed):
        if commit.at > until:
            break
        for key, painting in commit.changes:
            if painting is None:
                state.pop(key, None)
            else:
                state[key] = painting
            if key in stored:
                same = painting is not None and painting.content == stored[key].content
                (wrong.discard if same else wrong.add)(key)
        # The next commit is known to be over by its own follower: having noted the lock, it may not have ended yet.
        if i + 2 < len(listed) and listed[i + 2].at <= since:
            continue
        states += 1
        if not wrong:
            other = sum(painting != state[key] for key, painting in stored.items())
            agreeing.append(Lag(len(state) - len(stored), other))
        if nearest is None or len(wrong) < len(nearest):
            nearest = set(wrong)
    return Verdict(states, tuple(agreeing), tuple(sorted(nearest or ())))


def stored(connection: Client, table: str = "vectors.paintings") -> State:
    """What the vector table holds, without the vectors."""
    rows = connection.execute(f"SELECT id, content, author, year FROM {table}".encode()).fetchall()  # noqa: S608 # ours
    return {id_: Painting(content, author, year) for id_, content, author, year in rows}


def assert_own_vectors(connection: Client, model: str, dimensions: int, table: str = "vectors.paintings") -> None:
    """Each vector is the one that the provider gives for that row's content, and for no other."""
    statement = f"SELECT id, content, embedding::real[] FROM {table}"  # noqa: S608 # ours
    for id_, content, embedding in connection.execute(statement.encode()).fetchall():
        assert embedding == pytest.approx(vector(model, content, dimensions).tolist(), abs=1e-5), id_


@dataclass(frozen=True, slots=True, order=True)
class Wait:
    """Somebody who waited for a lock that somebody else had, seen from outside."""

    who: str
    stage: str
    kind: str
    """The lock's type, as ``pg_locks`` has it."""
    on: str
    on_stage: str


_WAITS = """
    SELECT a.usename, a.application_name, a.wait_event, b.usename, b.application_name
    FROM pg_stat_activity AS a, unnest(pg_blocking_pids(a.pid)) AS blocker (pid), pg_stat_activity AS b
    WHERE a.wait_event_type = 'Lock' AND a.datname = current_database() AND b.pid = blocker.pid
      AND a.usename <> b.usename
"""


@contextmanager
def waits(url: str) -> Generator[set[Wait]]:
    """Who waits for whose locks meanwhile, told apart by their roles; looked at about a hundred times a second."""
    seen: set[Wait] = set()
    with psycopg.connect(url, autocommit=True) as connection:

        def look() -> None:
            seen.update(Wait(*row) for row in connection.execute(_WAITS.encode()).fetchall())

        with running(look, breath=0.01):
            yield seen
