"""Loading with SQLAlchemy, LangChain and LlamaIndex: existing vectors, added as their documentation says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_postgres import PGEngine, PGVectorStore
from langchain_postgres.v2.engine import Column
from llama_index.core.schema import BaseNode, TextNode
from llama_index.vector_stores.postgres import PGVectorStore as LlamaStore
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import BigInteger, create_engine, insert, make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows to add, in the types these libraries take, so that no conversion is measured."""

    keys: list[int]
    authors: list[str]
    contents: list[str]
    embeddings: list[list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStore:
    """A table that the library itself created, and the call that adds all rows to it."""

    name: str
    table: tuple[str, str]
    rows: int
    add: Callable[[], Any]


@contextmanager
def peer_stores(url: str, rows: Rows, dimensions: int) -> Generator[list[PeerStore]]:
    """The three libraries' loaders, with their tables created and their connections open."""
    sqlalchemy_url = make_url(url).set(drivername="postgresql+psycopg")
    engine = create_engine(sqlalchemy_url)
    langchain = PGEngine.from_connection_string(sqlalchemy_url)
    llama = LlamaStore.from_params(
        connection_string=sqlalchemy_url,
        async_connection_string=sqlalchemy_url,
        table_name=f"nodes_{dimensions}",
        embed_dim=dimensions,
    )
    try:
        yield [
            _by_sqlalchemy(engine, rows, dimensions),
            _by_langchain(langchain, rows, dimensions),
            _by_llama_index(llama, rows, dimensions),
        ]
    finally:
        engine.dispose()
        asyncio.run(llama.close())
        asyncio.run(langchain.close())


def _by_sqlalchemy(engine: Any, rows: Rows, dimensions: int) -> PeerStore:
    """ORM bulk insert: ``session.execute(insert(Item), [...])``."""

    class Base(DeclarativeBase):
        pass

    class Item(Base):
        __tablename__ = f"bulk_{dimensions}"
        id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
        author: Mapped[str]
        content: Mapped[str]
        embedding: Mapped[Any] = mapped_column(VECTOR(dimensions))

    Base.metadata.create_all(engine)
    every = zip(rows.keys, rows.authors, rows.contents, rows.embeddings, strict=True)
    values = [{"id": k, "author": a, "content": c, "embedding": e} for k, a, c, e in every]

    def add() -> None:
        with Session(engine) as session:
            session.execute(insert(Item), values)
            session.commit()

    return PeerStore(name="SQLAlchemy", rows=len(values), table=("public", f"bulk_{dimensions}"), add=add)


def _by_langchain(engine: PGEngine, rows: Rows, dimensions: int) -> PeerStore:
    """``PGVectorStore.add_embeddings``."""
    name = f"documents_{dimensions}"
    engine.init_vectorstore_table(
        name,
        dimensions,
        id_column=Column("id", "BIGINT", nullable=False),
        metadata_columns=[Column("author", "TEXT")],
        store_metadata=False,
    )
    store = PGVectorStore.create_sync(
        engine,
        DeterministicFakeEmbedding(size=dimensions),  # never called: the vectors are given
        table_name=name,
        id_column="id",
        metadata_columns=["author"],
    )
    metadata = [{"author": author} for author in rows.authors]

    def add() -> None:
        store.add_embeddings(rows.contents, rows.embeddings, metadata, rows.keys)  # pyright: ignore[reportArgumentType] # ids of a bigint column

    return PeerStore(name="LangChain", rows=len(rows.keys), table=("public", name), add=add)


def _by_llama_index(store: LlamaStore, rows: Rows, dimensions: int) -> PeerStore:
    """``PGVectorStore.add`` of nodes that have their embedding."""
    every = zip(rows.keys, rows.authors, rows.contents, rows.embeddings, strict=True)
    nodes: list[BaseNode] = [TextNode(id_=str(k), text=c, metadata={"author": a}, embedding=e) for k, a, c, e in every]
    store.add(nodes[:1])  # creates the table
    return PeerStore(
        name="LlamaIndex", rows=len(nodes), table=("public", f"data_nodes_{dimensions}"), add=lambda: store.add(nodes)
    )
