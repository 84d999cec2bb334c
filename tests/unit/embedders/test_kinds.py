"""The table of embedder kinds: what it names exists, and marks those that take images."""

from __future__ import annotations

from importlib import import_module
from typing import get_args

import pytest

from rowvec.pipeline import embedders
from rowvec.pipeline.embedder_kinds import BUILT_IN
from rowvec.pipeline.model import IMAGE_EMBEDDERS


def test_the_type_of_the_part_has_the_models_of_all_kinds() -> None:
    assert {*get_args(embedders.Embedder)} == {*(kind.config for kind in BUILT_IN.values()), embedders.PluginEmbedder}


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_class_takes_images_if_the_table_says_so(name: str) -> None:
    module, _, class_name = BUILT_IN[name].opens.partition(":")
    found = getattr(import_module(module), class_name)
    assert get_args(BUILT_IN[name].config.model_fields["kind"].annotation) == (name,)
    assert hasattr(found, "embed")
    assert hasattr(found, "embed_images") == BUILT_IN[name].takes_images == (name in IMAGE_EMBEDDERS)
