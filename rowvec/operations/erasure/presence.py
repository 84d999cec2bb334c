"""Whether the source still has rows of an erasure: they would leave new traces with the next sync."""

from __future__ import annotations

import numpy as np
from psycopg import sql

from rowvec.errors import UsageError
from rowvec.operations.erasure.keys import erased_digests, has_key, is_reject, path_of
from rowvec.operations.erasure.work import Work
from rowvec.postgres.fragments import key_digest, key_json, same_key
from rowvec.postgres.queries import query
from rowvec.runtime.figures import counted
from rowvec.sources.hash_stream import pack_digests, unpack_digests
from rowvec.sources.postgres import is_in_target_database, relation_of
from rowvec.stages.extract.hashed_source import open_hashed_source


def refuse_present(work: Work) -> None:
    """Raise ``UsageError`` if a row of the scratch table ``erased`` is in the source or in the live vector table."""
    connection, pipeline = work.connection, work.pipeline
    found = _in_source(work)
    if found:
        raise UsageError(
            f"the source still has {found[0]}, and the next sync would embed it again: delete the row from the source, "
            "run rowvec sync, and then run rowvec forget; nothing was erased"
        )
    for table in work.tables():
        if table.is_live:
            wanted = {"has_key": has_key(work.key, table.types), "key_json": key_json(work.key, "s")}
            rows = connection.execute(query("erasure", "rows_there", relation=table.name, **wanted)).fetchall()
            _refuse_synced(rows, table.shown)
    rejected = query(
        "erasure",
        "rejects_there",
        pipeline_id=sql.Literal(work.live.pipeline_id),
        is_reject=is_reject(work.key),
    )
    _refuse_synced(connection.execute(rejected).fetchall(), f"the list of rejected rows of {pipeline.name}")


def leave_out_present(work: Work) -> None:
    """Take the rows out of the scratch table ``erased`` that the source, or the live vector table, has by now."""
    connection, source = work.connection, work.pipeline.source
    relations: list[sql.Composable] = [table.name for table in work.tables() if table.is_live]
    if source.kind == "postgres" and is_in_target_database(work.pipeline):
        relations.append(relation_of(source))
    else:
        present = {"digest": key_digest(work.key), "digests": sql.Literal(list(_present_digests(work)))}
        connection.execute(query("erasure", "leave_out_digests", **present))
    for relation in relations:
        same = same_key(work.key, "e", "s", cast_right=True)
        connection.execute(query("erasure", "leave_out", relation=relation, same_key=same))
    rejected = query(
        "erasure",
        "leave_out_rejects",
        pipeline_id=sql.Literal(work.live.pipeline_id),
        key_json=key_json(work.key, "e"),
        path=path_of(work.key),
    )
    connection.execute(rejected)


def refuse_unsettled(work: Work) -> None:
    """Raise ``UsageError`` if texts are paid for or at a provider that belong to a run which has not merged them.

    Nobody can tell whose texts they are. Call it after ``scan``.
    """
    parts = {"generations": work.ids_sql}
    unneeded = query("erasure", "unneeded")
    for sentence, statement in (
        (
            ("texts are paid for, and no run has merged them", "text is paid for, and no run has merged it"),
            query("erasure", "unmerged_answers", unneeded=unneeded, **parts),
        ),
        (
            ("batch jobs are at the provider", "batch job is at the provider"),
            query("erasure", "unfinished_jobs", **parts),
        ),
    ):
        row = work.connection.execute(statement).fetchone()
        if row and row[0]:
            raise UsageError(
                f"{counted(row[0], *sentence)}, so nobody can tell whose texts these are: run rowvec sync FILE until "
                "it succeeds (or rowvec rebuild FILE, if a rebuild is unfinished), and then run rowvec forget; nothing "
                "was erased"
            )


def _in_source(work: Work) -> list[str]:
    source = work.pipeline.source
    if source.kind == "postgres" and is_in_target_database(work.pipeline):
        wanted = {"has_key": has_key(work.key), "key_json": key_json(work.key, "s")}
        rows = work.connection.execute(
            query("erasure", "rows_there", relation=relation_of(source), **wanted)
        ).fetchall()
        return [f"the row {key}" for (key,) in rows]
    count = len(_present_digests(work))
    return [counted(count, "of these rows", "of these rows")] if count else []


def _present_digests(work: Work) -> set[bytes]:
    """The digests of the keys to erase that a source outside the target's database has: all of its rows are hashed."""
    digests = erased_digests(work.connection, work.key)
    wanted = pack_digests(sorted(digests))[:, 0]
    found: set[bytes] = set()
    if digests:
        with open_hashed_source(work.connection, work.pipeline, work.live.identity) as opened:
            for block in opened.pairs():
                found.update(unpack_digests(block.digest[np.isin(block.digest[:, 0], wanted)]))
    return found & digests


def _refuse_synced(rows: list[tuple[str]], where: str) -> None:
    if rows:
        raise UsageError(
            f"{where} still has the row {rows[0][0]}: run rowvec sync, which removes what the source no longer has, "
            "and then run rowvec forget; nothing was erased"
        )
