"""Binarize: one bit a dimension, which is all that a shortlist by Hamming distance needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rowvec.atomic_file import appearing_whole
