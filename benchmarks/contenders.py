"""The searches that benchmarks/search.py compares: which index each has, its settings cheapest first, and its SQL."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from pgvector import Bit, HalfVector, Vector
from psycopg import sql

from benchmarks.synthetic import Floats
from rowvec.index.choice import LIMIT_VECTOR, opclass
from rowvec.postgres.connection import Connection
from rowvec.postgres.vector_index import IndexChoice, On, indexed_expression
from rowvec.postgres.vector_table import VectorTable
from rowvec.search.sql_function import install_search_function

Form = Literal["function", "rerank", "nearest", "exact"]
"""``function``: rowvec's SQL function; ``rerank``: bits and rerank as bare SQL; ``nearest``: by the index alone."""

ASKED = 11
"""The query is a row of the table: 10 neighbours, and itself."""

# A graph on bits misses more than the bits do, and costs a fraction of one on floats to build: it may look further.
_BITS_EFFORT = 128
# m and ef_construction of other graphs on bits: smaller and sooner built, or with a shorter walk.
_GRAPHS = ((12, 128), (12, 200), (16, 256), (16, 64))
_PREFIXES = (1024, 256)
# Close together where indexes of 100,000 rows reach 0.95: a step too far would be counted against the peer.
_EFFORTS = (11, 15, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120, 135, 150, 175, 200, 300, 400, 800)
# Candidates for each row wanted, and ef_search, in the order of what they cost.
_RERANKED = ((1, 11), (2, 22), (3, 33), (4, 44), (5, 55), (4, 60), (6, 66), (6, 100), (8, 100), (8, 200), (16, 200))
_RERANKED_MORE = ((32, 400), (64, 800))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How much a search looks at."""

    oversampling: int = 1
    ef_search: int = 0

    @property
    def name(self) -> str:
        """For the table of results."""
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
    """A search as a client sends it: prepared, its vectors in binary."""

    statement: str
    ef_search: int
    half: bool
    """The vector travels as halfvec."""
    bits: bool
    """The client sends the vector's bits too."""
    cut: int
    """Leading dimensions that are sent."""

    def parameters(self, query: Floats) -> dict[str, Any]:
        """For the placeholders of ``statement``; ``query`` is ``(d,)``."""
        sent = query[: self.cut]
        values: dict[str, Any] = {"query": HalfVector(sent) if self.half else Vector(sent)}
        return values | ({"bits": Bit(np.asarray(query > 0))} if self.bits else {})

    def prepare(self, connection: Connection) -> None:
        """Settings of the session. ``enable_seqscan``: vectors in TOAST make reading the whole table look cheap."""
        settings = (("hnsw.ef_search", max(1, self.ef_search)), ("enable_seqscan", "off"), ("jit", "off"))
        for name, value in (*settings, ("plan_cache_mode", "force_generic_plan")):
            connection.execute("SELECT set_config(%s, %s, false)", (name, str(value)))

    def pages(self, connection: Connection, query: Floats) -> int:
        """Pages of the table and its index that a search reads, in memory or not."""
        explained = b"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) " + self.statement.encode()
        row = connection.execute(explained, self.parameters(query)).fetchone()
        plan = row[0][0]["Plan"] if row else {}
        return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]

    def run(self, connection: Connection, query: Floats) -> list[int]:
        """The keys found, nearest first."""
        found = connection.execute(self.statement.encode(), self.parameters(query), prepare=True, binary=True)
        return [row[0] for row in found]


def contenders(table: VectorTable, peers_effort: int) -> list[Contender]:
    """The peer first: plain pgvector's HNSW on halfvec as its README has it, with nothing after it.

    ``peers_effort``: its ``ef_construction``, where pgvector's own default is not what is asked about.
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
    found += [
        Contender(name="bits and rerank, rowvec", index=bits, form="function", settings=reranked),
        Contender(name="bits and rerank, bare SQL", index=bits, form="rerank", settings=reranked),
        Contender(name="bits alone", index=bits, form="nearest", settings=(Setting(ef_search=40),)),
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
    """The contender's search with a setting; installs rowvec's function where that is what is called."""
    half = table.precision == "float16"
    sent = sql.Placeholder("query")
    parts: dict[str, sql.Composable] = {"table": table.identifier, "k": sql.Literal(ASKED), "query": sent}
    columns = sql.SQL("t.id, t.author, t.content")
    cut = table.dimensions
    statement: sql.Composed
    if contender.form == "function":
        choice = replace(contender.index, oversampling=setting.oversampling, ef_search=setting.ef_search)
        # The name comes back quoted.
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
        # What an index on a prefix or on halves holds is what the query is compared with.
        half = half or (indexed is not None)
        cut = contender.index.prefix or cut
        near = (
            sql.SQL("t.embedding_bits <~> {}").format(sql.Placeholder("bits"))
            if bits_alone
            else sql.SQL("{} <=> {}").format(of if contender.form == "exact" else indexed or of, sent)
        )
        # With something added no index serves.
        order = sql.SQL("({}) + 0" if contender.form == "exact" else "{}").format(near)
        statement = sql.SQL("SELECT {columns}, {near} AS distance FROM {table} AS t ORDER BY {order} LIMIT {k}").format(
            columns=columns, near=near, order=order, **parts
        )
    text = statement.as_string(connection)
    made = Request(
        statement=text,
        ef_search=setting.ef_search,
        half=half,
        bits="%(bits)s" in text,
        cut=cut,
    )
    made.prepare(connection)
    return made


def _choice(table: VectorTable, on: On) -> IndexChoice:
    return IndexChoice(kind="hnsw", on=on, opclass=opclass(on, table.precision, table.metric), reason="A contender.")
