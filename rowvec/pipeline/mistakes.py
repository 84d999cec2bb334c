"""What is wrong with a pipeline file, in sentences: what was found at a key, and what is expected there.

Pydantic finds the mistakes; its own words name its types and are not for people, and may quote a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, cast, get_args

from pydantic import BaseModel

from rowvec.pipeline.embedders import PluginEmbedder
from rowvec.pipeline.indexes import PluginIndex
from rowvec.pipeline.model import LONGEST_PIPELINE_NAME, Pipeline
from rowvec.runtime.suggestion import did_you_mean

_MISSING = "is missing"
_MEANT = re.compile(r"^unknown key; did you mean '(\w+)'\?$")

Error = Mapping[str, Any]
"""One of ``ValidationError.errors()``."""
Path = tuple[str | int, ...]

# Their values may be secrets, or hold one.
_NEVER_SHOWN = frozenset({"url", "api_key", "credential", "path", "images", "base_url", "image"})
_LONGEST = 40

_OF_PLUGINS = (PluginEmbedder, PluginIndex)

# What Pydantic adds to a path for the members of a union: they are no keys of the file.
_MEMBERS = frozenset({"bool", "BatchApi", "str", "int"})

_FORMS = {
    "name": f"lower case letters, digits, _ and -, beginning with a letter, {LONGEST_PIPELINE_NAME} characters at most",
    "source.delimiter": "one ASCII character that is neither a quote nor the end of a line",
    "search.language": "the name of a text search configuration, such as english or simple",
    "source.changes.verify_every": "a number and a unit (s, m, h or d), as in 12h or 1d",
    "freshness.alarm_after": "a number and a unit (s, m, h or d), as in 10m or 1h",
    "embedder.model": "a date, as in 2023-04-15",
}

_KINDS: dict[str, str] = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "list": "a list, as in [id]",
    "dict": "keys with values",
    "model": "keys with values",
    "dataclass": "keys with values",
}
_LIMITS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def mistakes(errors: list[Error]) -> list[tuple[Path, str]]:
    """The path of keys in the file and a sentence for each mistake, one for each path."""
    found: dict[Path, str] = {}
    for error in errors:
        path = _in_file(error["loc"])
        if not _is_of_other_member(error):
            found.setdefault(path, _sentence(error, path))
    # A key that is misspelt is missing too, and that is one mistake.
    meant = {(*path[:-1], match[1]) for path, words in found.items() if (match := _MEANT.search(words))}
    return [(path, words) for path, words in found.items() if path not in meant or words != _MISSING]


def _in_file(location: Path) -> Path:
    """The keys of the file that lead to a mistake: a kind of source or embedder, as a tag, is none."""
    return tuple(part for i, part in enumerate(location) if not (i == 1 and part in _tags()) and part not in _MEMBERS)


def _tags() -> frozenset[str]:
    return frozenset(_kind(member) for key in ("source", "embedder") for member in _members(Pipeline, key)) - {""}


def _is_of_other_member(error: Error) -> bool:
    """Whether it says only that a value is not of one member of a union, and another member has more to say."""
    return "bool" in error["loc"] and isinstance(error["input"], dict)


def _sentence(error: Error, path: Path) -> str:
    kind = cast("str", error["type"])
    if kind == "missing":
        return _MISSING
    if kind == "extra_forbidden":
        return _unknown_key(error["loc"])
    if kind == "value_error":
        return cast("str", error["msg"]).removeprefix("Value error, ")
    for look in (_choice, _limit, _length, _type):
        if sentence := look(kind, error, path):
            return sentence
    return f"{_found(error, path)} does not fit here; `rowvec schema` says what does"


def _choice(kind: str, error: Error, path: Path) -> str | None:
    context = error.get("ctx", {})
    if kind == "union_tag_not_found":
        return f"kind is missing; write one of {', '.join(_kinds_of(path))}"
    if kind == "union_tag_invalid":
        known = _kinds_of(path)
        return (
            f"kind is {context['tag']!r}, and should be one of {', '.join(known)}{did_you_mean(context['tag'], known)}"
        )
    if kind in ("literal_error", "enum"):
        known = re.findall(r"'([^']*)'|(\d+)", context["expected"])
        words = [text or number for text, number in known]
        return f"{_found(error, path)}, and should be {' or '.join(words)}{did_you_mean(error['input'], words)}"
    if kind == "string_pattern_mismatch":
        key = ".".join(str(part) for part in path)
        return f"{_found(error, path)}, and should be {_FORMS.get(key, 'of the form ' + context['pattern'])}"
    return None


def _limit(kind: str, error: Error, path: Path) -> str | None:
    if kind not in _LIMITS:
        return None
    name, words = _LIMITS[kind]
    limit = error["ctx"][name]
    return f"{_found(error, path)}, and should be {words} {limit if limit != int(limit) else f'{int(limit):,}'}"


def _length(kind: str, error: Error, path: Path) -> str | None:
    if kind == "string_too_short":
        return "is empty; write a text"
    if kind == "too_short":
        return "is an empty list; name at least one"
    return None


def _type(kind: str, error: Error, path: Path) -> str | None:
    if kind == "string_unicode":
        return f"{_found(error, path)}, which has half of a character (a surrogate); write the whole character"
    for name, words in _KINDS.items():
        if kind.startswith(f"{name}_"):
            members = " or settings" if "bool" in error["loc"] else ""
            return f"{_found(error, path)}, and should be {words}{members}"
    return None


def _unknown_key(location: Path) -> str:
    *above, key = location
    part = _part_at(tuple(above))
    known = list(part.model_fields) if part else []
    elsewhere = [name for name, at in _parts().items() if key in at.model_fields and name != (above or [""])[0]]
    # A plug-in's model may lack a key that the model of the built-in kinds has.
    hint = "" if key in known else did_you_mean(key, known)
    if not hint and elsewhere:
        hint = f"; did you mean {elsewhere[0]}.{key}?"
    return f"unknown key{hint}" if hint else "unknown key; `rowvec schema` lists the known ones"


def _parts() -> dict[str, type[BaseModel]]:
    """The parts of a pipeline that have one form only, by their keys."""
    return {name: found[0] for name in Pipeline.model_fields if len(found := _members(Pipeline, name)) == 1}


def _part_at(location: Path) -> type[BaseModel] | None:
    """The model whose keys may stand at a path; the path has the tags of unions."""
    here: type[BaseModel] | None = Pipeline
    candidates: list[type[BaseModel]] = []
    for step in location:
        tagged = [one for one in candidates if _kind(one) == step or one.__name__ == step]
        if tagged:
            here, candidates = tagged[0], []
            continue
        candidates = _members(here, str(step)) if here else []
        here = candidates[0] if len(candidates) == 1 else None
    return here


def _members(part: type[BaseModel] | None, key: str) -> list[type[BaseModel]]:
    """The models that the value of a key may be."""
    field = part.model_fields.get(key) if part else None
    waiting: list[Any] = [field.annotation] if field else []
    found: list[type[BaseModel]] = []
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, type) and issubclass(one, BaseModel):
            # The model of plug-ins has no kind of its own, and each of them has other keys.
            found += [] if one in _OF_PLUGINS else [one]
        else:
            waiting += get_args(one)
    return found


def _kinds_of(path: Path) -> list[str]:
    return [kind for member in _members(Pipeline, str(path[0])) if (kind := _kind(member))] if path else []


def _kind(part: type[BaseModel]) -> str:
    field = part.model_fields.get("kind")
    return str((get_args(field.annotation) or ("",))[0]) if field else ""


def _found(error: Error, path: Path) -> str:
    """What stands there, unless it may be a secret."""
    value = error["input"]
    words: dict[type, Callable[[Any], str]] = {
        bool: lambda found: "true" if found else "false",
        int: str,
        float: str,
        list: lambda _: "a list",
        dict: lambda _: "keys with values",
        type(None): lambda _: "empty",
        str: lambda found: "a text" if _may_be_secret(found, error, path) else repr(found[:_LONGEST]),
    }
    return f"is {words.get(type(value), lambda found: f'a {type(found).__name__}')(value)}"


def _may_be_secret(text: str, error: Error, path: Path) -> bool:
    """Whether a text may hold a secret: by its key, by its form, or because it stands where a whole part should."""
    return (
        bool(_NEVER_SHOWN.intersection(path))
        or any(sign in text for sign in ("://", "@", "="))
        or str(error["type"]).startswith(("model_", "dict_"))
    )
