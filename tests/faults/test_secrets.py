"""No secret leaves: after runs that succeed or fail, planted secrets are searched for in every place they could reach.

The search is tested first: if it could not find a planted secret, finding none would prove nothing.
"""

from __future__ import annotations

import base64
import json
import logging
import shutil
import signal
import sqlite3
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit
from uuid import uuid4

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import (
    AccountSasPermissions,
    ContainerClient,
    ResourceTypes,
    generate_account_sas,
)
from hypothesis import given
from hypothesis import strategies as st
from prefect.blocks.system import Secret
from prefect.settings import PREFECT_API_URL, temporary_settings
from psycopg import sql
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from rowvec.errors import DatabaseUnavailable, TargetError, UsageError
from rowvec.pipeline.file import load
from rowvec.postgres.connection import connect
from rowvec.postgres.embedded import start_postgres
from rowvec.store.azure_account import credential_of, place_of
from tests.support.cli_process import Command, Ended, PrefectServer, serving, start
from tests.support.prefect_api import answered
from tests.support.run_folder import short_folder
from tests.support.servers.azurite import Container
from tests.support.servers.openai_server import Fault, OpenAIServer, quota, serve

pytestmark = pytest.mark.azurite

# Invented for these tests. The first twelve characters need no escaping anywhere; some of the others do.
EMBEDDER_KEY = "kE7yPlanted0Embedder+9f/31c7="
TARGET_PASSWORD = "tGtPlanted4Password+/=@c2d8"  # noqa: S105 # opens a cluster that lives for this test
SOURCE_PASSWORD = "sRcPlanted5Password@:/#d9e1"  # noqa: S105 # the same
_TELLING = 12
"""This many characters from the start or the end of a secret count as a leak of the whole secret."""


def traces(secret: str) -> frozenset[bytes]:
    """The bytes of a secret's first and last piece in each encoding: plain, URL-encoded, base64, hex, JSON."""
    found: set[bytes] = set()
    for piece in (secret[:_TELLING], secret[-_TELLING:]):
        found |= {piece.encode(), quote(piece, safe="").encode(), quote(piece).encode(), piece.encode().hex().encode()}
        found |= {json.dumps(piece)[1:-1].encode(), piece.replace("/", "\\/").encode()}
        for before in range(3):
            # In base64 a piece looks different at each of three offsets; the groups at its ends also hold bits of its
            # neighbours.
            text = base64.b64encode(b"\0" * before + piece.encode()).decode()
            whole = text[4 * (before > 0) : len(text) - 4 * ((before + len(piece)) % 3 > 0)]
            found |= {whole.encode(), whole.replace("+", "-").replace("/", "_").encode()}
    return frozenset(found)


@dataclass(kw_only=True)
class World:
    """Everything a run of the planted pipelines can write to."""

    server: PrefectServer
    embedder: OpenAIServer
    container: Container
    admin: str
    """DSN of the cluster's superuser, for the target's database."""
    folder: Path
    environment: dict[str, str]
    source: str
    """DSN of the cluster's superuser, for the source's database."""
    signatures: list[str]
    """The signatures of the SAS tokens in use."""
    outputs: list[Ended] = field(default_factory=list[Ended])

    @property
    def secrets(self) -> dict[str, str]:
        """All planted secrets by name."""
        return {
            "embedder key": EMBEDDER_KEY,
            "target password": TARGET_PASSWORD,
            "source password": SOURCE_PASSWORD,
            "account key": self.container.key,
            **{f"SAS signature {number}": signature for number, signature in enumerate(self.signatures)},
        }

    @property
    def home(self) -> Path:
        """The folder ``ROWVEC_HOME``."""
        return self.folder / "home"

    def run(self, *words: str | Path, **environment: str) -> Ended:
        """Run the real command to its end; what it prints is searched too."""
        ended = start(self.server.api, *words, **{**self.environment, **environment}).wait()
        self.outputs.append(ended)
        return ended

    def pipeline(self, name: str, **changes: dict[str, Any]) -> Path:
        """Write a pipeline file; each secret in it refers to an environment variable, unless changed."""
        written: dict[str, Any] = {
            "name": name,
            "source": {
                "kind": "postgres",
                "table": "public.paintings",
                "key": ["id"],
                "content": "{title}",
                "metadata": ["author"],
                "url": "${PLANTED_SOURCE}",
            },
            "embedder": {
                "kind": "openai",
                "model": "text-embedding-3-small",
                "dimensions": 32,
                "base_url": self.embedder.url,
                "api_key": "${PLANTED_KEY}",
                "max_batch_inputs": 4,
            },
            "target": {"table": f"vectors.{name}", "url": "${PLANTED_TARGET}"},
            "artifacts": {"url": self.container.url, "credential": "${PLANTED_SAS}"},
        }
        for part, change in changes.items():
            written[part] = {key: value for key, value in {**written[part], **change}.items() if value is not None}
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(written), "utf-8")
        return file

    def together(self, *commands: tuple[Any, ...], **environment: str) -> list[Ended]:
        """Run several commands at once; each is its words followed by its own environment variables."""
        started = [
            start(self.server.api, *words, **{**self.environment, **environment, **own}) for *words, own in commands
        ]
        ended = [command.wait() for command in started]
        self.outputs += ended
        return ended

    def found(self, **secrets: str) -> list[str]:
        """Every secret that was found, with its place; searches for the pipelines' secrets unless others are given."""
        wanted = [(name, trace) for name, secret in (secrets or self.secrets).items() for trace in traces(secret)]
        return sorted(
            {f"{name} in {place}" for place, content in self._places() for name, trace in wanted if trace in content}
        )

    def _places(self) -> Iterator[tuple[str, bytes]]:
        for number, ended in enumerate(self.outputs):
            yield f"stdout of command {number}", ended.stdout.encode()
            yield f"stderr of command {number}", ended.stderr.encode()
        yield from _in_folder(self.home)
        yield from _in_folder(self.server.home.parent / "user")
        yield from _in_folder(self.server.home)
        yield from _in_sqlite(self.server.home / "prefect.db")
        yield from _in_api(self.server.api)
        yield from _in_store(self.container, self.folder / "fetched")
        yield from _in_database(self.admin)


def _in_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            yield str(file), file.read_bytes()
            if file.suffix == ".parquet":
                yield from _in_parquet(file)


def _in_parquet(file: Path) -> Iterator[tuple[str, bytes]]:
    """The metadata and every value that is not a vector, because the values are compressed on disk."""
    yield f"the footer of {file}", repr(pq.read_metadata(file).metadata).encode()
    table = pq.read_table(file)
    yield f"the schema of {file}", repr([(f.name, f.metadata) for f in table.schema]).encode()
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_floating(column.type) or pa.types.is_fixed_size_list(column.type):
            continue
        values = (v if isinstance(v, bytes) else str(v).encode() for v in column.to_pylist())
        yield f"column {name} of {file}", b"\n".join(values)


def _in_sqlite(file: Path) -> Iterator[tuple[str, bytes]]:
    """Each table row by row, also from the write-ahead log: in the file itself, a long value is split over pages."""
    connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=60)
    try:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            rows = connection.execute(f'SELECT * FROM "{name}"').fetchall()  # noqa: S608 # a name of Prefect's own
            values = (v if isinstance(v, bytes) else str(v).encode() for row in rows for v in row)
            yield f"Prefect's table {name}", b"\n".join(values)
    finally:
        connection.close()


def _in_api(api: str) -> Iterator[tuple[str, bytes]]:
    """What the API shows about runs: their parameters, states, logs and artifacts."""
    for what in ("flow_runs", "task_runs", "logs", "artifacts", "block_documents", "variables", "deployments"):
        offset = 0
        while True:
            page = answered("POST", f"{api}/{what}/filter", {"limit": 200, "offset": offset})
            yield f"{what} of Prefect's API", json.dumps(page, ensure_ascii=False).encode()
            if len(page) < 200:
                break
            offset += len(page)


def _in_store(container: Container, fetched: Path) -> Iterator[tuple[str, bytes]]:
    shutil.rmtree(fetched, ignore_errors=True)
    fetched.mkdir()
    with ContainerClient(container.account_url, container.name, credential=container.key) as client:
        try:
            blobs = list(client.list_blobs(include=["metadata"]))
        except ResourceNotFoundError:
            return
        for number, blob in enumerate(blobs):
            name = blob.name
            yield f"name and metadata of {name}", repr((name, blob.metadata)).encode()
            file = fetched / f"{number}{Path(name).suffix}"
            file.write_bytes(client.download_blob(name).readall())
    yield from _in_folder(fetched)


def _in_database(admin: str) -> Iterator[tuple[str, bytes]]:
    """Every column of every table of rowvec, as text."""
    with connect(admin) as connection:
        tables = connection.execute(
            "SELECT table_schema, table_name FROM information_schema.tables WHERE table_schema IN ('rowvec', 'vectors')"
        ).fetchall()
        assert ("rowvec", "runs") in tables or tables == []
        for schema, name in tables:
            rows = connection.execute(sql.SQL("SELECT t::text FROM {} AS t").format(sql.Identifier(schema, name)))
            yield f"table {schema}.{name}", b"\n".join(text.encode() for (text,) in rows)
        functions = connection.execute("SELECT prosrc FROM pg_proc WHERE pronamespace::regnamespace::text = 'vectors'")
        yield "the functions in vectors", b"\n".join(text.encode() for (text,) in functions)


@pytest.fixture(scope="module")
def passwords() -> Generator[tuple[str, str, str]]:
    """A cluster that asks two roles for passwords: the DSNs of the target, of the source, and of the superuser."""
    folder = short_folder("rvs")
    server = start_postgres(folder / "pg")
    rules = folder / "pg/pg_hba.conf"
    rule = "local all planted_target,planted_source scram-sha-256\n"
    rules.write_text(rule + rules.read_text("utf-8"), "utf-8")
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        for role, password in (("planted_target", TARGET_PASSWORD), ("planted_source", SOURCE_PASSWORD)):
            name = sql.Identifier(role)
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(name, sql.Literal(password)))
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, name))
        connection.execute("SELECT pg_reload_conf()")
    with psycopg.connect(server.get_uri("planted_target"), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
    with psycopg.connect(server.get_uri("planted_source"), autocommit=True) as connection:
        connection.execute("CREATE TABLE paintings (id int PRIMARY KEY, title text, author text)")
        connection.execute("INSERT INTO paintings SELECT i, 'Painting ' || i, 'A' FROM generate_series(1, 12) AS i")
        connection.execute("GRANT SELECT ON paintings TO planted_source")

    def dsn(role: str, password: str) -> str:
        return f"postgresql://{role}:{quote(password, safe='')}@/{role}?host={quote(str(folder / 'pg'), safe='')}"

    yield (
        dsn("planted_target", TARGET_PASSWORD),
        dsn("planted_source", SOURCE_PASSWORD),
        server.get_uri("planted_target"),
    )
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def sas(container: Container, permission: str) -> str:
    """A token for the account, without the question mark."""
    return generate_account_sas(
        container.account,
        container.key,
        ResourceTypes(service=True, container=True, object=True),
        AccountSasPermissions.from_string(permission),
        expiry=datetime.now(UTC) + timedelta(hours=2),
    )


@pytest.fixture(scope="module")
def own_server(prefect_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[PrefectServer]:
    """A server with all services of a stock one. All that it holds is searched, so it holds the runs of these tests."""
    folder = tmp_path_factory.mktemp("server")
    with serving(folder / "home", prefect_database) as server:
        yield server


@pytest.fixture
def world(
    passwords: tuple[str, str, str], own_server: PrefectServer, container: Container, tmp_path: Path
) -> Generator[World]:
    """A world with its own container, its own ROWVEC_HOME, and an empty target."""
    target, source, admin = passwords
    token = sas(container, "rwdlacu")
    with connect(admin) as connection:
        connection.execute("DROP SCHEMA IF EXISTS rowvec CASCADE; DROP SCHEMA IF EXISTS vectors CASCADE")
    with serve(key=EMBEDDER_KEY) as embedder:
        yield World(
            server=own_server,
            embedder=embedder,
            container=container,
            admin=admin,
            folder=tmp_path,
            source=make_conninfo(admin, dbname="planted_source"),
            signatures=[parse_qs(token)["sig"][0]],
            environment={
                "PLANTED_KEY": EMBEDDER_KEY,
                "PLANTED_TARGET": target,
                "PLANTED_SOURCE": source,
                "PLANTED_SAS": token,
                "ROWVEC_HOME": str(tmp_path / "home"),
                "PREFECT_HOME": str(own_server.home.parent / "user"),
            },
        )


@given(st.binary(max_size=7), st.binary(max_size=7), st.integers(0, 2), st.sampled_from([str, quote, "json", "hex"]))
def test_a_piece_of_a_secret_is_known_however_it_is_written(
    before: bytes, after: bytes, longer: int, how: Callable[[str], str] | str
) -> None:
    pieces = TARGET_PASSWORD[: _TELLING + longer], TARGET_PASSWORD[-_TELLING - longer :], EMBEDDER_KEY[: _TELLING + 9]
    for piece, secret in zip(pieces, (TARGET_PASSWORD, TARGET_PASSWORD, EMBEDDER_KEY), strict=True):
        written = (
            json.dumps(piece).encode()
            if how == "json"
            else piece.encode().hex().encode()
            if how == "hex"
            else how(piece).encode()
            if callable(how)
            else b""
        )
        text = before + written + after
        for found in (text, base64.b64encode(before + piece.encode() + after)):
            assert any(trace in found for trace in traces(secret))
        assert not any(trace in before + after for trace in traces(secret))


def test_the_searcher_finds_what_is_planted(world: World) -> None:
    """A decoy is found in each kind of place, in various encodings; otherwise the other tests would prove nothing."""
    decoy = f"{uuid4().hex[:_TELLING]}Decoy+/="
    file = world.pipeline("searched")
    assert world.run("sync", file, "--json").status == 0
    assert world.found(decoy=decoy) == []
    encoded = base64.b64encode(f"user:{decoy}".encode()).decode()
    plant_elsewhere(world, decoy, encoded)
    with connect(world.admin) as connection:
        connection.execute("UPDATE rowvec.runs SET error = %s", (f"no password {decoy[:_TELLING]}",))
        connection.execute("UPDATE rowvec.pipelines SET identity = jsonb_build_object('a', %s::text)", (encoded,))
        connection.execute("UPDATE vectors.searched SET fingerprint = %s WHERE id = 3", (decoy.encode(),))
    found = world.found(decoy=decoy)
    for place in (
        "stdout of command 1",
        "stderr of command 1",
        f"{world.home}/spool/left",
        "column key of",
        "the footer of",
        "name and metadata of some/prefix/planted.parquet",
        "Prefect's table log",
        "Prefect's table flow_run",
        "Prefect's table artifact",
        "logs of Prefect's API",
        "flow_runs of Prefect's API",
        "artifacts of Prefect's API",
        "table rowvec.runs",
        "table rowvec.pipelines",
        "table vectors.searched",
    ):
        assert any(line.startswith(f"decoy in {place}") for line in found), (place, found)
    assert world.found() == []


def plant_elsewhere(world: World, decoy: str, encoded: str) -> None:
    """Plant the decoy in output, under ROWVEC_HOME, in the store, and in Prefect."""
    world.outputs.append(Ended(status=1, stdout=f'{{"error": "{quote(decoy)}"}}', stderr=f"Basic {encoded}"))
    (world.home / "spool").mkdir(parents=True, exist_ok=True)
    (world.home / "spool/left").write_text(decoy.encode().hex(), "utf-8")
    table = pa.table({"key": [f"row {n}" for n in range(3000)] + [decoy]}).replace_schema_metadata({"url": encoded})
    parquet = world.folder / "planted.parquet"
    pq.write_table(table, parquet, compression="zstd")
    with (
        ContainerClient(world.container.account_url, world.container.name, credential=world.container.key) as client,
        parquet.open("rb") as opened,
    ):
        client.upload_blob("some/prefix/planted.parquet", opened, metadata={"from": quote(decoy)})
    api = world.server.api
    flow = answered("POST", f"{api}/flows/", {"name": "planted"})
    parameters = {"target": {"url": f"postgresql://u:{quote(decoy, safe='')}@h/db"}}
    run = answered(
        "POST", f"{api}/flow_runs/", {"flow_id": flow["id"], "parameters": parameters, "state": {"type": "PENDING"}}
    )
    now = datetime.now(UTC).isoformat()
    line = {
        "name": "x",
        "level": 20,
        "message": f"key {decoy[:_TELLING]}...",
        "timestamp": now,
        "flow_run_id": run["id"],
    }
    answered("POST", f"{api}/logs/", [line])
    page = {"key": "planted", "type": "markdown", "data": f"`{decoy}`", "flow_run_id": run["id"]}
    answered("POST", f"{api}/artifacts/", page)


def held(world: World, file: Path) -> Command:
    """Start a sync of changed rows, and return once it has sent its first texts and waits for the answer."""
    with connect(world.source) as connection:
        connection.execute("UPDATE public.paintings SET title = title || '.'")
    world.embedder.hold, world.embedder.most_at_once = threading.Event(), 0
    command = start(world.server.api, "sync", file, "--json", **world.environment)
    return command.when(lambda: world.embedder.most_at_once)


def release(world: World) -> None:
    """Let the embedder answer."""
    if world.embedder.hold:
        world.embedder.hold.set()


def test_runs_that_succeed_leave_no_secret(world: World) -> None:
    """The database and the process list also show no secret while a run is at work."""
    file = world.pipeline("planted")
    assert world.run("plan", file, "--json").json["new"] == 12
    command = held(world, file)
    try:
        with connect(world.admin) as connection:
            seen = connection.execute("SELECT application_name, query FROM pg_stat_activity").fetchall()
        assert any(name == "rowvec" for name, _ in seen)
        lines = b"".join(command_lines())
        assert b"rowvec" in lines
        shown = repr(seen).encode() + lines
        assert not [name for name, secret in world.secrets.items() for trace in traces(secret) if trace in shown]
    finally:
        release(world)
    synced = command.wait()
    world.outputs.append(synced)
    assert (synced.status, synced.json["consistent"]) == (0, True), synced
    searched, audited, listed = world.together(
        ("search", file, "Painting 3", "--json", {}), ("audit", file, {}), ("rejects", file, {})
    )
    assert len(searched.json["results"]) == 10
    assert (audited.status, listed.status) == (0, 0)
    assert world.found() == []


def command_lines() -> Iterator[bytes]:
    """The command lines of all processes."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the process has ended meanwhile
            yield file.read_bytes()


def test_runs_that_read_prefect_blocks_and_repair_leave_no_secret(world: World) -> None:
    """The account key and the DSNs come from Secret blocks; a tampered row is repaired from the store at no cost."""
    values = {"key": EMBEDDER_KEY, "store": world.container.key}
    values |= {"target": world.environment["PLANTED_TARGET"], "source": world.environment["PLANTED_SOURCE"]}
    with temporary_settings({PREFECT_API_URL: world.server.api}):
        for name, value in values.items():
            Secret(value=SecretStr(value)).save(f"planted-{name}", overwrite=True)
    # Both spellings: the second is for a prefect.yaml, in which Prefect would replace the first by the secret.
    block = {name: f"{{{{ prefect.blocks.secret.planted-{name} }}}}" for name in ("key", "target")}
    block |= {name: f"${{prefect.blocks.secret.planted-{name}}}" for name in ("store", "source")}
    file = world.pipeline(
        "blocks",
        source={"url": block["source"]},
        embedder={"api_key": block["key"]},
        target={"url": block["target"]},
        artifacts={"credential": block["store"]},
    )
    bare = {name: "" for name in world.environment if name.startswith("PLANTED")}
    assert world.run("sync", file, "--json", **bare).json["embedded"] == 12
    with connect(world.admin) as connection:
        connection.execute("UPDATE vectors.blocks SET content = 'forged' WHERE id = 2")
    assert world.run("audit", file, "--json", **bare).json["corrupt"] == 1
    assert world.run("audit", file, "--repair", "--json", **bare).json["repaired"] == 1
    assert len(world.embedder.texts) == 12
    assert world.found() == []


def test_databases_that_refuse_leave_no_secret(world: World) -> None:
    """Wrong passwords, hosts that do not answer, URLs that cannot be read, passwords that were not percent-encoded."""
    target, source = world.environment["PLANTED_TARGET"], world.environment["PLANTED_SOURCE"]
    host = parse_qs(urlsplit(target).query)["host"][0]
    wrong = target.replace("@/", "WRONG@/")
    raw, at = f"postgresql://planted_target:{TARGET_PASSWORD}", f"postgresql://planted_source:ab@{SOURCE_PASSWORD}"
    cases: list[tuple[dict[str, str], str]] = [
        ({"PLANTED_TARGET": wrong}, "password authentication failed"),
        ({"PLANTED_SOURCE": source.replace("@/", "WRONG@/")}, "password authentication failed"),
        ({"PLANTED_TARGET": f"postgresql://u:{quote(TARGET_PASSWORD, safe='')}@127.0.0.1:1/db"}, "does not answer"),
        ({"PLANTED_SOURCE": f"postgresql://u:{quote(SOURCE_PASSWORD, safe='')}@127.0.0.1:1/db"}, "does not answer"),
        # Here libpq reads a piece of the password as a port, and then as a host.
        ({"PLANTED_TARGET": f"{raw}@/planted_target?host={host}"}, "the database URL leads nowhere"),
        ({"PLANTED_SOURCE": f"{at}@127.0.0.1:1/db"}, "the database URL leads nowhere"),
        ({"PLANTED_TARGET": f"postgresql://u:{TARGET_PASSWORD}@[::1/db"}, "leads nowhere"),
        ({"PLANTED_TARGET": f"host={host} user=planted_target password='{TARGET_PASSWORD}"}, "cannot be read"),
        ({"PLANTED_SOURCE": f"postgresql//u:{SOURCE_PASSWORD}@{host}/db"}, "cannot be read"),
        ({"PLANTED_KEY": ""}, "embedder.api_key: the environment variable PLANTED_KEY is not set"),
        ({"PLANTED_TARGET": ""}, "target.url: the environment variable PLANTED_TARGET is not set"),
    ]
    file = world.pipeline("refused")
    for some in (cases[i : i + 4] for i in range(0, len(cases), 4)):
        # A plan needs no key of the embedder.
        commands = ("sync" if "PLANTED_KEY" in environment else "plan" for environment, _ in some)
        ended = world.together(
            *((command, file, "--json", environment) for command, (environment, _) in zip(commands, some, strict=True))
        )
        for one, (environment, sentence) in zip(ended, some, strict=True):
            assert one.status in (1, 2), (environment, one)
            assert sentence in one.json["error"], (environment, one)
    assert world.found() == []


def echo(key: str) -> str:
    """What a careless provider says about a key."""
    return f"Incorrect API key provided: {key}. Sent as Bearer {key}."


def test_an_embedder_that_repeats_the_key_does_not_make_us_repeat_it(world: World) -> None:
    """400 for a row, whose reason the rejects keep; 401 in a flow; 429 and 500 in a search; a key with a space."""
    file = world.pipeline("repeated")
    world.embedder.add(Fault(status=400, message=echo(EMBEDDER_KEY), marker="Painting 7", times=-1))
    assert world.run("sync", file, "--json").json["rejected"] == 1
    listed = world.run("rejects", file, "--json")
    assert "***" in listed.json["rejects"][0]["detail"]
    world.embedder.reset()
    world.embedder.add(Fault(status=401, code="invalid_api_key", message=echo(EMBEDDER_KEY)))
    with connect(world.source) as connection:
        connection.execute("UPDATE public.paintings SET title = title || ' again'")
    failed = world.run("sync", file, "--json")
    assert (failed.status, "does not accept the key: ***" in failed.json["error"]) == (1, False), failed
    assert "check embedder.api_key" in failed.json["error"]
    world.embedder.add(replace(quota(times=1), message=echo(EMBEDDER_KEY)))
    assert "no quota left" in world.run("search", file, "anything").stderr
    world.embedder.add(Fault(status=500, message=echo(EMBEDDER_KEY), times=-1))
    fast = world.pipeline("repeated", embedder={"max_attempts": 1})
    assert "answered 500" in world.run("search", fast, "anything").stderr
    assert world.run("search", fast, "anything", PLANTED_KEY=f"{EMBEDDER_KEY} {EMBEDDER_KEY}").status == 2
    assert world.found() == []


class _EchoingStore(BaseHTTPRequestHandler):
    """Refuses each request and repeats its URL in the reason, in a header and in the body, as gateways do."""

    def _refuse(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        body = f"<?xml version='1.0'?><Error><Code>AuthenticationFailed</Code><Message>{self.path}</Message></Error>"
        self.send_response(403, f"not {self.path}")
        self.send_header("x-ms-error-code", "AuthenticationFailed")
        self.send_header("x-refused", self.path)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body.encode())

    do_GET = do_PUT = do_HEAD = do_POST = _refuse

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@contextmanager
def echoing_store() -> Generator[str]:
    """The address of a store that refuses."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _EchoingStore)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_store_that_refuses_leaves_no_secret(world: World) -> None:
    """A SAS token that may not write; a gateway that repeats the URL; a token in the URL; the same for a source."""
    read_only = sas(world.container, "rl")
    world.signatures.append(parse_qs(read_only)["sig"][0])
    url = f"{world.container.url}?{world.environment['PLANTED_SAS']}"
    with echoing_store() as address:
        blob = f"{address}/devstoreaccount1/planted/rows.csv"
        csv = {"kind": "csv", "path": blob, "credential": "${PLANTED_SAS}", "table": None, "url": None}
        echoing = {"url": f"{address}/devstoreaccount1/planted/prefix"}
        refused, echoed, signed = world.together(
            ("sync", world.pipeline("unwritable"), "--json", {"PLANTED_SAS": read_only}),
            ("sync", world.pipeline("echoed", artifacts=echoing), "--json", {}),
            ("sync", world.pipeline("signed", artifacts={"url": "${PLANTED_URL}"}), "--json", {"PLANTED_URL": url}),
        )
        from_blob, whole = world.together(
            ("plan", world.pipeline("from-blob", source=csv), "--json", {}),
            ("plan", world.pipeline("whole", source={**csv, "path": "${PLANTED_URL}"}), "--json", {"PLANTED_URL": url}),
        )
    for ended, status, sentence in (
        (refused, 1, "the blob store refused"),
        (echoed, 1, "the blob store refused"),
        (signed, 2, "artifacts.url holds more than an address"),
        (from_blob, 1, "check source.path and source.credential"),
        (whole, 1, "source.path holds more than an address"),
    ):
        assert (ended.status, sentence in ended.json["error"]) == (status, True), ended
    assert world.found() == []


@pytest.mark.soak
def test_an_unexpected_error_leaves_no_secret(world: World) -> None:
    """An error that is not rowvec's, with DSN and key in its frames; interrupts; a connection cut during a stage."""
    file = world.pipeline("unexpected")
    blocked = world.folder / "a file"
    blocked.write_text("no folder", "utf-8")
    crashed = world.run("sync", file, ROWVEC_HOME=str(blocked / "home"))
    assert crashed.status not in (0, 2), crashed
    for number in (signal.SIGINT, signal.SIGTERM):
        command = held(world, file)
        command.process.send_signal(number)
        release(world)
        world.outputs.append(command.wait())
        assert world.outputs[-1].status != 0
    command = held(world, file)
    with connect(world.admin) as connection:
        cut = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rowvec'"
            " AND pid <> pg_backend_pid()"
        ).fetchall()
    assert cut
    assert set(cut) == {(True,)}
    release(world)
    world.outputs.append(command.wait())
    assert (world.outputs[-1].status, world.outputs[-1].json["consistent"]) == (0, True)
    logs = answered("POST", f"{world.server.api}/logs/filter", {"limit": 200, "sort": "TIMESTAMP_DESC"})
    assert any("the connection to the database was lost" in log["message"] for log in logs)
    assert world.found() == []


def test_debug_logs_of_every_library_hold_no_secret(world: World) -> None:
    loud = {
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "PREFECT_LOGGING_ROOT_LEVEL": "DEBUG",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "DEBUG",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "azure,openai,httpx,httpx2,httpcore,psycopg,urllib3,rowvec",
        "OPENAI_LOG": "debug",
    }
    file = world.pipeline("loud")
    synced = world.run("sync", file, **loud)
    assert synced.status == 0, synced
    # The signed URLs were logged, and their signatures were masked.
    assert "sig=***" in synced.stderr
    assert world.found() == []


@given(st.text(st.sampled_from("aB3@:/?#[]%'\" "), min_size=8, max_size=20))
def test_no_password_is_in_the_message_of_a_failed_connection_however_the_url_is_written(text: str) -> None:
    """libpq and the resolver quote a host, a port or a database name, which may be pieces of the password."""
    secret = f"{text}sEcretPiece{text}"
    for url in (f"postgresql://u:{secret}@127.0.0.1:1/db", f"host=127.0.0.1 port=1 password={secret}"):
        with pytest.raises((TargetError, DatabaseUnavailable)) as failure:
            connect(url)
        assert "sEcretPiece" not in f"{failure.value} {failure.value.__cause__}"


@pytest.mark.parametrize(
    "credential",
    ["sv=1&sgi={}", "{}!", "AccountName=another;AccountKey={}", "AccountKey=!{}", "SharedAccessSignature={}!"],
)
def test_a_credential_that_cannot_be_read_is_not_repeated(credential: str) -> None:
    place = place_of("https://account.blob.core.windows.net/container/prefix")
    with pytest.raises(UsageError) as failure:
        credential_of(place, credential.format(EMBEDDER_KEY))
    assert EMBEDDER_KEY[:_TELLING] not in str(failure.value)


def test_a_signature_is_masked_in_the_logs_of_the_http_library(caplog: pytest.LogCaptureFixture) -> None:
    credential_of(place_of("https://account.blob.core.windows.net/container"), "sv=1&sig=planted%2Bsignature")
    with caplog.at_level("DEBUG", "urllib3.connectionpool"):
        logging.getLogger("urllib3.connectionpool").debug('"%s %s" %s', "PUT", "/x?sig=planted%2Bsignature&sv=1", 201)
    assert caplog.messages == ['"PUT /x?sig=***&sv=1" 201']


_LITERALS = {
    "target": ["postgresql://u:{}@h/db", "host=h password={}", "postgresql://h/db?password={}"],
    "artifacts": ["?sv=1&sig={}", "AccountKey={}"],
    "embedder": ["{}", "${{KEY}}{}"],
}
# A secret next to a reference, in a text that is not a URL, and alone.
_UNSEEN = {
    "target": [
        "postgresql://u:{}@${{HOST}}/db",
        "postgresql://u:{}@[h/db",
        "postgresql://u:a/{}@h/db",
        "postgresql://h/db?sslpassword={}",
    ],
    "artifacts": ["sv=1&sig={}", "AccountName=${{NAME}};AccountKey={}", "{}"],
}


@pytest.mark.parametrize(
    ("part", "written"),
    [
        *((part, written) for part, several in _LITERALS.items() for written in several),
        *((part, written) for part, several in _UNSEEN.items() for written in several),
    ],
)
def test_a_secret_written_into_the_file_is_refused_and_not_repeated(part: str, written: str, tmp_path: Path) -> None:
    """Prefect would store the secret with the parameters of the flow."""
    field_of = {"target": "url", "artifacts": "credential", "embedder": "api_key"}
    whole: dict[str, dict[str, Any]] = {
        "source": {"kind": "postgres", "table": "t", "key": ["id"], "content": "{c}"},
        "embedder": {"kind": "openai", "model": "m", "dimensions": 3},
        "target": {"table": "vectors.t"},
        "artifacts": {"url": "https://account.blob.core.windows.net/container"},
    }
    secret = base64.b64encode(EMBEDDER_KEY.encode()).decode()
    whole[part][field_of[part]] = written.format(secret)
    file = tmp_path / "literal.yaml"
    file.write_text(yaml.safe_dump({"name": "literal", **whole}), "utf-8")
    with pytest.raises(UsageError, match="holds a secret in plain text") as failure:
        load(file)
    assert secret[:_TELLING] not in str(failure.value)


@pytest.mark.parametrize(
    "sign",
    [
        "&",
        "%",
        "@",
        "`",
        "'",
        '"',
        "[",
        "{",
        "*",
        "!",
    ],
)
def test_a_secret_that_yaml_trips_over_is_not_repeated(sign: str, tmp_path: Path) -> None:
    file = tmp_path / "unquoted.yaml"
    file.write_text(f"name: x\nembedder:\n  api_key: {sign}{EMBEDDER_KEY[:18]}\n", "utf-8")
    with pytest.raises(UsageError) as failure:
        load(file)
    assert EMBEDDER_KEY[:_TELLING] not in str(failure.value)
