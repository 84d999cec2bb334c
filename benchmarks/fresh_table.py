"""A table of made-up texts with its vectors in a database of its own, and what a sync of it costs."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import yaml
from psycopg import sql

from benchmarks.provider import MODEL
from rowvec.operations.sync import sync
from rowvec.pipeline import Pipeline
from rowvec.pipeline.file import load
from tests.support.servers.openai_server import vector

DIMENSIONS = 64

_FILL = """
    CREATE TABLE public.texts (id int PRIMARY KEY, content text NOT NULL);
    INSERT INTO public.texts SELECT i, 'text ' || i || ' about ' || md5(i::text) FROM generate_series(1, {rows}) AS i;
    ANALYZE public.texts
"""
_USED = "SELECT active_time, blks_hit + blks_read FROM pg_stat_database WHERE datname = %s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one sync took."""

    seconds: float
    database_ms: float
    """The time in which the server executed statements, over all sessions."""
    pages: int
    """Pages that these statements looked at, in the server's buffers or on disk: the machine's load does not count."""
    merge_seconds: float


class Table:
    """A database with a table of texts and its vectors."""

    def __init__(self, uri: Callable[[str], str], folder: Path, base_url: str, rows: int) -> None:
        self.rows = rows
        self.name = f"fresh_{rows}"
        self.url = uri(self.name)
        self._admin = psycopg.connect(uri("postgres"), autocommit=True)
        is_new = self._admin.execute("SELECT FROM pg_database WHERE datname = %s", (self.name,)).fetchone() is None
        if is_new:
            self._admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self.name)))
        self.client = psycopg.connect(self.url, autocommit=True)
        if is_new:
            self.client.execute(sql.SQL(_FILL).format(rows=sql.Literal(rows)))
        self.file = folder / f"{self.name}.yaml"
        self._base_url = base_url

    @property
    def pipeline(self) -> Pipeline:
        """As its file is now."""
        os.environ["ROWVEC_DATABASE_URL"] = self.url
        return load(self.file)

    def write(self, index: str) -> None:
        """Write the pipeline file, with an index of this kind."""
        content: dict[str, Any] = {
            "name": "texts",
            "source": {
                "kind": "postgres",
                "table": "public.texts",
                "key": ["id"],
                "content": "{content}",
                "changes": {"by": "trigger"},
            },
            "embedder": {"kind": "openai", "model": MODEL, "dimensions": DIMENSIONS, "base_url": self._base_url},
            "target": {"table": "vectors.texts"},
            "artifacts": {"url": str(self.file.with_suffix(""))},
            "index": {"kind": index},
            # Vectors drawn at random are as hard for a graph as any can be, and its recall is not the question here.
            "validation": {"recall": {"at_least": 0.1}},
        }
        self.file.write_text(yaml.safe_dump(content), "utf-8")

    def sync(self) -> Cost:
        """One sync in this process, without Prefect."""
        pipeline = self.pipeline
        before, began = self._used(), time.monotonic()
        report = sync(pipeline)
        seconds, after = time.monotonic() - began, self._used()
        return Cost(
            seconds=round(seconds, 3),
            database_ms=round(after[0] - before[0], 1),
            pages=after[1] - before[1],
            merge_seconds=report.seconds.get("merge", 0.0),
        )

    def change(self, rows: int) -> None:
        """Change some rows, in one statement."""
        ids = random.sample(range(1, self.rows + 1), rows)
        self.client.execute("UPDATE public.texts SET content = content || '!' WHERE id = ANY (%s)", (ids,))

    def warm(self) -> None:
        """Have the server read what a run looks keys up in, as one that has been at work for a day has done."""
        for each in ("public.texts", "vectors.texts", "rowvec.hash_tree"):
            self.client.execute(sql.SQL("SELECT count(length(content)) FROM {}").format(sql.SQL(each)))
        self.client.execute("SELECT count(cost_usd) FROM rowvec.embeddings")
        self.client.execute("SELECT pg_stat_force_next_flush()")

    def _used(self) -> tuple[float, int]:
        # A session sends its figures when it ends.
        time.sleep(0.5)
        return self._admin.execute(_USED, (self.name,)).fetchone() or (0.0, 0)

    def bare_update(self, rows: int) -> float:
        """Seconds of one UPDATE of some vectors, which is rolled back: the server's own work for the rows of a sync."""
        ids = random.sample(range(1, self.rows + 1), rows)
        drawn = [vector(MODEL, f"bare {each} {time.time()}", DIMENSIONS) for each in ids]
        texts = ["[" + ",".join(map(str, each)) + "]" for each in drawn]
        with self.client.transaction(force_rollback=True):
            self.client.execute("CREATE TEMP TABLE bare (id int PRIMARY KEY, embedding vector)")
            self.client.execute("INSERT INTO bare SELECT * FROM unnest(%s::int[], %s::text[]::vector[])", (ids, texts))
            self.client.execute("ANALYZE bare")
            began = time.monotonic()
            self.client.execute(
                "UPDATE vectors.texts AS t SET embedding = b.embedding FROM bare AS b WHERE t.id = b.id"
            )
            return time.monotonic() - began
