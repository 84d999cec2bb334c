"""Random sequences of edits, syncs, audits, repairs, tampering, losses, faults and kills, and what plays them.

``compose`` makes a sequence of a seed, by the model alone; ``Stage`` plays it against the real thing, and shows what a
judge wants to know of database and store, from outside: the product is asked nothing.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import time
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psycopg
import pyarrow.parquet as pq
from psycopg import sql

from rowvec.embedders import open_embedder
from rowvec.pipeline import Pipeline
from rowvec.stages.binarize import binarize
from rowvec.vectors.fingerprint import fingerprint
from tests.support import paintings
from tests.support.forked_runs import By, CountingServer, Fork, Forks, Job, Outcome
from tests.support.reference_model import Author, Edit, Rows, Stored
from tests.support.servers.openai_server import KEY, Fault, failing, quota, rate_limited, slow_down
from tests.support.waiting import wait_for

MODEL, DIMENSIONS = "model-under-fire", 32
INPUTS, CONCURRENCY = 2, 2
FOREIGN = 1_000_000
"""What a foreign row's key is above the one that it is a copy of."""
IN_FLIGHT = INPUTS * CONCURRENCY
"""Texts that an interruption may cost which comes while a run embeds."""
_STAGES = ("extract", "embed", "upload", "load", "merge", "index", "validate", "audit")

_BACKENDS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name LIKE 'rowvec %'"
)
# A pooler keeps its sessions, with their names. One that has been at rest for a moment does no work and holds no lock.
_AT_WORK = """
    SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE %s
      AND (state <> 'idle' OR state_change > clock_timestamp() - interval '0.2 s')
"""
_UPSERT = """
    INSERT INTO paintings VALUES (%s, %s, %s, %s, %s) ON CONFLICT (id) DO UPDATE
    SET title = excluded.title, description = excluded.description, author = excluded.author, year = excluded.year
"""
_SOON = {"retry-after-ms": "20"}
_FAULTS: tuple[Fault, ...] = (
    rate_limited(milliseconds=20, times=2),
    slow_down(),
    Fault(status=500, kind="server_error", headers=_SOON),
    Fault(status=503, kind="server_error", headers=_SOON, times=2),
    Fault(shape="shuffled", times=-1),
    Fault(shape="short"),
    Fault(shape="cut"),
    Fault(shape="html"),
    failing(500),
    quota(),
)
Column = Literal[
    "content",
    "author",
    "year",
    "fingerprint",
    "metadata_hash",
    "embedding",
    "embedding_bits",
    "vector",
    "run_id",
    "embedded_at",
    "row gone",
    "foreign row",
]
_NEGATED = b"(SELECT ('[' || string_agg((-x)::text, ',') || ']')::vector FROM unnest(embedding::real[]) AS x)"
_TAMPERING: dict[Column, bytes] = {
    "content": b"UPDATE vectors.paintings SET content = content || '!' WHERE id = %s",
    "author": b"UPDATE vectors.paintings SET author = coalesce(author, '') || '!' WHERE id = %s",
    "year": b"UPDATE vectors.paintings SET year = coalesce(year, 0) + 3000 WHERE id = %s",
    "fingerprint": b"UPDATE vectors.paintings SET fingerprint = sha256(fingerprint) WHERE id = %s",
    "metadata_hash": b"UPDATE vectors.paintings SET metadata_hash = sha256(metadata_hash) WHERE id = %s",
    "embedding": b"UPDATE vectors.paintings SET embedding = " + _NEGATED + b" WHERE id = %s",
    "embedding_bits": b"UPDATE vectors.paintings SET embedding_bits ="
    b" set_bit(embedding_bits, id %% 32, 1 - get_bit(embedding_bits, id %% 32)) WHERE id = %s",
    "vector": b"UPDATE vectors.paintings SET embedding = " + _NEGATED + b", embedding_bits = {bits} WHERE id = %s",
    "run_id": b"UPDATE vectors.paintings SET run_id = run_id + 1000 WHERE id = %s",
    "embedded_at": b"UPDATE vectors.paintings SET embedded_at = embedded_at + interval '1 microsecond' WHERE id = %s",
    "row gone": b"DELETE FROM vectors.paintings WHERE id = %s",
    "foreign row": b"INSERT INTO vectors.paintings SELECT (t).* FROM (SELECT jsonb_populate_record(p,"
    b" jsonb_build_object('id', p.id + 1000000)) AS t FROM vectors.paintings AS p WHERE id = %s) AS foreign_row",
}
UNTRUSTED: tuple[Column, ...] = ("embedding", "embedding_bits", "vector")
"""Tampering after which a row's vector is not what was paid for, and which a sync need not notice by itself."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When a run is interrupted: so long after its start, at a stage's first connection, or at a number of requests."""

    kind: Literal["seconds", "stage", "requests"]
    at: float
    stage: str = ""

    def __str__(self) -> str:
        if self.kind == "stage":
            return f"{self.at:.3f} s into {self.stage}"
        return f"after {self.at:.2f} s" if self.kind == "seconds" else f"at request {self.at:.0f}"


@dataclass(frozen=True, slots=True)
class Interrupt:
    """``kill``: SIGKILL of the process. ``terminate``: all its backends are terminated, and it is left to itself."""

    how: Literal["kill", "terminate"]
    moment: Moment

    def __str__(self) -> str:
        return f"{self.how} {self.moment}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A job of the product."""

    job: Job
    by: By
    faults: tuple[Fault, ...] = ()
    interrupt: Interrupt | None = None
    elsewhere: bool = False
    """On another machine: with nothing but the database and the blob store."""

    def __str__(self) -> str:
        words = [f"{self.job} by {self.by}"]
        words += [f"fault {f.shape or f.code or f.status} after {f.after}" for f in self.faults]
        words += [str(self.interrupt)] if self.interrupt else []
        return ", ".join(words + ["on another machine"] * self.elsewhere)


@dataclass(frozen=True, slots=True)
class Tamper:
    """Somebody writes to a row of the vector table: the so-many-th of those that are whole."""

    column: Column
    number: int

    def __str__(self) -> str:
        return f"tamper with {self.column} of row {self.number}"


@dataclass(frozen=True, slots=True)
class DropTable:
    """Somebody drops the vector table."""

    def __str__(self) -> str:
        return "drop the vector table"


@dataclass(frozen=True, slots=True)
class Lose:
    """An artifact's object is gone, or cut in half: the so-many-th of those that are whole."""

    how: Literal["gone", "cut"]
    number: int

    def __str__(self) -> str:
        return f"artifact {self.number} is {self.how}"


Split = Literal["list", "hash"] | None
"""How the vector table is partitioned by its key: each row has a partition, or there are three."""

Step = Edit | Run | Tamper | DropTable | Lose


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """What a seed makes."""

    seed: int
    index: Literal["auto", "none"]
    bits: Literal["auto", 1, 2]
    split: Split
    steps: tuple[Step, ...]


def compose(seed: int) -> Sequence:
    """A sequence; the same for the same seed."""
    chance = random.Random(seed)
    author = Author(chance)
    steps: list[Step] = [author.first(), _run(chance, "sync", 0.6)]
    for _ in range(chance.randint(3, 7)):
        steps += [author.edit() for _ in range(chance.choice((0, 1, 1, 2, 3)))]
        what = chance.random()
        if what < 0.14:
            steps += [_tamper(chance) for _ in range(chance.randint(1, 3))]
        elif what < 0.19:
            steps.append(DropTable())
        elif what < 0.31:
            steps.append(Lose(chance.choice(("gone", "cut")), chance.randrange(100)))
        what = chance.random()
        steps.append(_run(chance, "sync" if what < 0.72 else "audit" if what < 0.86 else "repair"))
    steps += [_tamper(chance)] * (chance.random() < 0.3)
    steps += [Run(job="audit", by="plain"), Run(job="repair", by=_by(chance)), Run(job="sync", by="flow")]
    index: Literal["auto", "none"] = "auto" if chance.random() < 0.6 else "none"
    bits: Literal["auto", 1, 2] = chance.choice(("auto", 1, 2))
    drawn = chance.random()
    split: Split = "list" if drawn > 0.7 else "hash" if drawn > 0.4 else None
    return Sequence(seed=seed, index=index, bits=bits, split=split, steps=tuple(steps))


def _run(chance: random.Random, job: Job, interrupted: float = 0.35) -> Run:
    if job == "audit":
        return Run(job=job, by="plain")
    faults: list[Fault] = []
    if chance.random() < 0.25:
        fault = chance.choice(_FAULTS)
        faults = [replace(fault, after=chance.randrange(4))]
    interrupt = None
    if chance.random() < interrupted:
        stage = chance.choice(_STAGES)
        moment = chance.choice(
            (
                Moment("seconds", chance.random() * 1.5),
                Moment("stage", chance.choice((0.0, 0.002, 0.01, 0.03)), stage),
                Moment("stage", chance.choice((0.0, 0.002, 0.01, 0.03)), stage),
                Moment("requests", chance.randint(1, 9)),
                Moment("requests", chance.randint(1, 9)),
            )
        )
        interrupt = Interrupt("kill" if chance.random() < 0.7 else "terminate", moment)
    return Run(
        job=job, by=_by(chance), faults=tuple(faults), interrupt=interrupt, elsewhere=bool(chance.random() < 0.2)
    )


def _by(chance: random.Random) -> By:
    return "flow" if chance.random() < 0.15 else "plain"


def _tamper(chance: random.Random) -> Tamper:
    return Tamper(chance.choice(tuple(_TAMPERING)), chance.randrange(100))


@dataclass(frozen=True, slots=True)
class Taint:
    """A row of the vector table that somebody wrote to, as it was left."""

    column: Column
    id: int
    embedded_at: Any
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """A run that is over."""

    run: Run
    outcome: Outcome
    interrupted: bool
    before: dict[int, Stored] | None
    """What the vector table showed before it; None: there was none."""
    kept_before: set[str]
    """Texts whose vector could be had without paying."""
    sent: Counter[str]
    """Texts in requests that were answered with 200."""
    befallen: tuple[tuple[Fault, tuple[str, ...]], ...]
    """Faults, and the texts of the requests they befell."""

    @property
    def in_flight(self) -> int:
        """Texts that an interruption may have cost: none once the run has come to its uploads, with its only batch."""
        if not self.interrupted or self.run.interrupt is None:
            return 0
        moment = self.run.interrupt.moment
        over = moment.kind == "stage" and moment.stage in _STAGES[2:-1] and self.run.job == "sync"
        return 0 if over else IN_FLIGHT


@dataclass(slots=True)
class Stage:
    """One sequence at play: a database, a store, a server, and what was done to them."""

    forks: Forks
    server: CountingServer
    url: str
    folder: Path
    sequence: Sequence
    connection: psycopg.Connection[Any]
    counts: Counter[str]
    """Of everything that was done; of many sequences."""
    story: list[str] = field(default_factory=list[str])
    """What was done, a line a step."""
    rows: Rows = field(default_factory=dict)
    """The source."""
    taints: list[Taint] = field(default_factory=list[Taint])
    """Tampering that nothing has written over yet."""
    sound: bool = True
    """Whether nothing was tampered with since the last repair."""
    lost: set[str] = field(default_factory=set[str])
    """Texts that some destroyed artifact held."""
    _texts: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    _names: dict[bytes, str] = field(default_factory=dict[bytes, str])

    def play(self) -> Generator[Played]:
        """All steps; a judge may look around after each run."""
        self.connection.execute(paintings.SOURCE)
        for step in self.sequence.steps:
            self.story.append(str(step))
            match step:
                case Edit():
                    self._edit(step)
                case Tamper():
                    self._tamper(step)
                case DropTable():
                    self.connection.execute("DROP TABLE IF EXISTS vectors.paintings")
                    self.counts["drop the table"] += 1
                case Lose():
                    self._lose(step)
                case Run():
                    yield self._run(step)
                    continue
            self.taints = self.effective()

    @property
    def pipeline(self) -> Pipeline:
        """The gallery's, with an embedder that costs money."""
        embedder = {
            "kind": "openai",
            "model": MODEL,
            "dimensions": DIMENSIONS,
            "base_url": self.server.url,
            "max_batch_inputs": INPUTS,
            "concurrency": CONCURRENCY,
        }
        index = {"kind": self.sequence.index, "bits": self.sequence.bits}
        parts: dict[str, dict[str, Any]] = {"embedder": embedder, "index": index}
        parts["validation"] = {"max_delete_fraction": 1.0}
        if self.sequence.split == "list":
            parts["target"] = {"partition_by": ["id"]}
        elif self.sequence.split == "hash":
            parts["target"] = {"partition_by": {"columns": ["id"], "kind": "hash", "partitions": 3}}
        return paintings.pipeline(str(self.folder / "artifacts"), **parts)

    def stored(self) -> dict[int, Stored] | None:
        """What the vector table shows; None where there is none."""
        if self.connection.execute("SELECT to_regclass('vectors.paintings')").fetchone() == (None,):
            return None
        rows = self.connection.execute("SELECT id, content, author, year FROM vectors.paintings").fetchall()
        return {id_: (content, author, year) for id_, content, author, year in rows}

    def fingerprint(self, text: str) -> bytes:
        """What the ledger knows a text by."""
        return fingerprint(open_embedder(self.pipeline.embedder).identity.digest(), text.encode())

    def kept(self) -> set[str]:
        """Texts whose vector costs nothing: it is where the ledger points, or in a row that was not tampered with."""
        pointed = (
            "SELECT e.fingerprint FROM rowvec.embeddings AS e JOIN rowvec.artifacts AS a USING (artifact_id)"
            " WHERE a.name = ANY (%s)"
        )
        held = self.connection.execute(pointed, (self.artifacts(whole=True),)).fetchall()
        texts = {self._names[known] for (known,) in held if known in self._names}
        answers = self.connection.execute("SELECT fingerprint FROM rowvec.answers").fetchall()
        texts |= {self._names[known] for (known,) in answers if known in self._names}
        if self.stored() is not None:
            tainted = {taint.id for taint in self.taints}
            rows = self.connection.execute("SELECT id, content, fingerprint FROM vectors.paintings").fetchall()
            texts |= {text for id_, text, known in rows if id_ not in tainted and known == self.fingerprint(text)}
        return texts

    def in_artifacts(self) -> set[str]:
        """Texts whose vector is in an artifact that the ledger knows and that is whole."""
        return {text for name in self.artifacts(whole=True) for text in self._texts_in(name)}

    def artifacts(self, *, whole: bool) -> list[str]:
        """Those that the ledger knows and the store has as they were written, the oldest first; or the others."""
        known = self.connection.execute("SELECT name, sha256 FROM rowvec.artifacts ORDER BY artifact_id").fetchall()
        return [name for name, sha256 in known if self._is_whole(name, sha256) == whole]

    def effective(self) -> list[Taint]:
        """The tampering whose traces were not overwritten: the next repair must find it."""
        if self.stored() is None:
            return []
        return [t for t in self.taints if self._trace(t.column, t.id) == (t.embedded_at, t.value)]

    def _edit(self, edit: Edit) -> None:
        with self.connection.transaction():
            for id_, p in edit.changes:
                if p is None:
                    self.connection.execute("DELETE FROM paintings WHERE id = %s", (id_,))
                else:
                    self.connection.execute(_UPSERT, (id_, p.title, p.description, p.author, p.year))
        self.rows = edit.apply(self.rows)
        for p in self.rows.values():
            self._names.setdefault(self.fingerprint(p.content), p.content)
        self.counts[f"edit: {edit.name}"] += 1

    def _tamper(self, step: Tamper) -> None:
        whole = sorted(set(self.stored() or {}) - {taint.id for taint in self.taints})
        if not whole:
            return
        id_ = whole[step.number % len(whole)]
        # No partition of a list takes a key that no run has seen.
        if step.column == "foreign row" and (self.sequence.split == "list" or id_ + FOREIGN in (self.stored() or {})):
            return
        self.connection.execute(_TAMPERING[step.column].replace(b"{bits}", self._bits_of_negated(id_)), (id_,))
        id_ += FOREIGN if step.column == "foreign row" else 0
        # When a row was written is known from the journal alone: until a manifest tells of it, any time is as good.
        if step.column != "embedded_at" or self._told(id_):
            self.taints.append(Taint(step.column, id_, *self._trace(step.column, id_)))
        self.sound = False
        self.story[-1] += f": id {id_}"
        self.counts[f"tamper: {step.column}"] += 1

    def _bits_of_negated(self, id_: int) -> bytes:
        """A literal: what a row's bits would be if its vector had the opposite direction."""
        row = self.connection.execute("SELECT embedding::text FROM vectors.paintings WHERE id = %s", (id_,)).fetchone()
        negated = -np.array(str(row and row[0]).strip("[]").split(","), np.float32)
        bits = self.pipeline.bits
        packed = binarize(negated[None], bits)[0]
        return b"B'" + "".join(map(str, np.unpackbits(packed, count=bits * DIMENSIONS))).encode() + b"'"

    def _told(self, id_: int) -> bool:
        """Whether a manifest in the store tells how the row was written."""
        row = self.connection.execute(
            "SELECT journal_whole, to_regclass('rowvec.unrecorded_' || pipeline_id)::text FROM rowvec.pipelines"
        ).fetchone()
        if row is None or row[0]:
            return False
        if row[1] is None:
            return True
        unrecorded = sql.SQL("SELECT FROM {} WHERE id = %s").format(sql.Identifier(*row[1].split(".")))
        return not self.connection.execute(unrecorded, (id_,)).fetchall()

    def _lose(self, step: Lose) -> None:
        whole = self.artifacts(whole=True)
        if not whole:
            return
        name = whole[step.number % len(whole)]
        self.lost |= self._texts_in(name)
        path = self.folder / "artifacts" / name
        if step.how == "gone":
            path.unlink()
        else:
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
        self.story[-1] += f": {sorted(self._texts_in(name))}"
        self.counts[f"artifact {step.how}"] += 1

    def _run(self, step: Run) -> Played:
        if step.elsewhere:
            shutil.rmtree(self.folder / "home", ignore_errors=True)
        before, kept = self.stored(), self.kept()
        self.server.reset()
        self.server.befallen.clear()
        self.server.add(*step.faults)
        outcome, interrupted = self._fork(step)
        self.server.settle()
        played = Played(
            run=step,
            outcome=outcome,
            interrupted=interrupted,
            before=before,
            kept_before=kept,
            sent=self.server.paid,
            befallen=tuple(self.server.befallen),
        )
        self.story[-1] += f" → {'interrupted, ' if interrupted else ''}{outcome}"
        self._count(played)
        self.taints = self.effective()
        if step.job == "repair" and outcome.state == "done":
            self.taints, self.sound = [], True
        return played

    def _fork(self, step: Run) -> tuple[Outcome, bool]:
        environment = {
            "ROWVEC_DATABASE_URL": self.url,
            "ROWVEC_HOME": str(self.folder / "home"),
            "OPENAI_API_KEY": KEY,
        }
        fork = self.forks.start(step.job, step.by, self.pipeline, environment, self.folder / "log")
        interrupted = False
        if step.interrupt is not None and self._reached(fork, step.interrupt.moment):
            if step.interrupt.how == "kill":
                interrupted = True
                fork.kill()
            else:
                interrupted = bool(self.connection.execute(_BACKENDS).fetchall())
        outcome = fork.wait()
        # What a killed client sent last may still be at work, or hold locks.
        wait_for(lambda: not self.connection.execute(_AT_WORK, ("rowvec%",)).fetchall())
        return outcome, interrupted

    def _reached(self, fork: Fork, moment: Moment) -> bool:
        """Wait for a moment; whether it came before the run was over."""
        start = time.monotonic()
        while fork.at_work:
            match moment.kind:
                case "seconds":
                    reached = time.monotonic() >= start + moment.at
                case "requests":
                    reached = len(self.server.requests) >= moment.at
                case "stage":
                    reached = bool(self.connection.execute(_AT_WORK, (f"rowvec {moment.stage}%",)).fetchall())
            if reached:
                # Not to wait for anything: so deep into the stage.
                time.sleep(moment.at if moment.kind == "stage" else 0)
                return True
            time.sleep(0.001)
        return False

    def _count(self, played: Played) -> None:
        run, outcome = played.run, played.outcome
        self.counts[f"{run.job} by {run.by}"] += 1
        self.counts[f"{run.job} {outcome.state} {outcome.error}".strip()] += 1
        if played.interrupted and run.interrupt is not None:
            self.counts[f"interrupt: {run.interrupt.how}"] += 1
        for fault, _ in played.befallen:
            self.counts[f"fault: {fault.shape or fault.code or fault.status}"] += 1

    def _texts_in(self, name: str) -> set[str]:
        """What an artifact holds, or held while it was whole."""
        if name not in self._texts:
            table = pq.read_table(self.folder / "artifacts" / name, columns=["content"])
            self._texts[name] = set(table.column("content").to_pylist())
        return self._texts[name]

    def _is_whole(self, name: str, sha256: str) -> bool:
        path = self.folder / "artifacts" / name
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256

    def _trace(self, column: Column, id_: int) -> tuple[Any, Any]:
        """When a row was embedded, and what a column of it holds; Nones where there is no row."""
        row = self.connection.execute(
            "SELECT embedded_at, to_jsonb(t) || jsonb_build_object('vector', embedding::text, 'foreign row', true)"
            " FROM vectors.paintings AS t WHERE id = %s",
            (id_,),
        ).fetchone()
        return (row[0], row[1].get(column)) if row else (None, None)
