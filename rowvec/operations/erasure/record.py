"""The ledger's record of an erasure: so that a run which follows a killed one knows what that one has left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from rowvec.operations.erasure.keys import Key
from rowvec.operations.erasure.rewrite import Removed
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """An erasure that is under way."""

    number: int
    keys: tuple[Key, ...]
    leftovers: tuple[str, ...]
    """Objects of the store that a killed run has left: new ones that nothing uses yet, or old ones that nothing uses
    any more."""
    removed: tuple[Removed, ...]
    """What earlier runs of this erasure have removed."""
    asked_at: datetime


def open_record(connection: Connection, family: str) -> Record | None:
    """The erasure of a pipeline that is under way; None if there is none."""
    row = connection.execute(query("erasure", "open_record"), {"family": family}).fetchone()
    if row is None:
        return None
    number, keys, leftovers, removed, asked_at = row
    return Record(
        number=number,
        keys=tuple(tuple(key) for key in keys),
        leftovers=tuple(leftovers),
        removed=tuple(Removed(**one) for one in removed),
        asked_at=asked_at,
    )


def begin(connection: Connection, family: str, keys: Sequence[Sequence[str]]) -> Record:
    """Record that these keys are erased, in addition to those of an erasure that is under way."""
    connection.execute(query("erasure", "begin"), {"family": family, "keys": Jsonb([list(key) for key in keys])})
    record = open_record(connection, family)
    if record is None:
        raise LookupError("the erasure that was just begun is not in the ledger")  # no other run has the lease
    return record


def note_leftover(connection: Connection, record: Record, name: str) -> None:
    """Note an object before it is written."""
    values = {"erasure_id": record.number, "names": [name]}
    connection.execute(query("erasure", "note_leftovers"), values)


def note_removed(connection: Connection, record: Record, obsolete: Sequence[str], removed: Sequence[Removed]) -> None:
    """Note what is not in use any more, in the transaction that puts the new objects in use."""
    values = {"erasure_id": record.number, "names": list(obsolete), "removed": Jsonb([asdict(one) for one in removed])}
    connection.execute(query("erasure", "note_removed"), values)


def finish(connection: Connection, record: Record, certificate: dict[str, Any]) -> None:
    """Close the erasure, and keep its certificate; the keys go."""
    values = {"erasure_id": record.number, "certificate": Jsonb(certificate)}
    connection.execute(query("erasure", "finish"), values)
