"""Audit: source, artifacts and vector table compared both ways, every row and every vector of them."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from psycopg import sql

from rowvec import artifacts, ledger
from rowvec.artifacts import Artifact, Store
from rowvec.database import Connection
from rowvec.embedders import open_embedder
from rowvec.errors import ArtifactCorrupt
from rowvec.extract import compare
from rowvec.ledger import PipelineId
from rowvec.pipeline import Pipeline
from rowvec.plan import key_json
from rowvec.queries import query
from rowvec.references import resolve
from rowvec.run import open_target
from rowvec.schema import install
from rowvec.sources.postgres import describe
from rowvec.vector_checks import check_vectors
from rowvec.vector_table import VectorTable, stored_table

Kind = Literal["missing", "stale", "orphaned", "corrupt"]
KINDS: tuple[Kind, ...] = ("missing", "stale", "orphaned", "corrupt")

_LISTED = 100


@dataclass(frozen=True, slots=True)
class Finding:
    """One row that is not right, and why."""

    kind: Kind
    key: tuple[str | None, ...]
    reason: str
