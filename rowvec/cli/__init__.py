"""The command line: ``rowvec COMMAND``. Exit status 0 done, 1 the job failed or found an inconsistency, 2 wrong use."""

from __future__ import annotations

from rowvec.cli.app import main

__all__ = ["main"]
