"""What a run shows in the Prefect UI: a summary to read in ten seconds, and a table of checks."""

from __future__ import annotations

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from rowvec.report import RestoreReport, SyncReport


def show(report: SyncReport | RestoreReport) -> None:
    """Publish a report as artifacts; their keys are the pipeline's, so that the UI keeps a history of each."""
    name = report.pipeline.replace("_", "-")
    create_markdown_artifact(report.as_markdown(), key=f"{name}-summary", description=report.verdict())
    rows = [
        {"check": c.name, "holds": "yes" if c.ok else "NO", "detail": c.detail, "rows": ", ".join(c.rows[:10])}
        for c in report.checks
    ]
    create_table_artifact(rows, key=f"{name}-checks", description="What must hold after a run")
