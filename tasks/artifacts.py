"""What a run shows in the Prefect UI: a summary to read in ten seconds, and a table of checks."""

from __future__ import annotations

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from rowvec.rebuild import RebuildReport
from rowvec.report import RestoreReport, SyncReport


def show(report: SyncReport | RestoreReport) -> None:
    """Publish a report as artifacts; their keys are the pipeline's, so that the UI keeps a history of each."""
    name = _key(report.pipeline)
    create_markdown_artifact(report.as_markdown(), key=f"{name}-summary", description=report.verdict())
    rows = [
        {"check": c.name, "holds": "yes" if c.ok else "NO", "detail": c.detail, "rows": ", ".join(c.rows[:10])}
        for c in report.checks
    ]
    create_table_artifact(rows, key=f"{name}-checks", description="What must hold after a run")


def show_rebuild(report: RebuildReport) -> None:
    """Publish what a rebuild did."""
    rows = [{"what": name, "value": str(value)} for name, value in report.as_json().items()]
    create_table_artifact(rows, key=f"{_key(report.pipeline)}-rebuild", description=report.verdict())


def _key(pipeline_name: str) -> str:
    """Prefect wants lower case, digits and dashes."""
    return pipeline_name.replace("_", "-").replace(".", "-")
