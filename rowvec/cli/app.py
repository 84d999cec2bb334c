"""The commands, and the exit status with which each ends."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from rowvec.cli import render
from rowvec.cli.ending import ENDING
from rowvec.cli.flow_loader import load_flow, run_flow
from rowvec.cli.index_command import index
from rowvec.cli.names_command import adopt, rename
from rowvec.cli.options import AsJson, File
from rowvec.cli.output import emit, err, fail
from rowvec.cli.prefect_server import prefect_api
from rowvec.cli.progress_bars import shown_progress
from rowvec.cli.stack.commands import down, up
from rowvec.cli.terminal import stderr_shown
from rowvec.errors import AwaitingJobs, Inconsistent, RowvecError, UsageError
from rowvec.operations import search_pictures
from rowvec.operations.audit import AuditReport, conclude_audit, run_audit
from rowvec.operations.prune import Pruned, prune
from rowvec.operations.rebuild import RebuildReport, plan_rebuild, rollback
from rowvec.operations.rejects import rejects
from rowvec.operations.search import search
from rowvec.operations.switch import retire_for_good
from rowvec.pipeline import Pipeline, json_schema
from rowvec.pipeline.file import load
from rowvec.runtime.display import one_line
from rowvec.runtime.home import local_faults
from rowvec.runtime.private import files_for_others, private_files
from rowvec.sync import dry_run
from rowvec.sync.report import RestoreReport, SyncReport

app = typer.Typer(
    name="rowvec",
    help="Keeps vectors in Postgres (pgvector) consistent with the rows they were computed from.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

# Neither done nor failed: a script that goes on to read the vector table must be able to tell this apart.
_AWAITING = 3


@app.command()
def sync(
    file: File,
    as_json: AsJson = False,
    max_delete_fraction: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Replaces the pipeline's own limit, in this run only."),
    ] = None,
    wait: Annotated[
        float, typer.Option("--wait", min=0, help="Minutes to wait if another run of the pipeline is at work.")
    ] = 0,
) -> None:
    """Bring the vector table in step with its source: the main command."""
    pipeline = _with_limit(load(file), max_delete_fraction)
    when_busy = "wait" if wait else "fail"
    report: SyncReport = run_flow("sync", pipeline=pipeline, cause="command", when_busy=when_busy, wait_minutes=wait)
    emit(report.as_json(), as_json, lambda: render.sync(report))


@app.command()
def plan(file: File, as_json: AsJson = False) -> None:
    """Show what a sync would do: rows, tokens, cost. Spends nothing."""
    found = dry_run.plan(load(file))
    emit(found, as_json, lambda: render.plan(found))


@app.command("search")
def search_rows(
    file: File,
    query: Annotated[
        str | None, typer.Argument(help="What to look for; leave it out with --image.", show_default=False)
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Look for rows that are like the image in this file.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=10_000, help="How many results.")] = 10,
    where: Annotated[
        str | None,
        typer.Option(help="A filter over key and metadata columns, e.g. \"year >= 1900 AND author = 'Klee'\"."),
    ] = None,
    mode: Annotated[
        str, typer.Option(help="adaptive (shortlist by the index, exact rerank), exact, ann, bits, hybrid.")
    ] = "adaptive",
    words: Annotated[
        str | None, typer.Option(help="With --mode hybrid: the words to look for, if they differ from the query.")
    ] = None,
    grid: Annotated[
        Path | None, typer.Option(help="Draw the images found side by side into this file (.png, .svg).")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the images found into this file, as a page.")] = None,
    as_json: AsJson = False,
) -> None:
    """Search the vector table by meaning, or by similarity to an image."""
    pipeline, question = load(file), _question(query, image)
    search_pictures.check_outputs(pipeline, grid, html)
    found = search(pipeline, question, k, where, mode, words)
    with files_for_others():
        search_pictures.show_pictures(pipeline, question, where, found["results"], grid, html)
    emit(found, as_json, lambda: render.search(str(question), found))


@app.command()
def audit(
    file: File,
    repair: Annotated[bool, typer.Option("--repair", help="Repair what is found, from artifacts first.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare source, artifacts and vector table both ways.

    With --repair it is a flow run, which the Prefect UI shows. A plain audit runs without Prefect: it only reads, and
    Prefect would make it 2 to 10 seconds slower.
    """
    pipeline = load(file)
    if repair:
        report: AuditReport = run_flow("audit", pipeline=pipeline, repair=True)
    else:
        report = conclude_audit(AuditReport(pipeline=pipeline.name, found=run_audit(pipeline)))
    emit(report.as_json(), as_json, lambda: render.audit(report.as_json()))


@app.command()
def restore(
    file: File,
    manifest: Annotated[
        str | None, typer.Option(help="Restore the table as of this manifest; give its name in the store.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build the vector table from its artifacts alone: reads no source and calls no embedder."""
    report: RestoreReport = run_flow("restore", pipeline=load(file), manifest=manifest)
    emit(report.as_json(), as_json, lambda: render.restore(report))


@app.command("prune")
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
        found = prune(pipeline, timedelta(days=older_than), compact=compact)
    emit(found.as_json(), as_json, lambda: render.prune(found))


app.command()(index)


@app.command()
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
        found = plan_rebuild(pipeline)
        emit(found, as_json, lambda: render.rebuild_plan(found))
    elif roll_back:
        retired = rollback(pipeline)
        done = {"rolled_back": True, "retired_table": retired}
        emit(done, as_json, lambda: render.rolled_back(pipeline.target.table, retired))
    elif drop_old:
        dropped = {"dropped": retire_for_good(pipeline)}
        emit(dropped, as_json, lambda: render.dropped(dropped["dropped"]))
    else:
        report: RebuildReport = run_flow("rebuild", pipeline=pipeline, max_cost=max_cost, switch=not no_switch)
        emit(report.as_json(), as_json, lambda: render.rebuild(report))


app.command()(rename)
app.command()(adopt)


@app.command("rejects")
def list_rejects(
    file: File,
    retry: Annotated[bool, typer.Option("--retry", help="Let the next sync try all of them again.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the rows that cannot be embedded, with the reasons."""
    found = rejects(load(file), retry=retry)
    emit(found, as_json, lambda: render.rejects(found))


@app.command()
def schema(as_json: AsJson = False) -> None:
    """Print the JSON Schema of the pipeline file."""
    sys.stdout.write(json.dumps(json_schema(), indent=None if as_json else 2, ensure_ascii=False) + "\n")


@app.command()
def demo(as_json: AsJson = False) -> None:
    """Sync and search a gallery of 240 paintings on the embedded Postgres: no account, no network."""
    from rowvec.cli.demo import gallery  # late: only this command needs it

    sync_flow = load_flow("sync")
    with prefect_api(), shown_progress(err):
        report = gallery.run(sync_flow, quiet=as_json)
    emit(report, as_json, lambda: None)


app.command()(up)
app.command()(down)


def main() -> None:
    """Run the command line and exit with its status. Typer explains wrong arguments, with status 2."""
    as_json = "--json" in sys.argv
    ENDING.watch_signals(as_json=as_json)
    try:
        with private_files(), stderr_shown():
            _run(as_json)
    finally:
        # Whatever a command that was interrupted raises on its way out.
        if ENDING.begun:
            ENDING.finish()


def _run(as_json: bool) -> None:
    try:
        with local_faults():
            app()
    except Inconsistent as error:
        _show_inconsistent(error, as_json)
        sys.exit(1)
    except AwaitingJobs as pause:
        found: dict[str, Any] = {"awaiting": {"jobs": pause.jobs, "texts": pause.texts}, "message": str(pause)}
        emit(found, as_json, lambda: render.awaiting(found["message"]))
        sys.exit(_AWAITING)
    except RowvecError as error:
        fail(str(error), as_json)
        sys.exit(2 if isinstance(error, UsageError) else 1)


def _question(query: str | None, image: Path | None) -> str | Path:
    if query is not None and image is not None:
        raise UsageError("a search is by a text or by --image, not by both; leave one out")
    question = image if query is None else query
    if question is None:
        raise UsageError("write what to search for, or name an image with --image PATH")
    return question


def _show_inconsistent(error: Inconsistent, as_json: bool) -> None:
    """Print the report that the error carries, or its message if it has none."""
    report = error.report
    if isinstance(report, AuditReport):
        # An audit's report names all that is wrong; the error would only repeat it.
        emit(report.as_json(), as_json, lambda: render.audit(report.as_json()))
        return
    if isinstance(report, SyncReport):
        emit(report.as_json(), as_json, lambda: render.sync(report))
    elif isinstance(report, RestoreReport):
        emit(report.as_json(), as_json, lambda: render.restore(report))
    else:
        fail(str(error), as_json)
        return
    err.print(f"rowvec: {one_line(str(error))}", style="red", soft_wrap=True)


def _with_limit(pipeline: Pipeline, limit: float | None) -> Pipeline:
    if limit is None:
        return pipeline
    changed: dict[str, Any] = {"max_delete_fraction": limit}
    return pipeline.model_copy(update={"validation": pipeline.validation.model_copy(update=changed)})
