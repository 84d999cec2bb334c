"""Kinds of indexes: pgvector's and those of plug-ins answer the same questions, and each index has one kind."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import asdict, replace
from importlib.metadata import EntryPoint

import pytest
from psycopg import sql

from rowvec.errors import UsageError
from rowvec.index.choice import Facts, choose, fits
from rowvec.index.effort import search_efforts
from rowvec.index.raised_search import search_settings
from rowvec.pipeline import kinds
from rowvec.pipeline.index_kinds import INDEXES
from rowvec.pipeline.indexes import Index
from rowvec.postgres.vector_index import IndexChoice, stored_choice
from rowvec.searches.index_kinds import kind_of, method_of
from rowvec.searches.index_kinds.protocol import Sought
from tests.support.plugin_indexes import GraphIndex

MODULE = "tests.support.plugin_indexes"
FACTS = Facts(rows=1_000_000, dimensions=1_536, precision="float32", bits=1)


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Plug-ins without a distribution."""
    names = {"one": "KIND", "other": "OTHER", "no_method": "NO_METHOD", "hnsw": "KIND"}
    found = tuple(EntryPoint(name, f"{MODULE}:{value}", INDEXES.group) for name, value in names.items())
    monkeypatch.setattr(kinds, "points_of", {INDEXES.group: found}.get)
    yield
    method_of.cache_clear()
    kind_of.cache_clear()


@pytest.mark.parametrize("name", INDEXES.built_in)
def test_a_built_in_kind_is_its_access_method_and_no_plug_in_replaces_it(name: str) -> None:
    assert INDEXES.find(name).config is Index
    assert (method_of(name).access_method, method_of(name).product) == (name, "pgvector")
    assert kind_of(name, "vector") == name


def test_two_access_methods_of_one_name_are_told_apart_by_their_extensions(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [point for point in kinds.points_of(INDEXES.group) if point.name != "no_method"]
    monkeypatch.setattr(kinds, "points_of", {INDEXES.group: points}.get)
    assert [kind_of("diskann", extension) for extension in ("one", "other", "third", None)] == [
        "one",
        "other",
        None,
        "one",
    ]
    assert kind_of("vchordrq", "vchord") is None


def test_a_kind_that_opens_no_method_is_one_sentence() -> None:
    with pytest.raises(UsageError, match=r"opens tests\.support\.plugin_indexes:GraphIndex, which is no IndexMethod"):
        method_of("no_method")


def test_an_index_of_a_plug_in_is_chosen_kept_and_compared_by_its_options() -> None:
    choice = choose(FACTS, GraphIndex(kind="one", links=48))
    assert (choice.kind, choice.on, choice.opclass) == ("one", "float", "vector_cosine_ops")
    assert choice.options == (("num_links", "48"), ("plain", "true"))
    assert stored_choice(json.loads(json.dumps(asdict(choice)))) == choice
    method = method_of("one")
    built = method.present(replace(choice, options=()), {"plain": "true", "num_links": "48"})
    assert fits(built, choice)
    assert not fits(method.present(choice, {"num_links": "32", "plain": "true"}), choice)
    assert not fits(replace(choice, kind="other"), choice)
    with pytest.raises(UsageError, match=r"index\.on is bits, and one indexes floats alone: set index.on to float"):
        choose(FACTS, GraphIndex(kind="one", on="bits"))
    with pytest.raises(
        UsageError, match="one indexes no float vectors over 2,000 dimensions, and these have 3,072: set"
    ):
        choose(replace(FACTS, dimensions=3_072), GraphIndex(kind="one"))


def test_its_searches_are_raised_to_its_own_limit() -> None:
    choice = choose(FACTS, GraphIndex(kind="one"))
    ways = search_efforts(choice, 10)
    assert [way.effort for way in ways] == [0, 120, 150]
    assert [search_settings(way).get("effort") for way in ways] == [None, 120, 150]
    sought = Sought(shortlist=sql.Literal(20), oversampling=sql.Literal(4), most_visits=sql.Literal(9))
    made = {way.effort: method_of("one").settings_of(way, sought)["diskann.effort"].as_string(None) for way in ways[:2]}
    assert made == {
        0: "(least(150, greatest(60 * 4 / 4, 20)))::text",
        120: "(least(150, greatest(120 * 4 / 4, 20)))::text",
    }
    assert method_of("one").settings_of(choice, sought)["diskann.rescore"].as_string(None) == "'50'"


def test_a_choice_of_an_earlier_release_is_read() -> None:
    old = {"kind": "hnsw", "on": "bits", "opclass": "bit_hamming_ops", "m": 24, "gone": 1, "reason": "Chosen."}
    assert stored_choice(old) == IndexChoice(kind="hnsw", on="bits", opclass="bit_hamming_ops", m=24, reason="Chosen.")
