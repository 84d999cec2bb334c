"""Runs a Python module that ends with the process that started it, however that process ends.

``python -m rowvec.runtime.tethered MODULE ARGUMENTS`` reads its standard input, a pipe of which the other process holds
the writing end. The system closes that end with the process, also after ``kill -9``; no signal has to reach this one.
"""

from __future__ import annotations

import gc
import os
import runpy
import sys
import threading

_COLLECT_EVERY = 100_000


def main() -> None:
    """Run the module until it ends, or until the standard input does."""
    threading.Thread(target=_end_with_input, daemon=True).start()
    # A server creates half a million objects while it is imported, nearly all of them permanent:
    # docs/explanation/performance.md.
    gc.set_threshold(_COLLECT_EVERY)
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with_input() -> None:
    while os.read(0, 1):
        pass
    # At once: the process whose server this is has ended, so that nobody waits for an orderly end.
    os._exit(0)


if __name__ == "__main__":
    main()
