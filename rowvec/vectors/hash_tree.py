"""The hash tree over the rows of a vector table: its root proves one row, without the database and the other rows.

A row is a record of 48 bytes. The records are in 65,536 buckets, by the first four hex digits of the digest of their
key; above the buckets are four levels of nodes with up to 16 children. docs/explanation/certificates.md defines it byte
by byte; ``rowvec/sql/certificates.sql`` computes the same in the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from struct import Struct
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

DEPTH = 4
"""Levels of nodes above the buckets, one per hex digit of a bucket's path."""

_DIGEST, _RECORD, _CHILD = 16, 48, 33
_CERTIFICATE = Struct(">qq32s")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
VectorType = Literal["vector", "halfvec", "sparsevec"]
_Bytes = Annotated[str, Field(pattern=r"^(?:[0-9a-f]{2})*$")]
_Text = Annotated[str, Field(max_length=300)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """That a row was in the vector table when a run ended, or that no row had this key."""

    format: Literal["rowvec.proof/1"] = "rowvec.proof/1"
    pipeline: _Text
    table: _Text
    """``schema.table``."""
    run_id: int
    """The run with whose root it agrees."""
    root: Sha256
    vector: VectorType
    """The type of the vectors: ``vector_send``, ``halfvec_send`` or ``sparsevec_send`` gives what is hashed."""
    key: Annotated[tuple[str, ...], Field(min_length=1, max_length=33)]
    """The text of each key column."""
    fingerprint: Sha256 | None
    """None: no row had this key."""
    vector_sha256: Sha256 | None
    nodes: Annotated[tuple[_Bytes, ...], Field(min_length=1, max_length=DEPTH + 1)]
    """In hex, the contents of the nodes from the root down to the bucket of the key."""


def key_text(key: Sequence[str]) -> bytes:
    """A key as ``rowvec.postgres.fragments.key_text`` writes it."""
    return b"".join(b"%d:%s" % (len(part), part) for part in (text.encode() for text in key))


def digest_of(key: Sequence[str]) -> bytes:
    """The digest of a key, 16 bytes."""
    return sha256(key_text(key)).digest()[:_DIGEST]


def record_of(key: Sequence[str], fingerprint: bytes, vector_sha256: bytes) -> bytes:
    """The record of a row, 48 bytes. ``vector_sha256``: over the vector as pgvector sends it."""
    return digest_of(key) + sha256(key_text(key) + fingerprint + vector_sha256).digest()


def branch_of(key: Sequence[str]) -> list[str]:
    """The paths of the nodes from the root down to the bucket of a key."""
    digits = digest_of(key).hex()
    return [digits[:length] for length in range(DEPTH + 1)]


def root_of(buckets: Iterable[tuple[str, bytes]]) -> str:
    """The root, in hex, over buckets that have rows: the path and the sha256 of the content of each."""
    nodes = sorted(buckets)
    for length in reversed(range(DEPTH)):
        contents: dict[str, bytes] = {}
        for path, hashed in nodes:
            contents[path[:length]] = contents.get(path[:length], b"") + path[length].encode() + hashed
        nodes = [(path, sha256(content).digest()) for path, content in contents.items()]
    return nodes[0][1].hex() if nodes else sha256(b"").hexdigest()


def chained(before: str | None, run_id: int, rows: int, root: str) -> str:
    """What ties a certificate to the one before it: a sha256 in hex."""
    return sha256(f"{before or '-'} {run_id} {rows} {root}\n".encode()).hexdigest()


class Block(NamedTuple):
    """Certificates in the order of their runs, each of which follows the one before it."""

    chain: str
    """Of the last one; empty if the content is none of certificates."""
    first_run: int
    certificates: int


def chained_block(before: str | None, content: bytes) -> Block:
    """The chain through a block of certificates: run and rows with eight bytes each, big-endian; the root with 32."""
    if len(content) % _CERTIFICATE.size:
        return Block("", 0, 0)
    chain, first_run = before or "", 0
    for number, (run_id, rows, root) in enumerate(_CERTIFICATE.iter_unpack(content)):
        chain = chained(chain, run_id, rows, root.hex())
        first_run = first_run if number else run_id
    return Block(chain, first_run, len(content) // _CERTIFICATE.size)


def fault(proof: Proof, root: str) -> str | None:
    """What is wrong with a proof, as the end of a sentence; None if it holds against this root, in hex."""
    digits = digest_of(proof.key).hex()
    wanted: bytes | None = bytes.fromhex(root)
    records: set[bytes] = set()
    for depth, content in enumerate(map(bytes.fromhex, proof.nodes)):
        if sha256(content).digest() != wanted:
            return (
                "it belongs to another root" if depth == 0 else f"its node {depth} is not the one that the root names"
            )
        if depth == DEPTH:
            records = set(_split(content, _RECORD))
        else:
            wanted = {child[:1].decode("latin-1"): child[1:] for child in _split(content, _CHILD)}.get(digits[depth])
    if len(proof.nodes) <= DEPTH and wanted is not None:
        return "it ends before the bucket of the row"
    if proof.fingerprint is None or proof.vector_sha256 is None:
        present = any(record.startswith(bytes.fromhex(digits)[:_DIGEST]) for record in records)
        return "the table had a row with this key" if present else None
    record = record_of(proof.key, bytes.fromhex(proof.fingerprint), bytes.fromhex(proof.vector_sha256))
    return None if record in records else "the table had another row with this key, or none"


def _split(content: bytes, size: int) -> list[bytes]:
    return [content[start : start + size] for start in range(0, len(content), size)]
