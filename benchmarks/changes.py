"""How much does the queue of changes slow down an application that writes to the source?

Two equal tables in one embedded Postgres, with fsync on and settings as shipped: one has the triggers and the queue
that a pipeline with ``source.changes: {by: trigger}`` installs, the other has none. They take turns at going first.
Each ratio is taken within one round; the median over the rounds is given. The first round does not count.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from benchmarks import plots
from benchmarks.outcome import conclude, options
from rowvec.operations.changes import install_queue
from rowvec.pipeline import Pipeline
from rowvec.postgres.embedded import start_postgres

GOALS = {"bulk insert": 1.5, "single inserts": 1.2}
"""The time with triggers over the time without."""

_TABLE: LiteralString = """
    CREATE TABLE {} (id bigint PRIMARY KEY, title text, description text, author text, year int);
    CREATE INDEX ON {} (author)
"""
_BULK_ROWS = 50_000

Session = psycopg.Connection[tuple[Any, ...]]
Work = Callable[[Session, sql.Identifier, int], None]


def main() -> None:
    """Measure, and print a table and the last line."""
    parser = options(__doc__, "three rounds of a fifth of the rows")
    parser.add_argument("--rounds", type=int, default=15, help="rounds that count")
    arguments = parser.parse_args()
    rows, rounds = (_BULK_ROWS // 5, 3) if arguments.quick else (_BULK_ROWS, arguments.rounds)
    folder = Path(tempfile.mkdtemp(prefix="rvc"))
    postgres = start_postgres(folder / "pg")
    try:
        os.environ |= {"ROWVEC_DATABASE_URL": postgres.get_uri(), "ROWVEC_HOME": str(folder / "home")}
        with psycopg.connect(postgres.get_uri(), autocommit=True) as session:
            found = measure(session, folder, rows, rounds)
    finally:
        postgres.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
    ratios = {
        name: round(statistics.median(queued / plain for plain, queued in each), 3) for name, each in found.items()
    }
    for name, each in found.items():
        plain, queued = (statistics.median(column) * 1000 for column in zip(*each, strict=True))
        print(f"{name:15} {plain:9.2f} ms without, {queued:9.2f} ms with triggers: {ratios[name]:.2f} times")
    bars = plots.Bars(title="", label="times", values=dict(ratios))
    plots.draw(arguments.plot, "Writes with triggers over writes without", [bars])
    figures = {"rows": rows, "rounds": rounds, "quick": arguments.quick, "seconds": found}
    conclude("changes", ratios, GOALS, figures)


def measure(session: Session, folder: Path, rows: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds without and with triggers, by kind of write, one pair per round."""
    plain, queued = sql.Identifier("plain"), sql.Identifier("queued")
    for table in (plain, queued):
        session.execute(sql.SQL(_TABLE).format(table, table))
    install_queue(written_pipeline(folder))
    works: dict[str, Work] = {
        "bulk insert": bulk_insert,
        "single inserts": single_inserts,
        "bulk update": bulk_update,
        "bulk delete": bulk_delete,
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            pair: dict[bool, float] = {}
            for with_triggers in (False, True) if number % 2 else (True, False):
                session.execute("CHECKPOINT")
                started = time.perf_counter()
                work(session, queued if with_triggers else plain, rows)
                pair[with_triggers] = time.perf_counter() - started
            if number:
                found[name].append((pair[False], pair[True]))
        _clear(session, plain, queued)
    return found


def written_pipeline(folder: Path) -> Pipeline:
    """The pipeline whose triggers are measured."""
    return Pipeline.model_validate(
        {
            "name": "queued",
            "source": {
                "kind": "postgres",
                "table": "public.queued",
                "key": ["id"],
                "content": "{title}\n{description}",
                "metadata": ["author", "year"],
                "changes": {"by": "trigger"},
            },
            "embedder": {"kind": "local", "dimensions": 64},
            "target": {"table": "vectors.queued"},
            "artifacts": {"url": str(folder / "artifacts")},
        }
    )


def bulk_insert(session: Session, table: sql.Identifier, rows: int) -> None:
    """One statement that inserts all rows."""
    statement = sql.SQL(
        "INSERT INTO {} SELECT i, 'Painting ' || i, repeat('It shows the sea. ', 8), 'Author ' || i % 97, 1900 + i % 99"
        " FROM generate_series(1, {}) AS i"
    )
    session.execute(statement.format(table, sql.Literal(rows)))


def single_inserts(session: Session, table: sql.Identifier, rows: int) -> None:
    """A hundredth of the rows, each in a transaction of its own."""
    statement = sql.SQL("INSERT INTO {} VALUES (%s, %s, %s, %s, %s)").format(table)
    for number in range(rows // 100):
        values = (rows + 1 + number, f"Painting {number}", "It shows the sea. " * 8, f"Author {number % 97}", 1900)
        session.execute(statement, values)


def bulk_update(session: Session, table: sql.Identifier, rows: int) -> None:
    """One statement that changes the text of all rows."""
    session.execute(sql.SQL("UPDATE {} SET title = title || '!' WHERE id <= {}").format(table, sql.Literal(rows)))


def bulk_delete(session: Session, table: sql.Identifier, rows: int) -> None:
    """One statement that deletes half of the rows."""
    session.execute(sql.SQL("DELETE FROM {} WHERE id <= {}").format(table, sql.Literal(rows // 2)))


def _clear(session: Session, *tables: sql.Identifier) -> None:
    """Empty the tables and the queue, as a run would have."""
    for table in tables:
        session.execute(sql.SQL("TRUNCATE {}").format(table))
    found = session.execute("SELECT relname FROM pg_class WHERE relname LIKE 'queue\\_%'").fetchall()
    for (name,) in found:
        session.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier("rowvec_changes", name)))


if __name__ == "__main__":
    main()
