"""Forget: erases rows that the source has deleted, wherever they have left a trace, and certifies it.

Nothing is deleted before what takes its place is written and in use. The ledger's record says what a killed run has
left, so that the next one removes it and goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg import sql

from rowvec.errors import TargetError, UsageError
from rowvec.ledger.generations import effective
from rowvec.ledger.held_lease import Ownership, exclusively_on
from rowvec.ledger.known_manifests import known_manifests
from rowvec.ledger.lease import open_owned
from rowvec.ledger.owned_store import OwnedStore
from rowvec.ledger.pipelines import find, identity_of
from rowvec.ledger.runs import Ending, Run, RunId, clear_leftovers, finish_run, running
from rowvec.operations.erasure.certificate import Certificate, digest_of, new_salt, not_reached
from rowvec.operations.erasure.due import add_due
from rowvec.operations.erasure.history import History, read_history
from rowvec.operations.erasure.keys import Key, erased_keys, make_erased, parse_keys
from rowvec.operations.erasure.presence import leave_out_present, refuse_present, refuse_unsettled
from rowvec.operations.erasure.record import Record, begin, finish, note_leftover, open_record
from rowvec.operations.erasure.rewrite import Removed, rewrite
from rowvec.operations.erasure.scan import Traces, scan
from rowvec.operations.erasure.switch import analyze, analyze_record, delete_obsolete, obsolete_of, switch_ledger
from rowvec.operations.erasure.work import NEEDED, Work, work_on
from rowvec.operations.prune_images import forget_images, unneeded_images
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import open_target, target_url
from rowvec.postgres.migrations import install
from rowvec.postgres.queries import query
from rowvec.runtime.figures import counted
from rowvec.runtime.home import home, temporary_folder
from rowvec.store.open import open_store


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """What was erased, or would be with ``--apply``."""

    applied: bool
    keys: int
    refused: str
    """Why the keys cannot be erased now; empty if they can."""
    artifacts: int
    journal_entries: int
    images: int
    tables: dict[str, int]
    """Rows by table."""
    shared: int
    """Texts that other rows have too, which stay without these rows' keys."""
    places: tuple[str, ...]
    """The names of up to 100 objects with traces."""
    certificate: Certificate | None
    """None without ``--apply``."""

    def verdict(self) -> str:
        """What was done, in one sentence."""
        rows = sum(self.tables.values())
        where = (
            f"{counted(self.artifacts, 'artifacts')}, {counted(self.journal_entries, 'journal entries')}, "
            f"{counted(self.images, 'images')} and {counted(rows, 'rows of tables')}"
        )
        return f"{'Erased' if self.applied else 'Found'} the traces of {counted(self.keys, 'keys')}: {where}."

    def as_json(self) -> dict[str, Any]:
        """As one JSON object."""
        return {**asdict(self), "certificate": self.certificate and self.certificate.as_json()}


_LISTED = 100


def forget(pipeline: Pipeline, keys: Sequence[str] = (), *, apply: bool = False) -> Erasure:
    """Erase the traces of the rows with these keys; without ``apply`` only search for them.

    ``keys``: each as ``erasure.keys.parse_keys`` takes it. Without one, the rows are those that the policy
    ``artifacts.erase_deleted_after`` names. Those of an erasure that was killed are erased in any case.

    Raises ``UsageError`` if there is nothing to do, or if the source or the vector table still has one of the rows, a
    run has not settled, or another database uses the store; ``PipelineBusy`` if another run holds the pipeline;
    ``ArtifactCorrupt`` if an object cannot be searched. Nothing is erased then.
    """
    pipeline = effective(pipeline)
    parsed = parse_keys(keys, pipeline.source.key)
    with _opened(pipeline) as work:
        identity = identity_of(work.connection, find(work.connection, pipeline))
        _check_asked(work, parsed)
        if not apply:
            return _search(work, parsed)
    with (
        running(pipeline, "forget", needed=NEEDED, identity=identity) as run,
        _opened(pipeline, run) as work,
        _all_held(work, run),
    ):
        done = _erase(work, run, parsed)
        finish_run(work.connection, run.run_id, Ending(state="succeeded"))
        return done


@contextmanager
def _opened(pipeline: Pipeline, run: Run | None = None) -> Generator[Work]:
    resolved = resolve(pipeline, NEEDED)
    store = open_store(resolved.artifacts)
    if run is not None:
        store = OwnedStore(store, Ownership(run.lease, resolved.target.url))
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder(home()))
        if run is None:
            connection = stack.enter_context(open_target(resolved, "rowvec forget"))
            install(connection)
        else:
            connection = stack.enter_context(open_owned(resolved, run.lease, "rowvec forget"))
        yield work_on(connection, store, resolved, folder)


@contextmanager
def _all_held(work: Work, run: Run) -> Generator[None]:
    """Hold the generations that are not live too, so that no run reads or writes what is erased."""
    url = target_url(work.pipeline.target.url)
    with ExitStack() as held:
        for generation in sorted(work.generations, key=lambda g: g.pipeline_id):
            if generation.pipeline_id != run.pipeline_id:
                held.enter_context(exclusively_on(work.connection, url, generation.name, generation.pipeline_id))
                clear_leftovers(work.connection, generation.pipeline_id, RunId(0))
        yield


def _check_asked(work: Work, keys: Sequence[Key]) -> None:
    """Raise ``UsageError`` if there is nothing to do."""
    unfinished = open_record(work.connection, work.pipeline.name)
    if not keys and unfinished is None and work.pipeline.artifacts.erase_deleted_after is None:
        raise UsageError(
            "no key is given, and no erasure is unfinished: name the rows with --key or --keys, or set "
            "artifacts.erase_deleted_after"
        )


def _search(work: Work, keys: Sequence[Key]) -> Erasure:
    make_erased(work.connection, work.key, keys)
    refused = _refusal(lambda: refuse_present(work))
    history = read_history(work)
    _add_others(work, history, keys, open_record(work.connection, work.pipeline.name))
    traces = scan(work, history)
    refused = refused or _refusal(lambda: refuse_unsettled(work))
    return _found(work, traces, applied=False, refused=refused)


def _refusal(check: Callable[[], None]) -> str:
    try:
        check()
    except UsageError as error:
        return str(error)
    return ""


def _add_others(work: Work, history: History, keys: Sequence[Key], before: Record | None) -> None:
    """Add the keys of an erasure that was killed, and without a key of now those of the policy.

    Rows that are there again by now are left out.
    """
    if before is not None:
        make_erased(work.connection, work.key, [*before.keys, *keys])
        leave_out_present(work)
    seconds = work.pipeline.artifacts.erase_seconds
    if not keys and seconds is not None:
        add_due(work, history, seconds)


def _erase(work: Work, run: Run, asked: Sequence[Key]) -> Erasure:
    connection = work.connection
    make_erased(connection, work.key, asked)
    refuse_present(work)
    before = open_record(connection, work.pipeline.name)
    history = _settled_history(work, before)
    _add_others(work, history, asked, before)
    traces = scan(work, history)
    if not asked and before is None and not traces.count:
        return _found(work, traces, applied=True)
    refuse_unsettled(work)
    keys = erased_keys(connection, work.key)
    record = begin(connection, work.pipeline.name, keys)
    newest = known_manifests(connection, work.pipeline.name).newest
    rewritten = rewrite(work, history, traces, lambda name: note_leftover(connection, record, name))
    obsolete = obsolete_of(history, traces, rewritten)
    removed = [*rewritten.removed, *_deleted(traces)]
    switch_ledger(work, run.run_id, record, rewritten, obsolete, removed)
    delete_obsolete(work, obsolete, ())
    images = _erase_images(work)
    analyze(work)
    left = scan(work, read_history(work))
    if left.count:
        raise TargetError(
            f"a second search has found {counted(left.count, 'traces')} of the erased rows, so the erasure is not "
            "finished: run rowvec forget again, and report it"
        )
    everything = [*record.removed, *removed, *images]
    tables = Counter[str]()
    for one in everything:
        tables.update({one.name: one.rows} if one.what == "table" else {})
    certificate = Certificate(
        number=record.number,
        pipeline=work.pipeline.name,
        store=work.store.location("artifacts").removesuffix("/artifacts"),
        run_id=run.run_id,
        asked_at=record.asked_at,
        finished_at=datetime.now(UTC),
        salt=(salt := new_salt()),
        key_digests=tuple(sorted(digest_of(salt, key) for key in keys)),
        objects=tuple(one for one in everything if one.what != "table"),
        tables=dict(tables),
        manifest_before=newest,
        manifest_after=known_manifests(connection, work.pipeline.name).newest,
        shared=traces.shared,
        traces_left=left.count,
        not_reached=not_reached(work.pipeline, tables, _other_families(work), _other_scratch(work)),
    )
    finish(connection, record, certificate.as_json())
    analyze_record(work)
    return _found(work, traces, applied=True, certificate=certificate)


def _settled_history(work: Work, before: Record | None) -> History:
    """What is in the store, after the objects are deleted that a killed erasure has left and that nothing names."""
    leftovers = before.leftovers if before else ()
    history = read_history(work, leftovers)
    if not leftovers:
        return history
    delete_obsolete(work, leftovers, {*history.links, *history.artifacts, *history.entries, *history.shared})
    return read_history(work)


def _deleted(traces: Traces) -> list[Removed]:
    """What goes without something else in its place."""
    return [
        *(Removed(what="artifact", name=name, sha256=_named_sha256(name), rows=0) for name in traces.unlisted),
        *(Removed(what="journal entry", name=name, sha256=_named_sha256(name), rows=0) for name in traces.orphans),
        *(Removed(what="table", name=name, sha256=None, rows=rows) for name, rows in traces.tables.items()),
    ]


def _named_sha256(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0]


def _erase_images(work: Work) -> list[Removed]:
    """Delete the images that no row shows any more, now that the rows are gone; the scan has noted what is needed."""
    if work.pipeline.source.kind != "images":
        return []
    name, identity = work.pipeline.name, work.live.identity
    images = unneeded_images(work.connection, name, identity, timedelta(0))
    forget_images(work.connection, work.store, work.pipeline.name, images)
    return [
        Removed(what="image", name=image.object_name(work.pipeline.name), sha256=image.sha256, rows=1)
        for image in images
    ]


def _other_families(work: Work) -> list[str]:
    statement = query("erasure", "other_families", generations=work.ids_sql)
    return [family for (family,) in work.connection.execute(statement).fetchall()]


def _other_scratch(work: Work) -> int:
    """Scratch tables of other commands, which may have read what is erased."""
    statement = query("erasure", "other_scratch", scratch=sql.Literal(work.connection.names.scratch))
    row = work.connection.execute(statement).fetchone()
    return row[0] if row else 0


def _found(
    work: Work,
    traces: Traces,
    *,
    applied: bool,
    refused: str = "",
    certificate: Certificate | None = None,
) -> Erasure:
    names = [*traces.artifacts, *traces.unlisted, *traces.entries, *traces.orphans]
    names += [image.object_name(work.pipeline.name) for image in traces.images]
    return Erasure(
        applied=applied,
        keys=len(erased_keys(work.connection, work.key)),
        refused=refused,
        artifacts=len(traces.artifacts) + len(traces.unlisted),
        journal_entries=len(traces.entries) + len(traces.orphans),
        images=len(traces.images),
        tables=traces.tables,
        shared=traces.shared,
        places=tuple(names[:_LISTED]),
        certificate=certificate,
    )
