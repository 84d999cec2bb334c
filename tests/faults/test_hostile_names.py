"""Hostile names of columns, tables, schemas and pipelines, through whole syncs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from _pytest.mark import ParameterSet
from psycopg import sql
from psycopg.conninfo import make_conninfo

from rowvec.errors import RowvecError, SourceError, UsageError
from rowvec.operations import search
from rowvec.operations.audit import audit
from rowvec.pipeline import Pipeline
from rowvec.pipeline.file import load
from rowvec.postgres.connection import Connection
from rowvec.stages import dry_run
from tests.support.cli_process import PrefectServer, start, write_pipeline
from tests.support.paintings import sync

Kind = Literal["beside", "remote", "parquet"]

_NINE_BYTES_A_LETTER = "é" * 31 + "x"  # 63 bytes, the longest name Postgres keeps


@dataclass(frozen=True, slots=True)
class Names:
    """The names of everything: schema and tables, two key columns, two metadata columns, two content columns."""

    schema: str
    source: str
    target: str
    keys: tuple[str, str]
    metadata: tuple[str, str]
    content: tuple[str, str]


NAMES = {
    "quotes": Names('sch"ema', "it's", 'ta"ble', ('k"ey', "k'ey"), ('me"ta', "`m`"), ('"', "'")),
    "spaces": Names(" a schema ", "a table", "the vectors", (" key", "key "), ("  ", "me ta"), ("a b", "\t")),
    "keywords": Names("select", "table", "user", ("order", "group"), ("where", "from"), ("union", "analyze")),
    "signs": Names("50%", "%s", "%(name)s", ("%", "%%"), ("100%", "%(query)s"), ("a%b", "%s")),
    "braces": Names("{x}", "{", "{0}", ("{", "}"), ("{table}", "{}"), ("$1", "$body$")),
    "unicode": Names("схема", "表", "🖼", ("ключ", "鍵"), ("Größe", "e\u0301"), ("naïve", "\u200b")),
    "upper": Names("Upper", "Articles", "VECTORS", ("Id", "ID"), ("Author", "AUTHOR"), ("Title", "TITLE")),
    "longest": Names(
        "s" * 63, "t" * 63, "v" * 63, ("k" * 63, "k" * 62 + "l"), ("m" * 63, _NINE_BYTES_A_LETTER), ("c" * 63, "d" * 63)
    ),
    "punctuation": Names("a.b", "c.d", "e.f", ("-- x", "/* y"), (";", "a,b"), ("\\", "\n")),
    # Names that rowvec's own statements use: an ambiguous name in a statement would fail.
    "own tables": Names("rows", "source", "diff", ("t", "d"), ("r", "l"), ("s", "p")),
    "own aliases": Names("k", "live", "taken", ("wanted", "stored"), ("source", "rendered"), ("content", "embedding")),
    "own columns": Names("x", "y", "z", ("key", "kind"), ("reason", "action"), ("fingerprint", "run_id")),
    "stored hashes": Names(
        "x", "y", "z", ("stored_fingerprint", "stored_metadata_hash"), ("digest", "batch"), ("chunk", "distance")
    ),
    "search words": Names("x", "y", "z", ("query", "k"), ("filter", "oversampling"), ("shortlist", "found")),
    "ledger words": Names("x", "y", "z", ("pipeline_id", "name"), ("position", "detail"), ("vector", "bits")),
    "journal words": Names("x", "y", "z", ("old", "new"), ("excluded", "artifact_id"), ("cost_usd", "listed")),
    "ledger tables": Names("x", "y", "runs", ("gone", "count"), ("held", "h"), ("a", "e")),
}


_EVERYWHERE = ("quotes", "own columns")
# What these show, one of the others shows for other words.
_IN_SOAK = ("spaces", "keywords", "upper", "ledger words", "journal words", "ledger tables")


def _quoted(*names: str) -> str:
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def _braced(name: str) -> str:
    """A column in a template; its name must not contain braces."""
    return "{" + name + "}"


def _pipeline(names: Names, kind: Kind, tmp_path: Path, url: str) -> Pipeline:
    source: dict[str, Any] = {
        "key": list(names.keys),
        "metadata": list(names.metadata),
        "content": f"{_braced(names.content[0])} -- {_braced(names.content[1])} {{{{100%}}}}",
    }
    if kind == "parquet":
        source |= {"kind": "parquet", "path": str(tmp_path / "rows.parquet")}
    else:
        source |= {"kind": "postgres", "table": _quoted(names.schema, names.source)}
    made = Pipeline.model_validate(
        {
            "name": "hostile",
            "source": source,
            "embedder": {"kind": "local", "dimensions": 64},
            "target": {"table": _quoted(names.schema, names.target)},
            "artifacts": {"url": str(tmp_path / "artifacts")},
            "index": {"kind": "hnsw", "on": "bits"},
            "validation": {"max_delete_fraction": 1},
        }
    )
    if kind == "remote":
        # Another URL of the same database is another database to rowvec.
        remote = made.source.model_copy(update={"url": make_conninfo(url, application_name="elsewhere")})
        made = made.model_copy(update={"source": remote})
    return made


class Table:
    """The source's rows, in a database or a file."""

    def __init__(self, connection: Connection, names: Names, kind: Kind, folder: Path) -> None:
        self._connection, self._names, self._kind, self._file = connection, names, kind, folder / "rows.parquet"
        self.rows: dict[tuple[int, str], list[Any]] = {
            (i, f"key {i}"): [f"author {i % 3}", i * 10, f"title {i}", f"body {i}"] for i in range(1, 13)
        }
        if kind != "parquet":
            columns = [*names.keys, *names.metadata, *names.content]
            types = ("int", "text", "text", "int", "text", "text")
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(names.schema)))
            connection.execute(
                sql.SQL("CREATE TABLE {} ({}, PRIMARY KEY ({}))").format(
                    self._table,
                    sql.SQL(", ").join(
                        sql.SQL("{} {}").format(sql.Identifier(c), sql.SQL(t))  # pyright: ignore[reportArgumentType] # a test's own types
                        for c, t in zip(columns, types, strict=True)
                    ),
                    sql.SQL(", ").join(map(sql.Identifier, names.keys)),
                )
            )
        self.write()

    @property
    def _table(self) -> sql.Identifier:
        return sql.Identifier(self._names.schema, self._names.source)

    def write(self) -> None:
        """Make the source hold exactly ``rows``."""
        rows = [(*key, *values) for key, values in self.rows.items()]
        if self._kind == "parquet":
            arrays = [pa.array(column) for column in zip(*rows, strict=True)]
            names = [*self._names.keys, *self._names.metadata, *self._names.content]
            pq.write_table(pa.table(arrays, names=names), self._file)
            return
        with self._connection.transaction():
            self._connection.execute(sql.SQL("DELETE FROM {}").format(self._table))
            for row in rows:
                self._connection.execute(sql.SQL("INSERT INTO {} VALUES ({})").format(self._table, _literals(row)))

    def in_step(self) -> None:
        """The vector table holds exactly these rows."""
        names = self._names
        columns = [*names.keys, *names.metadata, "content"]
        found = self._connection.execute(
            sql.SQL("SELECT {} FROM {}").format(
                sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier(names.schema, names.target)
            )
        ).fetchall()
        wanted = [(*key, a, n, f"{title} -- {body or ''} {{100%}}") for key, (a, n, title, body) in self.rows.items()]
        assert sorted(found) == sorted(wanted)


def _literals(row: tuple[object, ...]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Literal, row))


def _cases() -> Iterator[ParameterSet]:
    """Each set of names in the vector table's database, the two worst sets in other sources; the rest in soak."""
    for name in NAMES:
        for kind in ("beside", "remote", "parquet"):
            quick = (name in _EVERYWHERE) == (kind != "beside") and name not in _IN_SOAK
            marks = [] if quick else [pytest.mark.soak]
            yield pytest.param(name, kind, marks=marks, id=f"{name}, {kind}")


@pytest.mark.needs("a superuser", "rowvec creates the schemas of the tables, which the test makes too")
@pytest.mark.parametrize(("name", "kind"), list(_cases()))
def test_any_name_goes_through_the_whole_job(
    source: Connection, database_url: str, tmp_path: Path, name: str, kind: Kind
) -> None:
    names = NAMES[name]
    table = Table(source, names, kind, tmp_path)
    made = _pipeline(names, kind, tmp_path, database_url)
    assert dry_run.plan(made).new == 12
    assert sync(made).new == 12
    table.in_step()
    assert audit(made).consistent

    table.rows[1, "key 1"][2] = "another title"
    table.rows[2, "key 2"][0] = "another author"
    del table.rows[3, "key 3"]
    table.rows[13, "key 3"] = ["author 3", 130, "title 3", "body 3"]
    table.rows[4, "key 4"][2:] = [" ", None]
    table.write()
    report = sync(made)
    assert (report.new, report.metadata_only, report.consistent) == (1, 1, True)
    table.in_step()

    first, second = _quoted(names.metadata[0]), _quoted(names.metadata[1])
    condition = f"{first} = 'author 2' AND {second} BETWEEN 20 AND 80 OR {_quoted(names.keys[1])} LIKE 'key 1_'"
    hits = [hit.as_json() for hit in search.search(made, "title 5", 5, where=condition)]
    wanted = [key for key, (a, n, *_) in table.rows.items() if (a == "author 2" and 20 <= n <= 80) or "key 1" in key[1]]
    assert {(hit[names.keys[0]], hit[names.keys[1]]) for hit in hits} <= set(wanted)
    assert len(hits) == min(5, len(wanted))
    called = sql.SQL("SELECT DISTINCT {} FROM {}((SELECT embedding FROM {} LIMIT 1), 3, 8, {}::jsonb)").format(
        sql.Identifier(names.metadata[0]),
        _search_function(source, names),
        sql.Identifier(names.schema, names.target),
        sql.Literal(json.dumps({names.metadata[0]: "author 1"})),
    )
    assert source.execute(called).fetchall() == [("author 1",)]

    tamper = sql.SQL("UPDATE {} SET {} = 'forged' WHERE {} = 5").format(
        sql.Identifier(names.schema, names.target), *map(sql.Identifier, (names.metadata[0], names.keys[0]))
    )
    source.execute(tamper)
    assert [(f.kind, f.key) for f in audit(made).findings] == [("corrupt", ("5", "key 5"))]
    assert sync(made).metadata_only == 1
    assert audit(made).consistent


def _search_function(connection: Connection, names: Names) -> sql.Identifier:
    row = connection.execute(
        "SELECT proname FROM pg_proc JOIN pg_namespace AS n ON n.oid = pronamespace WHERE nspname = %s"
        " AND pronargs = 4",
        (names.schema,),
    ).fetchone()
    assert row is not None
    return sql.Identifier(names.schema, row[0])


_SYSTEM = "has the name of a system column of Postgres"


@pytest.mark.parametrize(
    ("part", "written", "says"),
    [
        ("metadata", ["content"], "'content' has the name of a column of the vector table; rename it in a query"),
        ("metadata", ["embedding_bits"], "has the name of a column of the vector table"),
        ("metadata", ["rowvec_action"], "has the name of a column of the vector table"),
        ("key", ["fingerprint"], "has the name of a column of the vector table"),
        ("key", ["ctid"], _SYSTEM),
        ("metadata", ["xmin"], _SYSTEM),
        ("metadata", ["m" * 64], r"'mmmmmmmmmmmmmmmmmmmm'\.\.\. has a name of more than 63 bytes"),
        ("metadata", ["é" * 32], "more than 63 bytes"),
        ("metadata", [""], "is empty; write a text"),
        ("metadata", ["nul\0"], "holds a NUL character"),
        ("metadata", ["half \ud83d"], "half of a character"),
        ("metadata", ["a", "a"], "'a' is named twice"),
        ("table", "t" * 64, "more than 63 bytes"),
        ("table", "public.paintings\n.x.y", "is not a table name"),
        ("table", 'public."open', "is not a table name"),
        ("table", "paint\0ings", "holds a NUL character"),
        ("content", "{title}\0", "holds a NUL character"),
        ("content", "{}", "empty column name at character 1"),
        ("content", "{title} {", "unmatched '{' at character 9"),
        ("content", "}{title}", "unmatched '}' at character 1"),
        ("content", "{ti{tle}", "unmatched '{' at character 1"),
    ],
)
def test_a_name_that_cannot_be_is_refused_by_its_key(tmp_path: Path, part: str, written: Any, says: str) -> None:
    source = {"kind": "postgres", "table": "public.paintings", "key": ["id"], "content": "{title}", "metadata": []}
    file = tmp_path / "paintings.yaml"
    file.write_text(_yaml({**source, part: written}), "utf-8")
    with pytest.raises(UsageError, match=says) as refused:
        load(file)
    assert str(refused.value).startswith(f"{file}:")
    assert "\n" not in str(refused.value)


def _yaml(source: dict[str, Any], target: str = "vectors.paintings", name: str = "paintings") -> str:
    """JSON is valid YAML, except for some escapes: half a surrogate pair is written as YAML's own escape."""
    pipeline = {"name": name, "source": source, "embedder": {"kind": "local"}, "target": {"table": target}}
    return json.dumps(pipeline, indent=1)


@pytest.mark.parametrize("table", ["rowvec.runs", "pg_catalog.x", "information_schema.x", "pg_temp.x"])
def test_vectors_are_not_written_into_schemas_of_postgres_or_rowvec(table: str, tmp_path: Path) -> None:
    file = tmp_path / "paintings.yaml"
    file.write_text(_yaml({"kind": "csv", "path": "x", "key": ["id"], "content": "{t}"}, table), "utf-8")
    with pytest.raises(UsageError, match="is not for vector tables; name another one"):
        load(file)


@pytest.mark.parametrize("name", ["Upper", "a b", "../up", "a/b", "a\n", "ä", "", "a" * 41, "1a", "a.b", "a'b", "a\0"])
def test_a_pipeline_whose_name_would_not_do_in_a_store_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "paintings.yaml"
    file.write_text(_yaml({"kind": "csv", "path": "x", "key": ["id"], "content": "{t}"}, name=name), "utf-8")
    with pytest.raises(UsageError, match=r"paintings\.yaml:2: name"):
        load(file)


def test_the_longest_pipeline_name_with_every_character_works(source: Connection, paintings: Pipeline) -> None:
    named = paintings.model_copy(update={"name": "a-z_0" + "9" * 35})
    assert sync(named).consistent
    assert audit(named).consistent


@pytest.mark.parametrize("content", ["{title.__class__}", "{title[0]}", "{title!r}", "{title:>1000000000}", "{0}"])
def test_a_template_reaches_for_nothing_but_columns(source: Connection, paintings: Pipeline, content: str) -> None:
    tricky = paintings.source.model_copy(update={"content": content})
    with pytest.raises(SourceError, match="the source has no column") as refused:
        sync(paintings.model_copy(update={"source": tricky}))
    assert repr(content[1:-1]) in str(refused.value)


def test_a_column_may_have_the_name_of_a_template_attack(source: Connection, paintings: Pipeline) -> None:
    source.execute('ALTER TABLE paintings RENAME title TO "title.__class__"')
    source.execute('ALTER TABLE paintings RENAME description TO "0:>1000000000!r"')
    tricky = paintings.source.model_copy(update={"content": "${title.__class__}{0:>1000000000!r}"})
    assert sync(paintings.model_copy(update={"source": tricky})).consistent
    row = source.execute("SELECT content FROM vectors.paintings WHERE id = 7").fetchone()
    assert row == ("$Painting 7It shows the number 7",)


def test_a_dollar_before_a_column_is_a_price(source: Connection, paintings: Pipeline) -> None:
    priced = paintings.source.model_copy(update={"content": "${title}"})
    sync(paintings.model_copy(update={"source": priced}))
    assert source.execute("SELECT content FROM vectors.paintings WHERE id = 7").fetchone() == ("$Painting 7",)


def test_a_source_is_not_its_own_vector_table(source: Connection, paintings: Pipeline) -> None:
    same = paintings.target.model_copy(update={"table": "public.paintings"})
    with pytest.raises(RowvecError, match=r"public\.paintings exists, and rowvec did not make it"):
        sync(paintings.model_copy(update={"target": same}))
    assert source.execute("SELECT count(*) FROM paintings").fetchone() == (50,)


def test_a_query_may_end_in_a_comment_and_hold_percent_signs(source: Connection, paintings: Pipeline) -> None:
    part = paintings.source.model_copy(
        update={
            "table": None,
            "query": "SELECT * FROM public.paintings WHERE title LIKE 'Painting 1%' -- {some} %s;\n;  ",
        }
    )
    assert sync(paintings.model_copy(update={"source": part})).new == 11


def test_a_metadata_type_may_have_an_odd_name_too(source: Connection, paintings: Pipeline) -> None:
    source.execute("CREATE TYPE \"50% {off}\" AS ENUM ('a', 'b''%s')")
    source.execute(
        "ALTER TABLE paintings ADD kind \"50% {off}\" DEFAULT 'b''%s', ADD days varchar(3)[] DEFAULT '{a%b}'"
    )
    typed = paintings.source.model_copy(update={"metadata": ["kind", "days"]})
    made = paintings.model_copy(update={"source": typed})
    assert sync(made).new == 50
    source.execute("UPDATE paintings SET kind = 'a' WHERE id = 3")
    assert sync(made).metadata_only == 1
    found = [hit.as_json() for hit in search.search(made, "x", 5, where="kind = 'a' AND days = '{a%b}'")]
    assert [hit["id"] for hit in found] == [3]


def test_the_command_says_one_sentence_about_a_hostile_name(
    source: Connection, paintings: Pipeline, tmp_path: Path, prefect_server: PrefectServer
) -> None:
    file = write_pipeline(paintings, tmp_path)
    good = file.read_text("utf-8")
    for old, new, command, status, says in (
        ("- author", '- "\\ud83d"', "plan", 2, "source.metadata"),
        ("public.paintings", '\'"%s"."{x}"\'', "plan", 1, "there is no table %s.{x}"),
        ("{title}", "{title.__class__.__mro__}", "sync", 1, "no column 'title.__class__.__mro__'"),
    ):
        assert old in good
        file.write_text(good.replace(old, new, 1), "utf-8")
        ended = start(prefect_server.api, command, str(file), "--json").wait()
        assert (ended.status, says in ended.json["error"]) == (status, True), ended
        assert "Traceback" not in ended.stdout + ended.stderr
    assert source.execute("SELECT to_regclass('vectors.paintings')").fetchone() == (None,)
