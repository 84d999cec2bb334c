"""The certificate of an erasure: what was removed where, and what could not be reached. It names no key and no text."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from rowvec.operations.erasure.rewrite import Removed
from rowvec.pipeline import Pipeline
from rowvec.pipeline.embedders import PaidEmbedder
from rowvec.runtime.display import plain
from rowvec.runtime.figures import counted

FORMAT = "rowvec.erasure/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """See the module."""

    number: int
    """Of the erasure in ``rowvec.erasures``."""
    pipeline: str
    store: str
    """Its path or URL."""
    run_id: int
    asked_at: datetime
    finished_at: datetime
    salt: str
    """64 hex digits."""
    key_digests: tuple[str, ...]
    """For each key, sha256 over the salt and the key as JSON; see ``digest_of``."""
    objects: tuple[Removed, ...]
    """What went from the store, with checksums before and after."""
    tables: dict[str, int]
    """Rows that went from tables of the database, by table; also by earlier runs that were killed."""
    manifest_before: str | None
    manifest_after: str | None
    """The newest manifest."""
    shared: int
    """Vectors that stay, because other rows have the same text."""
    traces_left: int
    """Traces that a second search of everything has found; always 0."""
    not_reached: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """As one JSON object."""
        moments = {"asked_at": self.asked_at.isoformat(), "finished_at": self.finished_at.isoformat()}
        return {"format": FORMAT, **asdict(self), **moments}

    def as_markdown(self) -> str:
        """For people."""
        lines = [
            f"# Certificate of erasure {self.number}",
            "",
            f"- **Pipeline**: {plain(self.pipeline)}; store: {plain(self.store)}",
            f"- **Asked for**: {_written(self.asked_at)}; **done**: {_written(self.finished_at)}, by run {self.run_id}",
            f"- **Rows**: {counted(len(self.key_digests), 'keys')}, which this page does not name",
            f"- **Newest manifest**: before {plain(self.manifest_before or 'none')}, after "
            f"{plain(self.manifest_after or 'none')}",
            f"- **Searched again**: {counted(self.traces_left, 'traces')} left",
            "",
            "## What was removed",
            "",
            "| what | rows | sha256 before | sha256 after |",
            "|:--|--:|:--|:--|",
            *(f"| {o.what} | {o.rows:,} | {o.sha256} | {o.sha256_after or 'deleted'} |" for o in self.objects),
            *(f"| {plain(table)} | {rows:,} | | |" for table, rows in self.tables.items()),
            "",
            "## What stays",
            "",
            f"- {counted(self.shared, 'texts')} that other rows have too, without these rows' keys and metadata.",
            "",
            "## What could not be reached",
            "",
            *(f"- {plain(sentence)}" for sentence in self.not_reached),
            "",
            "## Which rows",
            "",
            'A digest is the sha256 of the salt and the key as a JSON array of texts, such as `["42"]`, in UTF-8.',
            "",
            f"- Salt: {self.salt}",
            *(f"- {digest}" for digest in self.key_digests),
        ]
        return "\n".join(lines) + "\n"


def new_salt() -> str:
    """A salt for one certificate."""
    return secrets.token_hex(32)


def digest_of(salt: str, key: Sequence[str]) -> str:
    """The digest by which a certificate knows a key: a person who has the key finds it there."""
    written = json.dumps(list(key), ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(salt.encode() + written.encode()).hexdigest()


def not_reached(pipeline: Pipeline, tables: Iterable[str], others: Sequence[str], scratch: int) -> tuple[str, ...]:
    """What an erasure cannot reach.

    ``tables``: those that have lost rows. ``others``: the other pipelines of the database. ``scratch``: scratch tables
    of other commands.
    """
    touched = ", ".join(sorted({*tables, pipeline.target.table}))
    sentences = [
        "Backups, snapshots, delayed standbys and archived WAL of the target database.",
        f"Files of the target database: a deleted row stays there until VACUUM has run and its place is used again. "
        f"VACUUM FULL removes it at once, and blocks the table meanwhile: {touched}, pg_statistic.",
        "Earlier versions, snapshots and soft-deleted blobs, if the store keeps them.",
        "Files of killed runs in ROWVEC_HOME on other machines.",
        "Logs and flow runs of Prefect, logs of the database server, and exported traces: they may name keys.",
        "What clients have read and kept.",
    ]
    changes = getattr(pipeline.source, "changes", None)
    if changes is not None and changes.by == "trigger":
        sentences.append("Keys that wait in the queue of changes: the next sync takes them.")
    embedder = pipeline.embedder
    if isinstance(embedder, PaidEmbedder):
        sentences.append(f"Texts that the provider of {embedder.kind} keeps by its own rules.")
    if scratch:
        sentences.append(
            f"{counted(scratch, 'scratch tables')} (rowvec.scratch_*) of commands that are at work now, or that were "
            "killed less than a week ago. They are dropped when the command ends, or after a week."
        )
    if others:
        named = ", ".join(others[:20])
        sentences.append(f"Other pipelines of this database, if they read the same rows: {named}.")
    return tuple(sentences)


def _written(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
