"""A run certifies every row of its table; ``verify`` finds each change by its root, and names the row."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from rowvec.cli.app import run
from rowvec.errors import ArtifactCorrupt, Inconsistent, PipelineBusy, UsageError
from rowvec.ledger.known_manifests import known_manifests
from rowvec.operations.erasure.forget import forget
from rowvec.operations.restore import restore_rows, restoring
from rowvec.operations.verify import check_proof, prove, read_proof, verify
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.store.manifest import read_link
from rowvec.store.open import open_store
from rowvec.vectors.hash_tree import chained, record_of, root_of
from tests.support.paintings import dying_after, fill, pipeline, sync

PAGE = Path(__file__).parents[3] / "docs/how-to/verify.md"


def root_by_hand(connection: Connection) -> str:
    """The root of the vector table, in Python from what plain SQL says of the rows."""
    buckets: dict[str, list[bytes]] = {}
    rows = "SELECT id::text, fingerprint, sha256(vector_send(embedding)) FROM vectors.paintings"
    for key, fingerprint, vector in connection.execute(rows).fetchall():
        record = record_of((key,), fingerprint, vector)
        buckets.setdefault(record.hex()[:4], []).append(record)
    return root_of((path, sha256(b"".join(sorted(found))).digest()) for path, found in buckets.items())


def test_each_run_certifies_its_rows_and_is_chained_to_the_one_before(source: Connection, paintings: Pipeline) -> None:
    first = sync(paintings)
    assert (first.root, first.certified_run) == (root_by_hand(source), first.run_id)
    source.execute("DELETE FROM paintings WHERE id <= 3")
    source.execute("UPDATE paintings SET title = 'other' WHERE id = 8")
    source.execute("UPDATE paintings SET author = 'other' WHERE id = 9")
    source.execute("UPDATE paintings SET id = 1000 WHERE id = 10")
    fill(source, 2, start=60)
    second = sync(paintings)
    assert second.root == root_by_hand(source) != first.root
    known = known_manifests(source, "paintings")
    store = open_store(paintings.artifacts)
    before, after = (
        read_link(store, name or "", known.checksums).manifest.certificate for name in (first.manifest, second.manifest)
    )
    assert before is not None
    assert after is not None
    assert (before.before, after.before, after.rows, after.root) == (None, before.chain, 49, second.root)
    assert after.chain == chained(before.chain, second.run_id, 49, second.root or "")
    unchanged = sync(paintings)
    assert (unchanged.manifest, unchanged.root, unchanged.certified_run) == (None, second.root, second.run_id)
    source.execute("DELETE FROM paintings WHERE id > 1")
    source.execute("UPDATE paintings SET title = NULL, description = NULL")
    paintings = pipeline(str(paintings.artifacts.url), validation={"max_delete_fraction": 1})
    assert sync(paintings).root == root_by_hand(source) == sha256(b"").hexdigest()
    assert verify(paintings).verified


EDITS = {
    "UPDATE vectors.paintings SET embedding = (SELECT embedding FROM vectors.paintings WHERE id = 6) WHERE id = 7": {
        ("changed", ("7",))
    },
    "UPDATE vectors.paintings SET fingerprint = sha256('x') WHERE id = 8": {("changed", ("8",))},
    "DELETE FROM vectors.paintings WHERE id = 9": {("removed", ("9",))},
    "UPDATE vectors.paintings SET id = 1009 WHERE id = 9": {("removed", ("9",)), ("added", ("1009",))},
}


def test_an_edited_table_has_another_root_and_the_rows_are_named(source: Connection, paintings: Pipeline) -> None:
    report = sync(paintings)
    good = verify(paintings)
    assert (good.verified, good.root, good.rows, good.run_id) == (True, report.root, 50, report.run_id)
    source.execute("CREATE TABLE kept AS SELECT * FROM vectors.paintings")
    for edit, named in EDITS.items():
        source.execute(edit.encode())
        found = verify(paintings)
        assert not found.verified
        assert {(one.change, one.key) for one in found.differences} == named
        assert sum(found.counts.values()) == len(named)
        assert verify(paintings, found.found).verified
        source.execute("TRUNCATE vectors.paintings; INSERT INTO vectors.paintings SELECT * FROM kept")
    assert verify(paintings).verified
    source.execute("DELETE FROM vectors.paintings WHERE id = 9")
    source.execute("UPDATE rowvec.hash_tree SET content = content || content WHERE length(path) = 4")
    assert "hashes per row in the ledger do not have the certified root" in (verify(paintings).note or "")


def test_a_root_of_an_earlier_run_is_told_apart(source: Connection, paintings: Pipeline) -> None:
    first = sync(paintings)
    fill(source, 1, start=60)
    second = sync(paintings)
    found = verify(paintings, first.root)
    assert (found.verified, found.found) == (False, second.root)
    assert found.note == (
        f"The table has the root of run {second.run_id}, which is the last one; the root that you gave is of run "
        f"{first.run_id}."
    )


def test_rows_of_a_killed_run_are_certified_by_the_next(
    source: Connection, paintings: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(paintings)
    source.execute("DELETE FROM paintings WHERE id <= 3")
    source.execute("UPDATE paintings SET title = 'other' WHERE id = 8")
    with dying_after("merge", monkeypatch):
        sync(paintings)
    with pytest.raises(PipelineBusy, match="rows that no certificate covers yet"):
        verify(paintings)
    assert sync(paintings).root == root_by_hand(source)
    assert verify(paintings).verified


def test_a_certificate_in_the_database_alone_is_not_believed(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    source.execute("UPDATE rowvec.certificates SET rows = 51")
    with pytest.raises(ArtifactCorrupt, match="has another certificate than the ledger"):
        verify(paintings)


@pytest.mark.needs("a superuser", "only the owner of the source's table can make triggers on it")
def test_runs_by_the_queue_carry_the_root_on_or_say_that_they_have_none(
    source: Connection, paintings: Pipeline
) -> None:
    paintings = pipeline(str(paintings.artifacts.url), source={"changes": {"by": "trigger"}})
    sync(paintings)
    whole = sync(paintings)
    fill(source, 1, start=60)
    source.execute("DELETE FROM paintings WHERE id = 4")
    carried = sync(paintings)
    assert carried.compared_in_part
    assert carried.root == root_by_hand(source) != whole.root
    # As after an upgrade from a version without certificates.
    source.execute("DELETE FROM rowvec.hash_tree")
    source.execute("DELETE FROM paintings WHERE id = 5")
    fill(source, 1, start=61)
    without = sync(paintings)
    assert without.compared_in_part
    assert (without.root, without.certified_run) == (None, carried.run_id)
    assert f"the last one is that of run {carried.run_id}" in without.as_markdown()
    assert "the next comparison of the whole source certifies it again" in (verify(paintings).note or "")
    # An erasure takes the last certificate out of its manifest.
    forget(paintings, ["5"], apply=True)
    assert "the next comparison of the whole source certifies it again" in (verify(paintings).note or "")
    fill(source, 1, start=62)
    source.execute("DELETE FROM rowvec.changes")
    again = sync(paintings)
    assert (again.root, again.certified_run) == (root_by_hand(source), again.run_id)


def test_a_key_that_prints_in_another_way_leaves_no_record_behind(source: Connection, paintings: Pipeline) -> None:
    source.execute("ALTER TABLE paintings ALTER id TYPE numeric")
    sync(paintings)
    source.execute("UPDATE paintings SET id = 7.00, title = 'other' WHERE id = 7")
    report = sync(paintings)
    assert source.execute("SELECT id::text FROM vectors.paintings WHERE id = 7").fetchone() == ("7.00",)
    assert report.root == root_by_hand(source)


@pytest.mark.needs("a superuser", "rowvec creates the schema of its ledger again")
def test_a_restored_table_has_the_certified_root_and_continues_the_chain(
    source: Connection, paintings: Pipeline
) -> None:
    report = sync(paintings)
    source.execute("DROP SCHEMA vectors CASCADE; DROP SCHEMA rowvec CASCADE")
    with restoring(paintings) as restore:
        restored = restore_rows(paintings, restore)
    assert restored.same_root
    # The root was computed from the restored rows, and is not taken from the manifest.
    tree = "SELECT rows, encode(sha256(content), 'hex') FROM rowvec.hash_tree WHERE path = ''"
    assert source.execute(tree).fetchone() == (50, report.root)
    assert verify(paintings).root == report.root
    fill(source, 1, start=60)
    second = sync(paintings)
    assert second.root == root_by_hand(source)
    chains = source.execute("SELECT before, chain FROM rowvec.certificates ORDER BY run_id").fetchall()
    assert [before for before, _ in chains] == [None, chains[0][1]]


def test_an_erasure_keeps_the_root_and_takes_back_certificates_over_erased_rows(
    source: Connection, paintings: Pipeline
) -> None:
    first = sync(paintings)
    source.execute("DELETE FROM paintings WHERE id = 7")
    second = sync(paintings)
    forget(paintings, ["7"], apply=True)
    assert verify(paintings).root == second.root
    known, store = known_manifests(source, "paintings"), open_store(paintings.artifacts)
    kept = source.execute("SELECT run_id, manifest FROM rowvec.runs WHERE manifest IS NOT NULL ORDER BY run_id")
    certified = {run: read_link(store, name, known.checksums).manifest.certificate for run, name in kept.fetchall()}
    assert [(run, bool(found)) for run, found in certified.items()] == [(first.run_id, False), (second.run_id, True)]


@pytest.fixture
def proofs(source: Connection, paintings: Pipeline, tmp_path: Path) -> tuple[Path, Path, str]:
    """The proof of a row, the proof that there is no such row, and the root."""
    report = sync(paintings)
    files = tmp_path / "row.json", tmp_path / "none.json"
    (tmp_path / "p.json").write_text(paintings.model_dump_json(), "utf-8")
    for key, file in zip(("7", "70"), files, strict=True):
        assert run(["verify", str(tmp_path / "p.json"), "--key", key, "--to", str(file)], as_json=False) == 0
    return *files, report.root or ""


def test_a_proof_holds_without_the_database(
    proofs: tuple[Path, Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row, none, root = proofs
    monkeypatch.setenv("ROWVEC_DATABASE_URL", "postgresql://127.0.0.1:1/none")
    for file in (row, none):
        assert run(["verify", "--proof", str(file), "--root", root], as_json=False) == 0
        assert run(["verify", "--proof", str(file), "--root", "0" * 64], as_json=False) == 1
    shown = capsys.readouterr()
    assert "had this row: (7)" in shown.out
    assert "had no row with this key: (70)" in shown.out
    assert "it belongs to another root" in shown.err


def test_a_proof_of_another_row_or_none_is_refused(proofs: tuple[Path, Path, str], tmp_path: Path) -> None:
    proof, absent = read_proof(proofs[0]), read_proof(proofs[1])
    root = proofs[2]
    check_proof(proof, root)
    forged = [
        replace(proof, fingerprint="0" * 64),
        replace(proof, vector_sha256="0" * 64),
        replace(proof, key=("8",)),
        replace(proof, fingerprint=None, vector_sha256=None),
        replace(absent, key=("7",)),
        replace(absent, fingerprint="0" * 64, vector_sha256="0" * 64),
        *(replace(proof, nodes=proof.nodes[:length]) for length in range(1, 5)),
        *(replace(proof, fingerprint=None, vector_sha256=None, nodes=proof.nodes[:length]) for length in range(1, 5)),
        replace(proof, nodes=(*proof.nodes[:4], proof.nodes[4] + "00" * 48)),
    ]
    for one in forged:
        with pytest.raises(Inconsistent, match="does not hold against the root"):
            check_proof(one, root)
    judged = page_scripts()[0]["proof_holds"]
    assert judged(asdict(proof), root)
    assert [judged(asdict(one), root) for one in forged] == [False] * len(forged)
    file = tmp_path / "bad.json"
    for bad in ("{", "[]", json.dumps({**json.loads(proofs[0].read_text()), "nodes": ["0"]})):
        file.write_text(bad)
        with pytest.raises(UsageError, match="is not a proof of rowvec"):
            read_proof(file)
    with file.open("wb") as opened:
        opened.truncate((16 << 20) + 1)
    with pytest.raises(UsageError, match="it is larger than any"):
        read_proof(file)


def test_a_row_that_was_edited_is_not_proved(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    source.execute(
        "UPDATE vectors.paintings SET embedding = (SELECT embedding FROM vectors.paintings WHERE id = 8) WHERE id = 7"
    )
    with pytest.raises(Inconsistent, match=r"the row \(7\) of vectors\.paintings is not the one that run"):
        prove(paintings, "7")
    with pytest.raises(UsageError, match="is no key of "):
        prove(paintings, "seven")


def page_scripts() -> list[dict[str, Any]]:
    """The functions of each script of the page, without the part that reads its arguments."""
    found: list[dict[str, Any]] = []
    for script in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL):
        found.append({})
        exec(script.partition("\nfile, root =")[0].partition("\nkind =")[0], found[-1])  # noqa: S102 # our own page
    return found


def run_script(number: int, *arguments: str | Path, given: str = "") -> tuple[int, str]:
    """Run a script of the page as an auditor does: exit status, and what it prints."""
    script = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)[number]
    command = [sys.executable, "-I", "-S", "-c", script, *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True)  # noqa: S603 # our own page
    assert done.stderr == ""
    return done.returncode, done.stdout


def exported(connection: Connection, file: Path, table: str, send: str = "vector_send") -> Path:
    """The hashes of a table's rows, by the statement of the page with this table and function."""
    (statement,) = re.findall(r"```sql\n(.*?);?\n```", PAGE.read_text("utf-8"), re.DOTALL)
    copied = re.sub(r"\\copy (.*) to .*", r"COPY \1 TO STDOUT (FORMAT csv)", statement, flags=re.DOTALL)
    copied = copied.replace("vectors.paintings", table).replace("vector_send", send)
    with file.open("wb") as out, connection.cursor() as cursor, cursor.copy(copied.encode()) as copy:
        out.writelines(copy)
    return file


def test_the_script_of_the_page_agrees(source: Connection, proofs: tuple[Path, Path, str], tmp_path: Path) -> None:
    row, none, root = proofs
    table = exported(source, tmp_path / "table.csv", "vectors.paintings")
    for file in (row, none, table):
        assert run_script(0, file, root) == (0, "holds\n")
    assert run_script(0, table, "0" * 64) == (1, "does NOT hold\n")
    (vector,) = source.execute("SELECT embedding::text FROM vectors.paintings WHERE id = 7").fetchone() or ("",)
    assert run_script(1, "vector", given=vector) == (0, f"{read_proof(row).vector_sha256}\n")
    forged = row.read_text().replace(json.loads(row.read_text())["vector_sha256"], "0" * 64)
    row.write_text(forged)
    assert run_script(0, row, root)[0] == 1


def test_the_scripts_of_the_page_agree_for_each_type_of_vectors(
    source: Connection, paintings: Pipeline, tmp_path: Path
) -> None:
    # Two rows of one bucket, of which the first has the greater record.
    fill(source, 1, start=301)
    fill(source, 1, start=869)
    source.execute(
        "ALTER TABLE paintings ADD halves halfvec(4), ADD few sparsevec(30522);"
        "UPDATE paintings SET halves = ARRAY[id, -0.0, 6e-8, 65504]::real[]::halfvec,"
        " few = ('{1:' || id || '.1,7:-1e-40,30522:0.5}/30522')::sparsevec"
    )
    roots: set[str] = set()
    columns = {"halves": ("halfvec", 4, "float16"), "few": ("sparsevec", 30522, "sparse")}
    for column, (kind, dimensions, precision) in columns.items():
        ours = pipeline(
            str(tmp_path / column),
            embedder={"kind": "column", "column": column, "dimensions": dimensions},
            target={"table": f"vectors.{column}", "precision": precision},
        ).model_copy(update={"name": column})
        root = sync(ours).root or ""
        table = exported(source, tmp_path / f"{column}.csv", f"vectors.{column}", f"{kind}_send")
        assert run_script(0, table, root) == (0, "holds\n")
        hashes = [line.split(",")[-1] for line in table.read_text().splitlines()]
        written = sql.SQL("SELECT embedding::text FROM vectors.{}")
        texts = [text for (text,) in source.execute(written.format(sql.Identifier(column)))]
        assert run_script(1, kind, given="\n".join(texts)) == (0, "\n".join([*hashes, ""]))
        proof = prove(ours, "7")
        (tmp_path / "row.json").write_text(json.dumps(asdict(proof)))
        assert run_script(0, tmp_path / "row.json", root) == (0, "holds\n")
        assert proof.vector_sha256 in hashes
        roots.add(root)
    assert len(roots) == 2
