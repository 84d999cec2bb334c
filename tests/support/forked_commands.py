"""Starts the real command from a process that has imported it already: the imports take longer than most commands.

A command gets its own process, session, environment and folder, as if a shell had started it. Only the interpreter's
start and the imports happen once for all commands of a test session. Prefect reads its settings while it is imported,
so a command reads them again where it would import Prefect.
"""

from __future__ import annotations

import array
import atexit
import ctypes
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

_REPOSITORY = Path(__file__).parents[2]
_START_SECONDS = 150

# What a command reads of its environment while it is imported, and not again. A command for which one of these differs
# must be started by the interpreter.
_READ_AT_IMPORT = (
    *("PREFECT_LOGGING_", "PREFECT_FLOW", "PREFECT_TASK", "PREFECT_RESULTS_"),
    *("OTEL_PROPAGATORS", "OTEL_PYTHON_", "OPENAI_LOG", "PYTHON", "LD_", "AZURE_", "LC_", "LANG"),
)

# What `rowvec sync` would import late.
_PRELOAD = [
    "rowvec.cli.app",
    "prefect.flow_engine",
    "prefect.task_engine",
    "prefect.concurrency.sync",
    "prefect.telemetry.run_telemetry",
    "prefect.utilities.visualization",
    "fastapi",
    "anyio._backends._asyncio",
    "openai.resources.embeddings",
    "httpcore2",
    "truststore",
    "numpy.ma",
    "pyarrow.parquet",
    "azure.storage.blob",
    "rowvec.operations.audit",
    "rowvec.operations.repair",
    "rowvec.store.folder",
    "rowvec.embedders.openai.texts",
]


class ForkedProcess:
    """A command at work, with the part of ``subprocess.Popen`` that tests use."""

    def __init__(
        self, pid: int, outputs: tuple[int, int], status: int, heard: Callable[[str], None] | None = None
    ) -> None:
        """``outputs`` and ``status`` are the reading ends of pipes; the last one tells the exit status.

        ``heard`` gets each line of the standard output as soon as it is printed.
        """
        self.pid = pid
        self._heard = heard
        self.returncode: int | None = None
        self._status = status
        self._texts = ["", ""]
        self._readers = [
            threading.Thread(target=self._read, args=(number, end), daemon=True) for number, end in enumerate(outputs)
        ]
        for reader in self._readers:
            reader.start()

    def poll(self) -> int | None:
        """The exit status, or None while the command is at work; negative if a signal ended it."""
        if self.returncode is None:
            os.set_blocking(self._status, False)
            try:
                self._take(os.read(self._status, 32))
            except BlockingIOError:
                return None
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What the command printed, once it has ended; raises ``subprocess.TimeoutExpired``."""
        end = time.monotonic() + timeout
        for reader in self._readers:
            reader.join(max(0.0, end - time.monotonic()))
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"rowvec, process {self.pid}", timeout)
            time.sleep(0.005)
        return self._texts[0], self._texts[1]

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _take(self, status: bytes) -> None:
        self.returncode = os.waitstatus_to_exitcode(int(status))
        os.close(self._status)

    def _read(self, number: int, end: int) -> None:
        with open(end, encoding="utf-8", newline=None) as opened:
            for line in opened:
                self._texts[number] += line
                if self._heard is not None and number == 0:
                    self._heard(line)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mounts:
    """Mounts of a command's own: shell scripts for before and after it, in both of which ``$0`` is the folder."""

    before: str
    after: str = "true"
    folder: Path


class CommandForks:
    """The process that forks commands. Several processes of tests may ask it."""

    def __init__(self, address: Path, environment: dict[str, str]) -> None:
        """``address``: where the process listens. ``environment``: what it was started with."""
        self._environment = environment
        self._log = address.with_suffix(".log")
        self._lock = threading.Lock()
        self._ours = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.settimeout(_START_SECONDS)
        self._ours.connect(str(address))

    def can_start(self, environment: dict[str, str]) -> bool:
        """Whether all that the command reads while it is imported is as it was when this process imported it."""
        return _read_at_import(environment) == _read_at_import(self._environment)

    def start(
        self,
        words: list[str],
        environment: dict[str, str],
        mounts: Mounts | None = None,
        *,
        folder: Path | None = None,
        program: str = "rowvec",
        heard: Callable[[str], None] | None = None,
    ) -> ForkedProcess:
        """Start a program with these words, in this folder, or in that of the caller.

        ``program``: rowvec, prefect, or module, whose first word is the name of the module. For ``heard`` see
        ``ForkedProcess``.
        """
        pipes = [os.pipe() for _ in range(3)]
        wanted: dict[str, Any] = {"program": program, "words": words, "environment": environment}
        wanted["folder"] = str(folder or Path.cwd())
        if mounts is not None:
            wanted["mounts"] = [mounts.before, mounts.after, str(mounts.folder)]
        try:
            pid = self.fork(wanted, [writing for _, writing in pipes])
        finally:
            for _, writing in pipes:
                os.close(writing)
        return ForkedProcess(pid, (pipes[0][0], pipes[1][0]), pipes[2][0], heard)

    def fork(self, wanted: dict[str, Any], ends: list[int]) -> int:
        """Start what is wanted, with these ends of pipes for output, errors and status; returns its process id.

        ``wanted``: ``environment``, ``folder``, ``words`` and ``program``, as ``start`` sends them.
        """
        try:
            with self._lock:
                return self._ask(json.dumps(wanted).encode(), ends)
        except ConnectionError:
            last = self._log.read_text("utf-8")[-3000:]
            raise RuntimeError(f"the process that forks commands has ended: {last}") from None

    def _ask(self, packet: bytes, ends: list[int]) -> int:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", ends))
        self._ours.sendmsg([len(packet).to_bytes(4, "big")], [rights])
        for at in range(0, len(packet), _PACKET):
            self._ours.send(packet[at : at + _PACKET])
        return int(self._ours.recv(32) or _ended())

    def close(self) -> None:
        """Ask no more; commands at work go on."""
        self._ours.close()


def start(address: Path, environment: dict[str, str], life: int) -> subprocess.Popen[bytes]:
    """Start a process that forks commands; it ends with what it has as its standard input.

    It listens at once, and answers when it has imported everything.
    """
    with (
        address.with_suffix(".log").open("wb") as log,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening,
    ):
        listening.bind(str(address))
        listening.listen()
        return subprocess.Popen(  # noqa: S603 # ours
            [sys.executable, "-m", "tests.support.forked_commands", str(listening.fileno())],
            cwd=_REPOSITORY,
            env=environment,
            stdin=life,
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=[listening.fileno()],
            start_new_session=True,
        )


_PACKET = 1 << 16


def _ended() -> NoReturn:
    raise ConnectionResetError


def _read_at_import(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_READ_AT_IMPORT)}


def _serve(listening: socket.socket) -> dict[str, Any] | None:
    """Fork one command per request. Returns the request in the process of a command, and None when the session ends."""
    with selectors.DefaultSelector() as watched:
        watched.register(0, selectors.EVENT_READ)
        watched.register(listening, selectors.EVENT_READ)
        while True:
            for key, _ in watched.select():
                if key.fd == 0:
                    return None
                if key.fileobj is listening:
                    watched.register(listening.accept()[0], selectors.EVENT_READ)
                    continue
                channel = cast("socket.socket", key.fileobj)
                asked = _received(channel)
                if asked is None:
                    watched.unregister(channel)
                    channel.close()
                    continue
                packet, ends = asked
                if not os.fork():
                    others = [each.fileobj for each in watched.get_map().values() if each.fileobj not in (0, channel)]
                    for other in others:
                        cast("socket.socket", other).close()
                    request = json.loads(packet)
                    if _watch(channel, ends, request.get("mounts")):
                        return request
                for end in ends:
                    os.close(end)


def _received(channel: socket.socket) -> tuple[bytes, array.array[int]] | None:
    head, rights, _, _ = channel.recvmsg(4, socket.CMSG_SPACE(3 * 4))
    if not head:
        return None
    ends = array.array("i")
    ends.frombytes(rights[0][2])
    length, packet = int.from_bytes(head, "big"), b""
    while len(packet) < length:
        packet += channel.recv(_PACKET)
    return packet, ends


def _watch(channel: socket.socket, ends: array.array[int], mounts: list[str] | None) -> bool:
    """True in the process of the command; its parent waits until it has ended, tells its status and never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    stdout, stderr, status = ends
    before, after, folder = mounts or ("", "", "")
    if before:
        _unshare_mounts()
        _shell(before, folder)
    pid = os.fork()
    if pid:
        os.close(stdout)
        os.close(stderr)
        channel.send(str(pid).encode())
        ended = os.waitpid(pid, 0)[1]
        if before:
            _shell(after, folder)
        os.write(status, str(ended).encode())
        os._exit(0)
    os.setsid()
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for end in ends:
        os.close(end)
    channel.close()
    return True


def _unshare_mounts() -> None:
    """Let mounts of this process and its children be seen by them alone, as ``unshare --mount`` does.

    Another user than root becomes root of a user namespace. In one, root would lose the right to use other users'
    sockets.
    """
    user, group = os.geteuid(), os.getegid()
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS | (_CLONE_NEWUSER if user else 0)):
        raise OSError(ctypes.get_errno(), "unshare")
    if user:
        for file, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path(f"/proc/self/{file}").write_text(text, "utf-8")
    _shell("mount --make-rprivate /", "")


_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000


def _shell(script: str, folder: str) -> None:
    subprocess.run(["/bin/sh", "-c", script, folder], check=True)  # noqa: S603 # a test's own


def _import_all() -> None:
    from importlib import import_module
    from importlib.metadata import entry_points

    from rowvec.cli import flow_loader

    # First, because it sets what Prefect reads of the environment while it is imported.
    for flow in entry_points(group="rowvec.flows"):
        flow_loader.load_flow(flow.name)
    # Before the commands are imported, some of which import this function by its name.
    flow_loader.load_flow = _reading_settings_after(flow_loader.load_flow)
    for name in _PRELOAD:
        import_module(name)
    from rowvec.embedders.provider.tokens import count

    count("The vocabulary is loaded at the first use.")


def _set_width() -> None:
    """A console reads its width when it is made, which was before this command had its environment."""
    from rowvec.cli.output import err, out

    if "COLUMNS" in os.environ:
        out.width = err.width = int(os.environ["COLUMNS"])


def _reading_settings_after(load: Callable[[str], Any]) -> Callable[[str], Any]:
    """What loads a flow, and sets the environment for that; Prefect then has these settings."""

    def load_flow(name: str) -> Any:
        flow = load(name)
        refresh_global_settings_context()
        return flow

    from prefect.context import refresh_global_settings_context

    return load_flow


def _rowvec(words: list[str]) -> None:
    from rowvec.cli import main

    sys.argv = ["rowvec", *words]
    main()


def _prefect(words: list[str]) -> None:
    sys.argv = ["prefect", *words]
    from prefect.cli import app

    app()


def _module(words: list[str]) -> None:
    """Run what `python -m` runs."""
    sys.argv = words
    sys.modules.pop(words[0], None)
    runpy.run_module(words[0], run_name="__main__")


_PROGRAMS = {"rowvec": _rowvec, "prefect": _prefect, "module": _module}


def _run(program: str, words: list[str]) -> NoReturn:
    """Run the command, and end as the interpreter would. Only what is imported is not deleted, which takes 0.2 s."""
    from prefect.context import refresh_global_settings_context

    try:
        refresh_global_settings_context()
        _PROGRAMS[program](words)
        status = 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            raise
        status = ended.code or 0
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue] # it joins the threads of pools as well
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage] # what a fork of multiprocessing calls too
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as opened:
        _import_all()
        # What is imported stays: the garbage collector of a command need not look at it, nor copy its pages.
        gc.freeze()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        request = _serve(opened)
    if request is not None:
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        _set_width()
        _run(request["program"], request["words"])
