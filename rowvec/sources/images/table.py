"""Images as a source: a folder is read as a table of its files, and each row of a table gets facts about its image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from rowvec.errors import RowError, SourceError
from rowvec.images.content import content_of
from rowvec.images.inspect import check
from rowvec.pipeline.sources import ImagesSource
from rowvec.runtime.progress import tell
from rowvec.sources.formats.csv import CsvFormat
from rowvec.sources.formats.parquet import ParquetFormat
from rowvec.sources.formats.protocol import FileFormat
from rowvec.sources.images.file import Places, is_url
from rowvec.sources.images.seen import ImageMemory, Seen

CONTENT, REASON, DETAIL = "rowvec_content", "rowvec_reason", "rowvec_detail"
"""Columns with a row's image, or the reason why there is none."""
PLACE, MEDIA_TYPE, BYTES = "rowvec_place", "rowvec_media_type", "rowvec_bytes"

SEEN_COLUMNS = (CONTENT, PLACE, MEDIA_TYPE, BYTES)
"""The columns about an image, in the order of the fields of ``SeenImage``."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ico"})
"""Files of a folder with such an ending become rows, in upper or lower case; a folder may hold other files too."""

# Files read at once: hashing releases the interpreter lock, and a mount or a blob store takes time to answer.
_THREADS = 8
_LISTED_AT_ONCE = 1024

_FOUND = pa.schema(
    [
        (CONTENT, pa.string()),
        (REASON, pa.string()),
        (DETAIL, pa.string()),
        (PLACE, pa.string()),
        (MEDIA_TYPE, pa.string()),
        (BYTES, pa.int64()),
    ]
)
_FOLDER = pa.schema(
    [
        ("image_file", pa.string()),
        ("bytes", pa.int64()),
        ("modified", pa.timestamp("us", "UTC")),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("media_type", pa.string()),
    ]
)


class FolderFormat:
    """See ``FileFormat``: one row per image file of a folder. Before a file is read, only its name is known."""

    first_row = 1

    def schema(self, path: Path) -> pa.Schema:
        """See ``FileFormat``."""
        del path
        return _FOLDER

    def batches(self, path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """See ``FileFormat``. Raises ``SourceError`` if a folder cannot be listed, as its files may still be there."""
        names: list[bytes] = []
        for name in _files(os.fsencode(path)):
            names.append(name)
            if len(names) == _LISTED_AT_ONCE:
                yield _listing(names, columns)
                names = []
        if names:
            yield _listing(names, columns)


class PreparedFormat:
    """See ``FileFormat``: the files that ``prepare`` has written."""

    def __init__(self, first_row: int) -> None:
        self.first_row = first_row

    def schema(self, path: Path) -> pa.Schema:
        """See ``FileFormat``."""
        with pa.memory_map(str(path)) as file:
            return pa.ipc.open_file(file).schema

    def batches(self, path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """See ``FileFormat``."""
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number).select(list(columns))


def format_of(source: ImagesSource) -> FileFormat:
    """How the rows are read, which follows from the path. Raises ``SourceError`` if it does not."""
    if not is_url(source.path) and Path(source.path).is_dir():
        return FolderFormat()
    name = source.path.lower().removesuffix(".gz").removesuffix(".zst")
    if name.endswith((".csv", ".tsv", ".txt")):
        return CsvFormat(source.delimiter, source.types)
    if name.endswith((".parquet", ".pq")):
        return ParquetFormat()
    raise SourceError(
        f"source.path {source.path} is neither an existing folder nor the name of a .csv or .parquet file"
    )


def prepare(
    read: FileFormat,
    path: Path,
    columns: Sequence[str],
    source: ImagesSource,
    places: Places,
    memory: ImageMemory,
    into: Path,
) -> None:
    """Read the image of every row, and write the rows with what was found to an Arrow file.

    Memory: a batch of rows, and one image per thread, each of at most ``max_bytes`` and its pixels.
    """
    image, done, listing = source.content.image, 0, isinstance(read, FolderFormat)
    total = sum(batch.num_rows for batch in read.batches(path, [image]))
    schema = pa.schema([read.schema(path).field(name) for name in columns])
    with (
        ThreadPoolExecutor(_THREADS, thread_name_prefix="images") as pool,
        pa.OSFile(str(into), "wb") as sink,
        pa.ipc.new_file(sink, pa.schema([*schema, *_FOUND])) as out,
    ):
        for batch in read.batches(path, columns):
            written = _texts(batch.column(image))
            seen = list(pool.map(partial(look, places, source.max_pixels, memory), written))
            out.write_batch(_with_found(batch, seen, listing=listing))
            done += batch.num_rows
            tell("read", "images", done, max(done, total))


def look(places: Places, max_pixels: int, memory: ImageMemory, written: bytes | None) -> Seen:
    """What is at the path or URL that a row names. A row that names none has no image, which is no error.

    An image that this run has read, and that has not changed since, is not read again.
    """
    if written is None or not written.strip():
        return Seen(place=None)
    try:
        place = written.decode()
    except UnicodeDecodeError:
        error = RowError("unreadable", f"the path {written.decode(errors='backslashreplace')} is not UTF-8; rename it")
        return Seen(place=None, error=error)
    known = memory.known(place)
    if known and places.mark(place) == known[0]:
        return known[1]
    try:
        file = places.read(place)
        checked = check(file.content, place, max_pixels)
    except RowError as error:
        return Seen(place=place, error=error)
    seen = Seen(
        place=place,
        sha256=checked.sha256,
        media_type=checked.media_type,
        width=checked.width,
        height=checked.height,
        bytes=len(file.content),
        modified=file.modified,
    )
    if file.mark is not None:
        memory.remember(place, file.mark, seen)
    return seen


def _files(root: bytes) -> Iterator[bytes]:
    """The image files under a folder, as paths relative to it, one folder after another, sorted by name.

    Symbolic links to folders are not entered, and names that begin with a dot are skipped.
    """

    def stop(error: OSError) -> None:
        raise SourceError(
            f"the folder {os.fsdecode(error.filename)} cannot be listed: {error.strerror}; nothing was changed"
        ) from None

    for folder, folders, files in os.walk(root, onerror=stop):
        folders[:] = sorted(name for name in folders if not name.startswith(b"."))
        for name in sorted(files):
            if not name.startswith(b".") and os.path.splitext(name)[1].decode("latin-1").lower() in SUFFIXES:  # noqa: PTH122 # bytes: a name need not be text
                yield os.path.relpath(os.path.join(folder, name), root)  # noqa: PTH118 # bytes
        # A folder, a pipe or a link called x.jpg is treated like a file, and its row is rejected.
        for name in folders:
            if os.path.splitext(name)[1].decode("latin-1").lower() in SUFFIXES:  # noqa: PTH122 # bytes
                yield os.path.relpath(os.path.join(folder, name), root)  # noqa: PTH118 # bytes


def _listing(names: list[bytes], columns: Sequence[str]) -> pa.RecordBatch:
    # Unchecked texts, as Arrow's readers give them: names that are not UTF-8 are found later, and their rows rejected.
    files = pa.array(names, pa.binary()).view(pa.string())
    arrays = [files if name == "image_file" else pa.nulls(len(names), _FOLDER.field(name).type) for name in columns]
    return pa.record_batch(arrays, names=list(columns))


def _texts(column: pa.Array) -> list[bytes | None]:
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    return column.cast(pa.large_binary()).to_pylist()


def _with_found(batch: pa.RecordBatch, seen: list[Seen], *, listing: bool) -> pa.RecordBatch:
    own: dict[str, Any] = {
        CONTENT: [content_of(one.sha256) if one.sha256 else None for one in seen],
        REASON: [one.error.reason if one.error else None for one in seen],
        DETAIL: [one.error.detail if one.error else None for one in seen],
        PLACE: [one.place for one in seen],
        MEDIA_TYPE: [one.media_type for one in seen],
        BYTES: [one.bytes for one in seen],
    }
    columns = {field.name: batch.column(field.name) for field in batch.schema}
    if listing:
        for field in batch.schema:
            if field.name != "image_file":
                columns[field.name] = pa.array([getattr(one, field.name) for one in seen], field.type)
    arrays = [*columns.values(), *(pa.array(own[field.name], field.type) for field in _FOUND)]
    return pa.record_batch(arrays, schema=pa.schema([*batch.schema, *_FOUND]))
