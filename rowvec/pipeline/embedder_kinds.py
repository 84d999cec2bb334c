"""The kinds of embedders: one table of those that rowvec has, and an entry point for those that others bring."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError, ValidatorFunctionWrapHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from rowvec.errors import UsageError
from rowvec.pipeline import embedders
from rowvec.pipeline.parts import Part

GROUP = "rowvec.embedders"
"""The entry points by which a distribution registers its kinds."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderKind:
    """One kind of embedder: what a pipeline file may say about it, and what opens it."""

    config: type[Part]
    """The model of the pipeline's ``embedder`` part. That of a plug-in is a subclass of ``PluginEmbedder``."""
    opens: str
    """``module:Class``, imported only when the embedder is opened; the constructor takes a ``config``.

    That of a plug-in is a ``rowvec.embedders.plugin.TextModel``.
    """
    takes_images: bool = False
    """Whether the class is an ``ImageEmbedder``."""


# Modules are named, not imported: openai and wordllama take half a second each, and a run needs at most one of them.
# It is a table, and not entry points of our own: reading those of all distributions takes 40 ms or more; a command
# of a built-in kind should not pay that (decision 0019).
BUILT_IN: Mapping[str, EmbedderKind] = {
    "local": EmbedderKind(config=embedders.LocalEmbedder, opens="rowvec.embedders.wordllama:LocalModel"),
    "local_image": EmbedderKind(
        config=embedders.LocalImageEmbedder, opens="rowvec.embedders.image_similarity:LocalImage", takes_images=True
    ),
    "column": EmbedderKind(config=embedders.ColumnEmbedder, opens="rowvec.embedders.column:SourceColumn"),
    "azure_vision": EmbedderKind(
        config=embedders.AzureVisionEmbedder,
        opens="rowvec.embedders.azure_vision.embedder:AzureVision",
        takes_images=True,
    ),
    "openai_images": EmbedderKind(
        config=embedders.OpenAIImagesEmbedder, opens="rowvec.embedders.openai.images:OpenAIImages", takes_images=True
    ),
    "openai": EmbedderKind(config=embedders.OpenAIEmbedder, opens="rowvec.embedders.openai.texts:OpenAIApi"),
    "azure_openai": EmbedderKind(config=embedders.AzureOpenAIEmbedder, opens="rowvec.embedders.openai.texts:OpenAIApi"),
    "litellm": EmbedderKind(config=embedders.LitellmEmbedder, opens="rowvec.embedders.litellm_model:LitellmModel"),
}


def find_kind(name: str) -> EmbedderKind:
    """The kind of this name. A plug-in cannot take the name of a built-in kind.

    Raises ``UsageError`` if no kind has this name, if two distributions have one, or if the distribution that has it
    cannot be imported or registers something else.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    found = [point for point in _points() if point.name == name]
    if not found:
        known = sorted({*BUILT_IN, *(point.name for point in _points())})
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UsageError(
            f"there is no kind of embedder {name!r}; {hint}Installed are {', '.join(known)}; docs/how-to/"
            "bring-your-own-embedder.md says how to add one"
        )
    if len(found) > 1:
        names = " and ".join(sorted(distribution_of(point) for point in found))
        raise UsageError(f"{names} both have a kind of embedder {name!r}; uninstall one of them")
    return _loaded(found[0])


def distribution_of(point: EntryPoint) -> str:
    """The name of the distribution that declares an entry point."""
    return point.dist.name if point.dist is not None else "an unnamed distribution"


def plugin_of(name: str) -> str:
    """The name of the distribution that brings this kind; rowvec if it is built in."""
    return next((distribution_of(point) for point in _points() if point.name == name), "rowvec")


@cache
def _points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def _loaded(point: EntryPoint) -> EmbedderKind:
    where = f"the kind of embedder {point.name!r} of the distribution {distribution_of(point)}"
    try:
        kind = point.load()
    except Exception as error:  # somebody else's module may raise anything when it is imported
        raise UsageError(
            f"{where} cannot be imported ({type(error).__name__}: {error}); install what it needs, or a version of it "
            "that fits"
        ) from error
    if not isinstance(kind, EmbedderKind) or not issubclass(kind.config, embedders.PluginEmbedder):
        raise UsageError(f"{where} is no EmbedderKind whose config is a PluginEmbedder; ask its author")
    return kind


class ByKind:
    """Annotates the pipeline's ``embedder``: each kind, built in or not, is validated by the model in its entry."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A validator that looks the kind up; the value is written by its own model."""
        del source
        # A tagged union: its mistakes name the kind that they are of. Any other kind is looked up by ``_validated``.
        built_in = core_schema.tagged_union_schema(
            {name: handler.generate_schema(kind.config) for name, kind in BUILT_IN.items()}, discriminator="kind"
        )
        return core_schema.no_info_wrap_validator_function(
            _validated, built_in, serialization=core_schema.simple_ser_schema("any")
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The built-in kinds, and any other kind with any keys.

        Prefect reads this schema each time that a flow is imported, so it does not ask which plug-ins there are.
        ``with_plugins`` does.
        """
        del schema
        kinds = [handler(kind.config.__pydantic_core_schema__) for kind in BUILT_IN.values()]
        return {"anyOf": [*kinds, _OTHER_KIND]}


_OTHER_KIND: dict[str, Any] = {
    "type": "object",
    "title": "plug-in",
    "description": "A kind of an installed plug-in, with its own keys.",
    "properties": {"kind": {"type": "string", "title": "Kind", "not": {"enum": list(BUILT_IN)}}},
    "required": ["kind"],
    "additionalProperties": True,
}


def with_plugins(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a pipeline, with the models of the installed plug-ins in place of "any other kind"."""
    found = list(_plugin_kinds())
    definitions = dict(schema["$defs"])
    references: list[dict[str, Any]] = []
    for name, kind in found:
        own = kind.config.model_json_schema(ref_template="#/$defs/{model}")
        definitions |= own.pop("$defs", {})
        own["properties"]["kind"] = {"const": name, "title": "Kind", "type": "string"}
        definitions[f"plugin {name}"] = {**own, "title": name}
        references.append({"$ref": f"#/$defs/plugin {name}"})
    part = schema["properties"]["embedder"]
    kinds = [one for one in part["anyOf"] if one != _OTHER_KIND]
    properties = {**schema["properties"], "embedder": {**part, "anyOf": [*kinds, *references]}}
    return {**schema, "$defs": definitions, "properties": properties}


def _plugin_kinds() -> Iterator[tuple[str, EmbedderKind]]:
    """The kinds of installed plug-ins that can be used; a warning names each of the others."""
    for name in sorted({point.name for point in _points()} - set(BUILT_IN)):
        try:
            kind = find_kind(name)
        except UsageError as error:
            logger.warning("%s", error)
        else:
            yield name, kind


def _validated(value: Any, built_in: ValidatorFunctionWrapHandler) -> Any:
    if isinstance(value, embedders.PluginEmbedder):
        return value
    name = cast("dict[str, Any]", value).get("kind") if isinstance(value, dict) else None
    if not isinstance(name, str) or name in BUILT_IN:
        return built_in(value)
    try:
        kind = find_kind(name)
    except UsageError as error:
        # An error of the key ``kind``, not of the whole part.
        wrong = PydanticCustomError("value_error", "{sentence}", {"sentence": str(error)})
        raise ValidationError.from_exception_data(
            "Embedder", [{"type": wrong, "loc": ("kind",), "input": name}], hide_input=True
        ) from None
    # Its mistakes become those of the pipeline, below ``embedder``.
    return kind.config.model_validate(value)
