"""The commands ``rowvec changes`` and ``rowvec watch``: the queue of a source's changes, and syncs as they come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from rowvec.cli.commands.options import AsJson, File, Files, load
from rowvec.cli.flow_loader import load_flow
from rowvec.cli.output import emit, err, out
from rowvec.cli.prefect_server import known_server, prefect_api
from rowvec.errors import UsageError
from rowvec.runtime.display import one_line
from rowvec.runtime.figures import counted
from rowvec.runtime.prefect_server import may_be_named, prefect_module

if TYPE_CHECKING:
    from rowvec.operations.changes import ChangesState
    from rowvec.pipeline import Pipeline
    from rowvec.stages.alarms import Alarm
    from rowvec.stages.report import SyncReport

    Alarming = Callable[[Pipeline, list[Alarm]], None]


def changes(
    file: File,
    install: Annotated[bool, typer.Option("--install", help="Make the queue and its triggers now.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Drop the triggers and the queue.")] = False,
    show_sql: Annotated[
        bool, typer.Option("--sql", help="Print the SQL that installs them, for the table's owner to run.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the queue of changes of a pipeline whose file says source.changes.by: trigger.

    The first sync installs it, if the role owns the source's table. Without an option, the command only reads.
    """
    if sum((install, remove, show_sql)) > 1:
        raise UsageError("--install, --remove and --sql exclude each other; give one of them")
    from rowvec.operations import changes as queue

    pipeline = load(file)
    if show_sql:
        text = queue.statements(pipeline)
        # As it is, and not through the terminal's console: the output is for psql.
        emit({"sql": text}, as_json, partial(print, text, end=""))
        return
    done = queue.install_queue(pipeline) if install else queue.remove_queue(pipeline) if remove else None
    found = done or queue.state(pipeline)
    emit(found.as_json(), as_json, lambda: out.print(_sentence(found), markup=False, highlight=False, soft_wrap=True))


def watch(
    files: Files,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks at a queue.")] = 1.0,
) -> None:
    """Sync each pipeline as soon as a row of its source has changed, until Ctrl-C or SIGTERM.

    Each file says source.changes.by: trigger. One sync is for all that has changed until it begins. If PREFECT_API_URL
    or a profile names a server, or rowvec up runs, each sync is a flow run there; otherwise Prefect is not used. If a
    sync fails, its sentence is printed, the other pipelines go on, and the pipeline is tried again after pauses that
    grow to five minutes.
    """
    from rowvec.operations.watch import Watched
    from rowvec.operations.watch import watch as look

    with _syncing() as (sync, alarm):
        watched = [Watched(read=partial(load, file), sync=sync) for file in files]
        tell(f"watching {counted(len(watched), 'pipelines')}, every {every:g} s; Ctrl-C ends it")
        look(watched, threading.Event(), tell=tell, alarm=alarm, every=every)


@contextmanager
def _syncing() -> Generator[tuple[Callable[[Pipeline], SyncReport], Alarming]]:
    """How a watcher syncs a pipeline, and whom it tells of alarms besides the terminal.

    Prefect takes a second for a run that the database needs half a second for, so it is used only if somebody looks.
    """
    from rowvec.stages.order import CHANGES

    # Its settings for a command come before Prefect is imported, which may have to say what server a profile names.
    flow = load_flow("sync") if may_be_named() else None
    if known_server() is None:
        from rowvec.operations.sync import sync  # late: as the watcher itself

        yield partial(sync, cause=CHANGES), lambda _pipeline, _alarms: None
        return
    loaded = flow or load_flow("sync")

    unless_cancelled = prefect_module().cancellation().unless_cancelled

    def run(pipeline: Pipeline) -> SyncReport:
        parameters = {"pipeline": pipeline, "cause": CHANGES, "when_busy": "wait", "wait_minutes": 1}
        return unless_cancelled(partial(loaded, **parameters))

    with prefect_api():
        yield run, prefect_module().events().tell


def tell(sentence: str) -> None:
    """Print what the watcher does, with the time of day."""
    err.print(f"{datetime.now().astimezone():%H:%M:%S} {one_line(sentence)}", soft_wrap=True)


def _sentence(found: ChangesState) -> str:
    if found.done == "removed":
        return f"The triggers on {found.table} and the queue of {found.pipeline} are gone."
    if not found.installed:
        return (
            f"{found.table} has no complete queue for {found.pipeline}; the next sync makes it and compares everything."
        )
    proved = f"run {found.verified_run} at {found.verified_at}" if found.verified_run else "no run yet"
    return (
        f"The triggers on {found.table} are in place; {found.waiting:,} entries wait. The whole source was last "
        f"compared by {proved}."
    )
