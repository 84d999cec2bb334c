"""Links to objects in a private container that open for a short while, signed by whatever credential may sign."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from azure.core.credentials import TokenCredential
from azure.core.exceptions import AzureError
from azure.storage.blob import BlobSasPermissions, BlobServiceClient, ContainerClient, generate_blob_sas

from rowvec.store.azure import AzureStore
from rowvec.store.protocol import Store

LINK_LIFETIME = timedelta(hours=1)

# Clocks differ: a link that begins now is refused by a server that is a minute behind.
_EARLIER = timedelta(minutes=5)


def links(store: Store, lifetime: timedelta = LINK_LIFETIME) -> Callable[[str], str | None]:
    """What gives a link to read one object by its name, or None where nobody can sign one.

    A folder has no links. An account key signs by itself; a login of azure-identity is lent a key for as long (that
    takes the role Storage Blob Delegator); a SAS token signs nothing.
    """
    if not isinstance(store, AzureStore):
        return lambda _: None
    start = datetime.now(UTC) - _EARLIER
    expiry = start + _EARLIER + lifetime
    signing = _signing(store.client, store.place.account_url, start, expiry)
    if signing is None:
        return lambda _: None

    def link(name: str) -> str:
        signature = generate_blob_sas(
            account_name=store.place.account,
            container_name=store.place.container,
            blob_name=store.place.prefix + name,
            permission=BlobSasPermissions(read=True),
            start=start,
            expiry=expiry,
            **signing,
        )
        return f"{store.location(name)}?{signature}"

    return link


def _signing(client: ContainerClient, account_url: str, start: datetime, expiry: datetime) -> dict[str, Any] | None:
    """What ``generate_blob_sas`` signs with."""
    # The client keeps an account key in a policy of its own, and any other credential as it was given.
    credential = cast("object", client.credential)
    key: object = getattr(credential, "account_key", None)
    if isinstance(key, str):
        return {"account_key": key}
    if not isinstance(credential, TokenCredential):
        return None
    try:
        with BlobServiceClient(account_url, credential=credential, retry_total=0, connection_timeout=10) as service:
            return {"user_delegation_key": service.get_user_delegation_key(start, expiry)}
    except AzureError:
        # Not allowed to, or not answered: a picture without a link is still a picture.
        return None
