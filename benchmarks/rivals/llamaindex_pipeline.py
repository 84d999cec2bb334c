"""One sync by LlamaIndex' IngestionPipeline into its PGVectorStore, as in its pages on document management.

Docstore and cache in files of the state folder, loaded before and persisted after; splitter and requests of 100 texts
as they are by default; ``upserts_and_delete`` because rows can go.
"""

# pyright: reportMissingImports=false
# This runs in LlamaIndex' own environment, which the type checker does not see.
from __future__ import annotations

import argparse
from pathlib import Path

import psycopg
from llama_index.core import Document
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.vector_stores.postgres import PGVectorStore


def main() -> None:
    """Run one sync."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("database", "base-url", "model"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--dimensions", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True)
    given = parser.parse_args()

    store = PGVectorStore.from_params(
        connection_string=given.database.replace("postgresql://", "postgresql+psycopg2://"),
        async_connection_string=given.database.replace("postgresql://", "postgresql+asyncpg://"),
        table_name="texts",
        embed_dim=given.dimensions,
    )
    embedder = OpenAIEmbedding(model=given.model, dimensions=given.dimensions, api_base=given.base_url)
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(), embedder],
        vector_store=store,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )
    kept = given.state / "pipeline_storage"
    if kept.exists():
        pipeline.load(str(kept))
    with psycopg.connect(given.database) as connection:
        rows = connection.execute("SELECT id, content FROM public.texts ORDER BY id").fetchall()
    # The docstore uses hashes to find deleted documents, and equal texts would have equal hashes. So the key is part of
    # the metadata, but is neither embedded nor shown to a model.
    documents = [
        Document(
            text=content,
            doc_id=str(key),
            metadata={"key": key},
            excluded_embed_metadata_keys=["key"],
            excluded_llm_metadata_keys=["key"],
        )
        for key, content in rows
    ]
    nodes = pipeline.run(documents=documents)
    pipeline.persist(str(kept))
    print(f"{len(nodes)} nodes")


if __name__ == "__main__":
    main()
