"""Models of texts with one defect each, for the conformance test and for the messages about plug-ins."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import count
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from rowvec.embedders.plugin import EmbedderKind, PluginEmbedder, Purpose, RowError, TextModel
from rowvec.vectors.layout import Vectors

_calls = count()


class ModelEmbedder(PluginEmbedder):
    """A part with the defect as one of its keys."""

    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"defect", "scale", "calls"})

    model: str = "by-hash"
    dimensions: int = 16
    defect: str = "none"
    scale: float = 1.0
    power: int = 1


class Model(TextModel):
    """Vectors by the hash of each text."""

    def embed(self, texts: list[str], purpose: Purpose) -> Vectors:
        """One row per text, except for the defect."""
        del purpose
        config: ModelEmbedder = self.config
        for text in texts:
            if len(text) > 10_000:
                raise (RuntimeError if config.defect == "wrong exception" else _too_long)(len(text))
        rows = np.stack([_row(text, config) for text in texts])
        return DEFECTS[config.defect](rows)


def _too_long(length: int) -> RowError:
    return RowError("too_long", f"{length:,} characters")


def _row(text: str, config: ModelEmbedder) -> npt.NDArray[np.float64]:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    # One number of the vector grows, so that a factor is no mere length.
    row = np.random.default_rng(seed).standard_normal(config.dimensions) ** config.power
    row[0] += config.scale
    return row


def _spoiled(rows: Any, value: float) -> Any:
    rows[0, 0] = value
    return rows


DEFECTS: dict[str, Callable[[Any], Any]] = {
    "none": lambda rows: rows,
    "wrong exception": lambda rows: rows,
    "order": lambda rows: rows[::-1],
    "random": lambda rows: rows + next(_calls),
    "batch": lambda rows: rows + len(rows),
    "constant": lambda rows: np.ones_like(rows),
    "count": lambda rows: rows[:-1],
    "dimensions": lambda rows: rows[:, :-1],
    "flat": lambda rows: rows.reshape(-1)[: len(rows)],
    "nan": lambda rows: _spoiled(rows, np.nan),
    "infinite": lambda rows: _spoiled(rows, 1e300),
    "zero": lambda rows: rows * 0,
}

KIND = EmbedderKind(config=ModelEmbedder, opens="tests.support.defective_models:Model")
NOT_A_KIND = ModelEmbedder
