"""A blob store that loses, refuses, delays, forgets or corrupts objects, and what the real command does then."""

from __future__ import annotations

import base64
import os
import re
import threading
import time
from collections.abc import Generator
from pathlib import Path

import psycopg
import pytest
from azure.storage.blob import ContainerClient

from rowvec.errors import ArtifactCorrupt
from rowvec.pipeline.model import Artifacts
from rowvec.postgres.connection import Connection
from rowvec.store.folder import FolderStore
from rowvec.store.protocol import file_checksum
from tests.support import paintings
from tests.support.cli_process import write_pipeline
from tests.support.fault_outcomes import Rowvec, failed, has_table, last_line, paid, succeeded, waits
from tests.support.forked_commands import Mounts
from tests.support.paintings import assert_in_step
from tests.support.servers.azurite import Container
from tests.support.servers.fault_proxy import StoreFault, StoreProxy, before_store
from tests.support.servers.openai_server import KEY, OpenAIServer, serve

pytestmark = pytest.mark.azurite

ARTIFACT, MANIFEST, JOURNAL = r"\.parquet", r"\.json", r"\.csv\.zst"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Generator[OpenAIServer]:
    """An embedder that costs money, with its key in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(key=KEY) as opened:
        yield opened


@pytest.fixture
def proxy(azurite: str) -> Generator[StoreProxy]:
    """A proxy in front of the blob server."""
    with before_store(azurite) as opened:
        yield opened


@pytest.fixture
def file(
    source: Connection,
    server: OpenAIServer,
    proxy: StoreProxy,
    container: Container,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A pipeline file: a paid embedder, and a container behind the proxy."""
    monkeypatch.setenv("BLOB_KEY", container.key)
    url = container.url.replace(container.host, proxy.host)
    return write_pipeline(paid(server, Artifacts(url=url, credential="${BLOB_KEY}")), tmp_path)


def client_of(container: Container) -> ContainerClient:
    """A client of the container that does not go through the proxy."""
    return ContainerClient(container.account_url, container.name, credential=container.key)


def objects(container: Container) -> list[str]:
    """The names of all objects."""
    return list(client_of(container).list_blob_names())


def cut_in_half(container: Container, kind: str) -> None:
    """Truncate each object of this kind to half its length; its metadata stays."""
    client = client_of(container)
    for name in [name for name in objects(container) if re.search(kind, name)]:
        blob = client.get_blob_client(name)
        content, beside = blob.download_blob().readall(), blob.get_blob_properties().metadata
        blob.upload_blob(content[: len(content) // 2], overwrite=True, metadata=beside)


def spoil(container: Container, kind: str) -> None:
    """Change one byte in each object of this kind; its length and metadata stay."""
    client = client_of(container)
    for name in [name for name in objects(container) if re.search(kind, name)]:
        blob = client.get_blob_client(name)
        content, beside = bytearray(blob.download_blob().readall()), blob.get_blob_properties().metadata
        content[len(content) // 2] ^= 1
        blob.upload_blob(bytes(content), overwrite=True, metadata=beside)


def test_lost_acknowledgements_of_a_slow_store_leave_each_object_once(
    source: Connection, server: OpenAIServer, proxy: StoreProxy, container: Container, file: Path, rowvec: Rowvec
) -> None:
    client_of(container).create_container()
    lost = [StoreFault(method="PUT", path=path, do="lose_answer") for path in (ARTIFACT, JOURNAL, MANIFEST)]
    proxy.add(*lost, StoreFault(method="GET|HEAD|PUT", do="slow", times=-1, seconds=0.1))
    report = succeeded(rowvec("sync", file))
    assert proxy.befallen()[:3] == [1, 1, 1]
    assert (report["embedded"], report["consistent"]) == (50, True)
    written = [e for e in proxy.exchanges if e.method == "PUT" and e.status == 409]
    assert len(written) == 3, "each was there already when the client tried again"
    assert len([name for name in objects(container) if not name.startswith("some/prefix/marks/")]) == 3
    assert any(name.endswith(report["manifest"]) for name in objects(container))
    assert set(server.paid.values()) == {1}
    assert_in_step(source)


def test_a_store_that_is_busy_for_a_while_delays_a_run_and_no_more(
    source: Connection, server: OpenAIServer, proxy: StoreProxy, file: Path, rowvec: Rowvec
) -> None:
    busy = StoreFault(method="PUT", path=ARTIFACT, do="refuse")
    # The client's own retries do not cover this one: the stage is tried again.
    too_many = StoreFault(method="PUT", path=JOURNAL, do="refuse", status=429, code="TooManyRequests")
    proxy.add(busy, too_many)
    assert succeeded(rowvec("sync", file))["consistent"]
    assert proxy.befallen() == [1, 1]
    source.execute("DROP TABLE vectors.paintings CASCADE")
    proxy.honest()
    # The vectors come from the artifact, whose first download ends half-way.
    proxy.add(StoreFault(method="GET", path=ARTIFACT, do="cut"))
    restored = succeeded(rowvec("sync", file))
    assert proxy.befallen() == [1]
    assert (restored["embedded"], restored["reused"]) == (0, 50)
    assert set(server.paid.values()) == {1}
    assert_in_step(source)


@pytest.mark.soak
@pytest.mark.parametrize(
    "fault",
    [
        StoreFault(method="PUT", path=ARTIFACT, do="refuse", times=-1),
        StoreFault(method="PUT", path=MANIFEST, do="lose_answer", times=-1),
        StoreFault(method="GET|HEAD", path=ARTIFACT, do="cut", times=-1),
        StoreFault(method="PUT", path=JOURNAL, do="refuse", times=-1, status=429, code="TooManyRequests"),
    ],
    ids=["503", "manifest never acknowledged", "cut", "429"],
)
def test_a_store_that_never_recovers_fails_the_run_with_one_sentence(
    source: Connection, server: OpenAIServer, proxy: StoreProxy, file: Path, rowvec: Rowvec, fault: StoreFault
) -> None:
    proxy.add(fault)
    if fault.do == "cut":
        succeeded(rowvec("sync", file))
        source.execute("DROP TABLE vectors.paintings CASCADE")
    ended = rowvec.start("sync", file).wait(1500)
    if fault.do == "lose_answer":
        # The object whose write was never acknowledged exists nevertheless: the command looks for it and finds it.
        assert succeeded(ended)["manifest"] is not None
    else:
        failed(source, ended, "the blob store" if fault.do == "refuse" else "could not be reached")
    proxy.honest()
    succeeded(rowvec("sync", file))
    assert set(server.paid.values()) == {1}
    assert_in_step(source)


def test_a_store_that_refuses_the_key_is_noticed_before_anything_is_paid_for(
    source: Connection, server: OpenAIServer, file: Path, rowvec: Rowvec
) -> None:
    wrong = base64.b64encode(b"no key of this account").decode()
    ended = rowvec("sync", file, BLOB_KEY=wrong)
    failed(source, ended, "the blob store refused", "403", "artifacts.credential")
    assert wrong not in ended.stdout + ended.stderr
    assert not has_table(source)
    assert not server.paid
    assert succeeded(rowvec("sync", file))["embedded"] == 50
    assert set(server.paid.values()) == {1}
    assert_in_step(source)


@pytest.mark.soak
def test_a_container_deleted_between_runs_is_created_again_and_audit_fills_it_from_the_table(
    source: Connection, server: OpenAIServer, container: Container, file: Path, rowvec: Rowvec
) -> None:
    succeeded(rowvec("sync", file))
    client_of(container).delete_container()
    paintings.fill(source, 1, start=51)
    report = succeeded(rowvec("sync", file))
    assert (report["embedded"], report["consistent"]) == (1, True)
    assert client_of(container).get_container_properties().public_access is None
    assert_in_step(source)
    repaired = succeeded(rowvec("audit", file, "--repair"))
    assert (repaired["consistent"], repaired["repaired"] >= 50) == (True, True)
    assert set(server.paid.values()) == {1}


def test_an_artifact_cut_in_the_store_fails_the_run_that_wrote_it(
    source: Connection, direct_url: str, server: OpenAIServer, container: Container, file: Path, rowvec: Rowvec
) -> None:
    server.hold = threading.Event()
    with psycopg.connect(direct_url) as keeper:
        running = rowvec.start("sync", file).when(lambda: server.most_at_once)
        keeper.execute("LOCK TABLE rowvec.loaded")
        server.hold.set()
        running.when(lambda: waits(source, "rowvec load 0"))
        cut_in_half(container, ARTIFACT)
        keeper.rollback()
        ended = running.wait()
    assert (ended.status, ended.json["consistent"]) == (1, False), ended
    assert "missing from the store or changed there" in last_line(ended)
    assert source.execute("SELECT state FROM rowvec.runs").fetchall() == [("failed",)]
    repaired = succeeded(rowvec("audit", file, "--repair"))
    assert (repaired["consistent"], repaired["repaired"] >= 50) == (True, True)
    assert set(server.paid.values()) == {1}
    assert_in_step(source)


def test_objects_corrupted_after_the_run_are_noticed_when_they_are_read_and_replaced(
    source: Connection, server: OpenAIServer, container: Container, file: Path, rowvec: Rowvec
) -> None:
    succeeded(rowvec("sync", file))
    spoil(container, ARTIFACT)
    # No copy of the vectors is left: they are paid for again, and the same bytes must replace the corrupt ones.
    source.execute("DROP TABLE vectors.paintings CASCADE")
    assert succeeded(rowvec("sync", file))["embedded"] == 50
    assert set(server.paid.values()) == {2}
    found = succeeded(rowvec("audit", file))
    assert (found["consistent"], found["corrupt"]) == (True, 0)
    assert_in_step(source)


def test_a_folder_that_is_full_or_read_only_is_refused_and_leaves_nothing_half_written(
    source: Connection, server: OpenAIServer, tmp_path: Path, rowvec: Rowvec
) -> None:
    folder = tmp_path / "artifacts"
    folder.mkdir()
    file = write_pipeline(paid(server, Artifacts(url=str(folder))), tmp_path)
    read_only = Mounts(before='mount --bind "$0" "$0" && mount -o remount,ro,bind "$0"', folder=folder)
    failed(source, rowvec.within(read_only, "sync", file), str(folder), "Read-only file system", "artifacts.url")
    # The command sees a file system of 16 kB there; the names of the files that it leaves are written next to it.
    full = Mounts(before='mount -t tmpfs -o size=16k none "$0"', after='find "$0" -type f >"$0.left"', folder=folder)
    failed(source, rowvec.within(full, "sync", file), str(folder), "No space left on device", "artifacts.url")
    assert Path(f"{folder}.left").read_text() == ""
    assert not has_table(source)
    assert list(folder.iterdir()) == []
    assert succeeded(rowvec("sync", file))["reused"] == 50
    assert set(server.paid.values()) == {1}
    assert_in_step(source)


def test_files_of_killed_writers_are_removed_from_a_folder_once_they_are_old(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    path = tmp_path / "one"
    path.write_bytes(b"content")
    digest = file_checksum(path)
    store.put("a/b", path, digest)
    old, young, elsewhere = (tmp_path / f"store/{name}.part" for name in ("a/.old", "a/.young", "c/.old"))
    elsewhere.parent.mkdir()
    for leftover in (old, young, elsewhere):
        leftover.write_bytes(b"con")
    yesterday = time.time() - 25 * 60 * 60
    for leftover in (old, elsewhere):
        os.utime(leftover, (yesterday, yesterday))
    store.put("a/c", path, digest)
    assert (old.exists(), young.exists(), elsewhere.exists()) == (False, True, True)
    assert list(store.names()) == ["a/b", "a/c"]
    assert (young.exists(), elsewhere.exists()) == (True, False)


def test_a_corrupt_object_is_replaced_only_if_its_name_says_what_it_should_hold(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    path = tmp_path / "one"
    path.write_bytes(b"content")
    digest = file_checksum(path)
    for name in (digest, "plain"):
        store.put(name, path, digest)
        (tmp_path / "store" / name).write_bytes(b"conten")
    assert store.put(digest, path, digest) is True
    assert store.checksum(digest) == digest
    with pytest.raises(ArtifactCorrupt, match="plain already exists with other bytes"):
        store.put("plain", path, digest)
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == sorted([digest, "plain"])
