"""A table's history, made up with a seed in the layout of the real one, through ``benchmarks/replay.py``."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.replay import ReplayFailed, Step, ambiguous, read_steps, replay, written_pipeline, wrong_rows
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.stages.report import SyncReport
from tests.support.servers.openai_server import KEY, OpenAIServer, serve

VERSIONS = 9
DROPPED, RESTORED = 3, 4
"""In the one most rows go, by mistake, and in the other they are put back."""
TURNED, TURNED_BACK = 6, 8
"""Some rows change in the one, and back in the other."""

Row = dict[str, str]


def history(seed: int, file: Path) -> Path:
    """Write the events of some versions: random edits, a drop and its restore, texts that change and change back."""
    chance = random.Random(seed)
    table: dict[int, Row] = {}
    events: list[dict[str, Any]] = []
    for version in range(VERSIONS):
        before = dict(table)
        if version == DROPPED:
            dropped = {key: table.pop(key) for key in sorted(table)[5:]}
        elif version == RESTORED:
            table |= dropped  # pyright: ignore[reportPossiblyUnboundVariable] # the version before has bound it
        elif version == TURNED:
            turned = {key: table[key] for key in sorted(table)[:8]}
            table |= {key: {**row, "forwarddisplayname": f"Turned {key}"} for key, row in turned.items()}
        elif version == TURNED_BACK:
            table |= turned  # pyright: ignore[reportPossiblyUnboundVariable] # bound three versions ago
        elif version in range(TURNED, TURNED_BACK):
            table[900 + version] = {"constituentid": str(900 + version), "forwarddisplayname": f"Late {version}"}
        else:
            for _ in range(40 if version == 0 else chance.randrange(1, 6)):
                edit(table, chance)
        events += changes(version, before, table)
    columns = {name: [event[name] for event in events] for name in events[0]}
    pq.write_table(pa.table({**columns, "version": pa.array(columns["version"], pa.int64())}), file)
    return file


def edit(table: dict[int, Row], chance: random.Random) -> None:
    """One random edit."""
    key = chance.randrange(1, 80)
    if key not in table or chance.random() < 0.2:
        # Few names, so that rows share their texts; some have none, and so no vector.
        name = chance.choice(["", " ", "Ada", "Grace", "Ada", f"Name {chance.randrange(40)}"])
        dates = "" if not name.strip() else chance.choice(["", "born 1815", "1906 - 1992"])
        row = {"constituentid": str(key), "forwarddisplayname": name, "displaydate": dates, "nationality": "British"}
        table[key] = {**row, "beginyear": chance.choice(["", "1815"]), "endyear": ""}
    elif chance.random() < 0.4:
        table[key] = {**table[key], "nationality": chance.choice(["", "American", 'Danish, born "Köln"'])}
    elif chance.random() < 0.5 and len(table) > 20:
        del table[key]
    else:
        other = chance.choice(sorted(table))
        swapped = ("forwarddisplayname", "displaydate")
        mine, theirs = ({name: table[k].get(name, "") for name in swapped} for k in (key, other))
        table[key], table[other] = {**table[key], **theirs}, {**table[other], **mine}


def changes(version: int, before: dict[int, Row], after: dict[int, Row]) -> list[dict[str, Any]]:
    """The events that lead from one version to the next."""
    found: list[dict[str, Any]] = []
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            op = "D" if key not in after else "U" if key in before else "I"
            row = json.dumps(after[key]) if key in after else None
            found.append({"version": version, "commit": "0" * 12, "op": op, "key": str(key), "row": row})
    return found


def over(server: OpenAIServer, folder: Path) -> Pipeline:
    """The replay's pipeline with an embedder that counts what it is paid for."""
    embedder = {"kind": "openai", "model": "text-embedding-3-small", "dimensions": 32, "base_url": server.url}
    return written_pipeline(folder / "artifacts", embedder)


@pytest.fixture
def at_home(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own database and home; its folder."""
    monkeypatch.setenv("ROWVEC_DATABASE_URL", database_url)
    monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return tmp_path


@pytest.mark.parametrize(("seed", "every"), [pytest.param(1, 1, marks=pytest.mark.soak), (2, 3)])
def test_each_step_is_right_and_nothing_is_paid_twice(
    seed: int, every: int, connection: Connection, at_home: Path
) -> None:
    steps = read_steps(history(seed, at_home / "events.parquet"), every=every)
    with serve(key=KEY) as server:
        reports: list[SyncReport] = []
        outcome = replay(connection, over(server, at_home), steps, lambda _, report: reports.append(report))
        assert outcome.embedded == outcome.distinct == len(server.paid) == len(set(server.paid))
    assert outcome.steps == len(steps) == -(-VERSIONS // every)
    assert outcome.refused == (1 if every == 1 else 0)
    assert outcome.reused > 0
    assert ambiguous(connection) == 0
    if every == 1:
        restored, back = reports[RESTORED], reports[TURNED_BACK]
        assert (restored.embedded, restored.new) == (0, reports[DROPPED].deleted)
        assert (back.embedded, back.changed > 0) == (0, True)


def test_each_step_is_right_by_a_queue_of_changes(connection: Connection, at_home: Path) -> None:
    steps = read_steps(history(6, at_home / "events.parquet"), every=3)
    pipeline = written_pipeline(at_home / "artifacts", {"kind": "local", "dimensions": 64}, queued=True)
    outcome = replay(connection, pipeline, steps)
    # The first step loads the table.
    assert (outcome.steps, outcome.by_queue) == (3, 2)


def test_several_versions_at_a_time_end_where_one_at_a_time_does(tmp_path: Path) -> None:
    file = history(4, tmp_path / "events.parquet")

    def end(steps: list[Step]) -> dict[int, str]:
        rows: dict[int, str] = {}
        for step in steps:
            rows = {key: row for key, row in rows.items() if key not in step.drop} | step.put
        return rows

    assert end(read_steps(file, every=5)) == end(read_steps(file)) == end(read_steps(file, every=100))
    assert [step.version for step in read_steps(file, every=4, versions=7)] == [3, 6]


@pytest.mark.parametrize(
    "tamper",
    [
        "UPDATE vectors.constituents SET content = content || '.' WHERE constituentid = 1000",
        "UPDATE vectors.constituents SET beginyear = 1 WHERE constituentid = 1000",
        "UPDATE vectors.constituents SET nationality = NULL WHERE constituentid = 1000",
        "DELETE FROM vectors.constituents WHERE constituentid = 1000",
        "UPDATE vectors.constituents SET constituentid = 1000 WHERE constituentid = 1001;"
        "DELETE FROM public.constituents WHERE constituentid IN (1000, 1001)",
    ],
)
def test_the_comparison_sees_what_is_wrong(tamper: str, connection: Connection, at_home: Path) -> None:
    row = '{"constituentid": "%s", "forwarddisplayname": "Ada", "nationality": "British", "beginyear": "1815"}'
    pipeline = written_pipeline(at_home / "artifacts", {"kind": "local", "dimensions": 64})
    keys = (1001, 1002) if "1001" in tamper else (1000, 1002)
    replay(connection, pipeline, [Step(version=0, put={key: row % key for key in keys}, drop=frozenset())])
    assert wrong_rows(connection) == []
    connection.execute(tamper.encode())
    assert wrong_rows(connection) == [1000]


def test_a_text_that_is_paid_twice_is_noticed(connection: Connection, at_home: Path) -> None:
    """With the ledger's memory of what was paid for wiped between two steps, as nobody should, the sums differ."""

    def forget(step: Step, _report: SyncReport) -> None:
        if step.version == DROPPED:
            connection.execute("DELETE FROM rowvec.embeddings")

    steps = read_steps(history(5, at_home / "events.parquet"))
    with serve(key=KEY) as server, pytest.raises(ReplayFailed, match=f"version {RESTORED}: .* texts embedded so far"):
        replay(connection, over(server, at_home), steps[: RESTORED + 1], forget)
