"""The command line: ``rowvec COMMAND``. Exit status 0 done, 1 the job failed or found an inconsistency, 2 wrong use."""

from __future__ import annotations

from rowvec.cli.flow_loader import uncollected

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit with its status."""
    with uncollected():
        from rowvec.cli.app import main as run
    run()
