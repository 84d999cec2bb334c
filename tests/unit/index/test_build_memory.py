"""The estimated size of an index on disk is near the sizes that were measured."""

from __future__ import annotations

import pytest

from rowvec.postgres.vector_index import IndexChoice, On
from rowvec.searches.index_kinds import method_of


@pytest.mark.parametrize(
    ("kind", "on", "opclass", "megabytes"),
    [
        ("hnsw", "float", "vector_cosine_ops", 159),
        ("hnsw", "halfvec", "halfvec_cosine_ops", 97),
        ("hnsw", "bits", "bit_hamming_ops", 39),
        ("ivfflat", "float", "vector_cosine_ops", 139),
    ],
)
def test_the_size_of_an_index_is_estimated_to_a_tenth(kind: str, on: On, opclass: str, megabytes: int) -> None:
    choice = IndexChoice(kind=kind, on=on, opclass=opclass, reason="Measured.")
    assert method_of(kind).index_bytes(117_659, 256, choice) == pytest.approx(megabytes * 1e6, rel=0.1)
