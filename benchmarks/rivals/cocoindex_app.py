"""One update of a cocoindex app from table to table, written as in its example of a Postgres source.

A row is a component of its own (``mount_each``, ``memo=True``); its state is the folder that ``COCOINDEX_DB`` names.
"""

# pyright: reportMissingImports=false, reportUntypedFunctionDecorator=false, reportUnknownLambdaType=false
# This runs in cocoindex's own environment, which the type checker does not see: decorators and rows have no types here.
from __future__ import annotations

import argparse
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

import asyncpg
import cocoindex as coco
import numpy as np
from cocoindex.connectors import postgres
from cocoindex.ops.litellm import LiteLLMEmbedder
from numpy.typing import NDArray

DATABASE = coco.ContextKey[asyncpg.Pool]("database")
EMBEDDER = coco.ContextKey[LiteLLMEmbedder]("embedder", detect_change=True)


@dataclass
class Text:
    """One row of the source."""

    id: int
    content: str


@dataclass
class Embedded:
    """One row of the target."""

    id: int
    content: str
    embedding: Annotated[NDArray[np.float32], EMBEDDER]


@coco.lifespan
async def resources(builder: coco.EnvironmentBuilder) -> AsyncIterator[None]:
    """Open the pool and the embedder for as long as the app runs."""
    async with await asyncpg.create_pool(os.environ["SYNC_DATABASE"]) as pool:
        builder.provide(DATABASE, pool)
        builder.provide(
            EMBEDDER,
            LiteLLMEmbedder(
                os.environ["SYNC_MODEL"],
                api_base=os.environ["SYNC_BASE_URL"],
                dimensions=int(os.environ["SYNC_DIMENSIONS"]),
            ),
        )
        yield


@coco.fn(memo=True)
async def embed(text: Text, table: postgres.TableTarget[Embedded]) -> None:
    """Embed one row."""
    vector = await coco.use_context(EMBEDDER).embed(text.content)
    table.declare_row(row=Embedded(id=text.id, content=text.content, embedding=vector))


@coco.fn
async def texts() -> None:
    """Embed all rows."""
    table = await postgres.mount_table_target(
        DATABASE,
        table_name="texts",
        table_schema=await postgres.TableSchema.from_class(Embedded, primary_key=["id"]),
        pg_schema_name="coco",
    )
    source = postgres.PgTableSource(coco.use_context(DATABASE), table_name="texts", row_type=Text)
    await coco.mount_each(embed, source.fetch_rows().items(lambda text: text.id), table)


app = coco.App(coco.AppConfig(name="texts"), texts)


def main() -> None:
    """Run one update."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    app.update_blocking()


if __name__ == "__main__":
    main()
