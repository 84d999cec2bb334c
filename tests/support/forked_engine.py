"""Flow runs of a worker that are forked from a process that has imported them: their imports take most of their time.

The worker starts this file as the command of a run, which asks the process of the tests for the fork. The run gets the
worker's environment, folder and outputs, and the signals that the worker sends.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.forked_commands import CommandForks

_HEAD = 4


def serve(forks: CommandForks, address: Path) -> socket.socket:
    """Answer runs that ask for a fork at this address, until the socket that is returned is closed."""
    import threading

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(address))
    listener.listen()
    threading.Thread(target=_answer, args=(forks, listener), daemon=True).start()
    return listener


def command(address: Path) -> str:
    """The command of a work pool whose runs are forked. The interpreter starts without the packages, in 20 ms."""
    return f"{sys.executable} -I -S {__file__} {address}"


def _answer(forks: CommandForks, listener: socket.socket) -> None:
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            with client:
                head, rights, _, _ = client.recvmsg(_HEAD, socket.CMSG_SPACE(3 * _HEAD))
                ends = array.array("i")
                ends.frombytes(rights[0][2])
                wanted = json.loads(client.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL))
                try:
                    pid = forks.fork(wanted, list(ends))
                finally:
                    for end in ends:
                        os.close(end)
                client.send(str(pid).encode())


def _run(address: str) -> int:
    """Have the run forked, pass signals on to it, and wait for its end; returns its exit status."""
    reading, writing = os.pipe()
    wanted = {"program": "module", "words": ["prefect.engine"], "environment": dict(os.environ), "folder": os.getcwd()}  # noqa: PTH109 # pathlib is slow
    packet = json.dumps(wanted).encode()
    with socket.socket(socket.AF_UNIX) as asked:
        asked.connect(address)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [1, 2, writing]))
        asked.sendmsg([len(packet).to_bytes(_HEAD, "big")], [rights])
        asked.sendall(packet)
        pid = int(asked.recv(32))
    os.close(writing)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda given, _: os.kill(pid, given))
    status = os.waitstatus_to_exitcode(int(os.read(reading, 32)))
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(_run(sys.argv[1]))
