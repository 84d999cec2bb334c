"""A vector table that is split into partitions, through every command."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from psycopg import sql
from pydantic import ValidationError

from rowvec.errors import TargetError, UsageError
from rowvec.operations.audit import audit
from rowvec.operations.index import maintain
from rowvec.operations.names import adopt
from rowvec.operations.prune import prune
from rowvec.operations.repair import prepare_repair
from rowvec.operations.restore import finish_restore, restore_rows, restoring
from rowvec.operations.search import search
from rowvec.operations.switch import retire_for_good
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.tables import partitions as module
from tests.support.paintings import pipeline, rebuild, sync

SOURCE = "CREATE TABLE letters (tenant text, id int, body text, year int)"
HASH = {"columns": ["tenant"], "kind": "hash", "partitions": 3}
HOSTILE = (
    "it's",
    'say "no"',
    "back\\slash",
    "two\nlines",
    "100%s",
    "{tenant}",
    "'); DROP TABLE letters; --",
    "ü" * 900,
    "",
)


def letters(tmp_path: Any, partition_by: Any = ("tenant",), **parts: Any) -> Pipeline:
    """A pipeline over ``letters``."""
    written: dict[str, Any] = {
        "source": {
            "kind": "postgres",
            "table": "public.letters",
            "key": ["tenant", "id"],
            "content": "{body}",
            "metadata": ["year"],
        },
        "target": {"table": "vectors.letters", "partition_by": partition_by},
        "validation": {"max_delete_fraction": 1},
    }
    for part, changes in parts.items():
        written[part] = {**written.get(part, {}), **changes}
    return pipeline(str(tmp_path / "artifacts"), **written)


def write(connection: Connection, tenant: str | None, *ids: int) -> None:
    for id_ in ids:
        values = (tenant, id_, f"Letter {id_} of the year {1900 + id_}", 1900 + id_)
        connection.execute("INSERT INTO letters VALUES (%s, %s, %s, %s)", values)


def partitions(connection: Connection, table: str = "vectors.letters") -> dict[str, str]:
    """The name of each partition, by its bound."""
    found = connection.execute(
        "SELECT pg_get_expr(c.relpartbound, c.oid), c.oid::regclass::text FROM pg_inherits AS i"
        " JOIN pg_class AS c ON c.oid = i.inhrelid WHERE i.inhparent = to_regclass(%s)",
        (table,),
    )
    return dict(found.fetchall())


def tenants(connection: Connection) -> list[str]:
    """The tenants that have a partition."""
    return sorted(bound.removeprefix("FOR VALUES IN ('").removesuffix("')") for bound in partitions(connection))


def assert_in_step(connection: Connection) -> None:
    """Each letter is in the vector table, and nothing else is, judged by plain SQL."""
    wrong = connection.execute(
        "SELECT s.id, t.id FROM (SELECT * FROM letters WHERE tenant IS NOT NULL) AS s"
        " FULL JOIN vectors.letters AS t ON (s.tenant, s.id) = (t.tenant, t.id)"
        " WHERE (s.body, s.year) IS DISTINCT FROM (t.content, t.year)"
    )
    assert wrong.fetchall() == []


@pytest.fixture
def mail(source: Connection) -> Connection:
    """A database with the letters of two tenants."""
    source.execute(SOURCE)
    write(source, "ada", 1, 2, 3)
    write(source, "bob", 4, 5)
    return source


def test_a_tenant_gets_a_partition_with_its_first_row_and_loses_it_with_its_last(
    mail: Connection, tmp_path: Any
) -> None:
    by_tenant = letters(tmp_path)
    assert sync(by_tenant).consistent
    assert tenants(mail) == ["ada", "bob"]
    write(mail, "cleo", 6)
    # A NULL is in no partition: a key has none.
    write(mail, None, 7)
    mail.execute("UPDATE letters SET tenant = 'dora' WHERE tenant = 'bob'")
    report = sync(by_tenant)
    # A row that moves to another tenant is another row with the same text, which is not paid for again.
    assert (report.new, report.deleted, report.embedded, report.rejected, report.consistent) == (3, 2, 1, 1, True)
    assert tenants(mail) == ["ada", "cleo", "dora"]
    assert_in_step(mail)


def test_what_a_tenant_is_called_is_data(mail: Connection, tmp_path: Any) -> None:
    for number, tenant in enumerate(HOSTILE):
        write(mail, tenant, number)
    by_tenant = letters(tmp_path)
    sync(by_tenant)
    made = partitions(mail)
    assert len(made) == 2 + len(HOSTILE)
    assert all(name.startswith("vectors.letters_part_") for name in made.values())
    # The values are read again as they were written: the next run makes no partition, and drops none.
    write(mail, HOSTILE[0], 100)
    assert sync(by_tenant).consistent
    assert partitions(mail) == made
    assert_in_step(mail)
    found = search(by_tenant, "a letter", 5, where="tenant = 'it''s'")
    assert {hit.key["tenant"] for hit in found} == {"it's"}


def test_a_reader_is_not_blocked_and_blocks_no_run(mail: Connection, direct_url: str, tmp_path: Any) -> None:
    by_tenant = letters(tmp_path)
    sync(by_tenant)
    write(mail, "cleo", 6)
    mail.execute("DELETE FROM letters WHERE tenant = 'bob'")
    with connect(direct_url) as reader, reader.transaction():
        reader.execute("SELECT FROM vectors.letters")
        assert sync(by_tenant).consistent
        # The partition of bob can only be dropped by somebody who has the table for itself.
        assert tenants(mail) == ["ada", "bob", "cleo"]
    assert sync(by_tenant).consistent
    assert tenants(mail) == ["ada", "cleo"]


@pytest.mark.needs("a superuser", "the test makes roles")
@pytest.mark.parametrize("split", [HASH, pytest.param(None, marks=pytest.mark.soak)])
def test_row_level_security_holds_through_every_command(mail: Connection, tmp_path: Any, split: Any) -> None:
    if not mail.execute("SELECT FROM pg_roles WHERE rolname = 'reader_of_ada'").fetchall():
        mail.execute("CREATE ROLE reader_of_ada")
    by_tenant = letters(tmp_path)
    sync(by_tenant)
    mail.execute("ALTER TABLE vectors.letters ENABLE ROW LEVEL SECURITY")
    mail.execute("CREATE POLICY own ON vectors.letters TO reader_of_ada USING (tenant = 'ada')")
    schemas = sql.SQL(", ").join(map(sql.Identifier, ("vectors", str(mail.names.pgvector))))
    mail.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO reader_of_ada").format(schemas))
    mail.execute("ALTER DEFAULT PRIVILEGES IN SCHEMA vectors GRANT SELECT ON TABLES TO reader_of_ada")
    # This includes the partitions, as people write it.
    mail.execute("GRANT SELECT ON ALL TABLES IN SCHEMA vectors TO reader_of_ada")

    def check(readable: int) -> None:
        with mail.transaction(force_rollback=True):
            names = list(partitions(mail).values())
            mail.execute("SET LOCAL ROLE reader_of_ada")
            assert mail.execute("SELECT DISTINCT tenant FROM vectors.letters").fetchall() == [("ada",)]
            found = mail.execute(
                "SELECT DISTINCT tenant FROM vectors.letters_search(array_fill(0.1::real, ARRAY[64])::vector, 100)"
            )
            assert found.fetchall() == [("ada",)]
            may = [
                n for n in names if mail.execute("SELECT has_table_privilege(%s, 'SELECT')", (n,)).fetchone() == (True,)
            ]
            assert len(may) == readable
            for name in may:
                shown = sql.SQL("SELECT FROM {}").format(sql.Identifier(*name.split(".")))
                assert mail.execute(shown).fetchall() == []

    check(readable=2)
    write(mail, "cleo", 6)
    sync(by_tenant)
    # Nobody was granted anything on the new one: the default privileges are for tables.
    check(readable=2)
    mail.execute("CREATE INDEX by_year ON vectors.letters (year)")
    changed = letters(tmp_path, split)
    with pytest.raises(TargetError, match=r"is partitioned by list of tenant, the pipeline wants .* rowvec rebuild"):
        sync(changed)
    assert rebuild(changed).consistent
    assert (
        len([bound for bound in partitions(mail) if "modulus 3" in bound])
        == len(partitions(mail))
        == (3 if split else 0)
    )
    indexed = mail.execute("SELECT indexdef FROM pg_indexes WHERE tablename = 'letters' AND indexname = 'by_year'")
    only = "ONLY " if split else ""
    assert indexed.fetchall() == [(f"CREATE INDEX by_year ON {only}vectors.letters USING btree (year)",)]
    check(readable=0)
    retire_for_good(changed)
    left = mail.execute("SELECT FROM pg_class WHERE relname LIKE 'letters\\_part%%' AND relkind = 'r'")
    assert left.fetchall() == []


@pytest.mark.needs("a superuser", "rowvec creates the schema of its ledger again")
def test_tables_are_restored_audited_repaired_and_adopted_with_their_partitions(
    mail: Connection, tmp_path: Any
) -> None:
    by_tenant = letters(tmp_path, index={"kind": "hnsw"})
    before = sync(by_tenant)
    mail.execute("DROP TABLE vectors.letters")
    mail.execute("DROP SCHEMA rowvec CASCADE")
    with restoring(by_tenant) as started:
        restored = finish_restore(by_tenant, started.run, restore_rows(by_tenant, started))
    assert (restored.checksum, restored.consistent) == (before.checksum, True)
    assert tenants(mail) == ["ada", "bob"]
    mail.execute("UPDATE vectors.letters SET content = 'another' WHERE id = 4")
    assert [finding.key for finding in audit(by_tenant).findings] == [("bob", "4")]
    prepare_repair(by_tenant)
    assert sync(by_tenant).embedded == 0
    assert audit(by_tenant).consistent
    assert maintain(by_tenant, rebuild=True)["built"]
    assert prune(by_tenant, timedelta(0), apply=True)
    # The partitions stay in the schema that the table leaves.
    mail.execute("ALTER TABLE vectors.letters RENAME TO post")
    mail.execute("ALTER TABLE vectors.post SET SCHEMA public")
    moved = letters(tmp_path, target={"table": "public.post"}, index={"kind": "hnsw"})
    adopt(moved)
    write(mail, "cleo", 6)
    report = sync(moved)
    assert (report.new, report.embedded, report.consistent) == (1, 1, True)
    assert sorted(name.partition("_part_")[0] for name in partitions(mail, "public.post").values()) == [
        "post",
        "vectors.letters",
        "vectors.letters",
    ]
    assert maintain(moved)["said"][0] == "3 of 3 partitions have an index, and the others need none"


@pytest.mark.soak
def test_hybrid_search_and_queued_changes_work_on_partitions(mail: Connection, tmp_path: Any) -> None:
    mail.execute("ALTER TABLE letters ADD PRIMARY KEY (tenant, id)")
    source = {"changes": {"by": "trigger"}}
    queued = letters(tmp_path, search={"hybrid": True}, source=source, index={"kind": "hnsw"})
    sync(queued)
    sync(queued)
    write(mail, "cleo", 6)
    report = sync(queued)
    assert (report.new, report.unchanged, report.consistent) == (1, 5, True)
    assert any(check.name == "compared in part" for check in report.checks)
    # The partition of cleo has its index now, so that nothing is left to build.
    write(mail, "cleo", 7)
    again = next(check for check in sync(queued).checks if check.name == "recall")
    assert again.detail.startswith("not measured by this run")
    found = search(queued, "the year 1906", 3, mode="hybrid", where="tenant = 'cleo'")
    assert [hit.key for hit in found] == [{"tenant": "cleo", "id": 6}, {"tenant": "cleo", "id": 7}]
    assert mail.execute(
        "SELECT count(*) FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid"
        " JOIN pg_am AS a ON a.oid = c.relam AND a.amname = 'gin'"
        " WHERE i.indrelid IN (SELECT inhrelid FROM pg_inherits)"
    ).fetchone() == (3,)


def test_too_many_tenants_are_refused_before_anything_is_paid_for(
    mail: Connection, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_tenant = letters(tmp_path)
    sync(by_tenant)
    monkeypatch.setattr(module, "MOST_PARTITIONS", 2)
    write(mail, "cleo", 6)
    with pytest.raises(
        TargetError, match=r"would have 3 or more partitions, and at most 2 are possible: split it by hash"
    ):
        sync(by_tenant)
    assert mail.execute("SELECT count(*) FROM rowvec.embeddings").fetchone() == (5,)
    assert tenants(mail) == ["ada", "bob"]


def test_a_table_is_not_split_by_a_type_whose_equal_values_print_differently(mail: Connection, tmp_path: Any) -> None:
    mail.execute("ALTER TABLE letters ALTER tenant TYPE numeric USING length(tenant)")
    with pytest.raises(UsageError, match=r"names tenant, which is numeric: a table is split by whole numbers, text"):
        sync(letters(tmp_path))


@pytest.mark.parametrize(
    ("partition_by", "says"),
    [
        (["year"], r"names 'year', which is no column of source\.key.*: add 'year' to source\.key"),
        (["tenant", "id"], "list takes one column"),
        ({"columns": ["tenant"], "kind": "hash"}, "partitions is missing"),
        ({"columns": ["tenant"], "partitions": 4}, "partitions is for kind hash"),
        ({"columns": ["tenant"], "kind": "range"}, "should be 'list' or 'hash'"),
    ],
)
def test_what_cannot_be_split_is_refused_when_the_file_is_read(tmp_path: Any, partition_by: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        letters(tmp_path, partition_by)


def test_citus_and_partitions_exclude_each_other(tmp_path: Any) -> None:
    with pytest.raises(ValidationError, match="exclude each other"):
        letters(tmp_path, target={"distribution_column": "tenant"})
