"""The account, container and prefix of a pipeline's blob URL, and how its credential signs in to Azure."""

from __future__ import annotations

import base64
import binascii
import logging
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential, TokenCredential
from azure.core.pipeline.transport import RequestsTransport

from rowvec.errors import UsageError
from rowvec.runtime.azure_identity import default_credential
from rowvec.runtime.request_deadline import Deadlines, bounded_session
from rowvec.store.protocol import checked_name

_CONTAINER = re.compile(r"(?=.{3,63}$)[a-z0-9]+(?:-[a-z0-9]+)*|\$root")
_RIGHT_URL = "write https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX"

# At half a megabit per second. The longest answer that names no range is a list of 5,000 names.
DEADLINES = Deadlines(grace_seconds=60.0, slowest=64 << 10, answer_bytes=8 << 20)

_SIGNATURE = re.compile(r"(\bsig=)[^&\s\"']+", re.IGNORECASE)

Credential = AzureNamedKeyCredential | AzureSasCredential | TokenCredential


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The parts of a blob URL."""

    account_url: str
    account: str
    container: str
    prefix: str
    """Empty, or ending with a slash."""


def place_of(url: str) -> Place:
    """Account, container and prefix of a blob URL; if the host does not name the account, the path begins with it.

    Raises ``UsageError`` without the URL, which may hold a SAS token.
    """
    try:
        parts = urlsplit(url)
        host = f"{parts.hostname or ''}" + (f":{parts.port}" if parts.port else "")
    except ValueError:
        raise UsageError(f"artifacts.url cannot be read; {_RIGHT_URL}") from None
    if parts.query or parts.fragment or parts.username:
        raise UsageError("artifacts.url holds more than an address; put the SAS token or key into artifacts.credential")
    segments = [unquote(segment) for segment in parts.path.split("/") if segment]
    root = f"{parts.scheme}://{host}"
    if ".blob." in host or parts.scheme == "https":
        account = host.partition(".")[0]
    elif segments:
        account = segments.pop(0)
        root = f"{root}/{account}"
    else:
        account = ""
    if not (account and segments and _CONTAINER.fullmatch(segments[0])):
        raise UsageError(f"artifacts.url names no account and container; {_RIGHT_URL}")
    prefix = "/".join(segments[1:])
    if prefix:
        checked_name(prefix)
    return Place(account_url=root, account=account, container=segments[0], prefix=f"{prefix}/" if prefix else "")


def credential_of(place: Place, credential: str | None) -> Credential:
    """How to sign in: by key, by SAS token, or, for ``None``, by azure-identity.

    Raises ``UsageError`` if the credential is none of these; the message does not repeat it.
    """
    if credential is None:
        return default_credential()
    text = credential.strip()
    parts = dict(part.split("=", 1) for part in text.split(";") if "=" in part)
    if "AccountKey" in parts:
        if parts.get("AccountName", place.account) != place.account:
            raise UsageError("artifacts.credential is a connection string for another account than artifacts.url")
        return _account_key(place, parts["AccountKey"])
    token = parts.get("SharedAccessSignature", text).removeprefix("?")
    if "sig=" in token:
        # Azure's own logs leave the signature out, but its HTTP library would log it with each URL.
        logging.getLogger("urllib3.connectionpool").addFilter(_without_signature)
        return AzureSasCredential(token)
    return _account_key(place, text)


def bounded_transport() -> RequestsTransport:
    """What sends the requests of one client, each of which ends by its deadline; the client closes it."""
    return RequestsTransport(session=bounded_session(DEADLINES), session_owner=True)


def _without_signature(record: logging.LogRecord) -> bool:
    """Pass a log record on with the signature of every URL replaced."""
    record.msg, record.args = _SIGNATURE.sub(r"\1***", record.getMessage()), ()
    return True


def _account_key(place: Place, key: str) -> AzureNamedKeyCredential:
    try:
        base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        raise UsageError(
            "artifacts.credential is neither a connection string nor an account key nor a SAS token"
        ) from None
    return AzureNamedKeyCredential(place.account, key)
