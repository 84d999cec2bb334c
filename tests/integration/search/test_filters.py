"""Under any filter k rows come back if k rows match, and they are the near ones: before and after deletes."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.conninfo import make_conninfo

from rowvec.index.build import ensure_index
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable
from rowvec.searches.query import explain, search
from rowvec.searches.request import SearchRequest
from rowvec.searches.sql_function import install_search_function
from rowvec.searches.statement import Filtered, SearchValues, filter_plan, statement
from tests.support.vector_tables import clustered, create, fill, vector_table

ROWS = 4_000
K = 10
QUERIES = range(0, ROWS, 500)
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
    """A table with an index, shared by the tests of one kind of index, because its build takes seconds."""

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
    """4,000 rows and an index built over all of them."""
    choice: IndexChoice = request.param
    name = f"filters_{choice.on}"
    with psycopg.connect(cluster, autocommit=True) as maintenance:
        maintenance.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE template_rowvec STRATEGY file_copy").format(sql.Identifier(name))
        )
        with connect(make_conninfo(cluster, dbname=name)) as connection:
            table = vector_table(128)
            vectors = clustered(ROWS, 128, spread=1.0)
            create(connection, table)
            fill(connection, table, vectors)
            ensure_index(connection, table, choice, readers=False)
            install_search_function(connection, table, choice)
            yield Filled(connection, table, choice, vectors, np.ones(ROWS, bool))
        maintenance.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def recalls(filled: Filled, share: float, queries: range) -> float:
    """Recall of search, and of the SQL function if its filter can express the same; k rows must come back."""
    where, by_function = FILTERS[share]
    found = wanted = 0
    for i in queries:
        true = filled.nearest(filled.vectors[i], share)
        hits = search(filled.connection, filled.table, filled.choice, SearchRequest(filled.vectors[i], K, where=where))
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


def enough(filled: Filled, share: float) -> float:
    """A narrow filter is searched exactly; an index over 128 bits is not as good as one over floats."""
    return 1.0 if share <= 0.1 else 0.85 if filled.choice.on == "bits" else 0.95


@pytest.mark.parametrize("share", FILTERS)
def test_k_near_rows_come_back_at_every_selectivity(filled: Filled, share: float) -> None:
    assert recalls(filled, share, QUERIES) >= enough(filled, share)
    plan = explain(
        filled.connection, filled.table, filled.choice, SearchRequest(filled.vectors[0], K, where=FILTERS[share][0])
    )
    assert (plan.most_matches > 0) == (share <= 0.1)
    assert not plan.sequential_shortlist


@pytest.mark.parametrize("share", FILTERS)
def test_the_same_after_deletes_that_no_vacuum_has_followed(filled: Filled, share: float) -> None:
    there = filled.there.copy()
    few = share == 0.001  # four rows, two of which must be left
    for i in QUERIES[:1] if few else QUERIES:  # the nearest, and half of the rest
        there[filled.nearest(filled.vectors[i], share)[: 2 if few else K // 2]] = False
    there[::2] = False
    gone = [int(i) for i in np.flatnonzero(~there)]
    with filled.connection.transaction(force_rollback=True):
        filled.connection.execute("DELETE FROM items WHERE id = ANY (%s)", (gone,))
        assert recalls(replace(filled, there=there), share, QUERIES) >= enough(filled, share) - 0.05


def test_a_search_leaves_no_setting_in_its_callers_transaction(filled: Filled) -> None:
    settings = "SELECT string_agg(name || setting, ',' ORDER BY name) FROM pg_settings WHERE name <> 'search_path'"
    with filled.connection.transaction():
        before = filled.connection.execute(settings).fetchone()
        for where in (None, FILTERS[0.001][0], FILTERS[0.5][0]):
            search(filled.connection, filled.table, filled.choice, SearchRequest(filled.vectors[0], K, where=where))
            assert filled.connection.execute(settings).fetchone() == before


def test_fewer_than_k_are_all_that_there_are(filled: Filled) -> None:
    for where, n in (("year = 1777", 4), ("id IN (3, 4, 5)", 3), ("author = 'nobody'", 0), ("id > 3995", 4)):
        assert (
            len(
                search(
                    filled.connection, filled.table, filled.choice, SearchRequest(filled.vectors[0], 30, where=where)
                )
            )
            == n
        )


@pytest.mark.parametrize("most_matches", [0, 3])
@pytest.mark.parametrize("share", FILTERS)
def test_estimates_may_be_wrong(filled: Filled, share: float, most_matches: int) -> None:
    """A narrow filter that is taken for wide, and a wide one that is taken for narrow, still give k near rows."""
    year = np.flatnonzero(passing(share))
    estimate = Filtered(most_matches=sql.Literal(most_matches), visits=sql.Literal(100), most_visits=sql.Literal(1_000))
    rows = statement(
        filled.table,
        filled.choice,
        "adaptive",
        SearchValues(
            vector=sql.SQL("{}::vector").format(sql.Literal(json.dumps(filled.vectors[5].tolist()))),
            k=sql.Literal(K),
            oversampling=sql.Literal(8),
            condition=sql.SQL("t.id = ANY ({})").format(sql.Literal([int(i) for i in year])),
        ),
        estimate,
    )
    with filled.connection.transaction():
        filled.connection.execute(sql.SQL("SELECT {}").format(rows.settings))
        found = [row[0] for row in filled.connection.execute(rows.rows)]
    true = filled.nearest(filled.vectors[5], share)
    assert len(found) == len(true)
    assert len(set(found) & set(true)) >= 0.7 * len(true)


@given(
    rows=st.integers(1, 10**9),
    share=st.floats(0, 1),
    shortlist=st.integers(1, 640_000),
    cost=st.integers(0, 10**9),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_narrower_filters_are_ranked_whole_sooner(
    filled: Filled, rows: int, share: float, shortlist: int, cost: float
) -> None:
    plans = [planned(filled, rows, share * part * rows, cost / 100, shortlist) for part in (1, 0.5, 0.1)]
    for most_matches, visits, most_visits in plans:
        assert 0 <= most_matches <= 1_000_000
        assert 1 <= visits <= 1_000_000
        assert 1 <= most_visits <= 1_000_000
    # If a filter is narrow enough for an exact search, so is every narrower one.
    exact = [most_matches > 0 for most_matches, _, _ in plans]
    assert exact == sorted(exact)


def planned(filled: Filled, rows: float, matching: float, cost: float, shortlist: int) -> tuple[int, int, int]:
    plan = filter_plan(
        filled.table,
        rows=sql.SQL("{}::float8").format(sql.Literal(rows)),
        matching=sql.SQL("{}::float8").format(sql.Literal(matching)),
        cost=sql.SQL("{}::float8").format(sql.Literal(cost)),
        shortlist=sql.Literal(shortlist),
    )
    row = filled.connection.execute(plan).fetchone()
    assert row
    return row
