"""The commands, and how each ends."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from rowvec.cli import render
from rowvec.cli.flow_loader import load_flow
from rowvec.cli.output import emit, err, fail
from rowvec.cli.progress_bars import shown_progress
from rowvec.cli.stack import commands as stack_commands
from rowvec.errors import AwaitingJobs, Inconsistent, RowvecError, UsageError
from rowvec.index.tuning.results import Tuning
from rowvec.index.tuning.tuner import Budget
from rowvec.operations import index as index_stage
from rowvec.operations import prune as retention
from rowvec.operations import rebuild as rebuilding
from rowvec.operations import rejects as rejects_stage
from rowvec.operations import search as search_stage
from rowvec.operations import search_pictures, switch
from rowvec.operations.audit import run_audit
from rowvec.operations.index import PICTURES
from rowvec.operations.repair import prepare_repair
from rowvec.pipeline import Pipeline, json_schema
from rowvec.pipeline.file import load
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

# Neither done nor failed: a script that would read the vector table must be able to tell.
_AWAITING = 3

File = Annotated[Path, typer.Argument(help="The pipeline file.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
MaxDelete = Annotated[
    float | None,
    typer.Option("--max-delete-fraction", min=0, max=1, help="For this once, instead of the pipeline's own limit."),
]


@app.command()
def sync(
    file: File,
    as_json: AsJson = False,
    max_delete_fraction: MaxDelete = None,
    wait: Annotated[
        float, typer.Option("--wait", min=0, help="Minutes to wait while another run of the pipeline is at work.")
    ] = 0,
) -> None:
    """Bring the vector table in step with its source: the main job."""
    pipeline = _with_limit(load(file), max_delete_fraction)
    flow = load_flow("sync")
    with shown_progress(err):
        report = flow(pipeline=pipeline, cause="command", when_busy="wait" if wait else "fail", wait_minutes=wait)
    emit(report.as_json(), as_json, lambda: render.sync(report))


@app.command()
def plan(file: File, as_json: AsJson = False) -> None:
    """Tell what a sync would do: rows, tokens, cost. Spends nothing."""
    found = dry_run.plan(load(file))
    emit(found, as_json, lambda: render.plan(found))


@app.command()
def search(
    file: File,
    query: Annotated[
        str | None, typer.Argument(help="What to look for; left out with --image.", show_default=False)
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Look for what is like the image in this file.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=10_000, help="How many results.")] = 10,
    where: Annotated[
        str | None,
        typer.Option(help="A filter over key and metadata columns, e.g. \"year >= 1900 AND author = 'Klee'\"."),
    ] = None,
    mode: Annotated[
        str, typer.Option(help="adaptive (shortlist by the index, exact rerank), exact, ann, bits, hybrid.")
    ] = "adaptive",
    words: Annotated[
        str | None, typer.Option(help="With --mode hybrid: the words to look for, if not those of the query.")
    ] = None,
    grid: Annotated[
        Path | None, typer.Option(help="Draw the images found side by side into this file (.png, .svg).")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the images found as a page into this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Search the vector table by meaning, or by what an image is like."""
    pipeline, question = load(file), _question(query, image)
    search_pictures.check_outputs(pipeline, grid, html)
    found = search_stage.search(pipeline, question, k, where, mode, words)
    search_pictures.show_pictures(pipeline, question, where, found["results"], grid, html)
    emit(found, as_json, lambda: render.search(str(question), found))


@app.command()
def audit(
    file: File,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what is found, from artifacts first.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare source, artifacts and vector table both ways."""
    pipeline = load(file)
    found = prepare_repair(pipeline) if repair else run_audit(pipeline)
    repaired = 0
    if repair and not found.consistent:
        flow = load_flow("sync")
        with shown_progress(err):
            flow(pipeline=pipeline, cause="repair", when_busy="fail")
        left = run_audit(pipeline)
        repaired, found = found.total - left.total, left
    emit(found.as_json(repaired), as_json, lambda: render.audit(found.as_json(repaired)))
    if not found.consistent:
        raise typer.Exit(1)


@app.command()
def restore(
    file: File,
    manifest: Annotated[
        str | None, typer.Option(help="Restore the table as of this manifest, by its name in the store.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build the vector table from its artifacts alone: no source is read, no embedder asked."""
    pipeline = load(file)
    flow = load_flow("restore")
    with shown_progress(err):
        report = flow(pipeline=pipeline, manifest=manifest)
    emit(report.as_json(), as_json, lambda: render.restore(report))


@app.command()
def prune(
    file: File,
    older_than: Annotated[
        float, typer.Option("--older-than", min=0, help="Days that runs stay restorable, and artifacts are kept.")
    ] = 30,
    apply: Annotated[bool, typer.Option("--apply", help="Do it; without, only tell what would go.")] = False,
    compact: Annotated[
        bool, typer.Option("--compact", help="Write small artifacts into large ones first; with --apply.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete artifacts and manifests that are old and that nothing needs."""
    found = retention.prune(load(file), timedelta(days=older_than), apply=apply, compact=compact)
    emit(found.as_json(), as_json, lambda: render.prune(found))


@app.command()
def index(
    file: File,
    tune: Annotated[
        bool, typer.Option("--tune", help="Measure which index suits these vectors, and keep the choice for syncs.")
    ] = False,
    seconds: Annotated[float | None, typer.Option(min=1, help="With --tune: what it may take; 600.")] = None,
    memory: Annotated[int | None, typer.Option(min=64, help="With --tune: MiB that one build may take; 2,048.")] = None,
    rows: Annotated[int | None, typer.Option(min=1000, help="With --tune: rows copied at most; 200,000.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="With --tune: draw recall against latency and size into this file (.png, .svg).")
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build it anew though nothing is wrong with it.")] = False,
    as_json: AsJson = False,
) -> None:
    """See to the index: build what is missing, worn or wrong, and tell how it does; or find out which is best."""
    pipeline = load(file)
    given = {"--seconds": seconds, "--memory": memory, "--rows": rows, "--plot": plot}
    check_options(tune=tune, rebuild=rebuild, given=[name for name, value in given.items() if value])
    if plot:
        check_plot(plot)
    if tune:
        with shown_progress(err):
            tuning = index_stage.tune(pipeline, budget(seconds, memory, rows))
        emit(tuning.as_json(), as_json, lambda: render.tuning(tuning))
        if plot:
            draw(tuning, plot)
        return
    with shown_progress(err):
        found = index_stage.see_to_index(pipeline, rebuild=rebuild)
    emit(found, as_json, lambda: render.index(found))


@app.command()
def rebuild(
    file: File,
    plan_only: Annotated[bool, typer.Option("--plan", help="Tell what it would take. Spends nothing.")] = False,
    max_cost: Annotated[
        float | None, typer.Option("--max-cost", min=0, help="US dollars; a rebuild that would cost more is refused.")
    ] = None,
    no_switch: Annotated[bool, typer.Option("--no-switch", help="Build and compare; run again to switch.")] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="Let the generation before be read again.")] = False,
    drop_old: Annotated[
        bool, typer.Option("--drop-old", help="Drop the generations that are not read; --rollback is then gone.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build the next generation of the vector table beside the one that is read, and switch to it."""
    pipeline = load(file)
    if sum((plan_only, rollback, drop_old)) > 1:
        raise UsageError("--plan, --rollback and --drop-old exclude each other; give one of them")
    if plan_only:
        found = rebuilding.plan_rebuild(pipeline)
        emit(found, as_json, lambda: render.rebuild_plan(found))
    elif rollback:
        kept = rebuilding.rollback(pipeline)
        done = {"rolled_back": True, "retired_table": kept}
        emit(done, as_json, lambda: render.rolled_back(pipeline.target.table, kept))
    elif drop_old:
        dropped = {"dropped": switch.retire_for_good(pipeline)}
        emit(dropped, as_json, lambda: render.dropped(dropped["dropped"]))
    else:
        flow = load_flow("rebuild")
        with shown_progress(err):
            report = flow(pipeline=pipeline, max_cost=max_cost, switch=not no_switch)
        emit(report.as_json(), as_json, lambda: render.rebuild(report))


@app.command()
def rejects(
    file: File,
    retry: Annotated[bool, typer.Option("--retry", help="Let the next sync try all of them again.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the rows that cannot be embedded, with the reasons."""
    found = rejects_stage.rejects(load(file), retry=retry)
    emit(found, as_json, lambda: render.rejects(found))


@app.command()
def schema(as_json: AsJson = False) -> None:
    """Print the JSON Schema of the pipeline file."""
    sys.stdout.write(json.dumps(json_schema(), indent=None if as_json else 2, ensure_ascii=False) + "\n")


@app.command()
def demo(as_json: AsJson = False) -> None:
    """Sync and search a gallery of 240 paintings on the embedded Postgres: no account, no network."""
    from rowvec.cli.demo import gallery  # late: only this command needs it

    with shown_progress(err):
        report = gallery.run(load_flow("sync"), quiet=as_json)
    emit(report, as_json, lambda: None)


app.command()(stack_commands.up)
app.command()(stack_commands.down)


def main() -> None:
    """Run the command line and exit with its status; wrong words are typer's to explain, with status 2."""
    as_json = "--json" in sys.argv
    try:
        app()
    except Inconsistent as error:
        _tell_inconsistent(error, as_json)
        sys.exit(1)
    except AwaitingJobs as awaited:
        found: dict[str, Any] = {"awaiting": {"jobs": awaited.jobs, "texts": awaited.texts}, "message": str(awaited)}
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


def _tell_inconsistent(error: Inconsistent, as_json: bool) -> None:
    report = error.report
    if isinstance(report, SyncReport):
        emit(report.as_json(), as_json, lambda: render.sync(report))
    elif isinstance(report, RestoreReport):
        emit(report.as_json(), as_json, lambda: render.restore(report))
    else:
        fail(str(error), as_json)
        return
    err.print(f"rowvec: {error}", style="red", markup=False, highlight=False, soft_wrap=True)


def _with_limit(pipeline: Pipeline, limit: float | None) -> Pipeline:
    if limit is None:
        return pipeline
    changed: dict[str, Any] = {"max_delete_fraction": limit}
    return pipeline.model_copy(update={"validation": pipeline.validation.model_copy(update=changed)})


def check_options(*, tune: bool, rebuild: bool, given: list[str]) -> None:
    """Raise ``UsageError`` for options that would be without effect."""
    if given and not tune:
        raise UsageError(f"{given[0]} is for --tune: give both, or neither")
    if tune and rebuild:
        raise UsageError("--tune measures and --rebuild builds: tune first, then run rowvec index --rebuild")


def budget(seconds: float | None, mebibytes: int | None, rows: int | None) -> Budget:
    """What a tuner may spend, by what was given of it."""
    usual = Budget()
    return Budget(
        seconds=seconds or usual.seconds,
        memory=mebibytes * 2**20 if mebibytes else usual.memory,
        rows=rows or usual.rows,
    )


def check_plot(into: Path) -> None:
    """Raise ``UsageError`` where no picture could be written: before the tuner works for minutes, not after."""
    if into.suffix not in PICTURES or not into.parent.is_dir():
        raise UsageError(
            f"--plot {into} cannot be written; name a file that ends in {', '.join(PICTURES)}, in a folder there is"
        )


def draw(tuning: Tuning, into: Path) -> None:
    """Recall against latency and size as a picture. Raises ``UsageError`` where it cannot be written."""
    from rowvec.cli.tuning_plot import plot  # late: matplotlib takes a second

    plot(tuning, into)
