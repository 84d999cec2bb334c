"""The writes of a merge: all rows at once, or, if the database refuses a row for its data, all rows but that one."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg import sql

from rowvec.ledger.generations import hide_until_switch
from rowvec.ledger.journal import unrecorded
from rowvec.ledger.plans import Plan
from rowvec.ledger.rejects import add_not_removed, add_refused
from rowvec.postgres.connection import Connection
from rowvec.postgres.fragments import as_own_type, is_exact, key_json, names, same_key
from rowvec.postgres.isolation import ALL_OF, Isolation, Refusal, StoredRows, Stretch, refusal_of
from rowvec.postgres.queries import query
from rowvec.postgres.tables.citus import distribute
from rowvec.postgres.tables.create import create_table
from rowvec.postgres.tables.partitions import make_missing
from rowvec.postgres.vector_table import VectorTable, count_rows
from rowvec.stages.extract.limits import is_long, many_words
from rowvec.stages.extract.protocol import LiveRows

_EVERY_ROW = sql.SQL("true")
_SOME = 2
"""If the vector table would stay empty because these rows or more are refused, the table itself is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """How many rows of the vector table the merge wrote or deleted."""

    upserted: int = 0
    updated: int = 0
    """Rows whose metadata alone was written."""
    deleted: int = 0


def write(connection: Connection, plan: Plan, live: LiveRows) -> Written:
    """Write the plan's rows and delete what the source does not have any more; in the merge's transaction.

    A row that the database refuses for its data goes to the rejects, and its old version is deleted. If that is refused
    too, the rejects say that the row is outdated. Raises ``TargetError`` if the database refuses all of many rows, or
    more than ``isolation.MOST_REFUSED``, and what the database raises for another reason than the data of a row.
    """
    if plan.batches:
        make_missing(connection, plan.table, plan.staging)
    try:
        with connection.transaction():
            # Write the replacements first: the rows deleted afterwards have none.
            upserted = _upsert(connection, plan, _EVERY_ROW) if plan.batches else 0
            updated = _update_metadata(connection, plan, query("merge", "only_metadata"))
            written = Written(upserted=upserted, updated=updated, deleted=live.delete_gone())
            connection.execute(query("merge", "check_constraints"))
            return written
    except psycopg.Error as error:
        if refusal_of(error) is None:
            raise
    return _Apart(connection, plan).write(live)


def publish_rows(connection: Connection, plan: Plan) -> int:
    """A first load: the staging table gets its key and becomes the vector table; returns its rows.

    If a row does not fit, such as a key that is too long for an index, the others are copied into a new table.
    """
    try:
        with connection.transaction():
            publish(connection, plan.table, plan.staging)
    except psycopg.Error as error:
        if refusal_of(error) is None:
            raise
        create_table(connection, plan.table)
        distribute(connection, plan.table)
        hide_until_switch(connection, plan.table.schema, plan.table.name)
        make_missing(connection, plan.table, plan.staging)
        _Apart(connection, plan).upsert()
        connection.execute(query("merge", "analyze_table", table=plan.table.identifier))
    return count_rows(connection, plan.table)


def publish(connection: Connection, table: VectorTable, staging: sql.Identifier) -> None:
    """Give a loaded table (in the schema ``rowvec``) its key and make it the vector table; in a transaction.

    If the vector table is split, the rows are copied into its partitions.
    """
    if table.partition_by is not None:
        _fill_partitions(connection, table, staging)
        return
    connection.execute(query("merge", "primary_key", staging=staging, key=names(table.key)))
    # Into its schema first: there no other table has its name, and the ledger's may.
    connection.execute(query("merge", "publish_schema", staging=staging, schema=sql.Identifier(table.schema)))
    moved = sql.Identifier(table.schema, staging.as_string().rpartition(".")[2].strip('"'))
    connection.execute(query("merge", "publish", staging=moved, name=sql.Identifier(table.name)))
    distribute(connection, table)
    hide_until_switch(connection, table.schema, table.name)
    connection.execute(query("merge", "analyze_table", table=table.identifier))


def _fill_partitions(connection: Connection, table: VectorTable, staging: sql.Identifier) -> None:
    create_table(connection, table)
    hide_until_switch(connection, table.schema, table.name)
    make_missing(connection, table, staging)
    parts = {"columns": names(table.columns), "staging": staging}
    connection.execute(query("partitions", "fill", table=table.identifier, **parts))
    connection.execute(query("merge", "drop", table=staging))
    connection.execute(query("merge", "analyze_table", table=table.identifier))


def refuse_many_words(connection: Connection, plan: Plan, language: str) -> bool:
    """Before the index of words is built: reject the rows that it has no room for; whether there are any.

    Rows that come later are looked at by ``extract.limits``, and by the index itself.
    """
    table = plan.table
    key, long = names(table.key, "s"), is_long("content")
    connection.execute(query("limits", "wordy", key=key, table=table.identifier, long=long))
    rows = StoredRows(connection=connection, table=sql.Identifier("pg_temp", "wordy"), which=_EVERY_ROW)
    found = many_words(connection, rows, language)
    apart = _Apart(connection, plan)
    for part, refusal in found:
        add_refused(connection, apart.whose, (rows.table, rows.within(part)), refusal)
    if found:
        parts = {"pipeline_id": sql.Literal(plan.pipeline_id), "run_id": sql.Literal(plan.run_id)}
        apart.delete(query("limits", "wordy_keys", key=key, key_json=key_json(table.key, "s"), **parts))
    connection.execute(query("limits", "drop_wordy"))
    return bool(found)


class _Apart:
    """The same writes with the rows at fault kept apart."""

    def __init__(self, connection: Connection, plan: Plan) -> None:
        self._connection, self._plan = connection, plan
        self._table = plan.table
        self._name = f"{plan.table.schema}.{plan.table.name}"
        self.whose = (sql.Literal(plan.pipeline_id), plan.run_id, plan.table.key)

    def write(self, live: LiveRows) -> Written:
        """See ``write``. A deferred constraint speaks at once, because a COMMIT does not say which row it refuses."""
        plan = self._plan
        self._connection.execute(query("merge", "check_constraints"))
        # First what is gone: a unique value of the user's own becomes free for another row.
        deleted = self.delete(live.gone())
        upserted, left = self.upsert() if plan.batches else (0, [])
        updated, refused = self._update_metadata()
        upserted += self._again(left)
        if refused:
            self._displace()
        deleted += self.delete(live.outdated()) + self.delete(self._refused_versions())
        upserted += self._again(left)
        put_back = self._put_back() if refused else 0
        return Written(upserted=upserted, updated=updated + put_back, deleted=deleted - put_back)

    def upsert(self) -> tuple[int, list[Stretch]]:
        """Write the staged rows; returns the number of rows that the database took, and those that it refused."""
        rows = StoredRows(connection=self._connection, table=self._plan.staging, which=_EVERY_ROW)
        isolation = Isolation(self._connection, self._name)
        found = isolation.isolate(
            rows.all(), lambda part: _upsert(self._connection, self._plan, rows.within(part)), rows.halves
        )
        self._reject(isolation, rows, found)
        return isolation.taken, [part for part, _ in found]

    def _again(self, left: list[Stretch]) -> int:
        """Try refused rows again, because others have given up what they need meanwhile; ``left`` loses those taken."""
        rows = StoredRows(connection=self._connection, table=self._plan.staging, which=_EVERY_ROW)
        isolation = Isolation(self._connection, self._name, may_refuse_all=True)
        refused = [
            part
            for each in left
            for part, _ in isolation.isolate(
                each, lambda part: _upsert(self._connection, self._plan, rows.within(part)), rows.halves
            )
        ]
        left[:] = refused
        return isolation.taken

    def _update_metadata(self) -> tuple[int, int]:
        """Returns the number of rows that the database took, and of those that it refused."""
        which = query("merge", "only_metadata")
        rows = StoredRows(connection=self._connection, table=self._plan.rows, which=which)
        isolation = Isolation(self._connection, self._name)
        found = isolation.isolate(
            rows.all(), lambda part: _update_metadata(self._connection, self._plan, rows.within(part)), rows.halves
        )
        self._reject(isolation, rows, found)
        return isolation.taken, len(found)

    def _displace(self) -> None:
        """Keep what the rows should become whose metadata was refused: their old versions will be deleted."""
        plan, table = self._plan, self._table
        from_plan = {column.name for column in (*table.key, *table.metadata)} | {"metadata_hash"}
        columns = (sql.Identifier("s" if c.name in from_plan else "t", c.name) for c in table.columns)
        statement = query(
            "merge",
            "displace",
            columns=sql.SQL(", ").join(columns),
            plan=plan.rows,
            same_key_live=same_key(table.key, "l", "s"),
            pipeline_id=sql.Literal(plan.pipeline_id),
            run_id=sql.Literal(plan.run_id),
            key_json=key_json(table.key, "s"),
            table=table.identifier,
            same_key=same_key(table.key, "t", "s"),
            only_metadata=query("merge", "only_metadata"),
        )
        self._connection.execute(statement)

    def _put_back(self) -> int:
        """Write displaced rows with their new metadata, now that no old version stands in their way; their number."""
        connection, table = self._connection, self._table
        rows = StoredRows(connection=connection, table=sql.Identifier("pg_temp", "displaced"), which=_EVERY_ROW)
        isolation = Isolation(connection, self._name, may_refuse_all=True)

        def insert(part: Stretch) -> int:
            parts = {"table": table.identifier, "columns": names(table.columns), "within": rows.within(part)}
            return connection.execute(query("merge", "put_back", **parts)).rowcount

        isolation.isolate(rows.all(), insert, rows.halves)
        return isolation.taken

    def _reject(self, isolation: Isolation, rows: StoredRows, found: list[tuple[Stretch, Refusal]]) -> None:
        if found:
            few = ALL_OF if count_rows(self._connection, self._table) else _SOME
            isolation.check_all(found[-1][1], few=few)
        for part, refusal in found:
            add_refused(self._connection, self.whose, (rows.table, rows.within(part)), refusal)

    def delete(self, keys: sql.Composed) -> int:
        """Delete rows of the vector table by their keys; those that the database keeps are recorded as outdated."""
        connection, table = self._connection, self._table
        connection.execute(query("merge", "condemn", keys=keys))
        rows = StoredRows(connection=connection, table=sql.Identifier("pg_temp", "condemned"), which=_EVERY_ROW)
        # Whatever is refused here is still in the table, so the run fails in any case: what can go, goes.
        isolation = Isolation(connection, self._name, may_refuse_all=True)

        def delete(part: Stretch) -> int:
            parts = {"within": rows.within(part), "same_key": same_key(table.key, "s", "t")}
            statement = query(
                "merge",
                "delete_condemned",
                table=table.identifier,
                key=names(table.key, "t"),
                columns=names(table.key),
                unrecorded=unrecorded(self._plan.pipeline_id),
                **parts,
            )
            return connection.execute(statement).rowcount

        for part, refusal in isolation.isolate(rows.all(), delete, rows.halves):
            add_not_removed(connection, self.whose, (rows.table, rows.within(part)), refusal)
        connection.execute(query("merge", "spare"))
        return isolation.taken

    def _refused_versions(self) -> sql.Composed:
        plan, table = self._plan, self._table
        return query(
            "merge",
            "refused_versions",
            key=names(table.key, "t"),
            plan=plan.rows,
            pipeline_id=sql.Literal(plan.pipeline_id),
            run_id=sql.Literal(plan.run_id),
            key_json=key_json(table.key, "p"),
            table=table.identifier,
            same_key=same_key(table.key, "p", "t"),
        )


def _upsert(connection: Connection, plan: Plan, within: sql.Composable) -> int:
    table = plan.table
    others = [c for c in table.columns if c not in table.key or not is_exact(c)]
    statement = query(
        "merge",
        "upsert",
        table=table.identifier,
        columns=names(table.columns),
        staged_columns=sql.SQL(", ").join(as_own_type(c, "s") for c in table.columns[:-2]),
        run_id=sql.Literal(plan.run_id),
        staging=plan.staging,
        within=within,
        key=names(table.key),
        assignments=sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(c.name)) for c in others),
    )
    return connection.execute(statement).rowcount


def _update_metadata(connection: Connection, plan: Plan, within: sql.Composable) -> int:
    table = plan.table
    written = (*(c for c in table.key if not is_exact(c)), *table.metadata)
    assigned = (sql.SQL("{0} = s.{0}, ").format(sql.Identifier(c.name)) for c in written)
    statement = query(
        "merge",
        "update_metadata",
        table=table.identifier,
        assignments=sql.SQL("").join(assigned),
        plan=plan.rows,
        within=within,
        same_key_live=same_key(table.key, "l", "s"),
        same_key=same_key(table.key, "t", "s"),
    )
    return connection.execute(statement).rowcount
