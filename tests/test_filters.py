"""Under any filter, k rows come back whenever k exist, and they are the near ones: before and after deletes."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
import pytest
from psycopg import sql

from rowvec.database import Connection, connect
from rowvec.index import ensure_index
from rowvec.index_choice import IndexChoice
from rowvec.search import explain, search
from rowvec.search_function import install_search_function
from rowvec.search_statement import filter_plan
from rowvec.vector_table import VectorTable
from tests.vector_tables import clustered, create, fill, vector_table

ROWS = 8_000
K = 10
BITS = IndexChoice(kind="hnsw", on="bits", opclass="bit_hamming_ops", oversampling=8, reason="")
FLOAT = IndexChoice(kind="hnsw", on="float", opclass="vector_cosine_ops", reason="")
# Share of the rows that pass: a filter for --where, the same for the SQL function, and the same in numpy.
# Years are 1000 + id % 1000, authors id % 100.
AUTHOR: dict[str, Any] = {"author": "author 7"}
FILTERS: dict[float, tuple[str, dict[str, Any] | None]] = {
    0.001: ("year = 1777", {"year": 1777}),
    0.01: ("author = 'author 7'", AUTHOR),
    0.1: ("year < 1100", None),
    0.5: ("year >= 1500", None),
    1.0: ("year >= 1000", {}),
}


def passing(share: float) -> npt.NDArray[np.bool_]:
    year = 1000 + np.arange(ROWS) % 1000
    match share:
        case 0.001:
            return year == 1777
        case 0.01:
            return np.arange(ROWS) % 100 == 7
        case 0.1:
            return year < 1100
        case 0.5:
            return year >= 1500
        case _:
            return year >= 1000


@dataclass(frozen=True, slots=True)
class Filled:
    """A table with an index, shared by the tests of one kind of index, as its build costs seconds."""

    connection: Connection
    table: VectorTable
    choice: IndexChoice
    vectors: npt.NDArray[np.float32]
    there: npt.NDArray[np.bool_]

    def nearest(self, query: npt.NDArray[np.float32], share: float) -> list[int]:
        similarity = self.vectors @ query / np.linalg.norm(self.vectors, axis=1)
        similarity[~(self.there & passing(share))] = -np.inf
        order = np.argsort(-similarity, kind="stable")[:K]
        return [int(i) for i in order if np.isfinite(similarity[i])]


@pytest.fixture(scope="module", params=[BITS, FLOAT], ids=["bits", "float"])
def filled(cluster: str, request: pytest.FixtureRequest) -> Generator[Filled]:
    """8,000 rows and an index that was built over all of them."""
    choice: IndexChoice = request.param
    name = f"filters_{choice.on}"
    with psycopg.connect(cluster, autocommit=True) as maintenance:
        maintenance.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template_rowvec").format(sql.Identifier(name)))
        with connect(psycopg.conninfo.make_conninfo(cluster, dbname=name)) as connection:
            table = vector_table(128)
            vectors = clustered(ROWS, 128, spread=1.0)
            create(connection, table)
            fill(connection, table, vectors)
            ensure_index(connection, table, choice, readers=False)
            install_search_function(connection, table, choice)
            yield Filled(connection, table, choice, vectors, np.ones(ROWS, bool))
        maintenance.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def recalls(filled: Filled, share: float, queries: range) -> float:
    """Recall of search, and of the SQL function where its filter can say the same; k rows must come back."""
    where, by_function = FILTERS[share]
    found = wanted = 0
    for i in queries:
        true = filled.nearest(filled.vectors[i], share)
        hits = search(filled.connection, filled.table, filled.choice, filled.vectors[i], K, where=where)
        answers = [[hit.key["id"] for hit in hits]]
        if by_function is not None:
            rows = filled.connection.execute(
                "SELECT id FROM items_search(%s, %s, filter => %s)",
                (json.dumps(filled.vectors[i].tolist()), K, json.dumps(by_function)),
            )
            answers.append([row[0] for row in rows])
        for answer in answers:
            assert len(answer) == len(true), f"{len(answer)} rows of {len(true)}"
            assert len(set(answer)) == len(answer)
            assert all((filled.there & passing(share))[answer])
            found += len(set(answer) & set(true))
            wanted += len(true)
    return found / wanted


@pytest.mark.parametrize("share", FILTERS)
def test_k_near_rows_come_back_at_every_selectivity(filled: Filled, share: float) -> None:
    recall = recalls(filled, share, range(0, ROWS, 800))
    narrow = explain(filled.connection, filled.table, filled.choice, filled.vectors[0], K, where=FILTERS[share][0])
    assert (narrow.most_matches > 0) == (share <= 0.01)
    assert not narrow.sequential_shortlist
    # A narrow filter is searched exactly; the index over 128 bits is not as good as one over floats.
    assert recall == 1 if share <= 0.01 else recall >= (0.85 if filled.choice.on == "bits" else 0.95)
