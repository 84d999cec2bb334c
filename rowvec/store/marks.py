"""The marks of ledgers in a store: which databases write to a pipeline's folder, and how far each of them has come.

A database that was copied or set back has a ledger that remembers what another one did. Each ledger keeps one small
object under its own id, the only kind of object that changes: the name of the newest manifest that it wrote.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError

from rowvec.errors import ArtifactCorrupt
from rowvec.store.manifest import is_manifest
from rowvec.store.protocol import Store

_MOST_BYTES = 10_000
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What a ledger says of itself in the store."""

    format: Literal["rowvec.mark/1"] = "rowvec.mark/1"
    ledger: Annotated[str, Field(max_length=36)]
    """The ledger's id, a UUID."""
    manifest: Annotated[str, Field(max_length=300)] | None
    """The newest manifest that it wrote, or that it was copied with."""
    database: Annotated[str, Field(max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")]
    """The name of its database, for people."""
    written_at: AwareDatetime


_MARK = TypeAdapter(Mark)


def marked_ledgers(store: Store, family: str) -> set[str]:
    """The ids of the ledgers that have a mark for a pipeline."""
    prefix = _folder(family)
    found = (name.removeprefix(prefix) for name in store.names(prefix))
    return {ledger for ledger in found if _ID.fullmatch(ledger)}


def write_mark(store: Store, family: str, mark: Mark) -> None:
    """Put a ledger's mark into the store in place of its last one."""
    store.replace(_folder(family) + mark.ledger, _MARK.dump_json(mark))


def delete_mark(store: Store, family: str, ledger: str) -> None:
    """Take a ledger's mark out of the store."""
    store.delete(_folder(family) + ledger)


def read_mark(store: Store, family: str, ledger: str) -> Mark | None:
    """The mark of a ledger; None if it has none, or if it cannot be read."""
    try:
        with store.opened(_folder(family) + ledger) as file:
            mark = _MARK.validate_json(file.read(_MOST_BYTES), strict=True)
    except (ArtifactCorrupt, ValidationError):
        return None
    is_right = mark.ledger == ledger and (mark.manifest is None or is_manifest(mark.manifest))
    return mark if is_right else None


def _folder(family: str) -> str:
    return f"marks/{family}/"
