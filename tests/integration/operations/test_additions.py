"""What people added to a vector table survives a rebuild, a switch and a rollback, or is refused by name beforehand."""

from __future__ import annotations

from collections.abc import Generator
from typing import LiteralString

import psycopg
import pytest
from psycopg import sql

from rowvec.errors import TargetError
from rowvec.ledger.generations import list_generations
from rowvec.operations.rebuild import begin_rebuild, plan_rebuild, rollback, switch
from rowvec.operations.switch import retire_for_good
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from tests.integration.operations.test_generations import changed
from tests.support import paintings as gallery

Statement = LiteralString


@pytest.fixture
def reader(source: Connection) -> Generator[str]:
    """A role that may use the schema and owns nothing."""
    source.execute("DROP ROLE IF EXISTS reads_additions")
    source.execute("CREATE ROLE reads_additions LOGIN")
    yield "reads_additions"
    source.execute("DROP OWNED BY reads_additions")
    source.execute("DROP ROLE reads_additions")


def counted(url: str, role: str, table: LiteralString = "vectors.paintings") -> int | str:
    """How many rows a role reads, or the reason why it may not read."""
    with psycopg.connect(url, user=role) as connection:
        try:
            row = connection.execute(b"SELECT count(*) FROM " + table.encode()).fetchone()
        except psycopg.Error as error:
            return error.diag.message_primary or ""
    assert row is not None
    return int(row[0])


def facts(connection: Connection, table: LiteralString = "vectors.paintings") -> dict[str, object]:
    """What the catalog says about a table, read without rowvec's own code."""

    def listed(statement: LiteralString) -> list[tuple[object, ...]]:
        return connection.execute(statement, {"table": table}).fetchall()

    return {
        "class": listed(
            "SELECT relrowsecurity, relforcerowsecurity, relreplident, pg_get_userbyid(relowner), reloptions, spcname,"
            " obj_description(c.oid) FROM pg_class AS c LEFT JOIN pg_tablespace AS s ON s.oid = reltablespace"
            " WHERE c.oid = %(table)s::regclass"
        ),
        "toast": listed(
            "SELECT reloptions FROM pg_class"
            " WHERE oid = (SELECT reltoastrelid FROM pg_class WHERE oid = %(table)s::regclass)"
        ),
        "privileges": listed(
            "SELECT a.privilege_type, a.is_grantable, a.grantee::regrole::text FROM pg_class AS c,"
            " aclexplode(relacl) AS a WHERE c.oid = %(table)s::regclass ORDER BY 1, 3"
        ),
        "columns": listed(
            "SELECT attname, attnotnull, attstattarget, attoptions, attcompression, attacl::text, pg_get_expr(adbin,"
            " adrelid), col_description(attrelid, attnum) FROM pg_attribute AS a"
            " LEFT JOIN pg_attrdef AS d ON adrelid = attrelid AND adnum = attnum"
            " WHERE attrelid = %(table)s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attname"
        ),
        "constraints": listed(
            "SELECT conname, pg_get_constraintdef(oid), obj_description(oid) FROM pg_constraint"
            " WHERE conrelid = %(table)s::regclass AND contype IN ('c', 'u', 'x') ORDER BY 1"
        ),
        "indexes": listed(
            "SELECT c.relname, indisunique, indisclustered, indisreplident, c.reloptions, obj_description(c.oid)"
            " FROM pg_index AS i JOIN pg_class AS c ON c.oid = indexrelid"
            " WHERE indrelid = %(table)s::regclass AND NOT indisprimary ORDER BY 1"
        ),
        "policies": listed(
            "SELECT polname, polcmd, polpermissive, pg_get_expr(polqual, polrelid),"
            " pg_get_expr(polwithcheck, polrelid), obj_description(oid) FROM pg_policy"
            " WHERE polrelid = %(table)s::regclass ORDER BY 1"
        ),
        "statistics": listed(
            "SELECT stxname, stxkind, obj_description(oid) FROM pg_statistic_ext"
            " WHERE stxrelid = %(table)s::regclass ORDER BY 1"
        ),
    }


ADDED: tuple[LiteralString, ...] = (
    "COMMENT ON TABLE vectors.paintings IS 'what we search'",
    "COMMENT ON COLUMN vectors.paintings.year IS 'when it was painted, it''s said'",
    "GRANT SELECT ON vectors.paintings TO reads_additions WITH GRANT OPTION",
    "GRANT UPDATE (author) ON vectors.paintings TO reads_additions",
    "ALTER TABLE vectors.paintings ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE vectors.paintings SET (autovacuum_vacuum_scale_factor = 0.05, toast.autovacuum_enabled = false)",
    "ALTER TABLE vectors.paintings SET TABLESPACE additions",
    "ALTER TABLE vectors.paintings ALTER COLUMN author SET STATISTICS 500",
    "ALTER TABLE vectors.paintings ALTER COLUMN author SET (n_distinct = 7)",
    "ALTER TABLE vectors.paintings ALTER COLUMN author SET COMPRESSION pglz",
    "ALTER TABLE vectors.paintings ALTER COLUMN content SET STORAGE EXTERNAL",
    "ALTER TABLE vectors.paintings ALTER COLUMN author SET DEFAULT 'no''body'",
    "ALTER TABLE vectors.paintings ALTER COLUMN year SET NOT NULL",
    "ALTER TABLE vectors.paintings ADD CONSTRAINT old_enough CHECK (year > 1000)",
    "COMMENT ON CONSTRAINT old_enough ON vectors.paintings IS 'no future'",
    "ALTER TABLE vectors.paintings ADD CONSTRAINT one_a_year UNIQUE (year, id)",
    "CREATE INDEX by_year ON vectors.paintings (year DESC) WITH (fillfactor = 70) WHERE year > 1940",
    'CREATE UNIQUE INDEX "By ""author""" ON vectors.paintings (lower(author), id)',
    "COMMENT ON INDEX vectors.by_year IS 'for the filter'",
    "ALTER TABLE vectors.paintings CLUSTER ON one_a_year",
    "ALTER TABLE vectors.paintings REPLICA IDENTITY USING INDEX one_a_year",
    "CREATE STATISTICS vectors.related (dependencies) ON author, year FROM vectors.paintings",
    "COMMENT ON STATISTICS vectors.related IS 'they go together'",
    'CREATE POLICY "new ones" ON vectors.paintings AS PERMISSIVE FOR SELECT TO reads_additions USING (year > 1940)',
    "CREATE POLICY writing ON vectors.paintings AS RESTRICTIVE FOR UPDATE USING (true) WITH CHECK (author <> 'x')",
    "COMMENT ON POLICY writing ON vectors.paintings IS 'not x'",
)


@pytest.fixture
def tablespace(cluster: str) -> None:
    """A tablespace within the cluster's own folder."""
    with psycopg.connect(cluster, autocommit=True) as connection:
        connection.execute("SET allow_in_place_tablespaces = on")
        connection.execute("CREATE TABLESPACE additions LOCATION ''")


@pytest.mark.needs("a superuser", "who may use the tablespace, which a rebuild needs")
@pytest.mark.usefixtures("reader", "tablespace")
def test_what_was_added_to_the_table_survives_a_rebuild_and_a_rollback(
    source: Connection, paintings: Pipeline, direct_url: str
) -> None:
    gallery.sync(paintings)
    source.execute("GRANT USAGE ON SCHEMA vectors TO reads_additions")
    for statement in ADDED:
        source.execute(statement)
    # Names that the copies would have are taken.
    source.execute("CREATE TABLE vectors.others (id int); CREATE INDEX by_year__2 ON vectors.others (id)")
    before, read = facts(source), counted(direct_url, "reads_additions")
    assert read == 10
    for again in range(2):
        gallery.rebuild(changed(paintings, embedder={"dimensions": 128}))
        after = facts(source)
        assert {name: after[name] for name in before} == before
        assert counted(direct_url, "reads_additions") == read
        assert rollback(paintings) == "vectors.paintings__2", again
        assert facts(source) == before
        assert counted(direct_url, "reads_additions") == read


def test_privileges_and_comments_of_the_functions_survive_a_rebuild_and_a_rollback(
    source: Connection, paintings: Pipeline, reader: str
) -> None:
    gallery.sync(paintings)
    for function in ("paintings_search", "paintings_provenance"):
        named = sql.SQL("FUNCTION {}").format(sql.Identifier("vectors", function))
        source.execute(sql.SQL("REVOKE EXECUTE ON {} FROM PUBLIC").format(named))
        source.execute(sql.SQL("GRANT EXECUTE ON {} TO {} WITH GRANT OPTION").format(named, sql.Identifier(reader)))
    source.execute("GRANT SELECT ON vectors.paintings_provenance TO reads_additions")
    source.execute("COMMENT ON FUNCTION vectors.paintings_search IS 'for the shop'")
    source.execute("COMMENT ON VIEW vectors.paintings_provenance IS 'for the auditors'")
    catalog = (
        "SELECT p.proname, obj_description(p.oid, 'pg_proc') LIKE 'rowvec: %', a.privilege_type,"
        " a.grantee::regrole::text, a.is_grantable"
        " FROM pg_proc AS p, aclexplode(coalesce(proacl, acldefault('f', proowner))) AS a"
        " WHERE pronamespace = 'vectors'::regnamespace AND NOT proname ~ '__[0-9]' UNION ALL"
        " SELECT relname, obj_description(c.oid, 'pg_class') LIKE 'rowvec: %', a.privilege_type,"
        " a.grantee::regrole::text, a.is_grantable"
        " FROM pg_class AS c, aclexplode(coalesce(relacl, acldefault('r', relowner))) AS a"
        " WHERE relname = 'paintings_provenance' ORDER BY 1, 2, 3, 4"
    )
    before = source.execute(catalog).fetchall()
    assert ("paintings_search", False, "EXECUTE", "reads_additions", True) in before
    assert not [row for row in before if row[3] == "-"]
    gallery.sync(paintings)
    assert source.execute(catalog).fetchall() == before
    # Other arguments of the search function, and another key for the view.
    gallery.rebuild(changed(paintings, target={"precision": "float16"}))
    assert source.execute(catalog).fetchall() == before
    rollback(paintings)
    assert source.execute(catalog).fetchall() == before
    source.execute("ALTER TABLE vectors.paintings_provenance RENAME COLUMN model TO modell")
    source.execute("COMMENT ON FUNCTION vectors.paintings_provenance() IS 'changed'")
    gallery.sync(paintings)
    assert {row for row in source.execute(catalog).fetchall() if row[0] == "paintings_search"} == {
        row for row in before if row[0] == "paintings_search"
    }
    assert [row[2:] for row in source.execute(catalog).fetchall()] == [row[2:] for row in before]
    retire_for_good(paintings)
    left = source.execute(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'vectors'::regnamespace ORDER BY 1"
    ).fetchall()
    assert left == [("paintings_provenance",), ("paintings_search",)]


def test_row_level_security_without_a_policy_stays_on_at_every_moment(
    source: Connection, paintings: Pipeline, reader: str, direct_url: str
) -> None:
    gallery.sync(paintings)
    # As on Supabase: everybody may use the schema and gets every privilege on every new table; security keeps them out.
    source.execute("GRANT USAGE ON SCHEMA vectors, rowvec TO reads_additions")
    source.execute("ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO reads_additions")
    source.execute("GRANT ALL ON vectors.paintings TO reads_additions")
    source.execute("ALTER TABLE vectors.paintings ENABLE ROW LEVEL SECURITY")
    assert counted(direct_url, reader) == 0
    longer = changed(paintings, embedder={"dimensions": 128})
    gallery.rebuild(longer, to_switch=False)
    assert counted(direct_url, reader, "vectors.paintings__2") == "permission denied for table paintings__2"
    following = begin_rebuild(longer)
    switch(longer, following)
    assert counted(direct_url, reader) == 0
    assert counted(direct_url, reader, "vectors.paintings__1") == 0
    rollback(paintings)
    assert counted(direct_url, reader) == 0
    assert counted(direct_url, reader, "vectors.paintings__2") == 0


def test_security_that_was_switched_on_after_a_switch_holds_after_the_rollback(
    source: Connection, paintings: Pipeline, reader: str, direct_url: str
) -> None:
    gallery.sync(paintings)
    source.execute("GRANT USAGE ON SCHEMA vectors TO reads_additions")
    source.execute("GRANT SELECT ON vectors.paintings TO reads_additions")
    gallery.rebuild(changed(paintings, target={"precision": "float16"}))
    assert counted(direct_url, reader) == 50
    source.execute("ALTER TABLE vectors.paintings ENABLE ROW LEVEL SECURITY")
    rollback(paintings)
    assert counted(direct_url, reader) == 0
    # A privilege that was taken away stays away.
    source.execute("ALTER TABLE vectors.paintings DISABLE ROW LEVEL SECURITY")
    source.execute("REVOKE SELECT ON vectors.paintings FROM reads_additions")
    switch(paintings, begin_rebuild(changed(paintings, target={"precision": "float16"})))
    assert counted(direct_url, reader) == "permission denied for table paintings"


# What a rebuild refuses: how a user makes it, what the message names, and how the user takes it away again.
REFUSED: tuple[tuple[Statement, str, Statement], ...] = (
    (
        "CREATE VIEW public.recent AS SELECT id FROM vectors.paintings",
        "the view public.recent",
        "DROP VIEW public.recent",
    ),
    (
        "CREATE MATERIALIZED VIEW public.kept AS SELECT id FROM vectors.paintings",
        "the materialized view public.kept",
        "DROP MATERIALIZED VIEW public.kept",
    ),
    (
        "CREATE FUNCTION public.one() RETURNS int BEGIN ATOMIC SELECT id FROM vectors.paintings; END",
        r"the function public.one\(\)",
        "DROP FUNCTION public.one",
    ),
    (
        "CREATE FUNCTION public.of_row(vectors.paintings) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        r"the function public.of_row\(",
        "DROP FUNCTION public.of_row",
    ),
    (
        "CREATE TABLE public.notes (id int REFERENCES vectors.paintings)",
        "the constraint notes_id_fkey on table public.notes",
        "DROP TABLE public.notes",
    ),
    (
        "ALTER TABLE vectors.paintings ADD CONSTRAINT there FOREIGN KEY (id) REFERENCES public.paintings",
        "the constraint there",
        "ALTER TABLE vectors.paintings DROP CONSTRAINT there",
    ),
    (
        "CREATE TRIGGER note AFTER DELETE ON vectors.paintings EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "the trigger note",
        "DROP TRIGGER note ON vectors.paintings",
    ),
    (
        "CREATE RULE quiet AS ON DELETE TO vectors.paintings DO ALSO NOTHING",
        "the rule quiet",
        "DROP RULE quiet ON vectors.paintings",
    ),
    (
        "CREATE PUBLICATION told FOR TABLE vectors.paintings (id, year) WHERE (id > 1)",
        "told",
        "DROP PUBLICATION told",
    ),
    (
        "CREATE TABLE public.child () INHERITS (vectors.paintings)",
        "the table public.child",
        "DROP TABLE public.child",
    ),
    (
        "CREATE TABLE public.parent (id int); ALTER TABLE vectors.paintings INHERIT public.parent",
        "the inheritance from public.parent",
        "ALTER TABLE vectors.paintings NO INHERIT public.parent; DROP TABLE public.parent",
    ),
    (
        "ALTER TABLE vectors.paintings ADD note text; UPDATE vectors.paintings SET note = 'mine'",
        "rowvec did not make: note",
        "ALTER TABLE vectors.paintings DROP note",
    ),
    (
        "ALTER TABLE vectors.paintings SET UNLOGGED",
        "the setting relpersistence",
        "ALTER TABLE vectors.paintings SET LOGGED",
    ),
    (
        "CREATE POLICY itself ON vectors.paintings USING (id < (SELECT max(x.id) FROM vectors.paintings AS x))",
        "the policy itself",
        "DROP POLICY itself ON vectors.paintings",
    ),
    (
        "ALTER TABLE vectors.paintings ADD CONSTRAINT long CHECK (vector_dims(embedding) > 3)",
        "the constraint long",
        "ALTER TABLE vectors.paintings DROP CONSTRAINT long",
    ),
    (
        "CREATE INDEX newer ON vectors.paintings USING hnsw (embedding vector_cosine_ops) WHERE year > 1940",
        "the index vectors.newer",
        "DROP INDEX vectors.newer",
    ),
    (
        "CREATE TABLE vectors.paintings__1 (mine int)",
        "the table vectors.paintings__1",
        "DROP TABLE vectors.paintings__1",
    ),
    (
        "CREATE TABLE vectors.paintings__2 (mine int)",
        "the table vectors.paintings__2",
        "DROP TABLE vectors.paintings__2",
    ),
    (
        # A kind of object that this version does not know: any dependency on the table that no rule explains.
        "INSERT INTO pg_depend SELECT 'pg_largeobject'::regclass, 77, 0, 'pg_class'::regclass,"
        " 'vectors.paintings'::regclass, 0, 'n'",
        "the object 77 of pg_largeobject",
        "DELETE FROM pg_depend WHERE objid = 77 AND classid = 'pg_largeobject'::regclass",
    ),
)


def test_what_a_rebuild_cannot_carry_over_is_named_before_anything_is_built(
    source: Connection, paintings: Pipeline
) -> None:
    gallery.sync(paintings)
    longer = changed(paintings, embedder={"dimensions": 128})
    for made, named, taken_away in REFUSED:
        source.execute("SET allow_system_table_mods = on")
        source.execute(made)
        with pytest.raises(TargetError, match=named):
            begin_rebuild(longer)
        with pytest.raises(TargetError, match=named):
            plan_rebuild(longer)
        source.execute(taken_away)
    assert [g.number for g in list_generations(source, "paintings")] == [1]
    tables = source.execute("SELECT relname FROM pg_class WHERE relname ~ '^paintings__' ORDER BY 1").fetchall()
    assert tables == []
    assert begin_rebuild(longer).name == "paintings.2"


def test_objects_on_a_column_that_the_next_table_lacks_are_named(source: Connection, paintings: Pipeline) -> None:
    gallery.sync(paintings)
    source.execute("CREATE INDEX by_year ON vectors.paintings (year)")
    source.execute("COMMENT ON COLUMN vectors.paintings.year IS 'it goes with its column'")
    with pytest.raises(TargetError, match=r"the index vectors.by_year \(its column year"):
        begin_rebuild(changed(paintings, source={"metadata": ["author"]}))
    source.execute("DROP INDEX vectors.by_year")
    begin_rebuild(changed(paintings, source={"metadata": ["author"]}))


def test_a_policy_that_was_dropped_meanwhile_does_not_come_back_with_a_rollback(
    source: Connection, paintings: Pipeline
) -> None:
    gallery.sync(paintings)
    source.execute("CREATE POLICY all_of_it ON vectors.paintings USING (true)")
    gallery.rebuild(changed(paintings, target={"precision": "float16"}))
    source.execute("DROP POLICY all_of_it ON vectors.paintings")
    with pytest.raises(TargetError, match="the policy all_of_it"):
        rollback(paintings)
    source.execute("DROP POLICY all_of_it ON vectors.paintings__1")
    assert rollback(paintings) == "vectors.paintings__2"


def test_columns_with_data_of_a_user_are_never_dropped(source: Connection, paintings: Pipeline) -> None:
    gallery.sync(paintings)
    longer = changed(paintings, embedder={"dimensions": 128})
    gallery.rebuild(longer, to_switch=False)
    source.execute("ALTER TABLE vectors.paintings__2 ADD note text")
    # Other settings would drop the unfinished generation, and so does --drop-old.
    for dropping in (
        lambda: begin_rebuild(changed(paintings, embedder={"dimensions": 256})),
        lambda: retire_for_good(longer),
    ):
        with pytest.raises(TargetError, match="rowvec did not make: note"):
            dropping()
    assert source.execute("SELECT count(note) FROM vectors.paintings__2").fetchone() == (0,)
    source.execute("ALTER TABLE vectors.paintings__2 DROP note")
    source.execute("CREATE VIEW public.compared AS SELECT id FROM vectors.paintings__2")
    with pytest.raises(TargetError, match="compared depends on table"):
        retire_for_good(longer)
    source.execute("DROP VIEW public.compared")
    assert retire_for_good(longer) == ["vectors.paintings__2"]
