"""Random edits between syncs: after each sync the vector table agrees with the source, and no text is paid twice.

A few seeds run with the other tests, many in ``make soak``; a failure names its seed.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from tests.support import paintings as gallery
from tests.support.paintings import assert_in_step, sync
from tests.support.servers.openai_server import KEY, serve

WORDS = ("red", "green", "blue", "gold", "", " ", "same")


def edit(source: Connection, chance: random.Random) -> None:
    """Make one random change to the source, or to the vector table without rowvec."""
    some = [chance.randrange(60) for _ in range(chance.randrange(1, 6))]
    word = chance.choice(WORDS)
    match chance.randrange(8):
        case 0:
            source.execute(
                "INSERT INTO paintings SELECT i, %s, %s, 'a', i FROM unnest(%s::int[]) AS i ON CONFLICT DO NOTHING",
                (word, chance.choice(WORDS), some),
            )
        case 1:
            source.execute("UPDATE paintings SET title = %s WHERE id = ANY (%s)", (word, some))
        case 2:
            source.execute("UPDATE paintings SET author = %s WHERE id = ANY (%s)", (word, some))
        case 3:
            source.execute("DELETE FROM paintings WHERE id = ANY (%s)", (some[:2],))
        case 4:
            source.execute("UPDATE paintings SET title = NULL, description = NULL WHERE id = ANY (%s)", (some,))
        case 5:
            source.execute("UPDATE paintings SET id = id + 1000 * (1 + id / 1000) WHERE id = %s", (some[0],))
        case 6:
            source.execute(
                "UPDATE paintings AS p SET title = o.title, description = o.description FROM paintings AS o"
                " WHERE (p.id, o.id) IN ((%(a)s, %(b)s), (%(b)s, %(a)s))",
                {"a": some[0], "b": some[-1]},
            )
        case _:
            source.execute("DELETE FROM vectors.paintings WHERE id = ANY (%s)", (some[:3],))


def play(seed: int, source: Connection, paintings: Pipeline, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run several rounds of edits and a sync."""
    chance = random.Random(seed)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(key=KEY) as server:
        paid = gallery.pipeline(
            str(folder / "artifacts"),
            embedder={"kind": "openai", "model": "m", "dimensions": 32, "base_url": server.url, "max_batch_inputs": 3},
            validation={"max_delete_fraction": 1.0},
        )
        sync(paid)
        for _ in range(chance.randrange(2, 6)):
            for _ in range(chance.randrange(1, 8)):
                edit(source, chance)
            report = sync(paid)
            assert (report.consistent, report.pending) == (True, 0)
            assert_in_step(source)
        assert len(server.paid) == len(set(server.paid))


@pytest.mark.parametrize("seed", range(3))
def test_the_table_is_what_the_source_says(
    seed: int, source: Connection, paintings: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(seed, source, paintings, tmp_path, monkeypatch)


@pytest.mark.soak
@pytest.mark.parametrize("seed", [3, 4, 5, *range(100, 400)])
def test_soak_the_table_is_what_the_source_says(
    seed: int, source: Connection, paintings: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(seed, source, paintings, tmp_path, monkeypatch)
