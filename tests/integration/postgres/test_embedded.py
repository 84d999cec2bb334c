"""The embedded Postgres is reached by its owner alone, and everything that rowvec writes is its owner's alone."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest

from rowvec.errors import MachineError
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.postgres.embedded import EmbeddedPostgres, start_postgres
from rowvec.postgres.embedded.cluster import program
from rowvec.runtime.home import home, home_folder
from rowvec.runtime.private import files_for_others, private_files
from rowvec.runtime.progress import listening
from tests.support.paintings import sync

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")

# A new cluster takes a second; these tests share one, and each starts it again.
_LONG = "a folder whose name is so long that a socket in it has a path that no system takes, " * 2


@pytest.fixture(scope="module")
def place() -> Generator[Path]:
    """A folder with a long path, in one that other users may not enter."""
    top = Path(tempfile.mkdtemp(prefix="rve"))
    long = top / _LONG.strip(" ,")
    long.mkdir(mode=0o750)
    yield long
    shutil.rmtree(top)


@contextmanager
def served(folder: Path) -> Generator[EmbeddedPostgres]:
    """A server on this folder, as the only user of it."""
    server = start_postgres(folder)
    try:
        yield server
    finally:
        server.cleanup()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def sockets(server: EmbeddedPostgres) -> Path:
    with psycopg.connect(server.get_uri()) as connection:
        return Path(connection.info.host)


def psql_as_nobody(folder: Path) -> str:
    """What a client that another user runs hears."""
    command = [program("psql"), "-h", folder, "-U", "postgres", "-c", "SELECT 1"]
    return subprocess.run(  # noqa: S603 # the wheel's own
        command, user="nobody", capture_output=True, text=True, check=False, cwd="/"
    ).stderr


def test_a_socket_whose_path_would_be_too_long_is_in_a_folder_that_only_its_owner_enters(place: Path) -> None:
    before = [mode(folder) for folder in (place, *place.parents)]
    with served(place / "pg") as server:
        folder = sockets(server)
        assert folder != place / "pg"
        assert (mode(folder), folder.is_symlink()) == (0o700, False)
        assert mode(folder / ".s.PGSQL.5432") & 0o077 == 0
        with psycopg.connect(server.get_uri()) as connection:
            assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
            rules = connection.execute("SELECT type, auth_method FROM pg_hba_file_rules").fetchall()
        assert set(rules) == {("local", "peer")}
        assert mode(place / "pg") == 0o700
    assert [mode(folder) for folder in (place, *place.parents)] == before
    assert not folder.exists()


def test_a_folder_that_another_user_could_have_made_is_not_used_for_the_socket(place: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    record = place / "pg.run/socket-folder"
    with served(place / "pg"):
        pass
    record.write_text(str(tmp_path), "utf-8")
    with served(place / "pg") as server:
        first = sockets(server)
    (tmp_path / "link").symlink_to(first)
    record.write_text(str(tmp_path / "link"), "utf-8")
    with served(place / "pg") as server:
        assert sockets(server) not in (tmp_path, tmp_path / "link")
        assert mode(sockets(server)) == 0o700


@needs_root
def test_another_user_is_refused_even_where_the_socket_can_be_reached(place: Path) -> None:
    with served(place / "pg") as server:
        folder = sockets(server)
        folder.chmod(0o777)
        (folder / ".s.PGSQL.5432").chmod(0o777)
        output = psql_as_nobody(folder)
        folder.chmod(0o700)
        assert "Peer authentication failed" in output, output


def test_a_cluster_of_an_earlier_version_gets_rules_that_let_only_its_owner_in(place: Path) -> None:
    with served(place / "pg"):
        pass
    (place / "pg/pg_hba.conf").write_text("local all all trust\nhost all all 127.0.0.1/32 trust\n", "utf-8")
    with served(place / "pg") as server, psycopg.connect(server.get_uri()) as connection:
        assert connection.execute("SELECT DISTINCT auth_method FROM pg_hba_file_rules").fetchall() == [("peer",)]


def test_it_starts_with_the_settings_of_its_machine_and_those_of_its_owner_count_more(place: Path) -> None:
    asked = "SELECT current_setting('shared_buffers'), current_setting('max_wal_size'), current_setting('work_mem')"
    with started(place / "pg", 4 << 30) as connection:
        assert connection.execute(asked).fetchone() == ("896MB", settled(place, "max_wal_size"), "4MB")
        connection.execute("ALTER SYSTEM SET max_wal_size = '2GB'")
        connection.execute("ALTER SYSTEM SET work_mem = '5MB'")
    with started(place / "pg", 64 << 20) as connection:
        assert connection.execute(asked).fetchone() == ("128MB", "2GB", "5MB")
        connection.execute("ALTER SYSTEM RESET ALL")
    own = (place / "pg/postgresql.conf").read_text("utf-8")
    assert own.count("rowvec.conf") == 1


def settled(place: Path, name: str) -> str:
    """A value of the file that rowvec has made, as the server writes it."""
    lines = (place / "pg/rowvec.conf").read_text("utf-8").splitlines()
    (value,) = [line.partition(" = ")[2].strip("'") for line in lines if line.startswith(name)]
    megabytes = int(value.removesuffix("MB"))
    return value if megabytes % 1024 else f"{megabytes // 1024}GB"


@contextmanager
def started(folder: Path, memory: int) -> Generator[psycopg.Connection[tuple[object, ...]]]:
    """A connection to a server that starts now, with so many bytes of memory to count on."""
    server = start_postgres(folder, memory)
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            yield connection
    finally:
        server.cleanup()


def test_it_stops_with_its_last_user_and_those_that_were_killed_do_not_count(place: Path) -> None:
    with served(place / "pg") as server:
        code = (
            "import os; from pathlib import Path; from rowvec.postgres.embedded import start_postgres; "
            f"start_postgres(Path({str(place / 'pg')!r}))"
        )
        subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603 # ours
        subprocess.run([sys.executable, "-c", f"{code}; os.kill(os.getpid(), 9)"], check=False)  # noqa: S603 # ours
        pid = server.get_pid()
        if os.fork() == 0:
            # A fork is not a user of its own: its end leaves the server alone.
            server.cleanup()
            os._exit(0)
        os.wait()
        with psycopg.connect(server.get_uri()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_kill_while_its_data_is_created_leaves_nothing_that_the_next_start_trips_over(tmp_path: Path) -> None:
    half = tmp_path / "pg.run/new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18", "utf-8")
    with served(tmp_path / "pg") as server, psycopg.connect(server.get_uri()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


@needs_root
def test_a_home_that_another_user_has_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROWVEC_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    nobody = pwd.getpwnam("nobody").pw_uid
    (tmp_path / ".rowvec").mkdir()
    os.chown(tmp_path / ".rowvec", nobody, -1)
    with pytest.raises(MachineError, match=r"\.rowvec belongs to another user.*; set ROWVEC_HOME"):
        home()
    shutil.rmtree(tmp_path / ".rowvec")
    (tmp_path / ".rowvec").mkdir()
    (tmp_path / ".rowvec/spool").mkdir()
    os.chown(tmp_path / ".rowvec/spool", nobody, -1)
    with pytest.raises(MachineError, match="spool belongs to another user"):
        home_folder("spool")
    (tmp_path / ".rowvec/stack").symlink_to("/tmp")  # noqa: S108 # a link to anywhere
    with pytest.raises(MachineError, match="stack is a link or a file"):
        home_folder("stack")


def test_what_a_run_writes_is_its_owners_alone_whatever_the_umask(
    source: Connection, paintings: Pipeline, tmp_path: Path
) -> None:
    modes: dict[str, int] = {}

    def look(*_: object) -> None:
        for path in (tmp_path / "home", tmp_path / "artifacts"):
            for found in (path, *path.rglob("*")) if path.exists() else ():
                modes[str(found.relative_to(tmp_path))] = mode(found)

    before = os.umask(0)
    try:
        with private_files(), listening(look):
            sync(paintings)
            look()
            with files_for_others():
                (tmp_path / "page.html").touch()
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert any("rows.arrow" in name for name in modes)
    assert any(name.startswith("artifacts/") for name in modes)
    assert {name: oct(found) for name, found in modes.items() if found & 0o077} == {}
    assert mode(tmp_path / "page.html") == 0o666


def test_a_folder_of_an_earlier_version_that_all_could_read_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
    (tmp_path / "home/spool/db").mkdir(parents=True)
    for folder in ("home/spool", "home/spool/db"):
        (tmp_path / folder).chmod(0o755)
    assert home_folder("spool", "db") == tmp_path / "home/spool/db"
    assert [mode(tmp_path / folder) for folder in ("home/spool", "home/spool/db")] == [0o700, 0o700]
