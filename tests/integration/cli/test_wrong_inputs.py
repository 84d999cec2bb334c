"""Wrong inputs: each gives one sentence that names what is wrong and what to do, and the right exit status."""

from __future__ import annotations

import re
from collections.abc import Generator
from pathlib import Path

import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from rowvec.cli import app
from rowvec.postgres.connection import Connection

GOOD = """\
name: paintings
source:
  kind: postgres
  table: public.paintings
  key: [id]
  content: "{title}"
  metadata: [year]
embedder:
  kind: local
  dimensions: 64
target:
  table: vectors.paintings
artifacts:
  url: ./artifacts
"""
OPENAI = "kind: openai\n  model: text-embedding-3-small"

# The words of a library, and of Python, that mean nothing to a person.
NOT_OURS = re.compile(
    r"Input should|Extra inputs|validation error|Field required|pydantic|Traceback|NoneType|<class|discriminator|errno",
    re.IGNORECASE,
)

# What is replaced in the good file, by what, and what the sentence must say.
FILES = [
    ("nmae", "name: paintings", "nmae: paintings", "nmae: unknown key; did you mean 'name'?"),
    ("name", "name: paintings", "name: My Paintings", "name: is 'My Paintings', and should be lower case"),
    ("number", "name: paintings", "name: 7", "name: is 7, and should be a text"),
    ("no name", "name: paintings\n", "", "name: is missing"),
    ("source kind", "kind: postgres", "kind: postgresql", "did you mean 'postgres'?"),
    ("no kind", "  kind: postgres\n", "", "source: kind is missing; write one of"),
    ("tabel", "table: public", "tabel: public", "source.tabel: unknown key; did you mean 'table'?"),
    ("three names", "public.paintings", "a.b.c", "'a.b.c' is not a table name; write schema.table"),
    ("key text", "key: [id]", "key: id", "source.key: is 'id', and should be a list, as in [id]"),
    ("key empty", "key: [id]", "key: []", "source.key: is an empty list; name at least one"),
    ("keys", "key: [id]", "keys: [id]", "source.keys: unknown key; did you mean 'key'?"),
    ("brace", '"{title}"', '"{title"', "source.content: unmatched '{' at character 1"),
    ("no content", '  content: "{title}"\n', "", "source.content is needed"),
    ("twice", "[year]", "[id]", "column 'id' is named twice in key and metadata"),
    ("reserved", "[year]", "[embedding]", "column 'embedding' has the name of a column of the vector table"),
    (
        "password",
        "  key: [id]",
        "  url: postgresql://u:hunter2@h/d\n  key: [id]",
        "source.url: holds a secret in plain",
    ),
    ("embedder kind", "kind: local", "kind: lokal", "embedder.kind: there is no kind of embedder 'lokal'"),
    ("many", "dimensions: 64", "dimensions: many", "embedder.dimensions: is 'many', and should be"),
    ("100", "dimensions: 64", "dimensions: 100", "embedder.dimensions: is 100, and should be 64 or 128 or 256"),
    ("dimension", "dimensions: 64", "dimension: 64", "embedder.dimension: unknown key; did you mean 'dimensions'?"),
    ("zero", "kind: local\n  dimensions: 64", f"{OPENAI}\n  dimensions: 0", "is 0, and should be more than 0"),
    ("batch", "kind: local", f"{OPENAI}\n  batch: mayb", "embedder.batch: is 'mayb', and should be true or false"),
    ("in batch", "kind: local", f"{OPENAI}\n  batch: {{at_leest: 5}}", "did you mean 'at_least'?"),
    ("api key", "kind: local", f"{OPENAI}\n  api_key: sk-hunter2", "embedder.api_key: holds a secret in plain text"),
    ("no schema", "vectors.paintings", "paintings2", "target.table: 'paintings2' has no schema; write vectors."),
    ("url for target", "target:\n  table: vectors.paintings", "target: postgresql://u:hunter2@h/d", "is a text, and"),
    ("metric", "target:", "target:\n  metric: cosin", "target.metric: is 'cosin', and should be"),
    ("misplaced", "artifacts:", "metric: l2\nartifacts:", "metric: unknown key; did you mean target.metric?"),
    ("itself", "vectors.paintings", "public.paintings", "target.table is the source itself"),
    ("recall", "artifacts:", "validation: {recall: {at_least: 95}}\nartifacts:", "is 95, and should be at most 1"),
    ("index kind", "artifacts:", "index: {kind: hsnw}\nartifacts:", "did you mean hnsw? Installed are"),
    ("tab", "  key: [id]", "\tkey: [id]", "not YAML"),
    ("open list", "key: [id]", "key: [id", "not YAML"),
    ("key again", "  key: [id]", "  key: [id]\n  key: [id]", "key: this key stands here twice"),
    ("a list", GOOD, "- a\n", "holds no pipeline; write the keys name, source, embedder and target"),
    ("empty", GOOD, "", "holds no pipeline"),
]

# The command, and what the sentence must say.
WORDS = [
    ("snyc FILE", "no such command 'snyc'; did you mean 'sync'?"),
    ("plan FILE --jsno", "no such option: --jsno; did you mean --json?"),
    ("plan", "missing argument 'files'"),
    ("plan nothing.yaml", "nothing.yaml: cannot be read (No such file or directory)"),
    ("plan .", "cannot be read (Is a directory)"),
    ("search FILE", "write what to search for, or name an image with --image PATH"),
    ("search FILE boats -k 0", "invalid value for '-k': it should be"),
    ("search FILE boats -k ten", "invalid value for '-k': it should be a whole number"),
    ("search FILE boats --mode exat", "the modes are adaptive, exact, ann, bits, hybrid; did you mean 'exact'?"),
    ("search FILE boats --image a.png", "a search is by a text or by --image, not by both"),
    ("search FILE --image nothing.png", "there is no image nothing.png; name a file to search by"),
    ("rebuild FILE --plan --rollback", "--plan, --rollback and --drop-old exclude each other"),
    ("index FILE --seconds 5", "--seconds is for --tune: give both, or neither"),
    ("plan FILE --env-file nothing.env", "--env-file nothing.env: cannot be read"),
    ("plan FILE --log-format xml", "'xml' is not one of 'text', 'json'; `rowvec --help`"),
    ("plan FILE -q -v", "--quiet and --verbose exclude each other"),
    ("init FILE", "is neither a .csv nor a .parquet file nor a folder of images"),
]


def told(words: str, file: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit status of a command, run in this process, and what it said on stderr."""
    status = app.run([str(file) if word == "FILE" else word for word in words.split()], as_json=False)
    said = capsys.readouterr()
    assert said.out == "" or "Usage" in said.out
    assert not NOT_OURS.search(said.err), said.err
    assert "hunter2" not in said.err
    assert said.err.startswith("rowvec: ")
    return status, said.err


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The good file; no server answers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ROWVEC_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    path = tmp_path / "p.yaml"
    path.write_text(GOOD, "utf-8")
    return path


@pytest.mark.parametrize(("old", "new", "says"), [row[1:] for row in FILES], ids=[row[0] for row in FILES])
def test_a_mistake_in_the_file(old: str, new: str, says: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert old in GOOD
    file.write_text(GOOD.replace(old, new, 1), "utf-8")
    status, said = told("plan FILE", file, capsys)
    assert status == 2
    assert says in said
    assert said.count("\n") == 1
    assert str(file) in said


@pytest.mark.parametrize(("words", "says"), WORDS, ids=[words for words, _ in WORDS])
def test_wrong_words(words: str, says: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = told(words, file, capsys)
    assert status == 2
    assert says in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("url", "status", "says"),
    [
        ("postgresql://nobody@127.0.0.1:1/none", 1, "the database does not answer"),
        (
            "postgres//nobody@host/none",
            1,
            "the database URL cannot be read; write postgresql://user@host:port/database",
        ),
        ("postgresql://u:p@ss@h/d", 1, "must be written as %40"),
        ("{host} user=postgres dbname=nothing", 1, 'database "nothing" does not exist'),
        ("{host} user=nobody dbname=postgres", 1, 'role "nobody" does not exist'),
    ],
)
def test_a_database_that_cannot_be_reached(
    url: str,
    status: int,
    says: str,
    file: Path,
    cluster: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    host = conninfo_to_dict(cluster)
    monkeypatch.setenv("ROWVEC_DATABASE_URL", url.format(host=f"host={host['host']}"))
    found, said = told("plan FILE", file, capsys)
    assert found == status
    assert says in said
    assert said.count("\n") == 1


def test_a_missing_variable(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("MY_DATABASE", raising=False)
    file.write_text(GOOD.replace("target:", "target:\n  url: ${MY_DATABASE}"), "utf-8")
    status, said = told("plan FILE", file, capsys)
    assert (status, said.count("\n")) == (2, 1)
    assert "target.url: the environment variable MY_DATABASE is not set; export it" in said


@pytest.mark.needs("a superuser", "the role of the test may look into the schema of the ledger")
@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("public.paintings", "public.paintngs", "did you mean 'public.paintings'?"),
        ("public.paintings", "pubic.paintings", "did you mean 'public.paintings'?"),
        ('"{title}"', '"{titel}"', "the source has no column 'titel'; it has author"),
        ("[year]", "[yaer]", "did you mean 'year'?"),
        (
            "table: public.paintings",
            "query: select id, title, year from paintngs",
            'relation "paintngs" does not exist',
        ),
        ("table: public.paintings", "query: selct 1", "the source's query cannot be read"),
        ("kind: postgres\n  table: public.paintings", "kind: csv\n  path: none.csv", "none.csv is not there"),
        (
            "kind: postgres\n  table: public.paintings",
            "kind: csv\n  path: c.csv",
            "has no column 'title'; it has id, titel, year",
        ),
        ("vectors.paintings", "public.other", "exists, and rowvec did not make it"),
        ("public.paintings", "hidden.secrets", "permission denied for schema hidden"),
    ],
)
def test_what_the_database_or_a_file_does_not_have(
    old: str,
    new: str,
    says: str,
    file: Path,
    source: Connection,
    reader: str,
    direct_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (file.parent / "c.csv").write_text("id,titel,year\n1,a,1\n", "utf-8")
    source.execute("CREATE TABLE other (a int); CREATE SCHEMA hidden; CREATE TABLE hidden.secrets (id int, title text)")
    monkeypatch.setenv("ROWVEC_DATABASE_URL", make_conninfo(direct_url, user=reader))
    file.write_text(GOOD.replace(old, new, 1), "utf-8")
    status, said = told("plan FILE", file, capsys)
    assert status in (1, 2)
    assert says in said
    assert said.count("\n") == 1


@pytest.fixture
def reader(source: Connection) -> Generator[str]:
    """A role that may read the paintings and make tables, and not read what is hidden."""
    name = f"reader_{source.info.dbname}"
    role = sql.Identifier(name)
    source.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
    source.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}").format(role))
    source.execute(sql.SQL("ALTER SCHEMA rowvec OWNER TO {}").format(role))
    source.execute("CREATE SCHEMA IF NOT EXISTS vectors")
    source.execute(sql.SQL("GRANT ALL ON SCHEMA vectors TO {}").format(role))
    source.execute(sql.SQL("GRANT ALL ON ALL TABLES IN SCHEMA rowvec TO {}").format(role))
    source.execute(sql.SQL("GRANT ALL ON ALL SEQUENCES IN SCHEMA rowvec TO {}").format(role))
    source.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(sql.Identifier(source.info.dbname), role))
    yield name
    source.execute(sql.SQL("REASSIGN OWNED BY {} TO postgres").format(role))
    source.execute(sql.SQL("DROP OWNED BY {}").format(role))
    source.execute(sql.SQL("DROP ROLE {}").format(role))
