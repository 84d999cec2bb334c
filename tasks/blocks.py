"""Reads secrets from Prefect blocks, for pipelines that name them as ``${prefect.blocks.TYPE.NAME}``."""

from __future__ import annotations

from typing import Any, cast

import httpx
from prefect import get_client
from prefect.blocks.system import Secret
from prefect.exceptions import ObjectNotFound
from psycopg.conninfo import make_conninfo
from rowvec_tasks.server import is_configured

from rowvec.errors import RetriableError, UsageError

_PARTS = {"username": "user", "password": "password", "host": "host", "port": "port", "database": "dbname"}
"""Of a block's connection, and what libpq calls them."""


def read_secret(kind: str, name: str) -> str:
    """The value of a block of this type. It is read where it is used, so that it is never a parameter or a result.

    A block of another package is read from the server as it is stored there, so the package does not have to be
    installed here. Raises ``UsageError`` if there is no such block, or no server that could have it: a server that
    Prefect would start here has the user's own database, which is not ours to open.
    """
    if not is_configured():
        raise UsageError(
            f"the block {kind}/{name} is in a Prefect server, and none is configured: set PREFECT_API_URL, or name "
            "an environment variable in its place"
        )
    if kind == "secret":
        try:
            return cast("Secret[str]", Secret.load(name)).get()
        except ValueError:
            raise _missing(kind, name) from None
    reader = _connection_string if kind == "azure-blob-storage-credentials" else _dsn
    return reader(f"{kind}/{name}", _stored(kind, name))


def _stored(kind: str, name: str) -> dict[str, Any]:
    """What the server keeps of a block, its secrets included."""
    try:
        with get_client(sync_client=True) as client:
            return client.read_block_document_by_name(name, kind, include_secrets=True).data
    except ObjectNotFound:
        raise _missing(kind, name) from None
    except httpx.HTTPError as error:
        raise RetriableError(f"the block {kind}/{name} cannot be read: {type(error).__name__}") from None


def _connection_string(block: str, stored: dict[str, Any]) -> str:
    found = stored.get("connection_string")
    if not found:
        raise UsageError(
            f"the block {block} has no connection string; leave the credential out of the pipeline file, and "
            "azure-identity signs in, for a service principal by AZURE_CLIENT_ID, AZURE_TENANT_ID, AZURE_CLIENT_SECRET"
        )
    return str(found)


def _dsn(block: str, stored: dict[str, Any]) -> str:
    """The DSN of a connector (``connection_info``: a URL or its parts) or of credentials (its parts, or ``url``)."""
    info = stored.get("connection_info") or stored.get("url") or stored
    if isinstance(info, str):
        scheme, _, rest = info.partition("://")
        _check_postgres(block, scheme)
        # SQLAlchemy writes its driver here: postgresql+psycopg2.
        return f"postgresql://{rest}"
    _check_postgres(block, str(info.get("driver") or "postgresql"))
    named = {ours: info[theirs] for theirs, ours in _PARTS.items() if info.get(theirs) not in (None, "")}
    return make_conninfo("", **named, **(info.get("query") or {}))


def _check_postgres(block: str, driver: str) -> None:
    if driver.partition("+")[0] not in ("postgresql", "postgres"):
        raise UsageError(f"the block {block} is for {driver.partition('+')[0]}, and not for Postgres; name another one")


def _missing(kind: str, name: str) -> UsageError:
    return UsageError(f"there is no block {kind}/{name}; create it in the Prefect UI under Blocks")
