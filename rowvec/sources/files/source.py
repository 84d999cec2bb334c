"""Files as a source: they are read twice, first to hash and sort all rows, then for the rows that changed."""

from __future__ import annotations

import glob
import json
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rowvec.errors import RejectReason, RowError, SourceError
from rowvec.pipeline import Pipeline, template
from rowvec.pipeline.embedders import ColumnEmbedder
from rowvec.pipeline.sources import CsvSource, ImagesSource, ParquetSource
from rowvec.pipeline.template import Column, Template
from rowvec.postgres.columns import PgColumn, listed
from rowvec.runtime.home import temporary_folder
from rowvec.runtime.suggestion import did_you_mean
from rowvec.sources.diff import Block, Changes, Rows
from rowvec.sources.files.external_sort import ExternalSort, Records
from rowvec.sources.files.rows import LONGEST_KEY, Layout, Rendered, columns_of, is_vector
from rowvec.sources.formats.csv import CsvFormat
from rowvec.sources.formats.parquet import ParquetFormat
from rowvec.sources.formats.protocol import FileFormat
from rowvec.sources.images.file import is_url
from rowvec.sources.images.locations import open_places
from rowvec.sources.images.seen import ImageMemory, memory_of
from rowvec.sources.images.table import CONTENT, DETAIL, REASON, SEEN_COLUMNS, PreparedFormat, format_of, prepare
from rowvec.sources.protocol import ACTIONS, Reject, SeenImage
from rowvec.vectors.fingerprint import Digested

Fetch = Callable[[str, Path], list[Path]]
"""Downloads the blobs that a URL names into a folder, and returns the files."""

# Rejected keys that are remembered, so that each is written once: some megabytes.
_REMEMBERED_KEYS = 65_536

# What the second pass does with a row, one byte per row of the source; 0 is nothing, and 1, 2 and 3 are ACTIONS.
_DUPLICATE, _EMPTY = 4, 5

_REASONS: dict[int, tuple[RejectReason, str]] = {
    _DUPLICATE: ("duplicate_key", "several rows have this key"),
    _EMPTY: ("empty", "the content is empty or white space only"),
}


@dataclass(frozen=True, slots=True)
class _Mark:
    """Shows whether a file is still the one that was read."""

    path: Path
    size: int
    modified: int
    changed: int
    """When the system last noted a change (ctime): unlike the time of modification, no user can set it."""
    inode: int

    @staticmethod
    def of(path: Path) -> _Mark:
        """Raises ``SourceError`` if the file is gone."""
        try:
            status = path.stat()
        except OSError as error:
            raise SourceError(f"the file {path.name} is gone while it is read: {error.strerror}; run again") from None
        return _Mark(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

    def check(self) -> None:
        """Raise ``SourceError`` if the file has changed since the mark was taken."""
        if _Mark.of(self.path) != self:
            raise _changed(self.path)


class FileSource:
    """See ``HashedSource``. Memory: a batch, a sorted run of hashes, and one byte per row of the source."""

    def __init__(
        self,
        pipeline: Pipeline,
        identity: Digested,
        read: FileFormat,
        paths: list[Path],
        sort: ExternalSort,
        rejects_file: IO[str],
    ) -> None:
        self._format = read
        self._reject_blank = pipeline.source.empty == "reject"
        self._marks = [_Mark.of(path) for path in paths]
        self._layout = _layout(pipeline, identity, self._format, paths)
        self._sort, self._rejects_file = sort, rejects_file
        self._rejected: set[int] = set()
        self._fates = np.zeros(0, np.uint8)
        self._sent: deque[npt.NDArray[np.int64]] = deque()
        """The numbers of the rows that the diff has got and not marked yet, in the order of their digests."""
        self._passed = self._blank = 0

    @property
    def key(self) -> tuple[PgColumn, ...]:
        """See ``HashedSource``."""
        return self._layout.key

    @property
    def metadata(self) -> tuple[PgColumn, ...]:
        """See ``HashedSource``."""
        return self._layout.metadata

    @property
    def blank(self) -> int:
        """See ``HashedSource``."""
        return self._blank

    def pairs(self) -> Iterator[Block]:
        """See ``HashedSource``."""
        rows = 0
        for path, first_row, batch in self._batches():
            rendered = Rendered(batch, self._layout)
            self._sort.add(rendered.records(rows))
            self._reject_unusable(path, first_row, rendered)
            rows += batch.num_rows
        self._fates = np.zeros(rows, np.uint8)
        for records in self._sort.ascending():
            good = records[self._usable(records)]
            self._sent.append(good["row"].copy())
            yield Block(
                digest=np.ascontiguousarray(good["digest"]),
                fingerprint=np.ascontiguousarray(good["fingerprint"]),
                metadata_hash=np.ascontiguousarray(good["metadata_hash"]),
            )

    def mark(self, changes: Changes) -> None:
        """See ``HashedSource``."""
        kinds: tuple[Rows, ...] = (changes.new, changes.changed, changes.metadata_only)
        rows = self._next_sent(sum(map(len, kinds)) + len(changes.duplicates) + changes.unchanged)
        for fate, kind in enumerate(kinds, 1):
            self._fates[rows[kind.position - self._passed]] = fate
        self._passed += len(rows)

    def rows(self) -> Iterator[pa.RecordBatch]:
        """See ``HashedSource``."""
        first_row = 0
        for _, _, batch in self._batches():
            fates = self._fates[first_row : first_row + batch.num_rows]
            first_row += batch.num_rows
            wanted = np.flatnonzero(fates)
            if len(wanted):
                yield from self._taken(batch.take(pa.array(wanted)), fates[wanted])
        if first_row != len(self._fates):
            raise _changed(self._marks[-1].path)

    def images(self, *, everything: bool = False) -> Iterator[list[SeenImage]]:
        """See ``HashedSource``."""
        if self._layout.refusals is None:
            return
        first_row = 0
        for mark in self._marks:
            for batch in self._format.batches(mark.path, SEEN_COLUMNS):
                fates = self._fates[first_row : first_row + batch.num_rows]
                first_row += batch.num_rows
                wanted = np.flatnonzero((fates == 1) | (fates == 2))  # new and changed: see ACTIONS
                taken = batch if everything else batch.take(pa.array(wanted))
                rows = zip(*(column.to_pylist() for column in taken.columns), strict=True)
                # A row without content has no image: it is blank, or rejected.
                if seen := [SeenImage(*row) for row in rows if row[0] is not None]:
                    yield seen

    def rejects(self) -> Iterator[Reject]:
        """See ``HashedSource``."""
        self._rejects_file.seek(0)
        for line in self._rejects_file:
            key, reason, detail = json.loads(line)
            yield key, RowError(reason, detail)

    def _batches(self) -> Iterator[tuple[Path, int, pa.RecordBatch]]:
        """All batches, each with its file and the number that people give its first row.

        Raises ``SourceError`` if a file has changed since the source was opened.
        """
        for mark in self._marks:
            mark.check()
            row = self._format.first_row
            for batch in self._format.batches(mark.path, self._layout.columns):
                yield mark.path, row, batch
                row += batch.num_rows
            mark.check()

    def _usable(self, records: Records) -> npt.NDArray[np.bool_]:
        """Which rows must have a vector; for the others, the second pass writes the rejects."""
        same = np.zeros(len(records) + 1, np.bool_)
        same[1:-1] = (records["digest"][1:] == records["digest"][:-1]).all(axis=1)
        single = ~same[:-1] & ~same[1:]
        # The first row of each key is listed for all of them.
        self._fates[records["row"][same[1:] & ~same[:-1]]] = _DUPLICATE
        blank = single & records["blank"]
        self._blank += int(blank.sum())
        if self._reject_blank:
            self._fates[records["row"][blank]] = _EMPTY
        return single & ~blank

    def _next_sent(self, count: int) -> npt.NDArray[np.int64]:
        """The numbers of the next ``count`` rows that the diff has got."""
        taken: list[npt.NDArray[np.int64]] = []
        while count:
            first = self._sent.popleft()
            if len(first) > count:
                self._sent.appendleft(first[count:])
                first = first[:count]
            taken.append(first)
            count -= len(first)
        return np.concatenate(taken) if taken else np.empty(0, np.int64)

    def _taken(self, batch: pa.RecordBatch, fates: npt.NDArray[np.uint8]) -> Iterator[pa.RecordBatch]:
        rejected = np.flatnonzero(fates > len(ACTIONS))
        if len(rejected):
            for row, key in zip(rejected, Rendered(batch, self._layout).key_json(rejected.tolist()), strict=True):
                self._reject(key, *_REASONS[int(fates[row])])
        kept = np.flatnonzero(fates <= len(ACTIONS))
        if len(kept):
            actions = [ACTIONS[fate - 1] for fate in fates[kept].tolist()]
            yield Rendered(batch.take(pa.array(kept)), self._layout).taken(actions)

    def _reject_unusable(self, path: Path, first_row: int, rendered: Rendered) -> None:
        null_key = rendered.null_key
        rows = np.flatnonzero(null_key | rendered.unreadable | rendered.long_key | rendered.refused).tolist()
        for row, key in zip(rows, rendered.key_json(rows), strict=True):
            where = f"row {first_row + row:,} of {path.name}"
            if null_key[row]:
                self._reject(key, "null_key", f"a key column is NULL in {where}")
            elif rendered.refused[row]:
                self._reject(key, *rendered.refusal(row))
            elif not rendered.unreadable[row]:
                detail = f"the key in {where} has more than the {LONGEST_KEY:,} bytes that a primary key can hold"
                self._reject(key, "unreadable", detail)
            else:
                column = rendered.unreadable_in[row]
                detail = f"{where} has in column {column!r} a value that is not UTF-8, or that Postgres cannot hold"
                self._reject(key, "unreadable", detail)

    def _reject(self, key: str, reason: RejectReason, detail: str) -> None:
        """Write a reject once per key and reason, so that a file without keys is not copied to the disk."""
        known = hash((key, reason))
        if known in self._rejected:
            return
        if len(self._rejected) < _REMEMBERED_KEYS:
            self._rejected.add(known)
        self._rejects_file.write(json.dumps([key, reason, detail]) + "\n")


def file_format(source: CsvSource | ParquetSource | ImagesSource) -> FileFormat:
    """How the source's files are read."""
    match source.kind:
        case "csv":
            return CsvFormat(source.delimiter, source.types)
        case "parquet":
            return ParquetFormat()
        case "images":
            return format_of(source)


@contextmanager
def open_files(
    pipeline: Pipeline,
    source: CsvSource | ParquetSource | ImagesSource,
    identity: Digested,
    folder: Path,
    fetch: Fetch,
    run: str | None = None,
) -> Generator[FileSource]:
    """The source's files, ready to be read; its temporary files, in ``folder``, are deleted when it is closed.

    Images that ``run`` has read before, and that have not changed since, are not read again.

    Raises ``SourceError`` if a file or a column is missing, or Postgres has no type for a column.
    """
    with (
        temporary_folder(folder) as place,
        ExternalSort(place) as sort,
        tempfile.TemporaryFile("w+", dir=place, encoding="utf-8") as rejects_file,
    ):
        paths = fetch(source.path, place) if is_url(source.path) else local_paths(source)
        try:
            read = file_format(source)
            if source.kind == "images":
                read, paths = _with_images(pipeline, source, read, paths, place, memory_of(run))
            yield FileSource(pipeline, identity, read, paths, sort, rejects_file)
        except UnicodeDecodeError:
            raise SourceError(f"the source {source.path} holds bytes that are not UTF-8; convert it first") from None
        except pa.ArrowException as error:
            reason = str(error).splitlines()[0]
            raise SourceError(f"the source {source.path} cannot be read: {reason}") from None


def local_paths(source: CsvSource | ParquetSource | ImagesSource) -> list[Path]:
    """The files that a path or a glob names, sorted by name; the folder itself, if it is a folder of images.

    Raises ``SourceError`` if there are none.
    """
    path = source.path
    if Path(path).is_file() or (source.kind == "images" and Path(path).is_dir()):
        return [Path(path)]
    if not glob.has_magic(path):
        what = (
            "is a folder; name a file in it, or write a glob such as *.parquet"
            if Path(path).is_dir()
            else "is not there"
        )
        raise SourceError(f"the source file {path} {what}")
    found = sorted(Path(name) for name in glob.glob(path, recursive=True) if Path(name).is_file())  # noqa: PTH207 # the pattern may be absolute, which Path.glob refuses
    if not found:
        raise SourceError(f"no file matches source.path {path}")
    return found


def _with_images(
    pipeline: Pipeline, source: ImagesSource, read: FileFormat, paths: list[Path], place: Path, memory: ImageMemory
) -> tuple[FileFormat, list[Path]]:
    """Files with the same rows and what was found in their images, each read once; and how to read the files."""
    kept = Path(pipeline.artifacts.url)
    if not is_url(pipeline.artifacts.url) and any(kept.resolve().is_relative_to(p.resolve()) for p in paths):
        raise SourceError(
            f"artifacts.url, {kept}, is inside source.path: images stored there would become rows; move one of them"
        )
    places, prepared = open_places(source), list[Path]()
    own = [pipeline.embedder.column] if isinstance(pipeline.embedder, ColumnEmbedder) else []
    columns = list(dict.fromkeys([*source.key, *source.metadata, source.content.image, *own]))
    for number, path in enumerate(paths):
        mark = _Mark.of(path)
        _schema(read, path, columns)
        into = place / f"images-{number}" / path.name
        into.parent.mkdir()
        prepare(read, path, columns, source, places, memory, into)
        if not path.is_dir():
            mark.check()
        prepared.append(into)
    return PreparedFormat(read.first_row), prepared


def _layout(pipeline: Pipeline, identity: Digested, read: FileFormat, paths: list[Path]) -> Layout:
    source = pipeline.source
    vector = pipeline.embedder.column if isinstance(pipeline.embedder, ColumnEmbedder) else None
    images = source.kind == "images"
    content = Template((Column(CONTENT),)) if images else template.parse(source.content or "")
    named: list[str] = [*source.key, *source.metadata, *content.columns, *([vector] if vector else [])]
    wanted = list(dict.fromkeys(named))
    first = _schema(read, paths[0], wanted)
    for path in paths[1:]:
        other = _schema(read, path, wanted)
        for name in wanted:
            if other.field(name).type != first.field(name).type:
                raise SourceError(
                    f"column {name!r} is {first.field(name).type} in {paths[0].name} and {other.field(name).type} in "
                    f"{path.name}; write the files with one type"
                )
    where = paths[0].name
    if vector is not None and not is_vector(first.field(vector).type):
        raise SourceError(
            f"column {vector!r} of {where} is {first.field(vector).type}, not a list of numbers, a struct "
            "of indices and values, or text"
        )
    columns_of(first, content.columns, key=False, where=where)
    return Layout(
        key=columns_of(first, source.key, key=True, where=where),
        metadata=columns_of(first, source.metadata, key=False, where=where),
        content=content,
        vector=vector,
        refusals=(REASON, DETAIL) if images else None,
        dimensions=pipeline.embedder.dimensions,
        identity=identity.digest(),
    )


def _schema(read: FileFormat, path: Path, wanted: list[str]) -> pa.Schema:
    schema = read.schema(path)
    for name in wanted:
        if name not in schema.names:
            raise SourceError(
                f"the file {path.name} has no column {name!r}; it has {listed(schema.names)}"
                + did_you_mean(name, schema.names)
            )
        if schema.names.count(name) > 1:
            raise SourceError(f"the file {path.name} has two columns called {name!r}; rename one")
    return schema


def _changed(path: Path) -> SourceError:
    return SourceError(f"the file {path.name} changed while it was read; run again")
