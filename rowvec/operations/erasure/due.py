"""The policy ``artifacts.erase_deleted_after``: which rows were deleted so long ago that their traces must go."""

from __future__ import annotations

from datetime import datetime

from psycopg import sql

from rowvec.operations.erasure.history import History
from rowvec.operations.erasure.presence import leave_out_present
from rowvec.operations.erasure.scan import load_artifact, load_entry
from rowvec.operations.erasure.work import Work
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.fragments import as_own_type, definitions, same_key
from rowvec.postgres.queries import query
from rowvec.store.manifest import Link


def add_due(work: Work, history: History, seconds: int) -> None:
    """Add to the scratch table ``erased`` the rows that were deleted at least ``seconds`` ago.

    A row was deleted when the first manifest without it was written. Spared are the rows that a manifest after that
    time names, as there or as deleted, and those that the live vector table had at that time. All others of which the
    store has a trace are due, unless they are in the source or in the live vector table by now.
    """
    connection = work.connection
    connection.execute(query("erasure", "make_due", columns=definitions(work.key)))
    ((before,),) = connection.execute(query("erasure", "cutoff", seconds=sql.Literal(seconds))).fetchall()
    for link in history.links.values():
        load_entry(work, link)
        block = "candidates_of_entry" if link.manifest.created_at <= before else "spare_entry"
        connection.execute(query("erasure", block, typed=_typed(work.key)))
    for link in _last_states(work, history, before):
        _spare_state(work, history, link)
    old = query("erasure", "old_artifacts", generations=work.ids_sql, before=sql.Literal(before))
    for (name,) in connection.execute(old).fetchall():
        if name in history.artifacts and load_artifact(work, history.artifacts[name]):
            connection.execute(query("erasure", "candidates_of_entry", typed=_typed(work.key)))
    connection.execute(query("erasure", "due", same_key=same_key(work.key, "c", "s")))
    connection.execute(query("erasure", "drop_due"))
    leave_out_present(work)


def _last_states(work: Work, history: History, before: datetime) -> list[Link]:
    """The manifests of the live vector table that were the newest at a time; usually one."""
    live = sql.SQL("{}::int[]").format(sql.Literal([work.live.pipeline_id]))
    rows = work.connection.execute(query("erasure", "manifests", generations=live)).fetchall()
    names = {name for (name,) in rows if name in history.links}
    earlier = [link for link in map(history.links.__getitem__, sorted(names)) if link.manifest.created_at <= before]
    followed = {name for link in earlier for name in (link.manifest.previous, *(link.manifest.follows or ()))}
    return [link for link in earlier if link.name not in followed]


def _spare_state(work: Work, history: History, newest: Link) -> None:
    """Spare the rows that the table had after this manifest's run: they were deleted later, if at all."""
    chain = [newest]
    while (before := history.links.get(chain[-1].manifest.previous or "")) is not None:
        chain.append(before)
    work.connection.execute(query("erasure", "empty_lately"))
    for link in reversed(chain):
        load_entry(work, link)
        same = same_key(work.key, "l", "s", cast_right=True)
        work.connection.execute(query("erasure", "leave_lately", same_key=same))
        work.connection.execute(query("erasure", "enter_lately", typed=_typed(work.key)))
    work.connection.execute(query("erasure", "spare_lately"))


def _typed(key: tuple[PgColumn, ...]) -> sql.Composed:
    return sql.SQL(", ").join(as_own_type(column, "s") for column in key)
