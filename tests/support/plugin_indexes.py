"""Two kinds of indexes of plug-ins whose access methods have one name, and one that cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from psycopg import sql

from rowvec.index.plugin import IndexChoice, IndexKind, IndexMethod, Option, PluginIndex, Sought


class GraphIndex(PluginIndex):
    """One key of its own."""

    links: int = 32
    plain: bool = True


class Graph(IndexMethod):
    """A graph that indexes no bits."""

    access_method: ClassVar[str] = "diskann"
    extension: ClassVar[str] = "one"
    types: ClassVar[Mapping[str, int]] = {"vector": 2_000}
    default_effort: ClassVar[int] = 60
    most_effort: ClassVar[int] = 150

    def options(self, wanted: Any, rows: int) -> Mapping[str, Option]:
        """Both keys."""
        return {"num_links": wanted.links, "plain": wanted.plain}

    def settings(
        self, choice: IndexChoice, effort: sql.Composable, sought: Sought
    ) -> Mapping[str, sql.Composable | str | int]:
        """The effort, and a constant."""
        return {"diskann.effort": effort, "diskann.rescore": 50}


class OtherGraph(Graph):
    """The same of another extension."""

    extension: ClassVar[str] = "other"


KIND = IndexKind(config=GraphIndex, opens=f"{__name__}:Graph")
OTHER = IndexKind(config=GraphIndex, opens=f"{__name__}:OtherGraph")
NO_METHOD = IndexKind(config=GraphIndex, opens=f"{__name__}:GraphIndex")
