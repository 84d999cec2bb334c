"""References, ``${NAME}`` and ``${prefect.blocks.secret.NAME}``: a pipeline names a secret without holding it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from rowvec.errors import UsageError
from rowvec.pipeline.model import Pipeline
from rowvec.pipeline.parts import REFERENCE

# If one of these variables is not set, its key has a default, so the reference may stay unresolved.
_OPTIONAL = frozenset({"OPENAI_BASE_URL"})

ReadBlock = Callable[[str, str], str]
"""Called with the type of a block, ``secret`` for example, and its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A place in a pipeline that names a variable or a block."""

    part: str
    key: str
    """With its part, as in ``embedder.api_key``."""
    variable: str | None
    """None if it names a block."""
    optional: bool
    """Whether the key has a default that is taken if the variable is not set."""


def references(pipeline: Pipeline) -> list[Reference]:
    """All references of a pipeline, in the order of its keys."""
    return [
        Reference(
            part=part,
            key=f"{part}.{key}",
            variable=match["variable"],
            optional=match["variable"] in _OPTIONAL and match[0] == text,
        )
        for part in Pipeline.model_fields
        if part != "name"
        for key, text in getattr(pipeline, part)
        if isinstance(text, str) and key != "content"
        for match in REFERENCE.finditer(text)
    ]


def resolve(pipeline: Pipeline, needed: frozenset[str] | None = None) -> Pipeline:
    """The pipeline with every reference replaced by its value: for use in memory, never to be logged or stored.

    With ``needed``, only in those parts: variables that a job does not use may be missing. Raises ``UsageError`` with
    the key and the missing variable or block.
    """
    return Pipeline.model_construct(
        name=pipeline.name,
        **{
            part: _resolved(part, getattr(pipeline, part))
            if needed is None or part in needed
            else getattr(pipeline, part)
            for part in Pipeline.model_fields
            if part != "name"
        },
    )


def variables_of(pipeline: Pipeline) -> frozenset[str]:
    """The environment variables that the pipeline names and cannot do without."""
    return frozenset(one.variable for one in references(pipeline) if one.variable and not one.optional)


def without_key(pipeline: Pipeline) -> Pipeline:
    """The pipeline with a placeholder as its embedder's key, for jobs that ask the embedder nothing."""
    embedder = pipeline.embedder
    if getattr(embedder, "api_key", None) is None:
        return pipeline
    return pipeline.model_copy(update={"embedder": embedder.model_copy(update={"api_key": "not-needed"})})


def _resolved(path: str, part: Any) -> Any:
    # model_copy does not validate again: a DSN with a password is valid in memory and refused in a file.
    changed = {
        key: _replaced(f"{path}.{key}", value)
        for key, value in part
        # A template has braces of its own: "${price}" is a dollar sign and a column.
        if isinstance(value, str) and key != "content" and REFERENCE.search(value)
    }
    return part.model_copy(update=changed)


def _replaced(key: str, text: str) -> str | None:
    for variable in (match["variable"] for match in REFERENCE.finditer(text)):
        if variable in _OPTIONAL and text == f"${{{variable}}}" and variable not in os.environ:
            return None
    return REFERENCE.sub(lambda match: _value(key, match), text)


def _value(key: str, match: re.Match[str]) -> str:
    variable, block = match["variable"], match["block"] or match["braced"]
    if block is not None:
        _, _, kind, name = block.split(".")
        return _block_reader(key, name)(kind, name)
    if not os.environ.get(variable):
        raise UsageError(f"{key}: the environment variable {variable} is not set; export it, or name another one")
    return os.environ[variable]


def _block_reader(key: str, block: str) -> ReadBlock:
    """The reader of blocks that the orchestration layer registers, because the core does not import Prefect."""
    for point in entry_points(group="rowvec.secrets"):
        return point.load()
    raise UsageError(f"{key}: the block {block} can be read only if Prefect is installed")
