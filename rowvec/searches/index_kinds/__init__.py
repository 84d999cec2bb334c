"""One module per kind of index that pgvector has, the protocol that all kinds follow, and how a kind is opened."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from rowvec.errors import UsageError
from rowvec.pipeline.index_kinds import INDEXES
from rowvec.searches.index_kinds.protocol import IndexMethod


@cache
def method_of(kind: str) -> IndexMethod:
    """How indexes of this kind are built and searched; ``kind``: as in a pipeline file, and neither auto nor none.

    Raises ``UsageError`` if there is no such kind, or if the class that its distribution names cannot be used.
    """
    opens = INDEXES.find(kind).opens
    module, _, name = opens.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"{_named(kind)} cannot be opened ({error}); install what it needs, or a version of it that fits"
        ) from error
    if not (isinstance(found, type) and issubclass(found, IndexMethod)):
        raise UsageError(f"{_named(kind)} opens {opens}, which is no IndexMethod; ask its author")
    return found()


@cache
def kind_of(access_method: str, extension: str | None) -> str | None:
    """The kind whose indexes have this access method, which belongs to this extension; None if there is none here.

    Two extensions may call their access methods alike. An access method of no extension is known by its name alone.
    """
    if access_method in INDEXES.built_in:
        return access_method
    for name, _ in INDEXES.of_plugins():
        method = method_of(name)
        if method.access_method == access_method and extension in (None, method.extension):
            return name
    return None


def access_methods() -> list[str]:
    """Those of all kinds that are installed here. rowvec builds such indexes itself; others are somebody's own."""
    kinds = [*INDEXES.built_in, *(name for name, _ in INDEXES.of_plugins())]
    return [method_of(kind).access_method for kind in kinds]


def _named(kind: str) -> str:
    return f"the kind of index {kind!r} of {INDEXES.plugin_of(kind)}"
