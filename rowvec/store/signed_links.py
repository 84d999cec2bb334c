"""Links to objects in a private container that are valid for a short time, signed with the store's credential."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from azure.core.credentials import TokenCredential
from azure.core.exceptions import AzureError
from azure.storage.blob import BlobSasPermissions, BlobServiceClient, ContainerClient, generate_blob_sas

from rowvec.store.azure import AzureStore
from rowvec.store.azure_account import bounded_transport
from rowvec.store.protocol import Store

LINK_LIFETIME = timedelta(hours=1)

# Clocks differ: a server whose clock is a minute behind refuses a link that begins now.
_EARLIER = timedelta(minutes=5)


def links(store: Store, lifetime: timedelta = LINK_LIFETIME) -> Callable[[str], str | None]:
    """A function that gives a link to one object by its name, or None if the credential cannot sign links.

    A folder has no links. An account key can sign. A login of azure-identity gets a temporary key, which needs the role
    Storage Blob Delegator. A SAS token cannot sign.
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
    """The credential that ``generate_blob_sas`` signs with."""
    # The client keeps an account key inside a policy object, and any other credential unchanged.
    credential = cast("object", client.credential)
    key: object = getattr(credential, "account_key", None)
    if isinstance(key, str):
        return {"account_key": key}
    if not isinstance(credential, TokenCredential):
        return None
    try:
        with BlobServiceClient(
            account_url,
            credential=credential,
            retry_total=0,
            connection_timeout=10,
            transport=bounded_transport(),
        ) as service:
            return {"user_delegation_key": service.get_user_delegation_key(start, expiry)}
    except AzureError:
        # No permission or no answer: a picture without a link is still useful.
        return None
