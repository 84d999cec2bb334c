"""An artifact: a batch's rows and vectors as one immutable Parquet file, the durable record of what was paid for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rowvec.errors import ArtifactCorrupt
from rowvec.postgres.vector_table import VectorTable
from rowvec.store.parquet_pages import PageError, check_footer, check_pages, check_plain
from rowvec.store.protocol import Store, file_checksum
from rowvec.vectors import sparse
from rowvec.vectors.fingerprint import Identity
from rowvec.vectors.layout import Embeddings, Layout, is_layout, of_arrow

FORMAT = b"rowvec.artifact/1"
SPARSE_FORMAT = b"rowvec.artifact/2"
"""The format of an artifact with sparse vectors: a reader that knows only the first format must refuse it."""

# The amount that a reader of a few vectors must read and hold in memory.
_GROUP_BYTES = 64 << 20
# One batch of the binary COPY encoder: a megabyte of vectors stays in the cache, and numpy's overhead is negligible for
# this many rows. With Arrow's own reader threads the load stage was a tenth slower, because the server needs that core.
_READ_BYTES = 1 << 20
_READ_ROWS = 2048
_FEWEST_ROWS = 16
# Of a string, and of a list, in the footer of a file that somebody else may have written.
_FOOTER_STRING_BYTES = 1 << 20
_FOOTER_ITEMS = 1_000_000
_FINGERPRINT_BYTES = 32
_NAME = re.compile(r"artifacts/[^/]+/[0-9a-f]{2}/(?P<sha256>[0-9a-f]{64})\.parquet")
# The columns that an artifact has besides key and metadata.
_OF_VECTORS = frozenset({"content", "fingerprint", "metadata_hash", "embedding", "embedding_bits"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A reference to an artifact; it travels between tasks, and the ledger and the manifest keep it."""

    name: str
    """Its name in the store, ``artifacts/<pipeline>/<2 hex digits>/<sha256>.parquet``."""
    sha256: str
    """64 hex digits."""
    rows: int
    bytes: int


def write_artifact(
    spool: Path, bits: Path | None, into: Path, table: VectorTable, pipeline_name: str, identity: Identity
) -> Artifact:
    """Write a batch's Parquet file from the Arrow files of embed and binarize; equal input gives equal bytes.

    ``spool`` is laid out as ``table.artifact_schema`` less ``embedding_bits``, which come from ``bits``, if the table
    keeps them. ``into`` appears complete or not at all. Memory is constant: the files are mapped, and row groups have
    at most 64 MB.

    Text is compressed with zstd. Embeddings and hashes are stored plain: on 3,680 real vectors of text-embedding-3
    with 1,536 dimensions, BYTE_STREAM_SPLIT with zstd makes files 16 % smaller and reading 22 % slower (1.15
    against 1.48 GB/s on one core), and a run waits for the load stage, which reads every artifact once.
    """
    schema = table.artifact_schema.with_metadata(
        {
            b"rowvec.format": SPARSE_FORMAT if table.layout.is_sparse else FORMAT,
            b"rowvec.pipeline": pipeline_name.encode(),
            b"rowvec.identity": json.dumps(identity.as_json(), sort_keys=True).encode(),
        }
    )
    return _write(into, schema, _rows(spool, bits, schema), pipeline_name)


def _write(into: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch], folder: str) -> Artifact:
    passing = into.with_name(f".{into.name}.part")
    rows = 0
    try:
        with pq.ParquetWriter(
            passing,
            schema,
            use_dictionary=False,
            compression=_compression(schema),  # pyright: ignore[reportArgumentType] # pyarrow takes one for each leaf
            write_statistics=False,
        ) as writer:
            for group in _groups(batches):
                writer.write_table(group, row_group_size=group.num_rows)
                rows += group.num_rows
        passing.replace(into)
    finally:
        passing.unlink(missing_ok=True)
    sha256 = file_checksum(into)
    name = f"artifacts/{folder}/{sha256[:2]}/{sha256}.parquet"
    return Artifact(name=name, sha256=sha256, rows=rows, bytes=into.stat().st_size)


def schema_of(path: Path) -> pa.Schema:
    """The columns of an artifact. Raises ``ArtifactCorrupt`` like ``read_artifact``."""
    with _opened(path) as file:
        return file.schema_arrow


def write_again(
    path: Path, into: Path, folder: str, keep: Callable[[int, pa.RecordBatch], Sequence[bool]], *, keyless: bool
) -> Artifact | None:
    """Write an artifact again with some of its rows; None if none is left.

    ``folder``: the pipeline in the new one's name. ``keep``: which rows of a batch stay; it is called with the number
    of rows before the batch. ``keyless``: leave out keys, metadata and their hash, as what stays is not of these rows.
    Raises ``ArtifactCorrupt`` like ``read_artifact``.
    """
    schema = schema_of(path)
    if keyless:
        schema = pa.schema([field for field in schema if field.name in _OF_VECTORS], schema.metadata)

    def kept() -> Iterator[pa.RecordBatch]:
        before = 0
        for batch in read_artifact(path):
            left = batch.filter(pa.array(keep(before, batch), pa.bool_())).select(schema.names)
            before += batch.num_rows
            if keyless:
                at, nothing = schema.get_field_index("metadata_hash"), [bytes(_FINGERPRINT_BYTES)] * left.num_rows
                left = left.set_column(at, schema.field(at), pa.array(nothing, schema.field(at).type))
            if left.num_rows:
                yield left

    written = _write(into, schema, kept(), folder)
    return written if written.rows else None


def upload(store: Store, path: Path, artifact: Artifact) -> bool:
    """Put an artifact into the store; returns ``False`` if the object already exists, whichever run wrote it."""
    return store.put(artifact.name, path, artifact.sha256)


def read_artifact(
    path: Path, layout: Layout | None = None, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """An artifact's rows, at most 2,048 per batch, in constant memory.

    ``layout``: the layout to give the vectors in, if it differs from the artifact's. ``columns``: those to read; None
    reads all. Raises ``ArtifactCorrupt`` if the file is not an artifact, is cut, has vectors of other dimensions or
    texts that are no UTF-8, or does not have the number of rows that it states.
    """
    with _opened(path) as file:
        left = file.metadata.num_rows
        _check_dimensions(path, file, layout)
        rows = max(_FEWEST_ROWS, min(_READ_ROWS, _READ_BYTES // max(1, _bytes_a_vector(file))))
        for batch in file.iter_batches(rows, columns=columns, use_threads=False):
            left -= batch.num_rows
            # Arrow reads texts as they are, and would hand bytes that are none to the database.
            batch.validate(full=True)
            yield batch if layout is None else _laid_out(batch, layout)
        if left:
            raise ArtifactCorrupt(f"{path} does not have the rows that it states; fetch it from the store again")


def stored_artifact(store: Store, name: str, size: int) -> Artifact | None:
    """An artifact that only the store knows, by its name and its footer; None if the object is not one.

    Its checksum is not checked here; it is checked when the object is downloaded.
    """
    named = _NAME.fullmatch(name)
    if named is None:
        return None
    where = store.location(name)
    try:
        with store.opened(name) as opened, _arrow_faults(where), _parsed(opened) as file:
            return Artifact(name=name, sha256=named["sha256"], rows=file.metadata.num_rows, bytes=size)
    except ArtifactCorrupt:
        return None


def stored_fingerprints(store: Store, artifact: Artifact) -> Iterator[list[bytes]]:
    """The fingerprints in an artifact in the store, by row group; of the object, only they and the footer are fetched.

    Its checksum is not checked, as the whole of it is not read. Raises ``ArtifactCorrupt`` if it is missing or is no
    artifact.
    """
    where = store.location(artifact.name)
    with (
        store.opened(artifact.name) as opened,
        _arrow_faults(where),
        _parsed(opened) as file,
    ):
        check_layout(where, file.schema_arrow)
        # A row group of rowvec's has at most so many bytes in all its columns; the pages' headers have some more.
        check_plain(file, "fingerprint", _FINGERPRINT_BYTES, 2 * _GROUP_BYTES)
        if file.metadata.num_rows != artifact.rows:
            raise ArtifactCorrupt(f"{where} does not have the rows that its manifest says")
        yield from _fingerprints(file)


def _fingerprints(file: pq.ParquetFile) -> Iterator[list[bytes]]:
    for group in range(file.num_row_groups):
        yield file.read_row_group(group, columns=["fingerprint"]).column(0).to_pylist()


def read_vectors(path: Path, fingerprints: set[bytes]) -> tuple[list[bytes], Embeddings]:
    """Those of the fingerprints that the artifact holds, and their vectors ``(n, d)`` in its layout; each once.

    Only row groups with one of them are read. Raises ``ArtifactCorrupt`` like ``read_artifact``.
    """
    found: dict[bytes, None] = {}
    with _opened(path) as file:
        layout = _layout_of(file.schema_arrow)
        blocks: list[Embeddings] = []
        for group, held in enumerate(_fingerprints(file)):
            wanted: dict[bytes, int] = {}
            for row, fingerprint in enumerate(held):
                if fingerprint in fingerprints and fingerprint not in found:
                    wanted.setdefault(fingerprint, row)
            if wanted:
                column = file.read_row_group(group, columns=["embedding"]).column(0).combine_chunks()
                vectors = of_arrow(column, layout.dimensions)
                if len(vectors) != len(held):
                    raise ArtifactCorrupt(
                        f"{path} does not have a vector for each fingerprint; fetch it from the store again"
                    )
                blocks.append(vectors[np.array(list(wanted.values()), np.int64)])
                found.update(dict.fromkeys(wanted))
    return list(found), layout.together(blocks)


def _rows(spool: Path, bits: Path | None, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The spool's batches with their bits; the files are mapped, so that only the present batch is in memory."""
    with pa.memory_map(str(spool)) as rows:
        reader = pa.ipc.open_file(rows)
        if bits is None:
            for number in range(reader.num_record_batches):
                yield pa.record_batch(reader.get_batch(number).columns, schema=schema)
            return
        with pa.memory_map(str(bits)) as packed:
            beside = pa.ipc.open_file(packed)
            for number in range(reader.num_record_batches):
                columns = [*reader.get_batch(number).columns, beside.get_batch(number).column(0)]
                yield pa.record_batch(columns, schema=schema)


def _groups(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows in row groups of ``_GROUP_BYTES`` at most, or of one row that is larger than that."""
    pending: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        step = max(1, batch.num_rows * _GROUP_BYTES // max(1, batch.nbytes))
        for start in range(0, batch.num_rows, step):
            piece = batch.slice(start, step)
            if pending and size + piece.nbytes > _GROUP_BYTES:
                yield pa.Table.from_batches(pending)
                pending, size = [], 0
            pending.append(piece)
            size += piece.nbytes
    if pending:
        yield pa.Table.from_batches(pending)


def _compression(schema: pa.Schema) -> dict[str, str]:
    """The compression of each leaf column, by its path: zstd for text and the like, none for floats and hashes."""
    leaves = {field.name: "zstd" for field in schema if field.name != "embedding"}
    if _is_sparse(schema):
        leaves |= {"embedding.indices.list.element": "zstd", "embedding.values.list.element": "none"}
    else:
        leaves["embedding.list.element"] = "none"
    plain = {"fingerprint", "metadata_hash", "embedding_bits"}
    return {leaf: "none" if leaf in plain else compression for leaf, compression in leaves.items()}


def _laid_out(batch: pa.RecordBatch, layout: Layout) -> pa.RecordBatch:
    column = batch.column("embedding")
    if column.type == layout.arrow:
        return batch
    field = pa.field("embedding", layout.arrow, nullable=False)
    at = batch.schema.get_field_index("embedding")
    return batch.set_column(at, field, layout.to_arrow(of_arrow(column, layout.dimensions)))


def _is_sparse(schema: pa.Schema) -> bool:
    return pa.types.is_struct(schema.field("embedding").type)


def _layout_of(schema: pa.Schema) -> Layout:
    """The layout of an artifact's vectors; the dimensions are the embedder's, since sparse vectors do not state
    them.
    """
    if not _is_sparse(schema):
        return Layout("float32", schema.field("embedding").type.list_size)
    return Layout("sparse", _sparse_dimensions(schema))


def _sparse_dimensions(schema: pa.Schema) -> int:
    """The dimensions of sparse vectors, by the identity in the metadata; 0 if it does not state them."""
    written = schema.metadata.get(b"rowvec.identity", b"")
    try:
        identity = json.loads(written) if len(written) <= _FOOTER_STRING_BYTES else None
    except (ValueError, RecursionError):
        return 0
    dimensions = identity.get("dimensions") if isinstance(identity, dict) else None
    return dimensions if type(dimensions) is int and 0 < dimensions <= sparse.MOST_DIMENSIONS else 0


def _check_dimensions(path: Path, file: pq.ParquetFile, layout: Layout | None) -> None:
    held = _layout_of(file.schema_arrow)
    if layout is not None and held.dimensions != layout.dimensions:
        raise ArtifactCorrupt(
            f"{path} has vectors of {held.dimensions:,} dimensions, and {layout.dimensions:,} are wanted; fetch it "
            "from the store again"
        )


def _bytes_a_vector(file: pq.ParquetFile) -> int:
    """Bytes of a vector in memory; for sparse ones the mean of a row, its other columns included."""
    if not _is_sparse(file.schema_arrow):
        return file.schema_arrow.field("embedding").type.list_size * 4
    groups = (file.metadata.row_group(number) for number in range(file.num_row_groups))
    return sum(group.total_byte_size for group in groups) // max(1, file.metadata.num_rows)


@contextmanager
def _opened(path: Path) -> Generator[pq.ParquetFile]:
    """An artifact open for reading. Raises ``ArtifactCorrupt`` for any error of Arrow in it."""
    with _arrow_faults(str(path)), path.open("rb") as opened, _parsed(opened, path) as file:
        check_layout(str(path), file.schema_arrow)
        check_pages(path, file)
        yield file


def _parsed(opened: BinaryIO, mapped: Path | None = None) -> pq.ParquetFile:
    """A Parquet file whose footer has been parsed; ``mapped``: its path, if it is on this machine."""
    check_footer(opened)
    return pq.ParquetFile(
        mapped or opened,
        memory_map=mapped is not None,
        # Without pre-buffering a reader holds its present pages, not whole row groups.
        pre_buffer=False,
        thrift_string_size_limit=_FOOTER_STRING_BYTES,
        thrift_container_size_limit=_FOOTER_ITEMS,
    )


@contextmanager
def _arrow_faults(where: str) -> Generator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except PageError as error:
        raise ArtifactCorrupt(
            f"{where} is not an artifact of rowvec: {error}; fetch it from the store again"
        ) from error
    # Python, not Arrow, refuses names of columns that are not UTF-8.
    except (pa.ArrowException, UnicodeDecodeError, OSError, OverflowError) as error:
        raise ArtifactCorrupt(f"{where} is cut or corrupt and cannot be read as Parquet; fetch it again") from error


def check_layout(path: str, schema: pa.Schema) -> None:
    """Raise ``ArtifactCorrupt`` if a file's schema is not that of an artifact."""
    told = (schema.metadata or {}).get(b"rowvec.format", b"")
    if told not in (FORMAT, SPARSE_FORMAT):
        raise ArtifactCorrupt(
            f"{path} is not an artifact of rowvec: it states neither {FORMAT.decode()} nor {SPARSE_FORMAT.decode()}"
        )
    # A NULL would shift every vector after it to another row, so a column that may hold one is refused.
    types = {field.name: field.type for field in schema if not field.nullable}
    embedding = types.get("embedding", pa.null())
    vectors = is_layout(embedding) and pa.types.is_struct(embedding) == (told == SPARSE_FORMAT)
    content = schema.field("content").type if schema.names.count("content") == 1 else None
    if not vectors or types.get("fingerprint") != pa.binary(32) or len(set(schema.names)) < len(schema.names):
        raise ArtifactCorrupt(f"{path} states {told.decode()}, but does not have its columns")
    if content != pa.string() or not _layout_of(schema).dimensions:
        raise ArtifactCorrupt(f"{path} states {told.decode()}, but does not have its columns")
