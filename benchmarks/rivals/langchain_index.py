"""One sync by LangChain's indexing API into langchain-postgres' PGVectorStore, as in their documentation.

Record manager in SQLite in the state folder, batches of 100 (the default), ``cleanup="full"`` because rows can go.
"""

# pyright: reportMissingImports=false
# This runs in the environment of LangChain's packages, which the type checker does not see.
from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import psycopg
from langchain_classic.indexes import SQLRecordManager
from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document
from langchain_core.indexing import index
from langchain_openai import OpenAIEmbeddings
from langchain_postgres import Column, PGEngine, PGVectorStore

_TABLE = "langchain_texts"


class TextsLoader(BaseLoader):
    """The source table, row by row."""

    def __init__(self, url: str) -> None:
        self.url = url

    def lazy_load(self) -> Iterator[Document]:
        """One document per row; its source is the key."""
        with psycopg.connect(self.url) as connection, connection.cursor(name="texts") as cursor:
            cursor.execute("SELECT id, content FROM public.texts ORDER BY id")
            for key, content in cursor:
                yield Document(page_content=content, metadata={"source": str(key)})


def main() -> None:
    """Run one sync."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("database", "base-url", "model"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--dimensions", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True)
    given = parser.parse_args()

    engine = PGEngine.from_connection_string(given.database.replace("postgresql://", "postgresql+asyncpg://"))
    # The ids that index() makes with sha256 are not UUIDs.
    key = Column("langchain_id", "TEXT", nullable=False)
    with psycopg.connect(given.database) as connection:
        found = connection.execute("SELECT to_regclass(%s)", (_TABLE,)).fetchone()
    if found is None or found[0] is None:
        engine.init_vectorstore_table(table_name=_TABLE, vector_size=given.dimensions, id_column=key)
    # Only OpenAI takes lists of tokens instead of texts; the documentation gives this setting for other servers.
    embeddings = OpenAIEmbeddings(
        model=given.model, dimensions=given.dimensions, base_url=given.base_url, check_embedding_ctx_length=False
    )
    store = PGVectorStore.create_sync(engine, embedding_service=embeddings, table_name=_TABLE)
    given.state.mkdir(parents=True, exist_ok=True)
    records = SQLRecordManager("texts", db_url=f"sqlite:///{given.state / 'record_manager_cache.sql'}")
    records.create_schema()
    print(
        index(TextsLoader(given.database), records, store, cleanup="full", source_id_key="source", key_encoder="sha256")
    )


if __name__ == "__main__":
    main()
