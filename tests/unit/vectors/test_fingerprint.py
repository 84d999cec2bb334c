"""Identities: what they were before there were prefixes stays what it is, because a change would be paid for."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from rowvec.store.manifest import _is_identity  # pyright: ignore[reportPrivateUsage] # what a manifest may name
from rowvec.vectors.fingerprint import Identity

IDENTITY = Identity(provider="openai", model="m", dimensions=8, preprocessing=1)


def test_without_a_prefix_the_digest_is_that_of_four_fields() -> None:
    fields = {"provider": "openai", "model": "m", "dimensions": 8, "preprocessing": 1}
    assert IDENTITY.digest() == hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).digest()
    assert IDENTITY.as_json() == fields


def test_a_prefix_changes_the_digest_and_is_stored() -> None:
    changed = replace(IDENTITY, document_prefix="passage: ")
    assert changed.digest() != IDENTITY.digest()
    assert Identity(**changed.as_json()) == changed  # pyright: ignore[reportArgumentType] # as the ledger reads it


def test_manifests_name_the_identities_that_embedders_have() -> None:
    assert _is_identity(replace(IDENTITY, document_prefix="passage: "))
    # An embedder may put 48 bits of a digest of its settings there.
    assert _is_identity(replace(IDENTITY, preprocessing=(1 << 48) - 1))
    assert not _is_identity(replace(IDENTITY, preprocessing=1 << 48))
    assert not _is_identity(replace(IDENTITY, document_prefix="\0"))
