"""Hashes of rows as a stream of blocks: read from Postgres' binary COPY, and summed up in the checksum."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Generator, Iterable, Iterator

import numpy as np
import numpy.typing as npt
from psycopg import sql
from typing_extensions import Buffer

from rowvec.errors import DatabaseUnavailable, TargetError
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query
from rowvec.sources.diff import Block, Words

DIGEST_BYTES = 16

# A block of 5 MB: large enough that the cost of numpy's calls does not matter, small enough for the cache.
_BLOCK_ROWS = 65_536

# The stream (PostgreSQL documentation, COPY, "Binary Format"): signature, flags, length of an empty extension.
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_RECORD = struct.Struct(">hiqi")
"""Two fields: a count of 8 bytes, and the length of what follows; -1 for NULL."""
_ROW = np.dtype([("digest", ">u8", (2,)), ("fingerprint", "=u8", (4,)), ("metadata_hash", "=u8", (4,))])


def copied_pairs(connection: Connection, pairs: sql.Composed) -> Generator[Block]:
    """The blocks of a SELECT of ``digest``, ``fingerprint`` and ``metadata_hash``, ascending by digest."""
    statement = query("hash_stream", "sorted", pairs=pairs)
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        yield from pairs_from_copy(copy)


def pairs_from_copy(chunks: Iterable[Buffer]) -> Iterator[Block]:
    """The blocks of ``sorted`` in sql/hash_stream.sql; a chunk may end anywhere.

    Raises ``DatabaseUnavailable`` if the stream stops before its end, ``TargetError`` if a hash is NULL or has another
    length.
    """
    held, rows, ended = bytearray(), bytearray(), False
    header = True
    for chunk in chunks:
        held += chunk
        if header and len(held) >= len(_HEADER):
            if not held.startswith(_HEADER):
                raise TargetError("the database's COPY does not start as the binary format does")
            del held[: len(_HEADER)]
            header = False
        if not header:
            ended = _move_records(held, rows)
            if len(rows) >= _BLOCK_ROWS * _ROW.itemsize:
                yield _block(bytes(rows))
                rows.clear()
    if header or not ended:
        raise DatabaseUnavailable("the database's list of rows was cut off; run again")
    if rows:
        yield _block(bytes(rows))


def _move_records(held: bytearray, rows: bytearray) -> bool:
    """Move the complete records to ``rows``; whether the stream has ended."""
    at = 0
    while len(held) - at >= _RECORD.size:
        _, _, count, length = _RECORD.unpack_from(held, at)
        if length != count * _ROW.itemsize:
            raise TargetError(
                "a row's fingerprint or metadata_hash does not have 32 bytes; rowvec audit --repair repairs rows that "
                "somebody edited"
            )
        end = at + _RECORD.size + length
        if len(held) < end:
            break
        rows += memoryview(held)[at + _RECORD.size : end]
        at = end
    del held[:at]
    return bytes(held) == _TRAILER


def pack_digests(digests: Iterable[bytes]) -> Words:
    """Digests of 16 bytes each as ``(n, 2)`` numbers in the same sort order."""
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2)


def unpack_digests(digest: Words) -> list[bytes]:
    """The 16 bytes of each digest."""
    data = digest.astype(">u8").tobytes()
    return [data[start : start + DIGEST_BYTES] for start in range(0, len(data), DIGEST_BYTES)]


def pack_hashes(hashes: Iterable[bytes]) -> Words:
    """Hashes of 32 bytes each as ``(n, 4)``."""
    return np.frombuffer(b"".join(hashes), "=u8").astype(np.uint64, copy=False).reshape(-1, 4)


def digest_of_key(key: Iterable[str]) -> bytes:
    """The 16 bytes of a key, given as the texts of its columns; ``fragments.key_digest`` gives the same in SQL."""
    hashed = hashlib.sha256()
    for value in key:
        text = value.encode()
        hashed.update(b"%d:%b" % (len(text), text))
    return hashed.digest()[:DIGEST_BYTES]


def checksum(block: Block) -> int:
    """What a block adds to the checksum of keys and fingerprints, which does not depend on the order of rows.

    docs/explanation/consistency.md has the formula.
    """
    data = np.empty((len(block), DIGEST_BYTES + 32), np.uint8)
    data[:, :DIGEST_BYTES] = _bytes(block.digest.astype(">u8"))
    data[:, DIGEST_BYTES:] = _bytes(block.fingerprint)
    joined, width = data.tobytes(), data.shape[1]
    sha256 = hashlib.sha256
    heads = b"".join(sha256(joined[at : at + width]).digest()[:8] for at in range(0, len(joined), width))
    return sum((np.frombuffer(heads, ">u8") >> np.uint64(4)).tolist())


def without(blocks: Iterable[Block], left_out: set[tuple[bytes, bytes]]) -> Iterator[Block]:
    """The blocks without the rows whose digest and fingerprint are in ``left_out``; these have no vector."""
    if not left_out:
        yield from blocks
        return
    digests = np.unique(pack_digests(digest for digest, _ in left_out)[:, 0])
    for block in blocks:
        suspects = np.flatnonzero(np.isin(block.digest[:, 0], digests))
        keep = np.ones(len(block), np.bool_)
        for row in suspects:
            pair = (block.digest[row].astype(">u8").tobytes(), block.fingerprint[row].tobytes())
            keep[row] = pair not in left_out
        yield block[keep]


def _block(data: bytes) -> Block:
    rows = np.frombuffer(data, _ROW)
    return Block(
        digest=rows["digest"].astype(np.uint64),
        fingerprint=np.ascontiguousarray(rows["fingerprint"]),
        metadata_hash=np.ascontiguousarray(rows["metadata_hash"]),
    )


def _bytes(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1)
