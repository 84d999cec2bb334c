"""The searches that benchmarks/search.py compares: which index each has, its settings cheapest first, and its SQL."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import psycopg
from pgvector import Bit, HalfVector, Vector
from psycopg import sql

from benchmarks.synthetic import Floats
from rowvec.index.choice import opclass
from rowvec.postgres.connection import Connection
from rowvec.postgres.vector_index import IndexChoice, On, indexed_expression
from rowvec.postgres.vector_table import VectorTable
from rowvec.searches.index_kinds import method_of
from rowvec.searches.index_kinds.hnsw import LIMIT_VECTOR
from rowvec.searches.sql_function import install_search_function
from rowvec.stages.binarize import binarize

Client = psycopg.Connection[tuple[Any, ...]]
"""A session of an application, which knows nothing of rowvec."""

Form = Literal["function", "rerank", "nearest", "exact"]
"""``function``: rowvec's SQL function; ``rerank``: bits and rerank as bare SQL; ``nearest``: the index alone."""

ASKED = 11
"""10 neighbours and the query itself, because the query is a row of the table."""

# A graph on bits loses more recall than the bits do, and its build costs a fraction of a graph on floats: it can afford
# a larger ef_construction.
_BITS_EFFORT = 128
# Bits per dimension. Each number has a table of its own, because a vector table keeps one.
NUMBERS = (1, 2, 3)
# m and ef_construction of other graphs on one bit: they are smaller and built sooner, or need a shorter walk.
_GRAPHS = ((12, 128), (12, 200), (16, 256), (16, 64))
_PREFIXES = (1024, 256)
# The steps are small where indexes of 100,000 rows reach 0.95: a step that is too large would count against the peer.
_EFFORTS = (11, 15, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120, 135, 150, 175, 200, 300, 400, 800)
# Pairs of candidates per wanted row and ef_search, cheapest first.
_RERANKED = (
    *((1, 11), (2, 22), (3, 33), (4, 44), (5, 55), (4, 60), (6, 66), (7, 77), (8, 88)),
    *((6, 100), (8, 100), (10, 110), (12, 132), (8, 200), (16, 200)),
)
_RERANKED_MORE = ((32, 400), (64, 800))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The effort of a search."""

    oversampling: int = 1
    ef_search: int = 0

    @property
    def name(self) -> str:
        """The setting as the table of results shows it."""
        reranked = f"{self.oversampling}x, " if self.oversampling > 1 else ""
        return f"{reranked}ef {self.ef_search}" if self.ef_search else "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """An index, and a way to search it."""

    name: str
    index: IndexChoice
    form: Form
    settings: tuple[Setting, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A search as a client sends it: a prepared statement with binary vectors."""

    statement: str
    ef_search: int
    half: bool
    """The client sends the vector as halfvec."""
    bits: int
    """The client sends the vector's bits too, so many per dimension; 0: it does not."""
    cut: int
    """How many leading dimensions the client sends."""

    def parameters(self, query: Floats) -> dict[str, Any]:
        """The values for the placeholders of ``statement``; ``query`` is ``(d,)``."""
        sent = query[: self.cut]
        values: dict[str, Any] = {"query": HalfVector(sent) if self.half else Vector(sent)}
        return values | ({"bits": Bit(_bits(query, self.bits))} if self.bits else {})

    def prepare(self, connection: Client) -> None:
        """Set the session's settings. ``enable_seqscan``: vectors in TOAST make a full scan look cheap."""
        settings = (("hnsw.ef_search", max(1, self.ef_search)), ("enable_seqscan", "off"), ("jit", "off"))
        for name, value in (*settings, ("plan_cache_mode", "force_generic_plan")):
            connection.execute("SELECT set_config(%s, %s, false)", (name, str(value)))

    def pages(self, connection: Client, query: Floats) -> int:
        """How many pages of the table and its index one search reads, whether they are in memory or not."""
        explained = b"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) " + self.statement.encode()
        row = connection.execute(explained, self.parameters(query)).fetchone()
        plan = row[0][0]["Plan"] if row else {}
        return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]

    def run(self, connection: Client, query: Floats) -> list[int]:
        """The keys that the search finds, nearest first."""
        found = connection.execute(self.statement.encode(), self.parameters(query), prepare=True, binary=True)
        return [row[0] for row in found]


def _bits(query: Floats, bits: int) -> npt.NDArray[np.bool_]:
    return np.unpackbits(binarize(query[None], bits)[0], count=bits * len(query)).astype(bool)


def contenders(table: VectorTable, peers_effort: int) -> list[Contender]:
    """All contenders. The first is the peer: plain pgvector's HNSW on halfvec as in its README, without a rerank.

    ``peers_effort`` is the peer's ``ef_construction``, if it should not be pgvector's own default.
    """
    efforts = tuple(Setting(ef_search=ef) for ef in _EFFORTS)
    reranked = tuple(Setting(oversampling=o, ef_search=ef) for o, ef in (*_RERANKED, *_RERANKED_MORE))
    half = _choice(table, "float" if table.precision == "float16" else "halfvec")
    bits = replace(_choice(table, "bits"), ef_construction=_BITS_EFFORT)
    peer = replace(half, ef_construction=peers_effort)
    found = [Contender(name="halfvec, plain pgvector", index=peer, form="nearest", settings=efforts)]
    if table.precision == "float32" and table.dimensions <= LIMIT_VECTOR:
        floats = _choice(table, "float")
        found.append(Contender(name="float, plain pgvector", index=floats, form="nearest", settings=efforts))
    for number in NUMBERS:
        index, name = replace(bits, bits=number), "bits" if number == 1 else f"{number} bits"
        found += [
            Contender(name=f"{name} and rerank, rowvec", index=index, form="function", settings=reranked),
            Contender(name=f"{name} and rerank, bare SQL", index=index, form="rerank", settings=reranked),
            Contender(name=f"{name} alone", index=index, form="nearest", settings=(Setting(ef_search=40),)),
        ]
    for m, effort in _GRAPHS:
        index = replace(bits, m=m, ef_construction=effort)
        found.append(
            Contender(name=f"bits {m}/{effort} and rerank, rowvec", index=index, form="function", settings=reranked)
        )
    for prefix in _PREFIXES:
        if prefix < table.dimensions:
            cut = replace(half, prefix=prefix)
            name = f"first {prefix:,}"
            found += [
                Contender(name=f"{name} and rerank, rowvec", index=cut, form="function", settings=reranked),
                Contender(name=f"{name} alone", index=cut, form="nearest", settings=(Setting(ef_search=100),)),
            ]
    none = IndexChoice(kind="none", reason="Exact.")
    return [*found, Contender(name="exact", index=none, form="exact", settings=(Setting(),))]


def request(connection: Connection, table: VectorTable, contender: Contender, setting: Setting) -> Request:
    """The contender's search with one setting; installs rowvec's SQL function if the contender calls it."""
    half = table.precision == "float16"
    sent = sql.Placeholder("query")
    parts: dict[str, sql.Composable] = {"table": table.identifier, "k": sql.Literal(ASKED), "query": sent}
    columns = sql.SQL("t.id, t.author, t.content")
    cut = table.dimensions
    statement: sql.Composed
    if contender.form == "function":
        choice = replace(contender.index, oversampling=setting.oversampling, ef_search=setting.ef_search)
        # The function's name is returned quoted.
        name = install_search_function(connection, table, choice)
        statement = sql.SQL("SELECT id, author, content, distance FROM {}.{}({query}, {k})").format(
            sql.Identifier(table.schema), sql.Identifier(name.split(".")[-1].strip('"')), **parts
        )
    elif contender.form == "rerank":
        statement = sql.SQL(
            "SELECT {columns}, t.embedding <=> {query} AS distance "
            "FROM (SELECT * FROM {table} AS i ORDER BY i.embedding_bits <~> {bits} LIMIT {shortlist} OFFSET 0) AS t "
            "ORDER BY distance LIMIT {k}"
        ).format(
            columns=columns,
            bits=sql.Placeholder("bits"),
            shortlist=sql.Literal(ASKED * setting.oversampling),
            **parts,
        )
    else:
        of = sql.SQL("t.embedding")
        indexed = indexed_expression(table, contender.index, of) if contender.index.on != "bits" else None
        bits_alone = contender.form == "nearest" and contender.index.on == "bits"
        # The query is compared with the expression that the index is on: a prefix, or halves.
        half = half or (indexed is not None)
        cut = contender.index.prefix or cut
        near = (
            sql.SQL("t.embedding_bits <~> {}").format(sql.Placeholder("bits"))
            if bits_alone
            else sql.SQL("{} <=> {}").format(of if contender.form == "exact" else indexed or of, sent)
        )
        # Adding zero to the distance keeps the planner from using an index.
        order = sql.SQL("({}) + 0" if contender.form == "exact" else "{}").format(near)
        statement = sql.SQL("SELECT {columns}, {near} AS distance FROM {table} AS t ORDER BY {order} LIMIT {k}").format(
            columns=columns, near=near, order=order, **parts
        )
    text = statement.as_string(connection)
    return Request(
        statement=text,
        ef_search=setting.ef_search,
        half=half,
        bits=contender.index.bits if "%(bits)s" in text else 0,
        cut=cut,
    )


def _choice(table: VectorTable, on: On) -> IndexChoice:
    return IndexChoice(
        kind="hnsw", on=on, opclass=opclass(method_of("hnsw"), on, table.precision, table.metric), reason="A contender."
    )
