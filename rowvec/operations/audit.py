"""Audit: compares every row and every vector of source, artifacts, journal and vector table."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from psycopg import sql

from rowvec.embedders import open_embedder
from rowvec.errors import ArtifactCorrupt, Inconsistent, PipelineBusy
from rowvec.index.checks import conditions
from rowvec.ledger import pipelines
from rowvec.ledger.behind import refuse_older_ledger
from rowvec.ledger.generations import effective
from rowvec.ledger.journal import replay, unrecorded
from rowvec.ledger.known_manifests import known_manifests
from rowvec.ledger.pipelines import PipelineId
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import Connection, open_target, use_one_snapshot, without_blocking
from rowvec.postgres.fragments import key_json, same_key
from rowvec.postgres.migrations import install
from rowvec.postgres.names import ScratchTable
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable, stored_table
from rowvec.runtime.display import plain
from rowvec.runtime.figures import counted
from rowvec.runtime.home import home, temporary_folder
from rowvec.sources.row_security import restriction
from rowvec.stages.alarms import Alarm
from rowvec.stages.extract.open import open_source
from rowvec.stages.images.lost import lost_images
from rowvec.stages.totals import totals
from rowvec.store import artifact as artifacts
from rowvec.store.artifact import Artifact
from rowvec.store.manifest import read_chain
from rowvec.store.open import open_store
from rowvec.store.protocol import Store
from rowvec.vectors.fingerprint import Identity
from rowvec.vectors.layout import of_arrow

Kind = Literal["missing", "stale", "orphaned", "corrupt"]
KINDS: tuple[Kind, ...] = ("missing", "stale", "orphaned", "corrupt")

LISTED = 100
_UNRECORDED = (
    "the newest manifest does not have all that the vector table has, because a run was killed or is at work: the next "
    "sync, or an audit with repair, records it"
)
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One row that is not right, and why."""

    kind: Kind
    key: tuple[str | None, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class LostObject:
    """An artifact, an image, a manifest or a journal entry that is missing, corrupt, or contradicts its checksum."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What was found: each row once, with the first reason."""

    counts: dict[Kind, int]
    findings: tuple[Finding, ...]
    """The first findings, up to ``LISTED``."""
    objects: tuple[LostObject, ...]
    more_objects: int = 0
    """Lost images beyond the first ``LISTED``."""
    shown_in_part: str | None = None
    """One sentence if policies decide which rows of the source the audit was shown."""
    is_recorded: bool = True
    """Whether the newest manifest has all that the vector table has."""

    @property
    def consistent(self) -> bool:
        """Whether nothing was found."""
        return not self.total

    @property
    def is_finished(self) -> bool:
        """Whether nothing is wrong, and a sync has nothing to record that a killed run has left."""
        return self.consistent and self.is_recorded

    @property
    def notes(self) -> list[str]:
        """What a person should know besides, one sentence each."""
        return [note for note in (self.shown_in_part, None if self.is_recorded else _UNRECORDED) if note]

    @property
    def total(self) -> int:
        """Rows and objects that are not right."""
        return sum(self.counts.values()) + self.lost

    @property
    def lost(self) -> int:
        """Objects that are not right."""
        return len(self.objects) + self.more_objects

    def as_json(self, repaired: int = 0) -> dict[str, Any]:
        """Counts by kind, up to 100 offending keys with the reason, and the objects."""
        return {
            "consistent": self.consistent,
            **self.counts,
            "repaired": repaired,
            "rows": [{"key": list(f.key), "kind": f.kind, "reason": f.reason} for f in self.findings],
            "objects": [{"name": lost.name, "reason": lost.reason} for lost in self.objects[:LISTED]],
            "notes": self.notes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """The journal that was read."""

    has_unrecorded_keys: bool
    """Whether there are changed rows that no manifest has recorded yet."""


@dataclass(slots=True, kw_only=True)
class Audited:
    """A finished audit, with the connection whose temporary tables hold everything that it found."""

    connection: Connection
    resolved: Pipeline
    pipeline_id: PipelineId
    table: VectorTable
    store: Store
    objects: list[LostObject] = field(default_factory=list[LostObject])
    lost_artifacts: list[str] = field(default_factory=list[str])
    more_objects: int = 0
    journal: Journal | None = None
    """None if there is no journal to compare with."""
    journal_is_sound: bool = True
    is_recorded: bool = True

    @property
    def identity(self) -> Identity:
        """The embedder's identity."""
        return open_embedder(self.resolved.embedder).identity

    @property
    def key_json(self) -> sql.Composed:
        """The key of a row ``t`` of the vector table in the form that ``findings`` has."""
        return key_json(self.table.key, "t")

    def report(self) -> Audit:
        """What was found."""
        found = dict(self.connection.execute(query("audit", "counts")).fetchall())
        listed = self.connection.execute(query("audit", "listed", limit=sql.Literal(LISTED))).fetchall()
        return Audit(
            counts={kind: found.get(kind, 0) for kind in KINDS},
            findings=tuple(Finding(kind, tuple(key), reason) for kind, key, reason in listed),
            objects=tuple(self.objects),
            more_objects=self.more_objects,
            shown_in_part=restriction(self.connection, self.resolved),
            is_recorded=self.is_recorded,
        )


def audit(pipeline: Pipeline) -> Audit:
    """Everything that is not right. Changes nothing."""
    with audited(effective(pipeline)) as found:
        return found.report()


@contextmanager
def audited(pipeline: Pipeline) -> Generator[Audited]:
    """Compare rows with source and journal, vectors with bits and artifacts; the findings are in scratch tables.

    Raises ``LedgerBehind`` if the database was set back, ``PipelineBusy`` if no attempt sees one state between merges.
    """
    resolved = resolve(pipeline)
    with open_target(resolved, "rowvec audit") as connection:
        install(connection)
        pipelines.check_identity(connection, pipeline, open_embedder(resolved.embedder).identity)
        found = Audited(
            connection=connection,
            resolved=resolved,
            pipeline_id=pipelines.find(connection, pipeline),
            table=stored_table(connection, resolved),
            store=open_store(resolved.artifacts),
        )
        refuse_older_ledger(connection, found.store, pipeline.name)
        for _ in range(_ATTEMPTS):
            before = _last_merge(found)
            _compare(found, pipeline.name)
            # If a run has merged meanwhile, what was read before the merge does not fit what was read after it.
            if _last_merge(found) == before:
                break
        else:
            raise PipelineBusy(f"runs of the pipeline {pipeline.name} merge faster than it can be audited; try later")
        yield found


def _last_merge(found: Audited) -> tuple[Any, ...]:
    values = {"pipeline_id": found.pipeline_id}
    return found.connection.execute(query("audit", "last_merge"), values).fetchone() or ()


def _compare(found: Audited, pipeline_name: str) -> None:
    """Read journal, artifacts and source as far as they are outside the database; then compare in one snapshot."""
    found.objects.clear()
    found.lost_artifacts.clear()
    found.connection.execute(query("audit", "drop_tables"))
    found.connection.execute(query("audit", "findings"))
    with temporary_folder(home()) as folder:
        _read_journal(found, pipeline_name, folder)
        _read_artifacts(found, folder)
    _look_for_images(found, pipeline_name)
    source = open_source(found.connection, found.resolved, found.identity, found.pipeline_id)
    add_differences = source.compare_for_audit(found.table)
    without_blocking(lambda: _compare_at_once(found, add_differences))


def _compare_at_once(found: Audited, add_differences: Callable[[], None]) -> None:
    with found.connection.transaction():
        use_one_snapshot(found.connection)
        add_differences()
        found.connection.execute(query("audit", "explain_kept", pipeline_id=sql.Literal(found.pipeline_id)))
        _vectors(found)
        _against_journal(found)
        _against_artifacts(found)


def _vectors(found: Audited) -> None:
    checks = conditions(found.table)
    reasons = (
        query("audit", "reason", condition=condition, reason=sql.Literal(f"{name}: {detail}"))
        for name, (condition, detail) in checks.items()
    )
    bad = sql.SQL(" OR ").join(sql.SQL("({})").format(condition) for condition, _ in checks.values())
    parts = {"table": found.table.identifier, "key_json": found.key_json}
    found.connection.execute(query("audit", "vectors", reasons=sql.SQL(" ").join(reasons), bad=bad, **parts))
    pipeline_id = sql.Literal(found.pipeline_id)
    found.connection.execute(query("audit", "unknown_run", pipeline_id=pipeline_id, **parts))


def _read_journal(found: Audited, pipeline_name: str, folder: Path) -> None:
    """Read what each row's run recorded into ``journal_state``, and check the journal against its own checksum."""
    connection, changes = found.connection, unrecorded(found.pipeline_id)
    values = {"pipeline_id": found.pipeline_id, "unrecorded": changes.as_string(connection)}
    found.journal, found.journal_is_sound = None, True
    newest = connection.execute(query("audit", "newest_manifest"), values).fetchone()
    found.is_recorded = newest is not None and not newest[1]
    if newest is None:
        return  # no run of this pipeline has written a manifest yet, or the next run restarts the journal
    try:
        chain = read_chain(found.store, newest[0], known_manifests(connection, pipeline_name).checksums)
        replay(connection, found.store, chain, folder)
    except ArtifactCorrupt as error:
        found.objects.append(LostObject(newest[0], str(error)))
        found.journal_is_sound = False
        return
    found.journal = Journal(has_unrecorded_keys=newest[1])
    last = chain[-1]
    summed = totals(connection, found.table, ScratchTable("journal_state"))
    if summed != (last.manifest.counts["rows"], last.manifest.checksum):
        found.objects.append(LostObject(last.name, "the journal does not match the checksum of this manifest"))
        found.journal_is_sound = False


def _against_journal(found: Audited) -> None:
    if found.journal is None:
        return
    table, changes = found.table, unrecorded(found.pipeline_id)
    same = same_key(table.key, "s", "t")
    is_told: sql.Composable = sql.SQL("true")
    if found.journal.has_unrecorded_keys:
        is_told = query("audit", "told", unrecorded=changes, same_key=same)
    parts = {"table": table.identifier, "key_json": found.key_json, "same_key": same, "told": is_told}
    found.connection.execute(query("audit", "journal", **parts))
    found.connection.execute(query("audit", "journal_only", **parts))


def _read_artifacts(found: Audited, folder: Path) -> None:
    """Copy the sha256 of each vector in the artifacts, in wire format, into ``held``: 64 bytes per row travel."""
    connection, local = found.connection, folder / "artifact.parquet"
    connection.execute(query("audit", "hold_vectors"))
    for artifact_id, artifact in _artifacts(found):
        try:
            found.store.get(artifact.name, local, artifact.sha256, at_most=artifact.bytes)
            with connection.transaction():
                _hold(found, local, artifact_id)
        except ArtifactCorrupt as error:
            found.objects.append(LostObject(artifact.name, str(error)))
            found.lost_artifacts.append(artifact.name)
        finally:
            local.unlink(missing_ok=True)
    connection.execute(query("audit", "analyze_held"))


def _look_for_images(found: Audited, pipeline_name: str) -> None:
    found.more_objects = 0
    if found.resolved.what != "images":
        return
    named, count = lost_images(found.connection, found.store, found.table, pipeline_name, LISTED)
    found.objects += [LostObject(name, reason) for name, reason in named]
    found.more_objects = count - len(named)


def _against_artifacts(found: Audited) -> None:
    parts = {"table": found.table.identifier, "key_json": found.key_json}
    found.connection.execute(query("audit", "other_vector", send=found.table.layout.send, **parts))
    found.connection.execute(query("audit", "not_held", **parts))


def _hold(found: Audited, artifact: Path, artifact_id: int) -> None:
    layout = found.table.layout
    with found.connection.cursor() as cursor, cursor.copy(query("audit", "copy_held")) as copy:
        copy.set_types(["bytea", "bytea", "int8"])
        for batch in artifacts.read_artifact(artifact):
            wires = layout.wires(of_arrow(batch.column("embedding"), layout.dimensions))
            for fingerprint, wire in zip(batch.column("fingerprint").to_pylist(), wires, strict=True):
                copy.write_row((fingerprint, hashlib.sha256(wire).digest(), artifact_id))


def _artifacts(found: Audited) -> Iterator[tuple[int, Artifact]]:
    statement = query("audit", "artifacts", pipeline_id=sql.Literal(found.pipeline_id))
    for artifact_id, name, sha256, rows, size in found.connection.execute(statement).fetchall():
        yield artifact_id, Artifact(name=name, sha256=sha256, rows=rows, bytes=size)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """The outcome of one audit; ``as_json`` is what ``rowvec audit --json`` prints."""

    pipeline: str
    found: Audit
    """The findings; after a repair, what is left."""
    repaired: int = 0

    def as_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return self.found.as_json(self.repaired)

    def verdict(self) -> str:
        """One sentence, verdict first."""
        repaired = f" {self.repaired:,} repaired." if self.repaired else ""
        if self.found.consistent:
            shown = ", as far as row level security shows the source to this role" if self.found.shown_in_part else ""
            return f"Consistent: source, artifacts and vector table agree{shown}.{repaired}"
        counts = [f"{self.found.counts[kind]:,} {kind}" for kind in KINDS if self.found.counts[kind]]
        if self.found.lost:
            counts.append(f"{counted(self.found.lost, 'objects')} lost or corrupt")
        return f"INCONSISTENT: {', '.join(counts)}.{repaired}"

    def as_markdown(self) -> str:
        """A summary to read in ten seconds."""
        kinds = " | ".join(KINDS)
        counts = " | ".join(f"{self.found.counts[kind]:,}" for kind in KINDS)
        lines = [
            f"## {plain(self.verdict())}",
            "",
            *(line for note in self.found.notes for line in (f"- **Note**: {plain(note)}", "")),
            f"| {kinds} | objects | repaired |",
            f"|{'--:|' * (len(KINDS) + 2)}",
            f"| {counts} | {self.found.lost:,} | {self.repaired:,} |",
        ]
        if not self.found.consistent:
            lines += [
                "",
                "Run it again with `repair`: vectors come from artifacts first, and the others are paid for again.",
            ]
        return "\n".join(lines)

    def alarms(self) -> list[Alarm]:
        """The alarms that this report raises."""
        if self.found.consistent:
            return []
        counts = {**self.found.counts, "objects": self.found.lost, "repaired": self.repaired}
        return [Alarm(name="rowvec.audit.inconsistent", sentence=self.verdict(), payload=counts)]


def conclude_audit(report: AuditReport) -> AuditReport:
    """The report, if nothing is wrong or a repair has left nothing wrong. Raises ``Inconsistent`` with it otherwise."""
    if report.found.consistent:
        return report
    named = [f"{', '.join(map(str, finding.key))}: {finding.reason}" for finding in report.found.findings[:3]]
    named += [f"{lost.name}: {lost.reason}" for lost in report.found.objects[:3]]
    raise Inconsistent(
        f"the audit of {report.pipeline} found it {report.verdict().rstrip('.')} ({'; '.join(named)}); "
        "run the audit with repair",
        report,
    )
