"""Hostile values in a key, a cell, a filter, a query or a line of the pipeline file."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg import sql
from psycopg.conninfo import make_conninfo

from rowvec.errors import ArtifactCorrupt, StoreRefused, UsageError
from rowvec.operations import rejects, search
from rowvec.operations.audit import audit
from rowvec.pipeline import Pipeline
from rowvec.pipeline.file import load
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.searches.where import parse_where
from rowvec.store.folder import FolderStore
from rowvec.store.protocol import checked_name, file_checksum
from tests.support import paintings as gallery
from tests.support.cli_process import CLI, write_pipeline
from tests.support.paintings import sync

_MB = 1 << 20

# Direction marks, joined emoji, noncharacters, combining marks, blanks outside ASCII, escapes, other scripts.
_ODD = [
    "\u202egnp.exe",
    "👩\u200d👩\u200d👧 🏳\ufe0f\u200d🌈",
    "\ufffe\uffff\U0010ffff",
    "e\u0301" * 500,
    "\u00a0\u2003\u3000",
    "\x01\x1b[31mred\x7f",
    "line\r\nline\u2028line\x85",
    r"\N \. \000 \x00 \\ \'; DROP TABLE paintings; --",
    "%s %(x)s {0} ${HOME} {{ prefect.blocks.secret.x }}",
    '"quoted", (a,b) {1,2} NULL',
    "\ufeffmark",
    "ǅ ß ﬁ İ ı",
]


@pytest.mark.parametrize("kind", ["beside", "remote", "parquet", "csv"])
def test_odd_texts_are_kept_to_the_last_character(
    source: Connection, database_url: str, paintings: Pipeline, tmp_path: Path, kind: str
) -> None:
    source.execute("DELETE FROM paintings")
    for i, text in enumerate(_ODD):
        source.execute("INSERT INTO paintings VALUES (%s, %s, %s, %s, 1900)", (i, text, text, text))
    made = _as_kind(source, paintings, kind, database_url, tmp_path)
    assert sync(made).new == len(_ODD)
    found = source.execute("SELECT content, author FROM vectors.paintings ORDER BY id::int").fetchall()
    assert found == [(f"{text}\n{text}", text) for text in _ODD]
    assert audit(made).consistent
    assert sync(made).unchanged == len(_ODD)
    for text in _ODD:
        written = text.replace("'", "''")
        (hit,) = [hit.as_json() for hit in search.search(made, f"look: {text}", 3, where=f"author = '{written}'")]
        assert hit["author"] == text


def _as_kind(connection: Connection, made: Pipeline, kind: str, url: str, folder: Path) -> Pipeline:
    """Move the same rows to another kind of source."""
    rows = connection.execute("SELECT id::text, title, description, author, year FROM paintings ORDER BY id").fetchall()
    names = ["id", "title", "description", "author", "year"]
    written: dict[str, Any] = made.source.model_dump(exclude={"table", "query", "url"})
    if kind == "remote":
        away = make_conninfo(url, application_name="elsewhere")
        return made.model_copy(update={"source": made.source.model_copy(update={"url": away})})
    if kind == "parquet":
        arrays = [pa.array(column) for column in zip(*rows, strict=True)]
        pq.write_table(pa.table(arrays, names=names), folder / "rows.parquet")
    elif kind == "csv":
        lines = [",".join('"' + str(v).replace('"', '""') + '"' for v in row) for row in rows]
        (folder / "rows.csv").write_text("\n".join([",".join(names), *lines]), "utf-8", newline="")
    else:
        return made
    written |= {"kind": kind, "path": str(folder / f"rows.{kind}")}
    return Pipeline.model_validate({**made.model_dump(), "source": written})


@pytest.mark.parametrize(
    "kind", [*(pytest.param(kind, marks=pytest.mark.soak) for kind in ("beside", "parquet", "csv")), "remote"]
)
def test_cells_of_ten_megabytes_go_through(
    source: Connection, database_url: str, paintings: Pipeline, tmp_path: Path, kind: str
) -> None:
    source.execute("DELETE FROM paintings WHERE id > 3")
    source.execute(
        "UPDATE paintings SET description = repeat('é', %s), author = repeat('\"', %s) WHERE id = 2", (5 * _MB, _MB)
    )
    made = _as_kind(source, paintings, kind, database_url, tmp_path)
    assert sync(made).new == 3
    found = source.execute(
        "SELECT octet_length(content), length(author) FROM vectors.paintings WHERE id::int = 2"
    ).fetchone()
    assert found == (10 * _MB + len("Painting 2\n"), _MB)
    assert audit(made).consistent


_KEYS = {
    "uuid": ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-4fff-bfff-ffffffffffff"],
    "numeric": ["0", "-1.50", "NaN", "Infinity", "1e100", "0.00000000000000000001"],
    "timestamp with time zone": [
        "infinity",
        "-infinity",
        "4714-11-24 00:00:00+00 BC",
        "294276-12-31 23:59:59.999999+00",
    ],
    "timestamp without time zone": ["0001-01-01 00:00:00", "0001-01-01 00:00:00 BC", "2020-01-01 00:00:00.000001"],
    "date": ["infinity", "4714-11-24 BC", "5874897-12-31", "2020-02-29"],
    "time with time zone": ["00:00:00+15:59", "24:00:00-15:59"],
    "interval": ["1 year 2 mons -3 days +04:05:06.7", "-00:00:00.000001"],
    "text": ["", " ", "\\", "'", '"', "a\tb", "NULL", "%", "{}", "é", "e\u0301", "Z", "z"],
    "bytea": ["\\x", "\\x00", "\\xff00"],
    "boolean": ["true", "false"],
    "character(5)": ["a", "b", ""],
    "integer[]": ["{}", "{1,2}", "{NULL}"],
    "inet": ["::1", "10.0.0.0/8"],
    "int4range": ["empty", "[1,5)", "(,)"],
    "jsonb": ["null", '""', '{"a": [1, 2.50]}'],
    '"an ""enum"" 50%"': ["it's", '"', "%s"],
    "double precision": ["0", "NaN", "Infinity", "1e-300", "0.1"],
}


_TOGETHER = [list(_KEYS)[start::3] for start in range(3)]
"""The types in three tables, each with a key of several columns; one table per type in the long run."""


@pytest.mark.parametrize("remote", [False, True], ids=["beside", "remote"])
@pytest.mark.parametrize(
    "kinds", [*_TOGETHER, *(pytest.param([kind], marks=pytest.mark.soak) for kind in _KEYS)], ids=" and ".join
)
def test_a_key_may_be_of_any_type(
    source: Connection, database_url: str, paintings: Pipeline, kinds: list[str], remote: bool
) -> None:
    source.execute("CREATE TYPE \"an \"\"enum\"\" 50%\" AS ENUM ('it''s', '\"', '%s')")
    keys, more = ([f"{letter}{number}" for number in range(len(kinds))] for letter in "km")
    columns = ", ".join(f"{name} {kind}" for names in (keys, more) for name, kind in zip(names, kinds, strict=True))
    source.execute(f"CREATE TABLE keyed ({columns}, title text, PRIMARY KEY ({', '.join(keys)}))".encode())
    rows = max(len(_KEYS[kind]) for kind in kinds)
    for i in range(rows):
        values = sql.SQL(", ").join(sql.Literal(_KEYS[kind][i % len(_KEYS[kind])]) for kind in kinds)
        source.execute(sql.SQL("INSERT INTO keyed VALUES ({0}, {0}, {1})").format(values, sql.Literal(f"row {i}")))
    part = paintings.source.model_copy(
        update={
            "table": "public.keyed",
            "key": keys,
            "content": "{title}",
            "metadata": more,
            "url": make_conninfo(database_url, application_name="elsewhere") if remote else None,
        }
    )
    made = paintings.model_copy(update={"source": part})
    assert sync(made).new == rows
    last = sql.Literal(f"row {rows - 1}")
    source.execute("UPDATE keyed SET title = 'edited' WHERE title = 'row 0'")
    source.execute(sql.SQL("DELETE FROM keyed WHERE title = {}").format(last))
    report = sync(
        made.model_copy(update={"validation": made.validation.model_copy(update={"max_delete_fraction": 1.0})})
    )
    assert (report.changed, report.deleted, report.consistent) == (1, 1, True)
    assert audit(made).consistent
    kept = sql.SQL(", ").join(sql.SQL("s.{}::text").format(sql.Identifier(name)) for name in (*keys, *more))
    shown = sql.SQL("SELECT {}, {} FROM {} AS s ORDER BY {}")
    there, here = (
        source.execute(shown.format(kept, sql.Identifier(content), sql.Identifier(*table), kept)).fetchall()
        for content, table in (("title", ["keyed"]), ("content", ["vectors", "paintings"]))
    )
    assert there == here
    assert len(there) == rows - 1


def test_a_key_of_three_columns_of_three_types(source: Connection, paintings: Pipeline) -> None:
    source.execute("CREATE TABLE keyed (a uuid, b numeric, c timestamptz, title text, PRIMARY KEY (c, a, b))")
    source.execute(
        "INSERT INTO keyed SELECT ('00000000-0000-0000-0000-00000000000' || i % 2)::uuid, i / 2.0, "
        "'2020-01-01Z'::timestamptz + i * '1 us'::interval, 'row ' || i FROM generate_series(1, 9) AS i"
    )
    part = paintings.source.model_copy(
        update={"table": "keyed", "key": ["a", "b", "c"], "content": "{title}", "metadata": []}
    )
    made = paintings.model_copy(update={"source": part})
    assert sync(made).new == 9
    source.execute("UPDATE keyed SET b = b + 100 WHERE title = 'row 3'")
    source.execute("UPDATE keyed SET c = c + '1 us', title = 'row 5' WHERE title = 'row 4'")
    report = sync(made)
    assert (report.new, report.deleted, report.embedded) == (2, 2, 0)
    assert audit(made).consistent


@pytest.mark.parametrize(("kind", "before", "after"), [("numeric", "1.0", "1.00"), ("interval", "1 mon", "30 days")])
def test_a_key_that_is_overwritten_with_an_equal_value(
    source: Connection, paintings: Pipeline, kind: str, before: str, after: str
) -> None:
    source.execute(f"CREATE TABLE keyed (k {kind} PRIMARY KEY, title text)".encode())
    source.execute("INSERT INTO keyed VALUES (%s, 'a')", (before,))
    part = paintings.source.model_copy(update={"table": "keyed", "key": ["k"], "content": "{title}", "metadata": []})
    made = paintings.model_copy(update={"source": part})
    sync(made)
    source.execute("UPDATE keyed SET k = %s", (after,))
    assert sync(made).consistent
    assert source.execute("SELECT k::text FROM vectors.paintings").fetchone() == (after,)


def test_a_key_longer_than_an_index_can_hold_is_one_rejected_row(source: Connection, tmp_path: Path) -> None:
    drawn = random.Random(1)
    long = [drawn.randbytes(n).hex() for n in (1300, 1301, 5 * _MB)]
    rows = {"id": [*long, long[2][:-1] + "!", "nul\0" + long[2], "short"], "text": list("abcdef")}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    made = Pipeline.model_validate(
        {
            "name": "files",
            "source": {"kind": "parquet", "path": str(tmp_path / "rows.parquet"), "key": ["id"], "content": "{text}"},
            "embedder": {"kind": "local", "dimensions": 64},
            "target": {"table": "vectors.files"},
            "artifacts": {"url": str(tmp_path / "artifacts")},
        }
    )
    report = sync(made)
    assert (report.rows, report.rejected, report.consistent) == (2, 4, True)
    assert source.execute("SELECT octet_length(id) FROM vectors.files ORDER BY 1").fetchall() == [(5,), (2600,)]
    listed = rejects.rejects(made).as_json()["rejects"]
    assert all(len(reject["key"][0]) < 300 for reject in listed)
    assert {reject["reason"] for reject in listed} == {"unreadable"}
    assert any("row 3 of rows.parquet has more than the 2,600 bytes" in reject["detail"] for reject in listed)
    assert audit(made).consistent
    assert sync(made).unchanged == 2


def test_invalid_utf8_in_the_source_database_rejects_its_own_row(
    source: Connection, cluster: str, database_url: str, paintings: Pipeline
) -> None:
    name = f"ascii_{os.getpid()}"
    made = sql.SQL("CREATE DATABASE {} ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    with psycopg.connect(cluster, autocommit=True) as administrator:
        administrator.execute(made.format(sql.Identifier(name)))
        try:
            url = make_conninfo(cluster, dbname=name)
            with psycopg.connect(url, autocommit=True, client_encoding="utf8") as away:
                away.execute(gallery.SOURCE)
                gallery.fill(away, 3)
                away.execute("UPDATE paintings SET title = convert_from('\\xff61'::bytea, 'SQL_ASCII') WHERE id = 2")
            part = paintings.source.model_copy(update={"url": url})
            report = sync(paintings.model_copy(update={"source": part}))
            assert (report.new, report.rejected) == (2, 1)
            assert source.execute("SELECT key ->> 0, reason FROM rowvec.rejects").fetchall() == [("2", "unreadable")]
        finally:
            administrator.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


_COLUMNS = (
    PgColumn("year", "integer"),
    PgColumn("author", "text"),
    PgColumn("100%", "character varying(3)"),
    PgColumn("kind", '"50% {off}"'),
)
_INJECTIONS = [
    "1=1",
    "true",
    "year = 1; DROP TABLE paintings",
    "year = 1 --",
    "year = 1 /* x */",
    "year = (SELECT 1)",
    "year = pg_sleep(9)",
    "year = version()",
    "author = E'\\''",
    "author = U&'\\0041'",
    "author = $$x$$",
    "author = 'a' || 'b'",
    "author = author",
    "year = 1::int",
    "year = CAST(1 AS int)",
    "embedding IS NULL",
    "ctid IS NOT NULL",
    "t.year = 1",
    "rowvec.runs = 1",
    "year = 1 UNION SELECT 1",
    "year = :x",
    "year = %s",
    "year = %(query)s",
    "year = {table}",
    "year = $1",
    "author = 'open",
    'author = "year"',
    "year = 1 OR EXISTS (SELECT 1)",
    "year IN ()",
    "author LIKE 'x' ESCAPE '\\'",
    "author ~ '(a+)+$'",
    "year = 0x10",
    "year = NaN",
    "\0",
    "year = 1\0",
    "author = '\ud800'",
    "author = '\0'",
    "NOT " * 5000 + "year = 1",
    "(" * 500 + "year = 1" + ")" * 500,
    "year = 1 OR " * 5000 + "year = 1",
    "",
    " ",
    ";",
    "'",
    "year = 99999999999999999999",
    "year = 'abc'",
]


@pytest.mark.parametrize("where", _INJECTIONS, ids=range(len(_INJECTIONS)))
def test_a_hostile_filter_is_refused(source: Connection, paintings: Pipeline, where: str) -> None:
    """The parser refuses it, or the database if a value does not fit its column: as wrong use, before any run."""
    columns = (PgColumn("id", "integer"), PgColumn("author", "text"), PgColumn("year", "integer"))
    if where.endswith(("9999", "'abc'")):
        sync(paintings)
        with pytest.raises(UsageError, match="--where"):
            search.search(paintings, "x", 3, where=where, mode="exact")
    elif where:
        with pytest.raises(UsageError, match="--where") as refused:
            parse_where(where, columns)
        assert len(str(refused.value)) < 500


@given(st.text(st.characters(codec=None), max_size=60) | st.text("yeart=<>'\"()%{}$;- \\0", max_size=60))
@example("year = '%s'")
def test_no_text_of_a_filter_becomes_sql(text: str) -> None:
    """The SQL has only rowvec's own words, quoted columns and placeholders in it; every value is a parameter."""
    try:
        found = parse_where(text, _COLUMNS)
    except UsageError:
        return
    written = found.condition.as_string()
    for name in found.parameters:
        written = written.replace(f"%({name})s", "?")
    for column in _COLUMNS:
        written = written.replace(sql.Identifier("t", column.name).as_string(), "C")
    allowed = set('C?()=<>, :"%{}') | set("abcdefghijklmnopqrstuvwxyz AND OR NOT IN IS NULL LIKE ILIKE BETWEEN 50")
    assert set(written) <= allowed
    assert "'" not in written
    assert ";" not in written


def test_values_are_only_values(source: Connection, paintings: Pipeline) -> None:
    source.execute("UPDATE paintings SET author = $$'; DROP TABLE paintings; -- %s {x}$$ WHERE id = 7")
    sync(paintings)
    for where in ("author = '''; DROP TABLE paintings; -- %s {x}'", "author LIKE '''; DROP%%s {x_' AND year > -1000"):
        (hit,) = [hit.as_json() for hit in search.search(paintings, "x", 5, where=where)]
        assert hit["id"] == 7
    assert source.execute("SELECT count(*) FROM paintings").fetchone() == (50,)


_GOOD = """\
name: articles
source: {kind: csv, path: rows.csv, key: [id], content: "{text}"}
embedder: {kind: local}
target: {table: vectors.articles}
"""
_BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{n}: &{n} [{', '.join(['*' + p] * 10)}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (_BOMB, "stands for more than 10,000 values, aliases and all"),
        (_GOOD + _BOMB, "stands for more than 10,000 values"),
        ("name: &n {<<: *n}\n", "stands for more than 10,000 values"),
        ("a: &a [*a]\n", "stands for more than 10,000 values"),
        (
            _GOOD.replace("articles", "!!python/object/apply:os.system [id]", 1),
            r"yaml:1: not YAML for a pipeline: a value begins with !",
        ),
        (_GOOD.replace("articles", "!!python/name:os.system", 1), r"yaml:1: not YAML"),
        (_GOOD.replace("articles", "!!binary aGk=", 1), r"begins with ! \(a tag\)"),
        (_GOOD.replace("articles", "!mine articles", 1), r"yaml:1: not YAML"),
        (_GOOD + "name: other\n", "yaml:5: name: this key stands here twice"),
        (_GOOD.replace("key: [id]", "key: [id], key: [x]"), "yaml:2: key: this key stands here twice"),
        (_GOOD + "? [a, b]\n: c\n", "yaml:5: a list or mapping is no key; keys are words"),
        (_GOOD + "? {a: b}\n: c\n", "yaml:5: a list or mapping is no key"),
        (_GOOD + "1: c\n", "yaml:5: 1 is no key"),
        (_GOOD + "null: c\n", "yaml:5: null is no key"),
        (_GOOD + "more: c\n", "yaml:5: more: unknown key"),
        (_GOOD.replace("local", "local, dimensions: 2020-13-45"), "cannot be read .*; put it in quotes"),
        (_GOOD.replace("local", "local, dimensions: !!int x"), r"begins with ! \(a tag\)"),
        (_GOOD + "---\nname: second\n", "not YAML"),
        (_GOOD + "\0", "not YAML"),
        (_GOOD + "\t- x", "not YAML"),
        (_GOOD.replace("articles", "2020-01-01", 1), "yaml:1: name"),
        (_GOOD.replace("[id]", "[1]"), "source.key"),
        (_GOOD.replace("local", "local, dimensions: .nan"), "embedder"),
        (_GOOD.replace("local", "local, dimensions: 1" + "0" * 5000), "cannot be read .*; put it in quotes"),
        ("[" * 3000, "nested more than 32 deep"),
        ("{a: " * 3000, "nested more than 32 deep"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested more than 32 deep"),
        ("name: " + "x" * 3 * _MB, "has 3,145,734 characters"),
        (_GOOD.replace("{text}", "{" * 99_999), "unmatched"),
    ],
    ids=range(29),
)
def test_a_hostile_pipeline_file_gives_one_line_per_mistake(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "hostile.yaml"
    file.write_text(text, "utf-8")
    with pytest.raises(UsageError, match=says) as refused:
        load(file)
    lines = str(refused.value).splitlines()
    assert all(line.startswith(f"{file}:") for line in lines)
    assert len(str(refused.value)) < 3000


def test_an_anchor_in_a_pipeline_file_is_welcome(tmp_path: Path) -> None:
    file = tmp_path / "good.yaml"
    file.write_text(_GOOD.replace("vectors.articles", "&t vectors.articles") + "artifacts: {url: *t}\n", "utf-8")
    assert load(file).artifacts.url == str(tmp_path / "vectors.articles")


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../x",
        "a/../b",
        "/etc/passwd",
        "a//b",
        "a\\..\\b",
        "C:\\x",
        "a/.b",
        "a b",
        "a\0",
        "a\n",
        "é",
        "",
        "a/",
        "%2e",
    ],
)
def test_a_hostile_object_name_leads_nowhere(tmp_path: Path, name: str) -> None:
    """A manifest that another program wrote may hold such a name: it is refused, and nothing outside is touched."""
    with pytest.raises(StoreRefused, match="is not a valid name for an object"):
        checked_name(name)
    store = FolderStore(tmp_path / "store")
    (tmp_path / "x").write_text("outside")
    for call in (
        lambda: store.put(name, tmp_path / "x", file_checksum(tmp_path / "x")),
        lambda: store.get(name, tmp_path / "y", "0" * 64, at_most=10**9),
        lambda: store.delete(name),
        lambda: store.checksum(name),
    ):
        with pytest.raises(StoreRefused):
            call()
    assert (tmp_path / "x").read_text() == "outside"
    assert {path.name for path in tmp_path.iterdir()} <= {"x", "store"}


def test_a_symbolic_link_in_a_folder_store_reveals_nothing_and_corrupts_nothing(tmp_path: Path) -> None:
    outside, mine = tmp_path / "outside", tmp_path / "mine"
    outside.write_text("a secret of another")
    mine.write_text("an artifact")
    (tmp_path / "store" / "a").mkdir(parents=True)
    store, name, link = FolderStore(tmp_path / "store"), "a/b.parquet", tmp_path / "store" / "a" / "b.parquet"
    link.symlink_to(outside)
    with pytest.raises(ArtifactCorrupt):
        store.put(name, mine, file_checksum(mine))
    with pytest.raises(ArtifactCorrupt):
        store.get(name, tmp_path / "fetched", file_checksum(mine), at_most=10**9)
    assert not (tmp_path / "fetched").exists()
    store.delete(name)
    assert outside.read_text() == "a secret of another"
    assert not link.is_symlink()
    dangling = tmp_path / "nowhere"
    link.symlink_to(dangling)
    with pytest.raises(ArtifactCorrupt):
        store.get(name, tmp_path / "fetched", file_checksum(mine), at_most=10**9)
    store.delete(name)
    assert store.put(name, mine, file_checksum(mine))
    assert not dangling.exists()


def test_the_command_accepts_arguments_that_are_not_text(
    source: Connection, paintings: Pipeline, tmp_path: Path
) -> None:
    sync(paintings)
    file = write_pipeline(paintings, tmp_path)
    for words, status in (
        ([b"search", os.fsencode(file), b"caf\xff", b"--json"], (0, 2)),
        ([b"search", os.fsencode(file), b"x", b"--where", b"author = '\xff'", b"--json"], (2,)),
        ([b"plan", os.fsencode(tmp_path) + b"/\xff.yaml", b"--json"], (2,)),
    ):
        ended = subprocess.run(  # noqa: S603 # our own command
            [os.fsencode(CLI), *words], capture_output=True, check=False, timeout=150
        )
        assert ended.returncode in status, ended
        assert b"Traceback" not in ended.stderr + ended.stdout
