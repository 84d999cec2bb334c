"""The kinds that one part of a pipeline may have: those that rowvec brings, and those of installed distributions."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError, ValidatorFunctionWrapHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from rowvec.errors import UsageError
from rowvec.pipeline.parts import Part

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of a part: what a pipeline file may say about it, and what opens it."""

    config: type[Part]
    """The model of the part."""
    opens: str
    """``module:Class``, imported only when it is needed."""


K = TypeVar("K", bound=Kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kinds(Generic[K]):
    """All kinds of one part of a pipeline."""

    part: str
    """Its key in the pipeline file."""
    noun: str
    """One kind of it, in a sentence."""
    group: str
    """The entry points by which a distribution registers its kinds."""
    page: str
    """The page of the documentation that says how to write one."""
    built_in: Mapping[str, K]
    # A table, and no entry points of our own: reading those of all distributions takes 40 ms or more; a command of a
    # built-in kind should not pay that (decision 0019).
    words: tuple[str, ...] = ()
    """What a pipeline file may say in place of a kind; the model of the built-in kinds has them."""
    registered: type[K]
    """What a distribution registers."""
    plugin: type[Part]
    """The model that its ``config`` is a subclass of."""

    @property
    def own_names(self) -> tuple[str, ...]:
        """What the models of the built-in kinds know."""
        return (*self.words, *self.built_in)

    def find(self, name: str) -> K:
        """The kind of this name. A plug-in cannot take the name of a built-in kind.

        Raises ``UsageError`` if no kind has this name, if two distributions have one, or if the distribution that has
        it cannot be imported or registers something else.
        """
        if name in self.built_in:
            return self.built_in[name]
        found = [point for point in points_of(self.group) if point.name == name]
        if not found:
            known = sorted({*self.own_names, *(point.name for point in points_of(self.group))})
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise UsageError(
                f"there is no {self.noun} {name!r}; {hint}Installed are {', '.join(known)}; {self.page} says how to "
                "add one"
            )
        if len(found) > 1:
            names = " and ".join(sorted(distribution_of(point) for point in found))
            raise UsageError(f"{names} both have a {self.noun} {name!r}; uninstall one of them")
        return self._loaded(found[0])

    def plugin_of(self, name: str) -> str:
        """The name of the distribution that brings this kind; rowvec if it is built in."""
        return next((distribution_of(point) for point in points_of(self.group) if point.name == name), "rowvec")

    def of_plugins(self) -> Iterator[tuple[str, K]]:
        """The kinds of installed plug-ins that can be used; a warning names each of the others."""
        for name in sorted({point.name for point in points_of(self.group)} - set(self.own_names)):
            try:
                kind = self.find(name)
            except UsageError as error:
                logger.warning("%s", error)
            else:
                yield name, kind

    def with_plugins(self, schema: dict[str, Any]) -> dict[str, Any]:
        """The JSON Schema of a pipeline, with the models of the installed plug-ins in place of "any other kind"."""
        definitions = dict(schema["$defs"])
        references: list[dict[str, Any]] = []
        for name, kind in self.of_plugins():
            own = kind.config.model_json_schema(ref_template="#/$defs/{model}")
            definitions |= own.pop("$defs", {})
            own["properties"]["kind"] = {"const": name, "title": "Kind", "type": "string"}
            definitions[f"plugin {self.part} {name}"] = {**own, "title": name}
            references.append({"$ref": f"#/$defs/plugin {self.part} {name}"})
        part = schema["properties"][self.part]
        kinds = [one for one in part["anyOf"] if one != self.other_kind()]
        properties = {**schema["properties"], self.part: {**part, "anyOf": [*kinds, *references]}}
        return {**schema, "$defs": definitions, "properties": properties}

    def other_kind(self) -> dict[str, Any]:
        """The JSON Schema of a kind that is not built in, with any keys."""
        return {
            "type": "object",
            "title": "plug-in",
            "description": "A kind of an installed plug-in, with its own keys.",
            "properties": {"kind": {"type": "string", "title": "Kind", "not": {"enum": list(self.own_names)}}},
            "required": ["kind"],
            "additionalProperties": True,
        }

    def _loaded(self, point: EntryPoint) -> K:
        where = f"the {self.noun} {point.name!r} of the distribution {distribution_of(point)}"
        try:
            kind = point.load()
        except Exception as error:  # somebody else's module may raise anything when it is imported
            raise UsageError(
                f"{where} cannot be imported ({type(error).__name__}: {error}); install what it needs, or a version of "
                "it that fits"
            ) from error
        if not isinstance(kind, self.registered) or not issubclass(kind.config, self.plugin):
            wanted = f"no {self.registered.__name__} whose config is a {self.plugin.__name__}"
            raise UsageError(f"{where} is {wanted}; ask its author")
        return kind


@cache
def points_of(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of all installed distributions."""
    return tuple(entry_points(group=group))


def distribution_of(point: EntryPoint) -> str:
    """The name of the distribution that declares an entry point."""
    return point.dist.name if point.dist is not None else "an unnamed distribution"


@dataclass(frozen=True, slots=True)
class ByKind(Generic[K]):
    """Annotates a part of the pipeline: each kind, built in or not, is validated by the model in its entry."""

    kinds: Kinds[K]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A validator that looks the kind up; the value is written by its own model."""
        del source
        models = {kind.config for kind in self.kinds.built_in.values()}
        if len(models) == 1:
            built_in = handler.generate_schema(models.pop())
        else:
            # A tagged union: its mistakes name the kind that they are of.
            tagged = {name: handler.generate_schema(kind.config) for name, kind in self.kinds.built_in.items()}
            built_in = core_schema.tagged_union_schema(tagged, discriminator="kind")
        return core_schema.no_info_wrap_validator_function(
            self._validated, built_in, serialization=core_schema.simple_ser_schema("any")
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The built-in kinds, and any other kind with any keys.

        Prefect reads this schema each time that a flow is imported, so it does not ask which plug-ins there are.
        ``Kinds.with_plugins`` does.
        """
        del schema
        models = dict.fromkeys(kind.config for kind in self.kinds.built_in.values())
        return {"anyOf": [*(handler(model.__pydantic_core_schema__) for model in models), self.kinds.other_kind()]}

    def _validated(self, value: Any, built_in: ValidatorFunctionWrapHandler) -> Any:
        if isinstance(value, self.kinds.plugin):
            return value
        name = cast("dict[str, Any]", value).get("kind") if isinstance(value, dict) else None
        if not isinstance(name, str) or name in self.kinds.own_names:
            return built_in(value)
        try:
            kind = self.kinds.find(name)
        except UsageError as error:
            # An error of the key ``kind``, not of the whole part.
            wrong = PydanticCustomError("value_error", "{sentence}", {"sentence": str(error)})
            raise ValidationError.from_exception_data(
                self.kinds.part, [{"type": wrong, "loc": ("kind",), "input": name}], hide_input=True
            ) from None
        # Its mistakes become those of the pipeline, below the part.
        return kind.config.model_validate(value)
