"""Does a text in chunks cost by its length alone? The same amount of text in one row, and in 1,000 rows.

Each way has a database of its own on one server. A plan, the first sync and a sync that finds nothing new are timed in
turns for ``one`` and ``many``, each time in new databases, and the client's CPU is measured, which other work on the
machine changes less. The texts are sentences of words, and no two are equal.
``python -m benchmarks.chunks`` takes 4 MB, ``--quick`` 0.4 MB in 100 rows.
"""

from __future__ import annotations

import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from benchmarks import plots
from benchmarks.drawn_texts import WORDS
from benchmarks.outcome import conclude, options
from rowvec import Pipeline, plan, sync
from rowvec.postgres.embedded import start_postgres

MB, ROWS, REPEATS = 4.0, 1_000, 2
GOALS = {"plan": 2.0, "first sync": 2.0, "plan, CPU": 2.0, "first sync, CPU": 2.0}
"""Upper limits: seconds of one row over those of many rows."""

_SENTENCE_WORDS = 12
_WAYS = ("one", "many")
_STEPS = ("plan", "first sync", "nothing new")

Seconds = dict[str, dict[str, list[float]]]
"""Of each turn, by step and way."""


def main() -> None:
    """Measure, print a line for each step and a JSON object for machines."""
    parser = options(__doc__, "0.4 MB in 100 rows, once", "two minutes on a quiet machine")
    arguments = parser.parse_args()
    mb, rows, repeats = (MB / 10, ROWS // 10, 1) if arguments.quick else (MB, ROWS, REPEATS)
    folder = Path(tempfile.mkdtemp(prefix="rvb", dir="/tmp"))
    server = start_postgres(folder / "pg")
    try:
        seconds, chunks = measure(server.get_uri(), folder, {"one": 1, "many": rows}, int(mb * 1e6), repeats)
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
    ratios: dict[str, float | None] = {}
    for step, ways in seconds.items():
        one, many = (ways[way] for way in _WAYS)
        ratio = statistics.median(a / b for a, b in zip(one, many, strict=True))
        ratios[step] = round(ratio, 3)
        print(
            f"{step:16} one row {statistics.median(one):7.2f} s, {rows:,} rows {statistics.median(many):7.2f} s, "
            f"ratio {ratio:.2f}"
        )
    print(f"chunks: {chunks}")
    bars = {step: ratio for step, ratio in ratios.items() if ratio is not None and "CPU" not in step}
    panel = plots.Bars(title=f"{mb:g} MB of text", label=f"seconds of one row to {rows:,} rows", values=bars, goal=2.0)
    plots.draw(arguments.plot, "One long text", [panel])
    figures = {"quick": arguments.quick, "mb": mb, "rows": rows, "chunks": chunks, "seconds": seconds}
    conclude("chunks", ratios, GOALS, figures)


def measure(
    url: str, folder: Path, ways: dict[str, int], characters: int, repeats: int
) -> tuple[Seconds, dict[str, int]]:
    """The seconds of every turn, and the number of chunks, by way; the way that goes first changes each time."""
    seconds: Seconds = {name: {way: [] for way in _WAYS} for step in _STEPS for name in (step, f"{step}, CPU")}
    chunks: dict[str, int] = {}
    warm(url, folder)
    for turn in range(repeats):
        for way in _WAYS if turn % 2 == 0 else _WAYS[::-1]:
            name = f"{way}_{turn}"
            pipeline = made(url, folder, name, ways[way], characters // ways[way])
            for step in _STEPS:
                began, used = time.perf_counter(), time.process_time()
                found = plan(pipeline) if step == "plan" else sync(pipeline)
                seconds[step][way].append(round(time.perf_counter() - began, 3))
                seconds[f"{step}, CPU"][way].append(round(time.process_time() - used, 3))
                if step == "nothing new" and found.new + found.changed:
                    raise SystemExit(f"the last sync of {way} found something new: {found}")
                if step == "plan":
                    chunks[way] = found.new
    return seconds, chunks


def warm(url: str, folder: Path) -> None:
    """Imports, the model and the tokenizer are loaded before anything is timed."""
    pipeline = made(url, folder, "warm", 2, 2_000)
    plan(pipeline)
    sync(pipeline)


def made(url: str, folder: Path, name: str, rows: int, characters: int) -> Pipeline:
    """A new database with a source table, and the pipeline over it."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    there = make_conninfo(url, dbname=name)
    with psycopg.connect(there) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE public.texts (id int PRIMARY KEY, text text NOT NULL)")
        with cursor.copy("COPY public.texts FROM STDIN") as copy:
            for id_ in range(rows):
                copy.write_row((id_, drawn(characters, random.Random(id_))))  # not a secret
        cursor.execute("ANALYZE public.texts")
    written: dict[str, Any] = {
        "name": name,
        "source": {"kind": "postgres", "table": "public.texts", "key": ["id"], "content": "{text}", "chunks": {}},
        "embedder": {"kind": "local", "dimensions": 64},
        "target": {"url": there, "table": "vectors.texts"},
        "artifacts": {"url": str(folder / "artifacts")},
        # What an index costs depends on the number of vectors alone.
        "index": {"kind": "none"},
    }
    return Pipeline.model_validate(written)


def drawn(characters: int, chance: random.Random) -> str:
    """Paragraphs of four sentences of drawn words."""
    sentences: list[str] = []
    length = 0
    while length < characters:
        words = chance.choices(WORDS, k=_SENTENCE_WORDS)
        gap = "\n\n" if len(sentences) % 4 == 3 else " "
        sentences.append(" ".join(words).capitalize() + "." + gap)
        length += len(sentences[-1])
    return "".join(sentences)[:characters]


if __name__ == "__main__":
    main()
