"""The command ``rowvec schema``."""

from __future__ import annotations

import json
import sys

from rowvec.cli.commands.options import AsJson
from rowvec.pipeline import json_schema


def schema(as_json: AsJson = False) -> None:
    """Print the JSON Schema of the pipeline file."""
    sys.stdout.write(json.dumps(json_schema(), indent=None if as_json else 2, ensure_ascii=False) + "\n")
