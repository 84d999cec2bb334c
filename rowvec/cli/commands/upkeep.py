"""The commands that keep a vector table and its store: audit, restore, prune, rebuild and rejects."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rowvec.cli import render
from rowvec.cli.commands.options import AsJson, File, Files, load
from rowvec.cli.failures import each
from rowvec.cli.flow_loader import one_server, run_flow
from rowvec.cli.output import emit
from rowvec.errors import UsageError

if TYPE_CHECKING:
    from rowvec.operations.audit import AuditReport
    from rowvec.operations.pruned import Pruned
    from rowvec.operations.rebuild import RebuildReport
    from rowvec.stages.report import RestoreReport


def audit(
    files: Files,
    repair: Annotated[bool, typer.Option("--repair", help="Repair what is found, from artifacts first.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare source, artifacts and vector table both ways.

    With --repair it is a flow run, which the Prefect UI shows. A plain audit runs without Prefect: it only reads, and
    Prefect would make it 2 to 10 seconds slower.
    """

    def one(file: Path) -> None:
        pipeline = load(file)
        if repair:
            report: AuditReport = run_flow("audit", pipeline=pipeline, repair=True)
        else:
            from rowvec.operations.audit import AuditReport, conclude_audit
            from rowvec.operations.audit import audit as run_audit

            report = conclude_audit(AuditReport(pipeline=pipeline.name, found=run_audit(pipeline)))
        emit(report.as_json(), as_json, lambda: render.audit(report.as_json()))

    with one_server("audit") if repair and len(files) > 1 else nullcontext():
        each(files, as_json, one)


def restore(
    file: File,
    manifest: Annotated[
        str | None, typer.Option(help="Restore the table as of this manifest; give its name in the store.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build the vector table from its artifacts alone: reads no source and calls no embedder."""
    report: RestoreReport = run_flow("restore", pipeline=load(file), manifest=manifest or "")
    emit(report.as_json(), as_json, lambda: render.restore(report))


def prune_store(
    file: File,
    older_than: Annotated[
        float, typer.Option("--older-than", min=0, help="For so many days runs stay restorable and artifacts are kept.")
    ] = 30,
    apply: Annotated[
        bool, typer.Option("--apply", help="Delete; without it, the command only lists what it would delete.")
    ] = False,
    compact: Annotated[
        bool, typer.Option("--compact", help="Merge small artifacts into large ones first; only with --apply.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete artifacts and manifests that are old and no longer needed.

    With --apply it is a flow run, which the Prefect UI shows. Without it the command runs without Prefect: it only
    lists what it would delete, and Prefect would make it 2 to 10 seconds slower.
    """
    pipeline = load(file)
    if apply:
        found: Pruned = run_flow("prune", pipeline=pipeline, older_than_days=older_than, apply=True, compact=compact)
    else:
        from rowvec.operations.prune import prune

        found = prune(pipeline, timedelta(days=older_than), compact=compact)
    emit(found.as_json(), as_json, lambda: render.prune(found))


def rebuild(
    file: File,
    plan_only: Annotated[bool, typer.Option("--plan", help="Show what it would cost. Spends nothing.")] = False,
    max_cost: Annotated[
        float | None, typer.Option("--max-cost", min=0, help="US dollars; a rebuild that would cost more is refused.")
    ] = None,
    no_switch: Annotated[
        bool, typer.Option("--no-switch", help="Build and compare only; run again to switch.")
    ] = False,
    roll_back: Annotated[
        bool, typer.Option("--rollback", help="Make the generation before the live one again.")
    ] = False,
    questions: Annotated[
        Path | None,
        typer.Option(help="Labelled questions, as for rowvec evaluate: no switch if they are answered worse."),
    ] = None,
    drop_old: Annotated[
        bool, typer.Option("--drop-old", help="Drop the generations that are not live; --rollback is then impossible.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build the next generation of the vector table next to the live one, and switch to it."""
    pipeline = load(file)
    if sum((plan_only, roll_back, drop_old)) > 1:
        raise UsageError("--plan, --rollback and --drop-old exclude each other; give one of them")
    if plan_only:
        from rowvec.operations.rebuild import plan_rebuild

        found = plan_rebuild(pipeline)
        emit(found, as_json, lambda: render.rebuild_plan(found))
    elif roll_back:
        from rowvec.operations.rebuild import rollback

        retired = rollback(pipeline)
        done = {"rolled_back": True, "retired_table": retired}
        emit(done, as_json, lambda: render.rolled_back(pipeline.target.table, retired))
    elif drop_old:
        from rowvec.operations.switch import retire_for_good

        dropped = {"dropped": retire_for_good(pipeline)}
        emit(dropped, as_json, lambda: render.dropped(dropped["dropped"]))
    else:
        more: dict[str, object] = {} if max_cost is None else {"max_cost": max_cost}
        more |= {} if questions is None else {"questions": str(questions.resolve())}
        report: RebuildReport = run_flow("rebuild", pipeline=pipeline, switch=not no_switch, **more)
        emit(report.as_json(), as_json, lambda: render.rebuild(report))


def list_rejects(
    file: File,
    retry: Annotated[bool, typer.Option("--retry", help="Let the next sync try all of them again.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the rows that cannot be embedded, with the reasons."""
    from rowvec.operations.rejects import rejects

    found = rejects(load(file), retry=retry)
    emit(found.as_json(), as_json, lambda: render.rejects(found))
