"""Any number of vectors from a few hundred real ones: drawn from their mean and covariance, in clusters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

BLOCK_ROWS = 1_000

# Half of the variance is between clusters of about 20 rows, half within. Chosen among six mixtures at 20,000 x 3,072,
# so that bits alone find as many of the 10 nearest as in the real set (.86 in both), and with twice as many candidates
# a little less (.97, real .99). Without clusters all rows would be about equally far from each other.
WITHIN = 0.5
ROWS_A_CLUSTER = 20


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Where real vectors lie: their mean ``(d,)``, and the axes ``(r, d)`` of their covariance, each as long as its
    standard deviation; with ``n`` real rows there are ``r = min(n, d)``."""

    mean: Floats
    axes: Floats

    @staticmethod
    def of(real: Floats) -> Spectrum:
        """The spectrum of ``(n, d)`` real vectors."""
        mean = real.mean(axis=0, dtype=np.float64)
        _, lengths, axes = np.linalg.svd(real - mean, full_matrices=False)
        deviations = lengths / np.sqrt(len(real) - 1)
        return Spectrum(mean.astype(np.float32), (deviations[:, None] * axes).astype(np.float32))

    @staticmethod
    def made_up(dimensions: int, rank: int = 508, seed: int = 2) -> Spectrum:
        """A spectrum without real vectors: as many directions as the real ones have, each shorter than the one before.

        Bits find another share of the neighbours in it than in real vectors: it is only for trying the benchmark.
        """
        random = np.random.default_rng(seed)
        directions, _ = np.linalg.qr(random.standard_normal((dimensions, min(rank, dimensions))))
        deviations = 1 / np.sqrt(np.arange(1, directions.shape[1] + 1) + 10)
        axes = (deviations[:, None] * directions.T / np.linalg.norm(deviations)).astype(np.float32)
        return Spectrum((directions[:, 0] * 0.3).astype(np.float32), axes)

    def draw(self, rows: int, seed: int = 1) -> Iterator[Floats]:
        """Blocks of ``(up to BLOCK_ROWS, d)`` unit vectors; the same arguments give the same vectors.

        A row is normally distributed about the mean along each axis: its cluster's centre has ``1 - WITHIN`` of the
        variance, and the row's distance from that centre has the rest. Then the row is scaled to length 1.
        """
        random = np.random.default_rng(seed)
        rank = len(self.axes)
        clusters = max(1, rows // ROWS_A_CLUSTER)
        centres = random.standard_normal((clusters, rank), dtype=np.float32) * np.float32(np.sqrt(1 - WITHIN))
        for first in range(0, rows, BLOCK_ROWS):
            n = min(BLOCK_ROWS, rows - first)
            own = random.standard_normal((n, rank), dtype=np.float32) * np.float32(np.sqrt(WITHIN))
            block = (centres[random.integers(clusters, size=n)] + own) @ self.axes + self.mean
            yield block / np.linalg.norm(block, axis=1, keepdims=True)
