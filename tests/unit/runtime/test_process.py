"""Whether a process still exists, as another one on the same machine sees it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace

from rowvec.runtime.process import Process, this_process

_SHOW = "from rowvec.runtime.process import this_process as t; p = t(); print(p.machine, p.pid, p.started, flush=True)"


def test_a_process_exists_until_it_is_dead_even_if_it_is_stopped() -> None:
    command, pipe = [sys.executable, "-c", f"{_SHOW}; input()"], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as child:  # noqa: S603 # ours
        assert child.stdout is not None
        machine, pid, started = child.stdout.readline().split()
        process = Process(machine=machine, pid=int(pid), started=int(started))
        assert not process.is_gone()
        os.kill(child.pid, signal.SIGSTOP)
        assert not process.is_gone()
        os.kill(child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        # Dead, though its parent has not asked for its status yet.
        assert process.is_gone()
    assert process.is_gone()


def test_of_a_process_on_another_machine_nothing_is_known() -> None:
    me = this_process()
    assert not me.is_gone()
    assert replace(me, started=me.started + 1).is_gone()
    assert not replace(me, started=me.started + 1, machine="another").is_gone()
    assert not replace(me, started=me.started + 1, machine="").is_gone()
