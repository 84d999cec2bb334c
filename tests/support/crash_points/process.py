"""One step of a case in a process of its own, forked from one that has imported rowvec."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from rowvec.errors import RowvecError
from rowvec.operations.audit import audit
from rowvec.pipeline import Pipeline
from rowvec.stages import retries
from tests.support.crash_points.cases import CASES, FOLDER, Case
from tests.support.crash_points.points import At, Seen, Watch

Part = Literal["before", "run", "audit", "again"]
"""All that happens before the command; the command; an audit; the command as it is run again, and an audit."""

# What a fork would import late.
_PRELOAD = [
    "tests.support.crash_points.preloaded",
    "tests.support.crash_points.trial",
    "tests.support.servers.lines",
    "pytest",
    "httpcore",
    "httpcore2",
    "numpy.ma",
    "openai.resources.embeddings",
    "pyarrow.parquet",
    "rowvec.embedders.openai.texts",
    "rowvec.store.folder",
    "truststore",
    "urllib3",
]
_LONGEST_SECONDS = 120
_context = multiprocessing.get_context("forkserver")
_by_name = {case.name: case for case in CASES}


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended."""

    state: Literal["done", "failed", "killed"]
    message: str = ""
    seen: tuple[Seen, ...] = ()
    """The points it came to, if it was watched."""
    met: bool = False
    """Whether a fault happened that did not end it."""
    expected: bool = True
    """Whether it failed with an error of rowvec's, which is one sentence for a person."""


def run(
    case: Case, part: Part, environment: Mapping[str, str], *, watched: bool = False, at: At | None = None
) -> Ended:
    """Run a part of a case in the environment of this process, with these changes; wait until it has ended."""
    _context.set_forkserver_preload(_PRELOAD)
    ours, theirs = _context.Pipe(duplex=False)
    given = (case.name, part, {**os.environ, **environment}, watched or at is not None, at, theirs)
    process = _context.Process(target=_work, args=given, daemon=True)
    process.start()
    theirs.close()
    try:
        ended = ours.recv() if ours.poll(_LONGEST_SECONDS) else Ended("failed", f"it took over {_LONGEST_SECONDS} s")
    except EOFError:
        ended = Ended("killed")
    finally:
        ours.close()
    process.join(5)
    if process.exitcode is None:
        process.kill()
        process.join()
    if ended.state == "killed" and process.exitcode != -9:
        ended = Ended("failed", f"it ended with {process.exitcode} and said nothing")
    process.close()
    return ended


def _work(name: str, part: Part, environment: dict[str, str], watched: bool, at: At | None, answer: Connection) -> None:
    folder = Path(environment[FOLDER])
    log = os.open(folder.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    faulthandler.dump_traceback_later(_LONGEST_SECONDS - 5)
    # As often as always, but without the waits: the database is there again at once.
    retries.WAITS_SECONDS = (0.01,) * len(retries.WAITS_SECONDS)
    case = _by_name[name]
    watch = Watch(folder, at)
    try:
        pipeline = case.pipeline()
        if watched:
            watch.start()
        _steps(case, part, pipeline)
        ended = Ended("done", seen=tuple(watch.seen), met=watch.happened)
    except Exception as error:  # noqa: BLE001 # the one who asked decides what it means
        traceback.print_exc()
        message, expected = f"{type(error).__name__}: {error}", isinstance(error, RowvecError)
        ended = Ended("failed", message, tuple(watch.seen), watch.happened, expected)
    answer.send(ended)
    answer.close()


def _steps(case: Case, part: Part, pipeline: Pipeline) -> None:
    if part == "before":
        for step in case.before:
            step(pipeline)
    elif part == "run":
        case.run(pipeline)
    else:
        if part == "again":
            (case.again or case.run)(pipeline)
        if case.after:
            # The source, the vector table, the artifacts and the journal agree, by rowvec's own judgement.
            found = audit(case.after(pipeline))
            assert found.consistent, found.as_json()
