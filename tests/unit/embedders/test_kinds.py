"""The table of embedder kinds has every kind that a pipeline file can name, and marks those that take images."""

from __future__ import annotations

from importlib import import_module
from typing import Any, get_args

import pytest

from rowvec.embedders import KINDS
from rowvec.pipeline import embedders
from rowvec.pipeline.model import IMAGE_EMBEDDERS


def kinds_of_pipelines() -> list[str]:
    """The values that ``embedder.kind`` can have."""
    union, *_ = get_args(embedders.Embedder)
    parts: tuple[Any, ...] = get_args(union)
    return [get_args(part.model_fields["kind"].annotation)[0] for part in parts]


def test_every_kind_of_a_pipeline_file_is_in_the_table() -> None:
    assert sorted(KINDS) == sorted(kinds_of_pipelines())


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_takes_images_if_the_table_says_so(kind: str) -> None:
    found = getattr(import_module(KINDS[kind].module), KINDS[kind].class_name)
    assert hasattr(found, "embed")
    assert hasattr(found, "embed_images") == KINDS[kind].takes_images == (kind in IMAGE_EMBEDDERS)
