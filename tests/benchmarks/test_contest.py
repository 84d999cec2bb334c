"""What benchmarks/sync.py and faults.py say of a syncer: its wrong rows, its bill, its verdict; and rowvec as one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.faults import Outcome, Scene, lost, new_text
from benchmarks.provider import Account, Bill, serving
from benchmarks.sync import Measured, compare
from benchmarks.syncers import Ended, Place, Running, syncers
from benchmarks.texts import REVISIONS, Held, Wrong, change, delete, fill, read_texts, wrong_rows
from rowvec.postgres.connection import Connection
from tests.support.cli_process import PrefectServer

ROWS = 300
HELD = Held(table="public.held", id="key::bigint")
NONE = Wrong(missing=0, stale=0, orphaned=0, doubled=0)


@pytest.fixture
def table(connection: Connection) -> Connection:
    """The source, and a syncer's table that is right."""
    fill(connection, read_texts(None, "", ROWS), 8, later=[new_text(0)])
    connection.execute(
        "CREATE TABLE public.held AS SELECT t.id::text AS key, v.embedding "
        "FROM public.texts AS t JOIN contest.vectors AS v USING (content)"
    )
    return connection


def test_a_table_in_step_has_no_wrong_rows(table: Connection) -> None:
    assert wrong_rows(table, HELD) == NONE


def test_each_way_to_be_wrong_is_counted_once_a_row(table: Connection) -> None:
    table.execute("DELETE FROM public.held WHERE key IN ('1', '2')")
    table.execute(
        "UPDATE public.held SET embedding = (SELECT embedding FROM public.held WHERE key = '9') "
        "WHERE key IN ('3', '4', '5')"
    )
    table.execute("INSERT INTO public.held SELECT '9000', embedding FROM public.held WHERE key = '9'")
    table.execute("INSERT INTO public.held SELECT key, embedding FROM public.held WHERE key IN ('11', '12')")
    # The right vector and a wrong one: a search may meet the wrong one.
    table.execute("INSERT INTO public.held SELECT '13', embedding FROM public.held WHERE key = '9'")
    table.execute("UPDATE public.held SET embedding = NULL WHERE key = '14'")
    assert wrong_rows(table, HELD) == Wrong(missing=2, stale=5, orphaned=1, doubled=2)


def test_a_syncer_without_a_table_misses_every_row(table: Connection) -> None:
    found = wrong_rows(table, Held(table="public.nowhere", id="key::bigint"))
    assert found == Wrong(missing=ROWS, stale=0, orphaned=0, doubled=0)


def test_every_edit_touches_other_rows_and_has_its_vectors(table: Connection) -> None:
    changed = [change(table, number) for number in range(REVISIONS)]
    deleted = [delete(table, number) for number in range(REVISIONS)]
    assert changed == deleted == [ROWS // 100] * REVISIONS
    assert wrong_rows(table, HELD) == Wrong(missing=0, stale=sum(changed), orphaned=sum(deleted), doubled=0)


def test_a_row_that_cannot_be_embedded_is_not_expected(table: Connection) -> None:
    table.execute("INSERT INTO public.texts VALUES (9001, 'no vector is known'), (9002, %s)", (new_text(0),))
    assert wrong_rows(table, HELD) == Wrong(missing=1, stale=0, orphaned=0, doubled=0)


def test_made_up_texts_repeat_as_the_real_ones_do() -> None:
    texts = read_texts(None, "", 7_000)
    assert len(set(texts)) == 6_000


def test_ratios_are_medians_of_what_was_measured_in_the_same_repeat() -> None:
    measured = [
        sync("rowvec", 0, 2.0), sync("rowvec", 1, 4.0), sync("rowvec", 2, 1.0),
        sync("other", 0, 10.0), sync("other", 1, 12.0), sync("other", 2, 9.0),
        sync("failed", 0, 1.0, status=1),
    ]  # fmt: skip
    assert compare(measured) == {"unchanged x other": 5.0}


def sync(syncer: str, number: int, seconds: float, status: int = 0) -> Measured:
    return Measured(
        syncer=syncer,
        phase="unchanged",
        number=number,
        seconds=seconds,
        cpu_seconds=seconds,
        status=status,
        output="",
        bill=Bill(),
        wrong=NONE,
    )


@pytest.mark.parametrize(
    ("first", "then", "statuses", "verdict"),
    [
        (0, 0, (0, 0), "right"),
        (2, 0, (1, 0), "right after one more run"),
        (2, 0, (0, 0), "right after one more run, unsaid"),
        (2, 2, (1, 1), "wrong: 2 missing"),
        (2, 2, (1, 0), "wrong: 2 missing, unsaid"),
    ],
)
def test_a_verdict_says_whether_the_syncer_said_so(
    first: int, then: int, statuses: tuple[int, int], verdict: str
) -> None:
    outcome = Outcome(
        fault="poison row",
        syncer="other",
        befell=True,
        statuses=statuses,
        first=Wrong(missing=first, stale=0, orphaned=0, doubled=0),
        then=Wrong(missing=then, stale=0, orphaned=0, doubled=0),
        paid=12,
        distinct=10,
        output="",
    )
    assert (outcome.verdict, outcome.extra) == (verdict, 2)


def test_an_unknown_syncer_is_refused() -> None:
    with pytest.raises(SystemExit, match="there is no syncer 'nobody'"):
        syncers(["nobody"])


def test_a_command_over_its_limit_is_ended(tmp_path: Path) -> None:
    ended = Running(["sleep", "60"], {}, tmp_path / "log").wait(0.1)
    assert ended.status == -9


def once(scene: Scene) -> Ended:
    return scene.sync()


@pytest.mark.flow
@pytest.mark.soak
@pytest.mark.parametrize("part", [once, lost])
def test_rowvec_takes_part_and_comes_through_the_loss_of_its_folder(
    part: Callable[[Scene], Ended | None],
    connection: Connection,
    database_url: str,
    prefect_server: PrefectServer,
    tmp_path: Path,
) -> None:
    fill(connection, read_texts(None, "", ROWS), 8)
    account = Account(latency=0.0, latency_per_text=0.0)
    (syncer,) = syncers(["rowvec"])
    with serving(account) as provider:
        place = Place(
            database=database_url,
            base_url=provider.url,
            account=account,
            dimensions=8,
            state=tmp_path / "state",
            prefect_api=prefect_server.api,
        )
        syncer.prepare(place)
        scene = Scene(
            syncer=syncer, place=place, provider=provider, connection=connection, rows=ROWS, limit=100.0
        )  # fmt: skip
        ended = part(scene)
        bill = provider.bill()
    assert ended is not None, "the first sync failed"
    assert ended.status == 0, ended.output
    assert wrong_rows(connection, syncer.held) == NONE
    assert bill.paid == bill.distinct == len(set(read_texts(None, "", ROWS)))
