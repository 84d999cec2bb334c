"""A pipeline file read from a path, an https URL and a blob container: what it says, and what it may not do."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from rowvec.errors import StoreUnavailable, UsageError
from rowvec.pipeline.file import MOST_BYTES
from rowvec.pipeline.model import Artifacts
from rowvec.store.open import open_store
from rowvec.store.pipeline_files import STORE_CREDENTIAL, STORE_URL, read_pipeline
from tests.support.servers.azurite import Container

TEXT = """
name: articles
source: {kind: postgres, table: public.articles, key: [id], content: "{title}"}
embedder: {kind: local, dimensions: 64}
target: {table: vectors.articles}
artifacts: {url: /var/lib/articles}
"""
RELATIVE = TEXT.replace("/var/lib/articles", "./artifacts")


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, text = {
            "/articles.yaml": (200, TEXT),
            "/relative.yaml": (200, RELATIVE),
            "/moved.yaml": (302, ""),
            "/busy.yaml": (503, ""),
            "/large.yaml": (200, "#" * (MOST_BYTES + 1)),
        }.get(self.path, (404, ""))
        # A machine has such a file for git and others; what it says is for its own host, and not for a pipeline.
        if self.headers.get("authorization"):
            status = 401
        self.send_response(status)
        self.send_header("location", "/articles.yaml")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        try:
            self.wfile.write(text.encode())
        except OSError:
            return  # the reader has seen enough

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def _write_certificate(file: Path) -> None:
    """A certificate of ``localhost`` and its key."""
    key, name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]),
    )
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    file.write_bytes(certificate.public_bytes(pem) + private)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[str, Path]]:
    """An https server with a certificate of its own: its address, and its certificate."""
    folder = tmp_path_factory.mktemp("site")
    certificate = folder / "certificate.pem"
    _write_certificate(certificate)
    server = ThreadingHTTPServer(("localhost", 0), _Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://localhost:{server.server_port}", certificate
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def trusted(site: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the https server, whose certificate this process trusts; and a password for it in ~/.netrc."""
    url, certificate = site
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    (tmp_path / ".netrc").write_text("machine localhost login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    return url


def test_a_file_at_a_url_is_read_and_no_password_is_sent(trusted: str) -> None:
    assert read_pipeline(f"{trusted}/articles.yaml").artifacts.url == "/var/lib/articles"


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("relative.yaml", r"artifacts\.url is the relative path './artifacts'"),
        ("moved.yaml", "answers with status 302 and no file"),
        ("missing.yaml", "answers with status 404 and no file"),
        ("large.yaml", "is larger than 4,000,000 bytes"),
        ("articles.yaml?sig=abc", "holds a secret, and everybody reads parameters"),
    ],
)
def test_a_url_that_is_no_pipeline_file_is_one_sentence(trusted: str, place: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as refused:
        read_pipeline(f"{trusted}/{place}")
    assert "abc" not in str(refused.value)


def test_a_server_that_is_busy_or_that_nobody_trusts_may_be_asked_again(
    trusted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreUnavailable, match="answers with status 503"):
        read_pipeline(f"{trusted}/busy.yaml")
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(StoreUnavailable, match=r"cannot be read \(SSLError\)"):
        read_pipeline(f"{trusted}/articles.yaml")


def test_other_addresses_than_https_are_refused() -> None:
    for place in ("http://127.0.0.1:1/a.yaml", "file:///etc/passwd", "ftp://a.example/a.yaml"):
        with pytest.raises(UsageError, match="is no address of a pipeline file"):
            read_pipeline(place)


@pytest.mark.azurite
def test_a_file_in_the_store_that_the_operator_names_is_read_with_its_credential(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = TEXT.encode()
    store = open_store(Artifacts.model_construct(url=container.url, credential=container.key))
    store.put_bytes("pipelines/articles.yaml", content, sha256(content).hexdigest())
    monkeypatch.setenv(STORE_URL, f"{container.url}/pipelines")
    monkeypatch.setenv(STORE_CREDENTIAL, container.key)
    assert read_pipeline(f"{container.url}/pipelines/articles.yaml").name == "articles"
    with pytest.raises(UsageError, match="there is no such pipeline file"):
        read_pipeline(f"{container.url}/pipelines/none.yaml")
    # The credential goes nowhere else, not even to the same account.
    with pytest.raises(UsageError, match="is no address of a pipeline file"):
        read_pipeline(f"{container.url}/others/articles.yaml")
    monkeypatch.setenv(STORE_CREDENTIAL, "no key")
    with pytest.raises(UsageError, match=f"{STORE_CREDENTIAL} is neither"):
        read_pipeline(f"{container.url}/pipelines/articles.yaml")
