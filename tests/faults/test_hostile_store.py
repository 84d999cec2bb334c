"""A store that somebody else writes to: whatever its objects say, nothing of it is executed, and a restore is right or
refused in one sentence."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import shutil
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from azure.storage.blob import ContainerClient

from rowvec.errors import ArtifactCorrupt, RowvecError, StoreRefused
from rowvec.operations.restore import finish_restore, restore_rows, restoring
from rowvec.pipeline import Pipeline
from rowvec.pipeline.model import Artifacts
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.kept import connections_kept
from rowvec.stages.report import RestoreReport
from rowvec.store.artifact import Artifact, read_artifact, stored_fingerprints
from rowvec.store.open import open_store
from rowvec.store.parquet_pages import MOST_FOOTER_BYTES
from tests.support import forged_store
from tests.support import paintings as gallery
from tests.support.databases import database
from tests.support.examples import PROFILE
from tests.support.paintings import assert_in_step, fill, sync
from tests.support.servers.azurite import Container
from tests.support.store_mutations import mutate

CANARY = "CREATE TABLE public.canary (x int)"


@pytest.fixture
def fresh(cluster: str, monkeypatch: pytest.MonkeyPatch) -> Generator[str]:
    """A database with an empty ledger, which is the target of pipelines from now on."""
    with database(cluster, "template_rowvec") as url:
        monkeypatch.setenv("ROWVEC_DATABASE_URL", url)
        yield url


def restore(pipeline: Pipeline, manifest: str | None = None) -> RestoreReport:
    """Run what the flow runs."""
    with restoring(pipeline, manifest) as under_way:
        return finish_restore(pipeline, under_way.run, restore_rows(pipeline, under_way))


def restored_or_refused(pipeline: Pipeline) -> RestoreReport | str:
    """The report of a restore, or the sentence with which it was refused."""
    try:
        return restore(pipeline)
    except RowvecError as refused:
        return str(refused)


def has_canary(connection: Connection) -> bool:
    """Whether SQL of the store's was executed."""
    row = connection.execute("SELECT to_regclass('public.canary') IS NOT NULL").fetchone()
    return bool(row and row[0])


_NO_TYPES = [
    f"text); {CANARY}; COMMIT; --",
    f"text, x int); {CANARY}; --",
    "text DEFAULT pg_catalog.pg_sleep(1)",
    "text GENERATED ALWAYS AS (NULL) STORED",
    "integer REFERENCES public.secret",
    'text COLLATE "C"',
    "text\x00",
    "no_such_type",
    "pg_catalog.pg_class",
    "anyelement",
    "void",
    "integer[",
    'public."x""; DROP TABLE y"',
    "numeric(10,2); SELECT 1",
    "",
]


def test_a_layout_names_types_and_nothing_else(
    source: Connection, paintings: Pipeline, tmp_path: Path, fresh: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setenv("ROWVEC_DATABASE_URL", source.info.dsn)
        sync(paintings)
    with connections_kept(), connect(fresh) as target:
        for kind in _NO_TYPES:
            forged_store.replace_manifests(tmp_path / "artifacts", partial(_plant, kind))
            with pytest.raises(RowvecError) as refused:
                restore(paintings)
            assert not has_canary(target), kind
            assert "\n" not in str(refused.value), kind
            assert "author" in str(refused.value), kind


def _plant(kind: str, manifest: dict[str, Any]) -> None:
    manifest["layout"]["metadata"][0][1] = kind


_LEDGER = "TRUNCATE rowvec.pipelines, rowvec.runs, rowvec.artifacts, rowvec.embeddings RESTART IDENTITY CASCADE"
_ROLES = "SELECT count(*), count(*) FILTER (WHERE rolsuper) FROM pg_catalog.pg_roles"
_ROWS = "SELECT t::text FROM vectors.paintings AS t ORDER BY id"
_FIXED = PROFILE == "fixed"
_CASES = 36 if _FIXED else 10_000
# A case takes a quarter of a second of a busy machine. Half of it is fsync if the folders of the tests are on a disk:
# `--basetemp=/dev/shm/NAME` puts them into memory.
_PIECES = 1 if _FIXED else 40
_SYNC_CASES = 12 if _FIXED else 1_600
_IN_PIECES = pytest.mark.parametrize(
    "piece", [pytest.param(piece, marks=() if _FIXED else pytest.mark.soak) for piece in range(_PIECES)]
)
_MEMORY_KIB = 700 * 1024
# What the name of each object in a store begins with.
_OBJECTS = ("artifacts/", "journal/", "manifests/", "marks/")


@pytest.fixture
def sound(source: Connection, paintings: Pipeline, tmp_path: Path) -> Path:
    """A store of two runs over 20 rows."""
    source.execute("DELETE FROM paintings WHERE id > 20")
    sync(paintings)
    source.execute("DELETE FROM paintings WHERE id = 3")
    source.execute("UPDATE paintings SET title = 'other' WHERE id = 5")
    source.execute("UPDATE paintings SET author = 'O, \"quoted\"' WHERE id = 6")
    sync(paintings)
    return tmp_path / "artifacts"


def drawn() -> str:
    """What the seeds of a test begin with: always the same in `make test`, and something new in `make soak`."""
    return "" if _FIXED else f"{random.SystemRandom().getrandbits(64):x}-"


@_IN_PIECES
def test_whatever_somebody_writes_into_a_store_a_restore_is_right_or_refused(
    source: Connection, paintings: Pipeline, sound: Path, tmp_path: Path, fresh: str, piece: int
) -> None:
    """Checksums are made to fit in most cases: then a restore can only be as consistent as the store says it is."""
    right = [row for (row,) in source.execute(_ROWS)]
    outside = {str(path) for path in tmp_path.rglob("*")}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # A case opens a dozen connections, which is a third of its time.
    with connections_kept(), connect(fresh) as target:
        roles = target.execute(_ROLES).fetchone()
        begins = drawn()
        for number in range(piece, _CASES, _PIECES):
            seed, store = f"{begins}{number}", tmp_path / "forged"
            is_summed = mutate(random.Random(seed), number, sound, store)
            changed = paintings.model_copy(update={"artifacts": Artifacts(url=str(store))})
            outcome = restored_or_refused(changed)
            if isinstance(outcome, str):
                assert len(outcome.splitlines()) == 1, (seed, outcome)
                assert len(outcome) < 1500, (seed, outcome)
                assert any(part in outcome for part in _OBJECTS), (seed, outcome)
            else:
                found = [row for (row,) in target.execute(_ROWS)]
                assert is_summed or not outcome.consistent or found == right, seed
            assert not has_canary(target), seed
            assert target.execute(_ROLES).fetchone() == roles, seed
            target.execute("DROP SCHEMA IF EXISTS vectors CASCADE")
            target.execute(_LEDGER)
            shutil.rmtree(store)
            shutil.rmtree(tmp_path / "forged-outside", ignore_errors=True)
    left = {str(path) for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "home")}
    assert left <= outside
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < _MEMORY_KIB


@pytest.mark.azurite
@pytest.mark.parametrize("cases", [9, pytest.param(200, marks=pytest.mark.soak)])
def test_a_hostile_container_is_treated_like_a_folder(
    source: Connection,
    paintings: Pipeline,
    sound: Path,
    container: Container,
    tmp_path: Path,
    fresh: str,
    monkeypatch: pytest.MonkeyPatch,
    cases: int,
) -> None:
    right = [row for (row,) in source.execute(_ROWS)]
    monkeypatch.setenv("BLOB_KEY", container.key)
    client = ContainerClient(container.account_url, container.name, credential=container.key)
    client.create_container()
    with connect(fresh) as target:
        for case in range(cases):
            store = tmp_path / f"forged-{case}"
            is_summed = mutate(random.Random(f"azure-{case}"), case, sound, store)
            for path in store.rglob("*"):
                if path.is_file() and not path.is_symlink():
                    client.upload_blob(f"some/prefix/{case}/{path.relative_to(store)}", path.read_bytes())
            artifacts = Artifacts(url=f"{container.url}/{case}", credential="${BLOB_KEY}")
            outcome = restored_or_refused(paintings.model_copy(update={"artifacts": artifacts}))
            if isinstance(outcome, str):
                assert len(outcome.splitlines()) == 1, (case, outcome)
            else:
                found = [row for (row,) in target.execute(_ROWS)]
                assert is_summed or not outcome.consistent or found == right, case
            assert not has_canary(target), case
            target.execute("DROP SCHEMA IF EXISTS vectors CASCADE")
            target.execute(_LEDGER)


@_IN_PIECES
def test_a_sync_behind_a_hostile_store_embeds_what_it_cannot_trust(
    source: Connection, paintings: Pipeline, sound: Path, tmp_path: Path, fresh: str, piece: int
) -> None:
    """Its ledger is empty, so it looks at what the store's manifests name."""
    with connections_kept(), connect(fresh) as target:
        target.execute(gallery.SOURCE)
        fill(target, 12)
        begins = drawn()
        for number in range(piece, _SYNC_CASES, _PIECES):
            seed, store = f"sync-{begins}{number}", tmp_path / "forged"
            mutate(random.Random(seed), number, sound, store)
            outcome = synced_or_refused(paintings.model_copy(update={"artifacts": Artifacts(url=str(store))}))
            assert len(outcome.splitlines()) <= 1, (seed, outcome)
            if not outcome:
                assert_in_step(target)
            assert not has_canary(target), seed
            target.execute("DROP SCHEMA IF EXISTS vectors CASCADE")
            target.execute(_LEDGER)
            shutil.rmtree(store)
            shutil.rmtree(tmp_path / "forged-outside", ignore_errors=True)


def synced_or_refused(pipeline: Pipeline) -> str:
    """The sentence with which a sync was refused; empty if it ended well."""
    try:
        sync(pipeline)
    except RowvecError as refused:
        return str(refused)
    return ""


def test_a_link_out_of_the_store_is_neither_read_nor_written_through(tmp_path: Path) -> None:
    store, outside = open_store(Artifacts(url=str(tmp_path / "store"))), tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (tmp_path / "store").mkdir()
    (tmp_path / "store/artifacts").symlink_to(outside)
    (tmp_path / "store/secret").symlink_to(outside / "secret")
    content, digest = b"new", hashlib.sha256(b"new").hexdigest()
    (tmp_path / "new").write_bytes(content)
    with pytest.raises(StoreRefused, match="leads out of"):
        store.put("artifacts/new", tmp_path / "new", digest)
    with pytest.raises(StoreRefused, match="leads out of"):
        store.replace("artifacts/new", content)
    with pytest.raises(StoreRefused, match="leads out of"):
        store.delete("artifacts/secret")
    with pytest.raises(StoreRefused, match="leads out of"), store.opened("artifacts/secret"):
        pass
    assert store.checksum("secret") is None
    assert list(store.names()) == list(store.sizes()) == []
    assert store.put(f"secret.{digest}", tmp_path / "new", digest)
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_bytes() == b"secret"


def test_a_pipe_in_the_store_is_no_object(tmp_path: Path) -> None:
    """It would be read for ever."""
    (tmp_path / "store").mkdir()
    os.mkfifo(tmp_path / "store/pipe")
    store = open_store(Artifacts(url=str(tmp_path / "store")))
    assert store.checksum("pipe") is None
    with pytest.raises(ArtifactCorrupt, match="is not in the store"):
        store.get("pipe", tmp_path / "got", "0" * 64, at_most=10**9)


@pytest.mark.parametrize("column", ["content", "fingerprint"])
def test_a_page_that_unpacks_to_gigabytes_is_refused_before_it_does(
    sound: Path, tmp_path: Path, column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header of a page states its unpacked size, and the codec a megabyte for each of its kilobytes."""
    path = tmp_path / "bomb.parquet"
    of = next(sound.glob("artifacts/*/*/*.parquet"))
    held = pq.read_table(of).slice(0, 1)
    monkeypatch.setattr("rowvec.store.parquet_pages.MOST_COLUMN_BYTES", 8 << 20)
    bomb = pa.array(["x" * (9 << 20)]) if column == "content" else None
    if bomb is not None:
        held = held.set_column(held.schema.get_field_index(column), held.schema.field(column), bomb)
        pq.write_table(held, path, use_dictionary=False, compression="zstd", write_statistics=False)
    else:
        held = pa.concat_tables([held] * 4096)
        pq.write_table(held, path, use_dictionary=True, compression="zstd")
    assert path.stat().st_size < 2 << 20
    with pytest.raises(ArtifactCorrupt, match="is not an artifact of rowvec"):
        next(read_artifact(path))


def _only_artifact(sound: Path) -> tuple[Path, Artifact]:
    path = max(sound.glob("artifacts/*/*/*.parquet"), key=lambda path: path.stat().st_size)
    name = str(path.relative_to(sound))
    return path, Artifact(name=name, sha256=path.stem, rows=pq.read_metadata(path).num_rows, bytes=path.stat().st_size)


def test_an_artifact_of_which_only_the_fingerprints_are_read_may_not_fill_the_memory(
    sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger that is behind the store does not fetch the whole of it, so its checksum says nothing."""
    path, artifact = _only_artifact(sound)
    store = open_store(Artifacts(url=str(sound)))
    assert sum(map(len, stored_fingerprints(store, artifact))) == artifact.rows
    with monkeypatch.context() as small:
        small.setattr("rowvec.store.artifact._GROUP_BYTES", 128)
        with pytest.raises(ArtifactCorrupt, match="its column fingerprint has another size"):
            list(stored_fingerprints(store, artifact))
    with path.open("r+b") as file:
        file.truncate(MOST_FOOTER_BYTES + 100)
        file.seek(0, 2)
        file.write((MOST_FOOTER_BYTES + 1).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(ArtifactCorrupt, match="its footer is too large"):
        list(stored_fingerprints(store, artifact))


Lines = list[str]


def _with_journals(store: Path, change: Callable[[Lines], Lines], kind: str = "integer") -> None:
    """Change the lines of all journal entries, and the type of the key; the counts of rows stay as they were."""
    forged = forged_store.ForgedStore(store)
    for name in [name for name in forged.objects if name.endswith(".zst")]:
        lines = pa.CompressedInputStream(pa.BufferReader(forged.objects[name]), "zstd").read().decode().splitlines()
        forged.objects[name] = pa.compress("\n".join([*change(lines), ""]).encode(), "zstd", asbytes=True)
    for manifest in forged.manifests:
        manifest["layout"]["key"][0][1] = kind
    for path in (*forged_store.manifests(store), *store.glob("journal/*/*/*")):
        path.unlink()
    forged.write(store)


def test_a_journal_entry_of_more_rows_than_its_manifest_says_is_not_unpacked_to_its_end(
    paintings: Pipeline, sound: Path, fresh: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_journals(sound, lambda lines: [f"{row},{lines[0].partition(',')[2]}" for row in range(30_000)])
    sent: list[int] = []
    write: Any = psycopg.Copy.write

    def writing(copy: Any, part: bytes) -> None:
        sent.append(len(part))
        write(copy, part)

    monkeypatch.setattr(psycopg.Copy, "write", writing)
    with pytest.raises(ArtifactCorrupt, match=r"journal/\S+ has more rows than the 20 of its manifest"):
        restore(paintings)
    assert sum(sent) < 2 << 20


def test_a_value_that_no_table_can_hold_is_named_with_its_journal_entry(
    paintings: Pipeline, sound: Path, fresh: str
) -> None:
    long = random.Random(1).randbytes(9_000).hex()
    _with_journals(sound, lambda lines: [f"{long}{n}{line}" for n, line in enumerate(lines)], "text")
    with pytest.raises(ArtifactCorrupt, match=r"journal/\S+ is not a journal entry of rowvec: index row requires"):
        restore(paintings)
