"""How the clients of Azure sign in without a key; each request for a token ends by its deadline, whatever drips."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rowvec.runtime.request_deadline import Deadlines, bounded_session

if TYPE_CHECKING:
    from azure.identity import DefaultAzureCredential

# A token has a few KB.
TOKEN_DEADLINES = Deadlines(grace_seconds=30.0, slowest=64 << 10, answer_bytes=64 << 10)
_CONNECT_SECONDS = 10.0


def default_credential() -> DefaultAzureCredential:
    """The first of the environment's identities that gives a token: a service principal, a managed identity, the
    user of ``az login`` and others, in Azure's order."""
    # Late imports: they take half a second, and most pipelines have a key.
    from azure.core.pipeline.transport import RequestsTransport
    from azure.identity import DefaultAzureCredential

    # The parts of the credential share the session; none of them may close it or open another one.
    transport = RequestsTransport(
        session=bounded_session(TOKEN_DEADLINES), session_owner=False, connection_timeout=_CONNECT_SECONDS
    )
    return DefaultAzureCredential(transport=transport)
