"""The command line, ``rowvec COMMAND``. Exit status: 0 done, 1 failed or inconsistent, 2 wrong use, 3 awaiting jobs."""

from __future__ import annotations

import sys

from rowvec.cli.collector import collector_paused

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit with its status."""
    from rowvec.cli.prefect_server import end_early, start_early

    start_early(sys.argv[1:])
    try:
        with collector_paused():
            from rowvec.cli.app import main as run
        run()
    finally:
        end_early()
