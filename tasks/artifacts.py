"""What a run shows in the Prefect UI: a summary to read in ten seconds, checks, rejected rows, and earlier runs."""

from __future__ import annotations

import re
from textwrap import wrap
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect import get_client
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.runtime import flow_run
from rowvec_tasks.names import artifact_key

from rowvec.errors import AwaitingJobs, RowvecError
from rowvec.ledger.history import History, look_back
from rowvec.pipeline import Pipeline
from rowvec.runtime.display import one_line, plain
from rowvec.runtime.figures import counted
from rowvec.stages.report import RestoreReport, SyncReport

if TYPE_CHECKING:
    from rowvec.index.tuning.results import Tuning
    from rowvec.operations.audit import AuditReport
    from rowvec.operations.erasure.forget import Erasure
    from rowvec.operations.pruned import Pruned
    from rowvec.operations.rebuild import RebuildReport

_ROWS_SHOWN = 10
# Characters, for all columns of a table but two narrow ones.
_TEXT_WIDTH = 72
_PAGES = {"rebuild": "rebuild", "audit": "audit", "prune": "prune", "forget": "forget", "index": "index-state"}
"""The artifact that says how a flow ended; that of syncs and restores is the summary."""


def verdict(result: Any) -> str:
    """What a job says of its result, in one sentence: the message of the run's state, and what its artifacts show."""
    return str(result["reason"]) if isinstance(result, dict) else result.verdict()


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
    rejected = f"{counted(len(history.rejects), 'rejected rows')} that cannot be embedded"
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
    """Replace the page of the flow's run before, which would go on saying that all is well."""
    flow = flow_run.get_flow_name() or "sync"
    what = "run" if flow in ("sync", "restore") else flow
    head = f"## FAILED: a {what} of {plain(pipeline.name)} ended early; readers see nothing half done"
    text = f"{head}\n\n{plain(str(error))}\n\n{_ALARMS}"
    _page(pipeline.name, _PAGES.get(flow, "summary"), text, f"FAILED: {error}")


def remove_generation_pages(pipeline: str, rebuild: UUID | None = None) -> None:
    """Delete the pages that the syncs within a rebuild, the present flow run, published for the generation it builds.

    Once the rebuild has failed or switched, no later run would bring them up to date; its own page says what happened.
    """
    run_id = rebuild or UUID(flow_run.get_id())
    of_parts = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run_id]))
    of_generation = re.compile(rf"{artifact_key(pipeline, '')}\d+-")
    with get_client(sync_client=True) as client:
        for artifact in client.read_artifacts(flow_run_filter=of_parts):
            if artifact.key and of_generation.match(artifact.key):
                client.delete_artifact(artifact.id)


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
    _table(pipeline.name, "prune", rows, verdict(found))


def show_erased(pipeline: Pipeline, found: Erasure) -> None:
    """Publish the certificate of an erasure, which names no row."""
    text = found.certificate.as_markdown() if found.certificate else f"## {found.verdict()}"
    _page(pipeline.name, "forget", text, found.verdict())


def show_index(pipeline: Pipeline, found: Tuning | dict[str, Any]) -> None:
    """Publish the state of the index, or what a tuner found."""
    figures = found if isinstance(found, dict) else found.as_json()
    rows = [{"what": name, "value": str(value)} for name, value in figures.items()]
    _table(pipeline.name, "index-state", rows, verdict(found))


_ALARMS = "What to do is in docs/how-to/fix-a-red-run.md."


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
    width = _TEXT_WIDTH // max(1, len(rows[0]) - 2) if rows else _TEXT_WIDTH
    cells = [{name: _cell(value, width) for name, value in row.items()} for row in rows]
    return create_table_artifact(cells, key=artifact_key(pipeline, what), description=plain(description))


def _cell(text: str, width: int) -> str:
    """The text in lines: the UI wraps no cell, and shows nothing of a table beyond the width of its page."""
    return "\n".join(plain(line) for line in wrap(one_line(text), width))
