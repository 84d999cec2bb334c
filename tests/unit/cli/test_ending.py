"""How a command ends early if the shell that started it has Ctrl-C ignored, as for a job in the background."""

from __future__ import annotations

import subprocess
import sys

COMMAND = """
import os, signal, threading, time
from rowvec.cli.ending import ENDING

signal.signal(signal.SIGINT, signal.SIG_IGN)
ENDING.watch_signals(as_json=False)
os.kill(os.getpid(), signal.SIGINT)
print("goes on", flush=True)
try:
    threading.Thread(target=ENDING.because, args=("its server has ended", 3)).start()
    time.sleep(60)
except KeyboardInterrupt:
    print("unwound", flush=True)
    ENDING.finish()
"""


def test_a_command_in_the_background_ignores_ctrl_c_and_still_unwinds_if_its_server_ends() -> None:
    ended = subprocess.run(  # noqa: S603 # ours
        [sys.executable, "-c", COMMAND], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (3, "goes on\nunwound\n"), ended
    assert ended.stderr == "rowvec: its server has ended\n"
