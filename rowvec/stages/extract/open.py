"""The choice of how a pipeline's source is compared with its vector table; it is made here only."""

from __future__ import annotations

from rowvec.ledger.pipelines import PipelineId
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.sources.postgres import is_in_target_database
from rowvec.stages.extract.chunks import ChunkedSource
from rowvec.stages.extract.joined import TableSource
from rowvec.stages.extract.protocol import SourceStrategy
from rowvec.vectors.fingerprint import Identity

# Sources whose rows may change while a run is at work. A CSV or Parquet file that changes is an error instead.
_MOVING = frozenset({"postgres", "images"})


def open_source(
    connection: Connection, pipeline: Pipeline, identity: Identity, pipeline_id: PipelineId
) -> SourceStrategy:
    """The source of a pipeline whose references are resolved.

    ``connection`` is to the target's database, in autocommit mode. Nothing is read before a method is called.
    """
    source = pipeline.source
    if source.kind == "postgres" and is_in_target_database(pipeline):
        joined = TableSource if source.chunks is None else ChunkedSource
        return joined(connection, pipeline, identity, pipeline_id, source)
    # The imports are late: only a source outside the target's database needs pyarrow's file readers.
    if source.chunks is not None:
        from rowvec.stages.extract.mirrored_chunks import MirroredSource

        return MirroredSource(connection, pipeline, identity, pipeline_id)
    from rowvec.stages.extract.by_hash import HashComparedSource

    return HashComparedSource(connection, pipeline, identity, pipeline_id, moves=source.kind in _MOVING)
