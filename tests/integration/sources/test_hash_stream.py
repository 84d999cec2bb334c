"""Pairs of hashes are parsed from a real COPY that may be cut anywhere, and summed up as the database does."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import LiteralString

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from rowvec.errors import DatabaseUnavailable, TargetError
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.postgres.fragments import key_digest
from rowvec.postgres.queries import query
from rowvec.sources.diff import Block
from rowvec.sources.hash_stream import (
    checksum,
    copied_pairs,
    digest_of_key,
    pack_digests,
    pack_hashes,
    pairs_from_copy,
    unpack_digests,
    without,
)

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_ROW = st.tuples(st.binary(min_size=16, max_size=16), *[st.binary(min_size=32, max_size=32)] * 2)


def _stream(rows: list[tuple[bytes, bytes, bytes]], *, in_records_of: int = 2) -> bytes:
    parts = [rows[at : at + in_records_of] for at in range(0, len(rows), in_records_of)]
    return _HEADER + b"".join(_record(len(part), b"".join(map(b"".join, part))) for part in parts) + b"\xff\xff"


def _record(count: int, data: bytes) -> bytes:
    return b"\0\2" + b"\0\0\0\x08" + count.to_bytes(8, "big") + len(data).to_bytes(4, "big") + data


def _rows(blocks: list[Block]) -> list[tuple[bytes, bytes, bytes]]:
    return [
        (digest, fingerprint.tobytes(), metadata.tobytes())
        for b in blocks
        for digest, fingerprint, metadata in zip(unpack_digests(b.digest), b.fingerprint, b.metadata_hash, strict=True)
    ]


@given(st.lists(_ROW, max_size=5), st.lists(st.integers(0, 400), max_size=8))
def test_chunks_may_be_cut_anywhere(rows: list[tuple[bytes, bytes, bytes]], cuts: list[int]) -> None:
    stream = _stream(rows)
    at = sorted({0, len(stream), *(c for c in cuts if c < len(stream))})
    chunks = [stream[a:b] for a, b in pairwise(at)]
    assert _rows(list(pairs_from_copy(chunks))) == rows


@given(st.lists(_ROW, min_size=1, max_size=3), st.integers(1, 4).map(lambda n: 98 * n) | st.integers(1, 300))
def test_a_stream_that_was_cut_is_noticed(rows: list[tuple[bytes, bytes, bytes]], missing: int) -> None:
    stream = _stream(rows)[:-missing]
    if not stream.endswith(b"\xff\xff"):
        with pytest.raises(DatabaseUnavailable, match="cut off"):
            list(pairs_from_copy([stream]))


@pytest.mark.parametrize("wrong", ["'short'::bytea", "sha256('f') || sha256('g')", "NULL::bytea"])
def test_a_hash_of_another_length_or_none_is_refused(connection: Connection, wrong: LiteralString) -> None:
    statement = sql.SQL(
        "SELECT substring(sha256('k') FROM 1 FOR 14) || int2send(i::int2) AS digest, "
        "CASE WHEN i = {row} THEN {wrong} ELSE sha256('f') END AS fingerprint, sha256('m') AS metadata_hash "
        "FROM generate_series(1, 9) AS i"
    )
    fine = statement.format(row=sql.Literal(0), wrong=sql.SQL(wrong))
    assert sum(map(len, copied_pairs(connection, fine))) == 9
    with pytest.raises(TargetError, match="does not have 32 bytes"):
        list(copied_pairs(connection, statement.format(row=sql.Literal(4), wrong=sql.SQL(wrong))))


def test_hashes_that_are_too_short_and_too_long_do_not_make_up_for_each_other(connection: Connection) -> None:
    pairs = sql.SQL(
        "SELECT substring(sha256('k') FROM 1 FOR 14) || int2send(i::int2) AS digest, "
        "substring(sha256('f') || sha256('g') FROM 1 FOR CASE i WHEN 4 THEN 31 WHEN 5 THEN 33 ELSE 32 END) "
        "AS fingerprint, sha256('m') AS metadata_hash FROM generate_series(1, 9) AS i"
    )
    with pytest.raises(TargetError, match="does not have 32 bytes"):
        list(copied_pairs(connection, sql.Composed([pairs])))


def test_a_real_copy_in_many_blocks(connection: Connection) -> None:
    pairs = sql.SQL(
        "SELECT substring(sha256(i::text::bytea) FROM 1 FOR 16) AS digest, sha256('f') AS fingerprint, "
        "sha256((i || 'm')::bytea) AS metadata_hash FROM generate_series(1, 150000) AS i"
    )
    blocks = list(copied_pairs(connection, sql.Composed([pairs])))
    assert len(blocks) == 3
    digests = [digest for block in blocks for digest in unpack_digests(block.digest)]
    assert len(digests) == 150000
    assert digests == sorted(digests)


@given(st.lists(st.binary(min_size=16, max_size=16)))
def test_digests_sort_as_their_bytes(digests: list[bytes]) -> None:
    packed = pack_digests(digests)
    assert unpack_digests(packed) == digests
    assert sorted(map(tuple, packed.tolist())) == [tuple(row) for row in pack_digests(sorted(digests)).tolist()]


def test_the_checksum_and_the_digest_are_those_of_the_database(connection: Connection) -> None:
    connection.execute("CREATE TABLE t (a text, b int, fingerprint bytea)")
    rows = [("é", 1), ("", -5), ("a:b", 30)]
    for a, b in rows:
        connection.execute("INSERT INTO t VALUES (%s, %s, sha256(%s::bytea))", (a, b, a.encode()))
    key = (PgColumn("a", "text"), PgColumn("b", "integer"))
    digests = [digest_of_key([a, str(b)]) for a, b in rows]
    found = connection.execute(query("totals", "totals", digest=key_digest(key), table=sql.Identifier("t"))).fetchone()
    fingerprints = pack_hashes(hashlib.sha256(a.encode()).digest() for a, _ in rows)
    block = Block(digest=pack_digests(digests), fingerprint=fingerprints, metadata_hash=fingerprints)
    assert found == (3, checksum(block))
    left = list(without([block], {(digests[1], hashlib.sha256(b"").digest()), (digests[0], bytes(32))}))
    assert [unpack_digests(b.digest) for b in left] == [[digests[0], digests[2]]]
    assert np.array_equal(left[0].fingerprint, fingerprints[[0, 2]])
