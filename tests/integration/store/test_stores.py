"""A folder and a blob container give the same guarantees, also with other writers and with faults on the way."""

from __future__ import annotations

import hashlib
import random
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas
from azure.storage.blob import ContainerClient as AzureContainer

from rowvec.errors import ArtifactCorrupt, StoreRefused, StoreUnavailable, UsageError
from rowvec.pipeline.model import Artifacts
from rowvec.store import azure
from rowvec.store.azure import open_container
from rowvec.store.azure_account import place_of
from rowvec.store.open import open_store
from rowvec.store.protocol import Store
from tests.support.servers.azurite import Container

MIB = 1 << 20


@pytest.fixture(params=["folder", pytest.param("azure", marks=pytest.mark.azurite)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    if request.param == "folder":
        return open_store(Artifacts(url=str(tmp_path / "store")))
    place: Container = request.getfixturevalue("container")
    return open_container(place.url, place.key)


def written(path: Path, content: bytes) -> tuple[Path, str]:
    """A file and its checksum."""
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


def official(place: Container) -> AzureContainer:
    """The container through Azure's own client, to check what rowvec's client did."""
    return AzureContainer(place.account_url, place.name, credential=place.key)


def sas(place: Container, permission: str, *, hours: int = 1) -> str:
    """A SAS token for the account. The token is a secret."""
    return generate_account_sas(
        place.account,
        place.key,
        resource_types=ResourceTypes(service=True, container=True, object=True),
        permission=AccountSasPermissions.from_string(permission),
        expiry=datetime.now(UTC) + timedelta(hours=hours),
    )


def all_messages(error: BaseException) -> str:
    """Everything that a log would show of an error."""
    return "".join(traceback.format_exception(error)) + repr(error)


def test_what_is_put_comes_back(store: Store, tmp_path: Path) -> None:
    path, digest = written(tmp_path / "one", b"content")
    assert list(store.names()) == []
    assert store.checksum("a/b.parquet") is None
    assert store.put("a/b.parquet", path, digest) is True
    assert store.checksum("a/b.parquet") == digest
    store.get("a/b.parquet", tmp_path / "back", digest, at_most=10**9)
    assert (tmp_path / "back").read_bytes() == b"content"
    assert store.location("a/b.parquet").endswith("/a/b.parquet")
    store.delete("a/b.parquet")
    store.delete("a/b.parquet")
    assert store.checksum("a/b.parquet") is None


def test_an_object_that_is_larger_than_the_known_one_is_not_fetched(store: Store, tmp_path: Path) -> None:
    path, digest = written(tmp_path / "one", b"content")
    store.put("a/b", path, digest)
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(ArtifactCorrupt, match="a/b has more than the 6 bytes that it may have"):
        store.get("a/b", into / "back", digest, at_most=6)
    assert list(into.iterdir()) == []
    store.get("a/b", into / "back", digest, at_most=7)


def test_an_empty_object_comes_back(store: Store, tmp_path: Path) -> None:
    path, digest = written(tmp_path / "one", b"")
    store.put("empty", path, digest)
    store.get("empty", tmp_path / "back", digest, at_most=10**9)
    assert (tmp_path / "back").read_bytes() == b""


def test_an_object_is_written_once(store: Store, tmp_path: Path) -> None:
    path, digest = written(tmp_path / "one", b"content")
    other, other_digest = written(tmp_path / "two", b"something else")
    store.put("a/b", path, digest)
    assert store.put("a/b", path, digest) is False
    with pytest.raises(ArtifactCorrupt, match=r"a/b already exists"):
        store.put("a/b", other, other_digest)
    assert store.checksum("a/b") == digest


def test_a_file_that_changed_since_it_was_hashed_is_not_put(store: Store, tmp_path: Path) -> None:
    path, digest = written(tmp_path / "one", b"content")
    path.write_bytes(b"conten")
    with pytest.raises(ArtifactCorrupt, match=r"a/b\.parquet"):
        store.put("a/b.parquet", path, digest)
    assert list(store.names()) == []


def test_wrong_bytes_never_appear(store: Store, tmp_path: Path) -> None:
    path, digest = written(tmp_path / "one", b"content")
    store.put("a/b", path, digest)
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(ArtifactCorrupt, match=r"a/b does not agree"):
        store.get("a/b", into / "back", "0" * 64, at_most=10**9)
    with pytest.raises(ArtifactCorrupt, match=r"a/c is not in the store"):
        store.get("a/c", into / "back", digest, at_most=10**9)
    assert list(into.iterdir()) == []


def test_names_are_listed_by_prefix_in_order(store: Store, tmp_path: Path) -> None:
    path, digest = written(tmp_path / "one", b"content")
    for name in ("b/2", "a/b/1", "a/b-1", "a/c", "ab/1"):
        store.put(name, path, digest)
    assert list(store.names()) == ["a/b-1", "a/b/1", "a/c", "ab/1", "b/2"]
    assert list(store.names("a/b")) == ["a/b-1", "a/b/1"]
    assert list(store.names("a/")) == ["a/b-1", "a/b/1", "a/c"]
    assert list(store.names("x/y")) == []


@pytest.mark.parametrize(
    "name", ["../a", "a/../b", "/a", "a//b", "a/", "", "a\\b", ".", "a/.hidden", "a?b", "a b", "a\n", "ä", "a" * 901]
)
def test_a_name_that_could_leave_the_store_is_refused(store: Store, tmp_path: Path, name: str) -> None:
    path, digest = written(tmp_path / "one", b"content")
    calls: list[Callable[[], object]] = [
        lambda: store.put(name, path, digest),
        lambda: store.get(name, tmp_path / "back", digest, at_most=10**9),
        lambda: store.checksum(name),
        lambda: store.delete(name),
        lambda: store.location(name),
    ]
    for call in calls:
        with pytest.raises(StoreRefused, match="is not a valid name for an object"):
            call()


@pytest.mark.parametrize("prefix", ["../", "a/../", "/", "a//", ".part"])
def test_a_prefix_that_could_leave_the_store_is_refused(store: Store, prefix: str) -> None:
    with pytest.raises(StoreRefused, match="is not a valid name for an object"):
        list(store.names(prefix))


@pytest.mark.parametrize("size", [1000, 9 * MIB], ids=["one request", "blocks"])
def test_of_16_racing_writers_one_creates_and_all_succeed(store: Store, tmp_path: Path, size: int) -> None:
    path, digest = written(tmp_path / "one", random.Random(1).randbytes(size))
    start = threading.Barrier(16)

    def put(_: int) -> bool:
        start.wait()
        return store.put("a/b", path, digest)

    with ThreadPoolExecutor(16) as writers:
        created = list(writers.map(put, range(16)))
    assert sum(created) == 1
    store.get("a/b", tmp_path / "back", digest, at_most=10**9)
    assert list(store.names()) == ["a/b"]


_TRANSFER = """
import sys
from pathlib import Path
from rowvec.pipeline.model import Artifacts
from rowvec.store.open import open_store

def peak():  # getrusage would give the parent's, which a child inherits
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0])

url, credential, path, digest = sys.argv[1:]
store = open_store(Artifacts.model_construct(url=url, credential=credential or None))
small = Path(path + ".small")
small.write_bytes(b"")
store.put("small", small, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
before = peak()
assert store.put("large", Path(path), digest)
store.get("large", Path(path + ".back"), digest, at_most=10**9)
print(peak() - before)
"""


@pytest.mark.parametrize("kind", ["folder", pytest.param("azure", marks=pytest.mark.azurite)])
def test_an_object_of_64_mib_travels_in_bounded_memory(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path, digest = written(tmp_path / "large", random.Random(1).randbytes(MIB) * 64)
    url, credential = str(tmp_path / "store"), ""
    if kind == "azure":
        place: Container = request.getfixturevalue("container")
        url, credential = place.url, place.key
    command = [sys.executable, "-c", _TRANSFER, url, credential, str(path), digest]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 # ours
    assert int(done.stdout) < 40 * 1024, f"{done.stdout} KiB more than for an empty object"
    assert path.with_name("large.back").stat().st_size == 64 * MIB


def test_a_killed_writer_leaves_nothing_that_is_listed(tmp_path: Path) -> None:
    store = open_store(Artifacts(url=str(tmp_path / "store")))
    path, digest = written(tmp_path / "one", b"content")
    store.put("a/b", path, digest)
    (tmp_path / "store/a/.0123.part").write_bytes(b"cont")
    assert list(store.names()) == ["a/b"]


def test_a_folder_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    path, digest = written(tmp_path / "one", b"content")
    with pytest.raises(StoreRefused, match=r"set artifacts\.url"):
        open_store(Artifacts(url=str(path / "below"))).put("a", path, digest)


def test_a_disk_that_cannot_take_the_object_is_named(store: Store, tmp_path: Path) -> None:
    path, digest = written(tmp_path / "one", b"content")
    store.put("a/b", path, digest)
    with pytest.raises(StoreUnavailable, match=r"gone.* cannot be used at the moment: No such file or directory"):
        store.get("a/b", tmp_path / "gone/back", digest, at_most=10**9)
    with pytest.raises(StoreUnavailable, match="two cannot be used at the moment: No such file or directory"):
        store.put("a/c", tmp_path / "two", digest)
    (tmp_path / "taken").mkdir()
    with pytest.raises(StoreRefused, match="cannot be used: Is a directory"):
        store.get("a/b", tmp_path / "taken", digest, at_most=10**9)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "store") == ["one", "taken"]


def test_a_corrupt_file_in_the_folder_is_noticed(tmp_path: Path) -> None:
    store = open_store(Artifacts(url=str(tmp_path / "store")))
    path, digest = written(tmp_path / "one", b"content")
    store.put("a/b", path, digest)
    (tmp_path / "store/a/b").write_bytes(b"conten")
    assert store.checksum("a/b") != digest
    with pytest.raises(ArtifactCorrupt, match="a/b"):
        store.get("a/b", tmp_path / "back", digest, at_most=10**9)
    with pytest.raises(ArtifactCorrupt, match="a/b"):
        store.put("a/b", path, digest)


@pytest.mark.azurite
def test_a_corrupt_blob_is_noticed(container: Container, tmp_path: Path) -> None:
    store = open_container(container.url, container.key)
    path, digest = written(tmp_path / "one", b"content")
    store.put("a/b", path, digest)
    official(container).upload_blob("some/prefix/a/b", b"conten", overwrite=True, metadata={"sha256": digest})
    with pytest.raises(ArtifactCorrupt, match="a/b"):
        store.get("a/b", tmp_path / "back", digest, at_most=10**9)


@pytest.mark.azurite
def test_a_blob_whose_metadata_was_lost_is_known_by_its_bytes(container: Container, tmp_path: Path) -> None:
    store = open_container(container.url, container.key)
    path, digest = written(tmp_path / "one", b"content")
    store.put("a/b", path, digest)
    official(container).upload_blob("some/prefix/a/b", b"content", overwrite=True)
    assert store.checksum("a/b") == digest
    assert store.put("a/b", path, digest) is False
    official(container).upload_blob("some/prefix/a/b", b"conten", overwrite=True)
    with pytest.raises(ArtifactCorrupt, match="a/b already exists"):
        store.put("a/b", path, digest)


@pytest.mark.azurite
def test_the_container_is_private_and_the_object_says_what_it_is(container: Container, tmp_path: Path) -> None:
    store = open_container(container.url, container.key)
    path, digest = written(tmp_path / "one", b"content")
    store.put("a/b.parquet", path, digest)
    assert official(container).get_container_access_policy()["public_access"] is None
    with pytest.raises(HTTPError) as refused:
        urlopen(store.location("a/b.parquet"))  # noqa: S310 # http, on this machine
    refused.value.close()
    assert refused.value.code in (401, 403, 404)
    found = official(container).get_blob_client("some/prefix/a/b.parquet").get_blob_properties()
    md5 = hashlib.md5(b"content", usedforsecurity=False).hexdigest()
    assert found.metadata == {"sha256": digest, "md5": md5}
    assert found.content_settings.content_type == "application/vnd.apache.parquet"


@pytest.mark.azurite
@pytest.mark.parametrize("kind", ["key", "connection string", "sas", "sas connection string"])
def test_each_kind_of_credential_opens_the_store(container: Container, tmp_path: Path, kind: str) -> None:
    token = sas(container, "rwdlac")
    credential = {
        "key": container.key,
        "connection string": f"DefaultEndpointsProtocol=http;AccountName={container.account};"
        f"AccountKey={container.key};BlobEndpoint={container.account_url};",
        "sas": f"?{token}",
        "sas connection string": f"BlobEndpoint={container.account_url};SharedAccessSignature={token}",
    }[kind]
    path, digest = written(tmp_path / "one", b"content")
    store = open_container(container.url, credential)
    assert store.put("a/b", path, digest)
    assert list(store.names()) == ["a/b"]
    assert container.key not in store.location("a/b")
    assert "sig=" not in store.location("a/b")


@pytest.mark.azurite
def test_a_token_that_may_not_make_containers_is_enough_where_there_is_one(
    container: Container, tmp_path: Path
) -> None:
    token = generate_account_sas(
        container.account,
        container.key,
        resource_types=ResourceTypes(object=True),
        permission=AccountSasPermissions.from_string("rwdlac"),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )
    path, digest = written(tmp_path / "one", b"content")
    store = open_container(container.url, token)
    with pytest.raises(StoreRefused, match=f"the container {container.name} does not exist") as refused:
        store.put("a/b", path, digest)
    assert "sig=" not in all_messages(refused.value)
    with official(container) as client:
        client.create_container()
    assert store.put("a/b", path, digest)


@pytest.mark.azurite
def test_no_error_shows_a_credential(
    container: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(azure, "_RETRIES", 0)
    caplog.set_level("DEBUG")
    path, digest = written(tmp_path / "one", b"content")
    open_container(container.url, container.key).put("a/b", path, digest)
    key = "cGxhbnRlZC1rZXk="
    expired, weak = sas(container, "rwdlac", hours=-1), sas(container, "l")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}/{container.account}/{container.name}"
        stores = {
            expired: open_container(container.url, expired),
            weak: open_container(container.url, weak),
            key: open_container(container.url, key),
            f"sv=1&sig={key}": open_container(nobody, f"sv=1&sig={key}"),
        }
        for credential, store in stores.items():
            secret = credential.partition("sig=")[2].partition("&")[0] or credential
            calls: list[Callable[[], object]] = [
                lambda store=store: store.put("a/c", path, digest),
                lambda store=store: store.get("a/b", tmp_path / "back", digest, at_most=10**9),
                lambda store=store: store.checksum("a/b"),
                lambda store=store: store.delete("a/b"),
            ]
            for call in calls:
                wanted = StoreUnavailable if "sv=1&" in credential else StoreRefused
                with pytest.raises(wanted) as failed:
                    call()
                assert secret not in all_messages(failed.value)
                assert "sig=" not in all_messages(failed.value)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("rowvec")]
    assert not [line for line in ours if "sig=" in line]


def test_a_gateway_that_quotes_the_url_gives_no_token_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(azure, "_RETRIES", 0)
    path, digest = written(tmp_path / "one", b"content")
    with quoting_gateway() as host:
        store = open_container(f"{host}/account/vectors", "sv=1&sig=cGxhbnRlZA")
        calls: list[Callable[[], object]] = [
            lambda: store.put("a", path, digest),
            lambda: store.get("a", tmp_path / "back", digest, at_most=10**9),
            lambda: list(store.names()),
            lambda: store.delete("a"),
        ]
        for call in calls:
            with pytest.raises(StoreUnavailable, match="503") as failed:
                call()
            assert "cGxhbnRlZA" not in all_messages(failed.value)
            assert failed.value.retry_after == 7


@contextmanager
def quoting_gateway() -> Generator[str]:
    """A server that answers every request with 503 and repeats the URL, as gateways and proxies do."""

    class Gateway(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            self.rfile.read(int(self.headers.get("content-length", 0)))
            quoted = f"no upstream for {self.path.replace('&', '&amp;')}"
            body = f"<Error><Code>ServerBusy</Code><Message>{quoted}</Message></Error>"
            self.send_response_only(503, f"no upstream for {self.path}")
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", "0" if self.command == "HEAD" else str(len(body)))
            self.send_header("Retry-After", "7")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body.encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("url", "credential"),
    [
        ("https://account.blob.core.windows.net/vectors?sv=1&sig=c2VjcmV0", None),
        ("https://c2VjcmV0@account.blob.core.windows.net/vectors", None),
        ("https://account.blob.core.windows.net", "c2VjcmV0"),
        ("https://account.blob.core.windows.net/X", "c2VjcmV0"),
        ("http://127.0.0.1:10000/account", "c2VjcmV0"),
        ("http://127.0.0.1:c2VjcmV0/account/vectors", "c2VjcmV0"),
        ("https://account.blob.core.windows.net/vectors", "c2VjcmV0!"),
        ("https://account.blob.core.windows.net/vectors", "AccountName=other;AccountKey=c2VjcmV0"),
        ("s3://bucket/c2VjcmV0", None),
    ],
)
def test_a_url_or_credential_that_cannot_be_read_is_wrong_use(url: str, credential: str | None) -> None:
    with pytest.raises(UsageError, match=r"^artifacts\.(url|credential)") as refused:
        open_store(Artifacts.model_construct(url=url, credential=credential))
    assert "c2VjcmV0" not in all_messages(refused.value)


def test_a_url_names_account_container_and_prefix() -> None:
    there = place_of("https://account.blob.core.windows.net/vectors/some/prefix/")
    here = place_of("http://127.0.0.1:10000/account/vectors")
    assert (there.account_url, there.account) == ("https://account.blob.core.windows.net", "account")
    assert (there.container, there.prefix) == ("vectors", "some/prefix/")
    assert (here.account_url, here.account) == ("http://127.0.0.1:10000/account", "account")
    assert (here.container, here.prefix) == ("vectors", "")


@contextmanager
def losing_the_answer_to(marker: bytes, host: str) -> Generator[tuple[str, list[bytes]]]:
    """A proxy that forwards everything, but closes the connection instead of answering the first ``marker`` request."""
    target = host.removeprefix("http://").split(":")
    lost: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer(client: socket.socket) -> None:
            with client, socket.create_connection((target[0], int(target[1]))) as upstream:
                losing = threading.Event()
                back = threading.Thread(target=forward_back, args=(upstream, client, losing))
                back.start()
                while data := received(client):
                    if not lost and data.startswith(marker):
                        lost.append(data.partition(b"\r\n")[0])
                        losing.set()
                    upstream.sendall(data)
                end(upstream)
                back.join()

        def forward_back(upstream: socket.socket, client: socket.socket, losing: threading.Event) -> None:
            while data := received(upstream):
                if losing.is_set() and not data.startswith(b"HTTP/1.1 100"):
                    break  # the server did it, but the client gets no answer
                client.sendall(data)
            end(client)

        def accept() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                threads.append(threading.Thread(target=answer, args=(client,)))
                threads[-1].start()

        threads = [threading.Thread(target=accept)]
        threads[0].start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}", lost
        finally:
            end(server)


def received(line: socket.socket) -> bytes:
    """The next bytes; none after the other side has closed."""
    try:
        return line.recv(MIB)
    except OSError:
        return b""


def end(line: socket.socket) -> None:
    """Close both directions, so that a thread that waits for data wakes up."""
    try:
        line.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


@pytest.mark.azurite
def test_a_lost_acknowledgement_ends_as_done(
    container: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, digest = written(tmp_path / "one", random.Random(1).randbytes(1000))
    with official(container) as client:
        client.create_container()
    with losing_the_answer_to(b"PUT ", container.host) as (host, lost):
        place = Container(host=host, name=container.name)
        # The client tries again, and finds the object that its first attempt created.
        assert open_container(place.url, place.key).put("a/b", path, digest) is False
    assert len(lost) == 1
    assert b"/some/prefix/a/b" in lost[0]
    direct = open_container(container.url, container.key)
    direct.get("a/b", tmp_path / "back", digest, at_most=10**9)
    assert direct.put("a/b", path, digest) is False
