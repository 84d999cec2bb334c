"""The conformance test passes for embedders that are right, and names each defect of those that are not."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import pytest

from rowvec.embedders import open_embedder
from rowvec.embedders.conformance import check_embedder
from rowvec.errors import UsageError
from rowvec.pipeline import kinds
from rowvec.pipeline.embedder_kinds import EMBEDDERS
from rowvec.pipeline.embedders import LocalEmbedder
from tests.support.defective_models import DEFECTS, ModelEmbedder

MODULE = "tests.support.defective_models"


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two plug-ins without a distribution."""
    found = (
        EntryPoint("by_hash", f"{MODULE}:KIND", EMBEDDERS.group),
        EntryPoint("twice", f"{MODULE}:KIND", EMBEDDERS.group),
        EntryPoint("twice", f"{MODULE}:KIND", EMBEDDERS.group),
        EntryPoint("no_kind", f"{MODULE}:NOT_A_KIND", EMBEDDERS.group),
        EntryPoint("local", f"{MODULE}:KIND", EMBEDDERS.group),
    )
    monkeypatch.setattr(kinds, "points_of", dict.fromkeys([EMBEDDERS.group], found).get)


def part(**settings: Any) -> ModelEmbedder:
    return ModelEmbedder(kind="by_hash", **settings)


def test_embedders_that_are_right_pass() -> None:
    check_embedder(LocalEmbedder(kind="local", dimensions=64), LocalEmbedder(kind="local", dimensions=128))
    check_embedder(part(), part(power=3), part(dimensions=8))


SENTENCES = {
    "order": "depend on the batch or its order",
    "random": "the same texts get other vectors the second time",
    "batch": "depend on the batch or its order",
    "constant": "all texts get the same vector",
    "count": "EmbedderUnavailable: the embedder answered 7 vectors for 8 texts",
    "dimensions": "EmbedderRefused: by-hash at by_hash gives vectors of 15 dimensions, and the pipeline wants 16",
    "flat": "EmbedderRefused: by-hash at by_hash gives vectors of 1 dimensions",
    "nan": "is rejected: the vector holds NaN",
    "infinite": "is rejected: the vector holds an infinity",
    "zero": "is rejected: the vector is zero",
    "wrong exception": "one bad text stops the run: EmbedderRefused: the embedder by_hash of .* failed .RuntimeError:",
}


@pytest.mark.parametrize("defect", [name for name in DEFECTS if name != "none"])
def test_each_defect_is_named(defect: str) -> None:
    with pytest.raises(AssertionError, match=SENTENCES[defect]):
        check_embedder(part(defect=defect))


def test_a_setting_that_changes_vectors_and_no_fingerprint_is_named() -> None:
    with pytest.raises(AssertionError, match="with another scale the vectors differ and the identity does not"):
        check_embedder(part(), part(scale=2.0))


def test_a_key_of_its_own_is_in_the_identity_unless_it_has_no_effect_or_its_default() -> None:
    identity = open_embedder(part()).identity
    assert identity.preprocessing == 1
    assert open_embedder(part(power=1)).identity == identity
    assert open_embedder(part(scale=2.0)).identity == identity
    assert open_embedder(part(query_prefix="q ")).identity == identity
    assert open_embedder(part(power=3)).identity != identity
    assert open_embedder(part(document_prefix="d ")).identity != identity


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("twice", "both have a kind of embedder 'twice'; uninstall one of them"),
        ("no_kind", "is no EmbedderKind whose config is a PluginEmbedder; ask its author"),
        ("by-hash", "did you mean by_hash[?]"),
    ],
)
def test_a_kind_that_cannot_be_used_is_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        EMBEDDERS.find(name)


def test_a_plug_in_does_not_replace_a_built_in_kind() -> None:
    assert EMBEDDERS.find("local").config is LocalEmbedder
