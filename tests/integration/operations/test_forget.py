"""An erasure leaves no trace of a deleted row, and what is left is what a restore, an audit and a sync expect."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from rowvec.cli.app import run
from rowvec.errors import UsageError
from rowvec.operations.audit import audit
from rowvec.operations.erasure.certificate import digest_of
from rowvec.operations.erasure.forget import forget
from rowvec.operations.prune import prune
from rowvec.operations.rebuild import rollback
from rowvec.operations.restore import finish_restore, restore_rows, restoring
from rowvec.pipeline import Pipeline
from rowvec.pipeline.sources import Chunks
from rowvec.postgres.connection import Connection, connect
from rowvec.runtime.home import home
from rowvec.store.open import open_store
from tests.support import byte_search
from tests.support import paintings as gallery
from tests.support.cli_process import write_pipeline
from tests.support.paintings import assert_in_step, rebuild, sync, vectors

PLANTED = ("Quixotic first words", "Quixotic second words", "Quixotic Author")


@pytest.fixture
def erasable(source: Connection, paintings: Pipeline) -> Connection:
    """Row 7 had two texts, each with a vector, and is gone from the source and the vector table."""
    first, second, author = PLANTED
    source.execute("UPDATE paintings SET title = %s, author = %s WHERE id = 7", (first, author))
    sync(paintings)
    source.execute("UPDATE paintings SET title = %s WHERE id = 7", (second,))
    source.execute("UPDATE paintings SET year = 1 WHERE id = 8")
    sync(paintings)
    # Statistics of the table have values of its rows.
    source.execute("ANALYZE vectors.paintings")
    source.execute("DELETE FROM paintings WHERE id = 7")
    sync(paintings)
    return source


def objects(pipeline: Pipeline) -> dict[str, str | None]:
    """Names and checksums of what is in the store."""
    store = open_store(pipeline.artifacts)
    return {name: store.checksum(name) for name in store.names() if not name.startswith("marks/")}


def restored(pipeline: Pipeline, url: str, manifest: str | None = None) -> dict[int, tuple[str, str, str]]:
    """The table as a restore from the store builds it."""
    with connect(url) as connection:
        connection.execute("DROP TABLE IF EXISTS vectors.paintings")
        with restoring(pipeline, manifest) as restore:
            report = finish_restore(pipeline, restore.run, restore_rows(pipeline, restore))
            assert report.consistent, report.checks
        return vectors(connection)


@pytest.mark.needs("a superuser", "rowvec creates the schema of its ledger again")
def test_no_byte_of_an_erased_row_is_left_and_restore_and_audit_agree(
    erasable: Connection, paintings: Pipeline, direct_url: str, database_url: str
) -> None:
    before = vectors(erasable)
    needles = [text.encode() for text in PLANTED]
    store = Path(paintings.artifacts.url)
    assert len(byte_search.in_folder(store, needles)) > 3
    shown = "SELECT count(*) FROM pg_stats WHERE histogram_bounds::text ~ 'Quixotic'"
    assert erasable.execute(shown).fetchone() == (1,)
    done = forget(paintings, ["7"], apply=True)
    assert done.certificate is not None
    assert erasable.execute(shown).fetchone() == (0,)
    assert (done.applied, done.keys, done.artifacts, done.journal_entries) == (True, 1, 2, 3)
    assert byte_search.in_folder(store, needles) == []
    assert byte_search.in_folder(home(), needles) == []
    with psycopg.connect(direct_url, autocommit=True) as superuser:
        assert byte_search.in_database(superuser, needles) == []
    assert forget(paintings, ["7"]).places == ()
    assert audit(paintings).consistent
    assert sync(paintings).embedded == 0
    assert_in_step(erasable)
    manifests = [m for (m,) in erasable.execute("SELECT manifest FROM rowvec.runs WHERE manifest IS NOT NULL")]
    assert len(manifests) == 3
    for manifest in manifests:
        rows = restored(paintings, database_url, manifest)
        assert (len(rows), 7 in rows) == (49, False)
    erasable.execute("DROP SCHEMA rowvec CASCADE")
    assert restored(paintings, database_url) == before
    assert audit(paintings).consistent


def test_a_dry_run_and_a_refusal_change_nothing(erasable: Connection, paintings: Pipeline) -> None:
    before = objects(paintings)
    found = forget(paintings, ["7"])
    assert (found.applied, found.artifacts, found.journal_entries, found.certificate) == (False, 2, 3, None)
    assert found.refused == ""
    assert set(found.places) <= set(before)
    with pytest.raises(UsageError, match=r'the source still has the row \["8"\].*delete the row.*nothing was erased'):
        forget(paintings, ["7", "8"], apply=True)
    erasable.execute("DELETE FROM paintings WHERE id = 8")
    with pytest.raises(UsageError, match=r'paintings still has the row \["8"\].*run rowvec sync.*nothing was erased'):
        forget(paintings, ["7", "8"], apply=True)
    assert "run rowvec sync" in forget(paintings, ["8"]).refused
    with pytest.raises(UsageError, match="does not fit the key of the vector table, id integer"):
        forget(paintings, ["seven"])
    with pytest.raises(UsageError, match=r"name the rows with --key or --keys, or set artifacts\.erase_deleted_after"):
        forget(paintings, apply=True)
    erasable.execute("INSERT INTO rowvec.answers SELECT 1, sha256('x'), 'vector', max(run_id) + 1 FROM rowvec.runs")
    with pytest.raises(UsageError, match=r"1 text is paid for, and no run has merged it.*run rowvec sync"):
        forget(paintings, ["7"], apply=True)
    erasable.execute("UPDATE rowvec.stores SET ledger = gen_random_uuid()")
    with pytest.raises(UsageError, match=r"another database.*also writes to this store.*nothing was erased"):
        forget(paintings, ["7"], apply=True)
    assert objects(paintings) == before
    assert erasable.execute("SELECT count(*) FROM rowvec.erasures").fetchone() == (0,)


def test_a_text_that_a_living_row_shares_stays_for_it_alone(
    source: Connection, paintings: Pipeline, direct_url: str, database_url: str
) -> None:
    source.execute("UPDATE paintings SET title = 'Shared', description = '' WHERE id IN (7, 8)")
    source.execute("UPDATE paintings SET author = %s WHERE id = 7", (PLANTED[2],))
    sync(paintings)
    source.execute("DELETE FROM paintings WHERE id = 7")
    sync(paintings)
    before = vectors(source)
    done = forget(paintings, ["7"], apply=True)
    assert (done.shared, done.artifacts) == (1, 1)
    assert byte_search.in_folder(Path(paintings.artifacts.url), [PLANTED[2].encode()]) == []
    assert audit(paintings).consistent
    assert restored(paintings, database_url) == before
    assert sync(paintings).embedded == 0


def test_a_text_without_a_key_in_a_large_artifact_goes_too(
    erasable: Connection, paintings: Pipeline, database_url: str
) -> None:
    """Compaction leaves out the keys, and a prune the journal: nothing says any more whose text it was."""
    prune(paintings, timedelta(0), apply=True, compact=True)
    needles = [PLANTED[0].encode()]
    store = Path(paintings.artifacts.url)
    assert byte_search.in_folder(store, needles)
    before = vectors(erasable)
    forget(paintings, ["7"], apply=True)
    assert byte_search.in_folder(store, needles) == []
    assert audit(paintings).consistent
    assert restored(paintings, database_url) == before


def test_a_retired_generation_loses_the_row_too_and_can_still_be_switched_back_to(
    source: Connection, paintings: Pipeline, direct_url: str
) -> None:
    source.execute("UPDATE paintings SET title = %s WHERE id = 7", (PLANTED[0],))
    sync(paintings)
    longer = paintings.model_copy(update={"embedder": paintings.embedder.model_copy(update={"dimensions": 128})})
    rebuild(longer)
    source.execute("DELETE FROM paintings WHERE id = 7")
    sync(longer)
    found = forget(longer, ["7"])
    assert found.tables == {"vectors.paintings__1": 1}
    forget(longer, ["7"], apply=True)
    needles = [PLANTED[0].encode()]
    assert byte_search.in_folder(Path(paintings.artifacts.url), needles) == []
    assert source.execute("SELECT count(*) FROM vectors.paintings__1").fetchone() == (49,)
    assert audit(longer).consistent
    rollback(longer)
    assert sync(paintings).embedded == 0
    assert audit(paintings).consistent


def synced_in_chunks(source: Connection, paintings: Pipeline) -> Pipeline:
    """The pipeline with chunks, after a sync; row 7 has several, with the planted text in each."""
    chunked = paintings.model_copy(
        update={"source": paintings.source.model_copy(update={"chunks": Chunks(tokens=16, overlap=0)})}
    )
    source.execute("UPDATE paintings SET title = repeat(%s || ' and more of these. ', 9) WHERE id = 7", (PLANTED[0],))
    sync(chunked)
    return chunked


def test_each_chunk_of_a_row_is_erased(source: Connection, paintings: Pipeline, direct_url: str) -> None:
    chunked = synced_in_chunks(source, paintings)
    source.execute("DELETE FROM paintings WHERE id = 7")
    sync(chunked)
    assert forget(chunked, ["7"], apply=True).tables == {}
    needles = [PLANTED[0].encode()]
    assert byte_search.in_folder(Path(paintings.artifacts.url), needles) == []
    assert byte_search.in_folder(home(), needles) == []
    with psycopg.connect(direct_url, autocommit=True) as superuser:
        assert byte_search.in_database(superuser, needles) == []
    assert audit(chunked).consistent


def test_the_chunks_of_a_retired_generation_are_erased(
    source: Connection, paintings: Pipeline, direct_url: str
) -> None:
    chunked = synced_in_chunks(source, paintings)
    longer = chunked.model_copy(update={"embedder": paintings.embedder.model_copy(update={"dimensions": 128})})
    rebuild(longer)
    source.execute("DELETE FROM paintings WHERE id = 7")
    sync(longer)
    needles = [PLANTED[0].encode()]
    erased = forget(longer, ["7"], apply=True).tables
    assert set(erased) == {"vectors.paintings__1", "rowvec.chunks_1"}
    with psycopg.connect(direct_url, autocommit=True) as superuser:
        assert byte_search.in_database(superuser, needles) == []
    rollback(longer)
    assert sync(chunked).consistent
    assert audit(chunked).consistent


def test_the_policy_erases_what_was_deleted_long_enough_ago(erasable: Connection, paintings: Pipeline) -> None:
    monthly = paintings.model_copy(
        update={"artifacts": paintings.artifacts.model_copy(update={"erase_deleted_after": "30d"})}
    )
    at_once = paintings.model_copy(
        update={"artifacts": paintings.artifacts.model_copy(update={"erase_deleted_after": "1s"})}
    )
    before = objects(paintings)
    kept = forget(monthly, apply=True)
    assert (kept.keys, kept.certificate) == (0, None)
    assert objects(paintings) == before
    time.sleep(1.1)
    done = forget(at_once, apply=True)
    assert (done.keys, done.journal_entries) == (1, 3)
    assert byte_search.in_folder(Path(paintings.artifacts.url), [text.encode() for text in PLANTED]) == []
    assert audit(paintings).consistent
    assert forget(at_once, apply=True).keys == 0


def test_a_file_is_asked_whether_it_still_has_the_row(
    connection: Connection, tmp_path: Path, database_url: str
) -> None:
    file = tmp_path / "rows.csv"
    text = PLANTED[0]
    file.write_text(f"id,title\n1,one\n7,{text}\n8,eight\n9,nine\n")
    made = gallery.pipeline(
        str(tmp_path / "artifacts"),
        source={"kind": "csv", "path": str(file), "key": ["id"], "content": "{title}"},
        target={"table": "vectors.paintings", "url": database_url},
    )
    sync(made)
    with pytest.raises(UsageError, match=r"the source still has 1 of these rows.*nothing was erased"):
        forget(made, ["7"], apply=True)
    file.write_text("id,title\n1,one\n8,eight\n9,nine\n")
    sync(made)
    assert forget(made, ["7"], apply=True).artifacts == 1
    assert byte_search.in_folder(tmp_path / "artifacts", [text.encode()]) == []
    assert audit(made).consistent


def test_the_command_writes_a_certificate_that_names_no_row_and_can_be_checked(
    erasable: Connection, paintings: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = objects(paintings)
    file, keys, folder = write_pipeline(paintings, tmp_path), tmp_path / "keys.txt", tmp_path / "certificates"
    keys.write_text('["7"]\n\n')
    words = ["forget", str(file), "--keys", str(keys), "--apply", "--certificate", str(folder), "--json"]
    assert run(words, as_json=True) == 0
    certificate = json.loads(capsys.readouterr().out)["certificate"]
    assert json.loads((folder / "paintings-erasure-1.json").read_text()) == certificate
    after = objects(paintings)
    for one in certificate["objects"]:
        assert before[one["name"]] == one["sha256"]
        assert one["name"] not in after
        assert one["replaced_by"] is None or after[one["replaced_by"]] == one["sha256_after"]
    assert certificate["key_digests"] == [digest_of(certificate["salt"], ["7"])]
    assert certificate["traces_left"] == 0
    page = (folder / "paintings-erasure-1.md").read_text()
    assert certificate["key_digests"][0] in page
    assert "Backups" in page
    kept = erasable.execute("SELECT certificate, keys, leftovers, removed FROM rowvec.erasures").fetchall()
    assert kept == [(certificate, [], [], [])]
    keys.write_text("\n")
    assert run([*words[:4]], as_json=False) == 2
    assert "has no key; write one per line" in capsys.readouterr().err
