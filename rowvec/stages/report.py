"""The report of a run: its counts, cost, checks and verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from opentelemetry import metrics

from rowvec.errors import Inconsistent
from rowvec.pipeline.model import BILLED, What
from rowvec.runtime.display import plain
from rowvec.runtime.figures import counted, dollars

ROW_SECURITY = "row security"
"""The check whose detail says that the source was shown in part."""

QUEUE = "queue of changes"
"""The check of a run that compared the whole source: why it did, and what the queue had missed."""
MEMORY = "memory of the server"
"""The check whose detail says that the index does not fit into the server's buffers; its value: ms per vector."""
PART = "compared in part"
"""The check whose detail says that the run compared only what has changed, and when the whole was last compared."""

_KINDS = ("new", "changed", "metadata_only", "deleted", "unchanged", "embedded", "reused")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that must hold, and whether it does."""

    name: str
    ok: bool
    detail: str
    rows: tuple[str, ...] = ()
    """Offending keys, up to 100."""
    value: float | None = None
    """The measured number, if the check measures one."""


class _Checked:
    """A report with checks: what both kinds of report say of those that failed."""

    __slots__ = ()
    checks: tuple[Check, ...]

    @property
    def failed_checks(self) -> tuple[Check, ...]:
        """The checks that do not hold."""
        return tuple(check for check in self.checks if not check.ok)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport(_Checked):
    """The outcome of one sync; ``as_json`` is what ``rowvec sync --json`` prints."""

    run_id: int
    pipeline: str
    new: int
    changed: int
    metadata_only: int
    deleted: int
    unchanged: int
    empty: int = 0
    """Rows of the source without content: they have no vector, and are no rejects."""
    rejected: int
    embedded: int
    """Distinct contents that were sent to the embedder and came back as vectors."""
    reused: int
    """Rows whose vector existed already: it was paid for earlier, or another row has the same content."""
    what: What = "texts"
    """Whether the contents are texts or images."""
    images: int = 0
    """Images that were put into the store."""
    tokens: int
    cost_usd: float
    pending: int
    """Rows written to the source after this run read it for the last time; the next run embeds them."""
    rows: int
    consistent: bool
    k: int
    """Neighbours per query in the recall measurement."""
    recall_at_k: float | None
    checksum: str
    artifacts: int
    manifest: str | None
    checks: tuple[Check, ...]
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    waiting: int | None = None
    """Entries that came into the queue of changes while the run worked; None: the pipeline has no queue."""
    oldest_seconds: float | None = None
    """How long the oldest of them has waited; None if none waits."""
    verified_run: int | None = None
    """The last run that compared the whole source, and it agreed: this run, unless it compared only what changed."""
    missed_by_queue: int | None = None
    """Rows that had changed and were not in the queue; None if the run did not compare everything, or had no queue."""
    root: str | None = None
    """The root over key, fingerprint and vector of every row, in hex; None: the next whole comparison computes it."""
    certified_run: int | None = None
    """The run that has computed it: this one, or the last that changed a row. Without a root, the last that had one."""

    def as_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return asdict(self)

    @property
    def shown_in_part(self) -> str | None:
        """One sentence if policies decide which rows of the source the run was shown."""
        return next((check.detail for check in self.checks if check.name == ROW_SECURITY), None)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the report should know, although the run is consistent."""
        return tuple(check.detail for check in self.checks if check.name in (ROW_SECURITY, MEMORY))

    @property
    def compared_in_part(self) -> str | None:
        """One sentence if the run compared only the rows that a queue of changes named."""
        return next((check.detail for check in self.checks if check.name == PART), None)

    def verdict(self) -> str:
        """One sentence, verdict first."""
        if self.consistent:
            shown = ", as far as row level security shows it to this role" if self.shown_in_part else ""
            if self.compared_in_part:
                rows = counted(self.rows, "vectors")
                return f"Consistent for what has changed{shown}, of {rows}: {self.compared_in_part}."
            return f"Consistent: {counted(self.rows, 'vectors agree', 'vector agrees')} with the source{shown}."
        names = ", ".join(check.name for check in self.failed_checks)
        return f"INCONSISTENT: {counted(len(self.failed_checks), 'checks')} failed ({names})."

    def as_markdown(self) -> str:
        """A summary that a person can read in ten seconds."""
        measured = "not measured" if self.compared_in_part else "not measured (no index)"
        recall = measured if self.recall_at_k is None else f"{self.recall_at_k:.3f}"
        shows_images = self.what == "images"
        failed = [f"- **FAILED** {plain(check.name)}: {plain(check.detail)}" for check in self.failed_checks]
        lines = [
            f"## {plain(self.verdict())}",
            "",
            *failed,
            *(f"- **Note**: {plain(note)}" for note in self.notes),
            "",
            "| new | changed | metadata only | deleted | unchanged | empty | rejected | pending |",
            "|--:|--:|--:|--:|--:|--:|--:|--:|",
            f"| {self.new:,} | {self.changed:,} | {self.metadata_only:,} | {self.deleted:,} | {self.unchanged:,} "
            f"| {self.empty:,} | {self.rejected:,} | {self.pending:,} |",
            "",
            f"| {self.what} embedded | {'images stored | ' if shows_images else ''}vectors reused "
            f"| {BILLED[self.what]} | cost | recall@{self.k} | seconds |",
            f"|{'--:|' * (7 if shows_images else 6)}",
            f"| {self.embedded:,} | {f'{self.images:,} | ' if shows_images else ''}{self.reused:,} "
            f"| {self.tokens:,} | {dollars(self.cost_usd)} | {recall} | {self.seconds.get('total', 0.0):,.1f} |",
            "",
            f"- **Seconds by stage**: {_by_stage(self.seconds)}",
            f"- **Checksum** of (key, fingerprint): `{self.checksum}`",
            *self._certified(),
            f"- **Artifacts**: {self.artifacts}, manifest {plain(self.manifest or 'none: nothing was embedded')}",
            f"- **Run** {self.run_id} of pipeline {plain(self.pipeline)}",
            *self._freshness(),
        ]
        return "\n".join(lines)

    def _certified(self) -> list[str]:
        if self.root:
            return [f"- **Root** of (key, fingerprint, vector): `{self.root}`, by run {self.certified_run}"]
        last = f"the last one is that of run {self.certified_run}" if self.certified_run else "there is none yet"
        return [f"- **Root**: not computed by a run that compares a part; {last}"]

    def _freshness(self) -> list[str]:
        """What the summary of a pipeline with a queue of changes adds."""
        if self.waiting is None:
            return []
        wait = "no change waits"
        if self.oldest_seconds is not None:
            wait = (
                f"{counted(self.waiting, 'changes wait', 'change waits')}, the oldest for {self.oldest_seconds:,.1f} s"
            )
        rows = counted(self.missed_by_queue or 0, "rows")
        missed = [f"- **ALARM**: the queue had missed {rows}"] if self.missed_by_queue else []
        return [*missed, f"- **Freshness**: {wait}; run {self.verified_run} has compared the whole source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreReport(_Checked):
    """The outcome of one restore; ``as_json`` is what ``rowvec restore --json`` prints."""

    run_id: int
    pipeline: str
    manifest: str
    """The newest manifest that was restored from."""
    rows: int
    missing: int
    """Rows without a vector in any readable artifact."""
    artifacts: int
    lost: tuple[str, ...]
    """Artifacts that are missing or corrupt."""
    embedded: int
    """Texts that were sent to an embedder: none."""
    consistent: bool
    k: int
    """Neighbours per query in the recall measurement."""
    recall_at_k: float | None
    checksum: str
    checks: tuple[Check, ...]
    seconds: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return asdict(self)

    def verdict(self) -> str:
        """One sentence, verdict first."""
        if self.consistent:
            artifacts = counted(self.artifacts, "artifacts")
            return f"Restored: {counted(self.rows, 'vectors')} from {artifacts}, as the manifest says."
        names = ", ".join(check.name for check in self.failed_checks)
        return f"INCOMPLETE: {counted(len(self.failed_checks), 'checks')} failed ({names})."

    def as_markdown(self) -> str:
        """A summary that a person can read in ten seconds."""
        recall = "not measured (no index)" if self.recall_at_k is None else f"{self.recall_at_k:.3f}"
        lines = [
            f"## {plain(self.verdict())}",
            "",
            f"- **Rows**: {self.rows:,} restored, {self.missing:,} without a vector in any artifact",
            f"- **Artifacts**: {self.artifacts:,} read, {len(self.lost):,} lost or corrupt; nothing was embedded",
            f"- **Recall@{self.k}**: {recall}",
            f"- **Seconds by stage**: {_by_stage(self.seconds)}",
            f"- **Checksum** of (key, fingerprint): `{self.checksum}`",
            f"- **Manifest** {plain(self.manifest)}",
            f"- **Run** {self.run_id} of pipeline {plain(self.pipeline)}",
        ]
        return "\n".join(lines)


R = TypeVar("R", SyncReport, RestoreReport)


def _by_stage(seconds: dict[str, float]) -> str:
    """Seconds of each stage. Batches are in several stages at once, so the sum is more than the total."""
    return ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items() if stage != "total")


def record(report: SyncReport) -> None:
    """Send the figures of a sync that has its verdict to OpenTelemetry."""
    meter = metrics.get_meter("rowvec")
    of = {"rowvec.pipeline": report.pipeline}
    rows = meter.create_counter("rowvec.rows", "{row}", "Rows by outcome.")
    for kind in _KINDS:
        rows.add(getattr(report, kind), {**of, "rowvec.kind": kind})
    meter.create_counter("rowvec.tokens", "{token}", "Tokens that were paid for.").add(report.tokens, of)
    meter.create_counter("rowvec.cost", "USD", "What the embedder's provider bills.").add(report.cost_usd, of)
    runs = meter.create_counter("rowvec.runs", "{run}", "Runs that reached a verdict.")
    runs.add(1, {**of, "rowvec.consistent": report.consistent})
    seconds = meter.create_histogram(
        "rowvec.duration", "s", "Seconds of a run by stage, added up over concurrent batches."
    )
    for stage, spent in report.seconds.items():
        seconds.record(spent, {**of, "rowvec.stage": stage})
    meter.create_gauge("rowvec.table.rows", "{row}", "Rows of the vector table.").set(report.rows, of)
    meter.create_gauge("rowvec.rejects", "{row}", "Rejected rows.").set(report.rejected, of)
    if report.waiting is not None:
        record_waiting(report.pipeline, report.waiting, report.oldest_seconds)
    if report.missed_by_queue is not None:
        meter.create_counter("rowvec.changes.missed", "{row}", "Rows that a queue of changes had missed.").add(
            report.missed_by_queue, of
        )
    if report.recall_at_k is not None:
        recall = meter.create_gauge("rowvec.recall", "1", "Recall at k of the index, by the run's sample.")
        recall.set(report.recall_at_k, {**of, "rowvec.k": report.k})


def record_waiting(pipeline: str, entries: int, oldest_seconds: float | None) -> None:
    """Send to OpenTelemetry what waits in a queue of changes, and for how long."""
    meter, of = metrics.get_meter("rowvec"), {"rowvec.pipeline": pipeline}
    meter.create_gauge("rowvec.changes.waiting", "{change}", "Entries in the queue of changes.").set(entries, of)
    age = meter.create_gauge("rowvec.changes.age", "s", "How long the oldest change has waited; 0 if none waits.")
    age.set(oldest_seconds or 0.0, of)


def conclude(report: R) -> R:
    """Return the report if the run succeeded. Raises ``Inconsistent`` with the report otherwise."""
    if report.consistent:
        return report
    first = report.failed_checks[0]
    rows = f" (rows {', '.join(first.rows[:5])})" if first.rows else ""
    raise Inconsistent(
        f"run {report.run_id} of {report.pipeline} is inconsistent: {first.name}: {first.detail}{rows}", report
    )
