"""How a command's error is shown, and the exit status that it gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import typer

from rowvec.cli import render, verified
from rowvec.cli.output import emit, err, fail, gathered, heading
from rowvec.errors import AwaitingJobs, Inconsistent, RowvecError, UsageError
from rowvec.runtime.display import one_line
from rowvec.runtime.home import local_faults

DONE, FAILED, WRONG_USE = 0, 1, 2

# Neither done nor failed: a script that goes on to read the vector table must be able to tell this apart.
AWAITING = 3

# The best first.
_RANKS = (DONE, AWAITING, WRONG_USE, FAILED)


def status_of(job: Callable[[], int | None], as_json: bool) -> int:
    """Run a job and show the error that ends it; returns the exit status, which a job itself may return."""
    try:
        with local_faults():
            return job() or DONE
    except Inconsistent as error:
        _show_inconsistent(error, as_json)
        return FAILED
    except AwaitingJobs as pause:
        found: dict[str, Any] = {"awaiting": {"jobs": pause.jobs, "texts": pause.texts}, "message": str(pause)}
        emit(found, as_json, lambda: render.awaiting(found["message"]))
        return AWAITING
    except RowvecError as error:
        fail(str(error), as_json)
        return WRONG_USE if isinstance(error, UsageError) else FAILED


def each(files: Sequence[Path], as_json: bool, job: Callable[[Path], int | None], *, headings: bool = True) -> None:
    """Run a job for each file, one after the other, also after one that fails; ends with the worst exit status.

    One file is as if there were no list: its JSON is one object, and its error is raised. Of several files, the JSON is
    one list with one object for each, in the order given, which has its file as ``file``.
    """
    if len(files) == 1:
        status = job(files[0]) or DONE
    else:
        with gathered(as_json):
            statuses: list[int] = []
            for file in files:
                with heading(str(file), as_json) if headings or as_json else nullcontext():
                    statuses.append(status_of(partial(job, file), as_json))
        status = worst(statuses)
    if status:
        raise typer.Exit(status)


def worst(statuses: Sequence[int]) -> int:
    """The worst of several exit statuses: a failure, then wrong use, then a job that awaits, then done."""
    return max(statuses, key=_RANKS.index, default=DONE)


def _show_inconsistent(error: Inconsistent, as_json: bool) -> None:
    """Print the report that the error carries, or its message if it has none."""
    from rowvec.operations.audit import AuditReport  # late: the command has imported it already
    from rowvec.operations.verify import Verified
    from rowvec.stages.report import RestoreReport, SyncReport

    report = error.report
    if isinstance(report, AuditReport):
        # An audit's report names all that is wrong; the error would only repeat it.
        emit(report.as_json(), as_json, lambda: render.audit(report.as_json()))
        return
    if isinstance(report, Verified):
        emit(report.as_json(), as_json, lambda: verified.show(report))
        return
    if isinstance(report, SyncReport):
        emit(report.as_json(), as_json, lambda: render.sync(report))
    elif isinstance(report, RestoreReport):
        emit(report.as_json(), as_json, lambda: render.restore(report))
    else:
        fail(str(error), as_json)
        return
    err.print(f"rowvec: {one_line(str(error))}", style="red", soft_wrap=True)
