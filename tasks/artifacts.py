"""What a run shows in the Prefect UI: a summary to read in ten seconds, checks, rejected rows, and earlier runs."""

from __future__ import annotations

from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from rowvec_tasks.names import artifact_key

from rowvec.errors import AwaitingJobs, RowvecError
from rowvec.ledger.history import History, look_back
from rowvec.operations.audit import AuditReport
from rowvec.operations.prune import Pruned
from rowvec.operations.rebuild import RebuildReport
from rowvec.pipeline import Pipeline
from rowvec.runtime.display import plain
from rowvec.stages.report import RestoreReport, SyncReport

_ROWS_SHOWN = 10


def show(pipeline: Pipeline, report: SyncReport | RestoreReport) -> None:
    """Publish a report under the pipeline's own keys, so that the UI keeps a history of each artifact."""
    name, history = report.pipeline, look_back(pipeline)
    rows = [
        {
            "check": check.name.replace("_", " "),
            "holds": "yes" if check.ok else "NO",
            "detail": check.detail,
            "rows": ", ".join(check.rows[:_ROWS_SHOWN]),
        }
        for check in report.checks
    ]
    rejected = f"{len(history.rejects):,} rejected row(s): they cannot be embedded"
    pages = {
        "checks": _table(name, "checks", rows, "What must hold after a run"),
        "earlier runs": _page(name, "history", history.as_markdown(), "The last runs next to each other"),
        # Published even if there are none, or the page would go on showing the rows of an earlier run.
        "rejected rows": _table(name, "rejects", _rejected(history), rejected),
    }
    # Relative links, because the server may have several addresses.
    links = ", ".join(f"[{text}](/artifacts/artifact/{page})" for text, page in pages.items())
    _page(name, "summary", f"{report.as_markdown()}\n- **More**: {links}", report.verdict())


def show_failure(pipeline: Pipeline, error: RowvecError) -> None:
    """Replace the summary of the run before, which would go on saying that all is well."""
    head = f"## FAILED: a run of {plain(pipeline.name)} ended early; readers see nothing half done"
    _page(pipeline.name, "summary", f"{head}\n\n{plain(str(error))}\n\n{_ALARMS}", f"FAILED: {error}")


def show_waiting(pipeline: Pipeline, pause: AwaitingJobs) -> None:
    """Replace the summary of the run before by one that says what this run waits for."""
    text = (
        f"## Waiting: {plain(pipeline.name)} is as it was, until all its vectors are there\n\n{plain(str(pause))}\n\n"
        f"- **Jobs at the provider**: {pause.jobs:,}\n- **Texts in them**: {pause.texts:,}\n"
        "- **Next**: the next sync takes their answers; docs/how-to/cost.md explains how."
    )
    _page(pipeline.name, "summary", text, f"Waiting: {pause}")


def show_rebuild(report: RebuildReport) -> None:
    """Publish what a rebuild did."""
    rows = [{"what": name, "value": str(value)} for name, value in report.as_json().items()]
    _table(report.pipeline, "rebuild", rows, report.verdict())


def show_audit(report: AuditReport) -> None:
    """Publish what an audit found."""
    _page(report.pipeline, "audit", report.as_markdown(), report.verdict())
    rows = [
        *({"what": ", ".join(map(str, f.key)), "kind": f.kind, "reason": f.reason} for f in report.found.findings),
        *({"what": lost.name, "kind": "object", "reason": lost.reason} for lost in report.found.objects),
    ]
    _table(report.pipeline, "audit-findings", rows, report.verdict())


def show_pruned(pipeline: Pipeline, found: Pruned) -> None:
    """Publish what was deleted, or would be."""
    rows = [{"what": name, "value": str(value)} for name, value in found.as_json().items() if name != "names"]
    done = "Deleted" if found.applied else "Would be deleted"
    description = f"{done}: {found.artifacts:,} artifact(s), {found.bytes:,} bytes; {found.manifests:,} manifest(s)"
    _table(pipeline.name, "prune", rows, description)


def show_index(pipeline: Pipeline, found: dict[str, object]) -> None:
    """Publish the state of the index, or what a tuner found."""
    rows = [{"what": name, "value": str(value)} for name, value in found.items()]
    reason = str(found.get("reason") or "The index")
    _table(pipeline.name, "index-state", rows, reason)


_ALARMS = "What to do is in docs/how-to/operations.md, under *When a run is red*."


def _rejected(history: History) -> list[dict[str, str]]:
    return [
        {
            "key": ", ".join(map(str, reject.key)),
            "reason": reject.reason,
            "detail": reject.detail,
            "attempts": str(reject.attempts),
            "last seen": f"{reject.last_seen:%Y-%m-%d %H:%M}",
        }
        for reject in history.rejects
    ]


def _page(pipeline: str, what: str, text: str, description: str) -> Any:
    """Publish Markdown, in which the caller has made plain what is not ours; returns the artifact's id."""
    return create_markdown_artifact(text, key=artifact_key(pipeline, what), description=plain(description))


def _table(pipeline: str, what: str, rows: list[dict[str, str]], description: str) -> Any:
    """Publish a table; Prefect's UI reads each cell and the description as Markdown. Returns the artifact's id."""
    cells = [{name: plain(value) for name, value in row.items()} for row in rows]
    return create_table_artifact(cells, key=artifact_key(pipeline, what), description=plain(description))
