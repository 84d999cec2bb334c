"""The index kept fit: built for a stated reason, judged beside the one it is to replace, written down either way."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from rowvec.index import history
from rowvec.index.build import IndexReport, IndexState, ensure_index, index_state
from rowvec.index.choice import fits
from rowvec.index.history import Looked
from rowvec.index.recall import RecallReport, measured_recall, remedy
from rowvec.index.wear import TRIES, Reason, in_vain, is_worse, reason_to_build, too_little
from rowvec.pipeline.model import Recall
from rowvec.postgres.connection import Connection
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable
from rowvec.runtime.progress import tell

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The index that serves after the upkeep."""

    choice: IndexChoice
    """What serves: not what was wanted where that would find less than what was there."""
    recall: RecallReport | None
    """None where there is no index."""
    reason: Reason | None
    """Why one was built; None where all was well."""
    said: tuple[str, ...]
    """What was found and done, a sentence each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Present:
    """A valid index and what it finds."""

    state: IndexState
    choice: IndexChoice
    recall: RecallReport | None
    over: dict[str, Any] | None
    """See ``index_builds.measured_over``."""
    stands: bool = False
    """Whether the recall was known, and has not been measured now."""


def keep_fit(
    connection: Connection,
    table: VectorTable,
    choice: IndexChoice,
    looked: Looked,
    wanted: Recall,
    *,
    asked: bool = False,
    measure: bool = False,
) -> Kept:
    """See to it that the table has a valid index as ``choice`` wants it, that finds what is wanted.

    One that is missing, invalid, other than chosen, outgrown, worn, or finds too little is built anew beside the one
    that serves, and measured there: an index that finds too little, and less than the one it was to replace, is dropped
    again. ``asked``: build anew whatever its state. ``measure``: what an index finds is measured even where nothing
    can have changed since it was. Raises as ``ensure_index`` does.
    """
    states = index_state(connection, table)
    whole = [s for s in states if s.valid and not s.partial]
    serving = next((s for s in reversed(whole) if fits(s.present, choice)), None)
    others = [s for s in whole if not fits(s.present, choice)]
    known = looked.served if looked.served and serving and looked.served.name == serving.name else None
    reason = reason_to_build(
        choice,
        serving.present if serving else None,
        [s.present for s in others],
        broken=[s.name for s in states if not s.valid],
        wear=looked.served_wear if known else None,
        grown=not looked.tried and looked.oldest_run < looked.newest_run,
        asked=asked,
    )
    tried = [build.tried for build in looked.tried]
    futile = not asked and in_vain(tried, choice, wanted.k, wanted.at_least, looked.tried_wear)
    present = _present(
        connection, table, choice, serving or next(reversed(others), None), wanted, looked, None if measure else known
    )
    if present is not None and present.state is serving:
        _note_present(connection, table, present, looked, known)
        if reason is None and present.recall is not None and not present.recall.passed:
            reason = too_little(present.recall)
    if reason is None or (futile and present is not None):
        return _left_alone(connection, table, choice, present, looked, reason)
    return _build(connection, table, choice, looked, wanted, reason, present)


def _present(
    connection: Connection,
    table: VectorTable,
    choice: IndexChoice,
    state: IndexState | None,
    wanted: Recall,
    looked: Looked,
    known: history.Build | None,
) -> _Present | None:
    """The index that is there and what it finds; None where there is none, or none is wanted.

    ``known``: what the ledger has of it, where that may be taken for true: an exact pass reads every vector.
    """
    if state is None or choice.kind == "none":
        return None
    searched = choice
    if not fits(state.present, choice):
        searched = replace(
            state.present, oversampling=choice.oversampling, ef_search=choice.ef_search, probes=choice.probes
        )
    over = history.measured_over(connection, table, searched, looked)
    recall = history.standing_recall(connection, known, over, wanted) if known else None
    if recall is not None:
        return _Present(state=state, choice=searched, recall=recall, over=over, stands=True)
    return _Present(
        state=state, choice=searched, recall=measured_recall(connection, table, searched, wanted), over=over
    )


def _note_present(
    connection: Connection, table: VectorTable, present: _Present, looked: Looked, known: history.Build | None
) -> None:
    if known is None:
        reason = Reason(why="found", sentence="it was there")
        build_id = history.note_build(connection, table, present.state.name, present.choice, reason, looked, None)
    else:
        build_id = known.build_id
        if looked.served_wear is not None:
            history.note_wear(connection, build_id, looked.served_wear)
    if not present.stands:
        history.note_recall(connection, build_id, present.recall, present.over)


def _left_alone(
    connection: Connection,
    table: VectorTable,
    choice: IndexChoice,
    present: _Present | None,
    looked: Looked,
    reason: Reason | None,
) -> Kept:
    if present is None:
        dropped = ensure_index(connection, table, choice).dropped
        said = (f"dropped {', '.join(dropped)}: {choice.reason}",) if dropped else ()
        return Kept(choice=choice, recall=None, reason=None, said=said)
    if reason is None:
        ensure_index(connection, table, choice)
        wear = looked.served_wear
        said = f"{present.state.name} was left alone" + (f": {wear.written()}" if wear else "")
    else:
        said = (
            f"{present.state.name} was left alone, though {reason.sentence}: the last {TRIES} builds over much the "
            f"same rows found too little; {remedy(present.choice)}, or run rowvec index --rebuild"
        )
        logger.warning("%s", said)
    return Kept(choice=present.choice, recall=present.recall, reason=None, said=(said,))


def _build(
    connection: Connection,
    table: VectorTable,
    choice: IndexChoice,
    looked: Looked,
    wanted: Recall,
    reason: Reason,
    present: _Present | None,
) -> Kept:
    said: list[str] = []
    why = reason
    for _ in range(TRIES):
        present, found, told = _build_once(connection, table, choice, looked, wanted, why, present)
        said.extend(told)
        if found is None or found.passed:
            break
        why = too_little(found)
    return Kept(
        choice=present.choice if present else choice,
        recall=present.recall if present else None,
        reason=reason,
        said=tuple(said),
    )


def _build_once(
    connection: Connection,
    table: VectorTable,
    choice: IndexChoice,
    looked: Looked,
    wanted: Recall,
    why: Reason,
    present: _Present | None,
) -> tuple[_Present | None, RecallReport | None, list[str]]:
    """What serves now, what the new index finds, and what there is to say."""
    logger.info("%s.%s: an index is built (%s): %s", table.schema, table.name, why.why, why.sentence)
    measured: list[RecallReport] = []

    def approve(new: IndexState) -> bool:
        recall = measured_recall(connection, table, choice, wanted, newest=True)
        if recall is None or recall.index != new.name:
            return True  # too large to be measured, or the planner would not be led: it is measured afterwards
        measured.append(recall)
        return not is_worse(recall, present.recall if present else None)

    over = history.measured_over(connection, table, choice, looked)
    report = ensure_index(connection, table, choice, _progress, rebuild=True, approve=approve)
    recall = measured[0] if measured else measured_recall(connection, table, choice, wanted)
    name = report.new or ""
    build_id = history.note_build(connection, table, name, choice, why, looked, report)
    history.note_recall(connection, build_id, recall, over)
    told = _told(report, name, why, recall, present)
    if report.refused:
        logger.warning("%s.%s: %s", table.schema, table.name, told[0])
        return present, recall, told
    now = _Present(state=report.index, choice=choice, recall=recall, over=over) if report.index else None
    return now, recall, told


def _told(
    report: IndexReport, name: str, why: Reason, recall: RecallReport | None, before: _Present | None
) -> list[str]:
    found = "" if recall is None or recall.recall is None else f"; it finds {recall.recall:.3f}"
    told = [f"{name} was built in {report.seconds:.1f} s ({why.why}: {why.sentence}){found}"]
    if report.refused and before is not None and before.recall is not None:
        told = [
            f"{name} was built ({why.why}: {why.sentence}), found {recall.recall if recall else 0:.3f} of the nearest, "
            f"and was dropped again: {before.state.name} finds {before.recall.recall:.3f} and stays"
        ]
    if report.memory is not None and report.memory.spills:
        told.append(report.memory.written())
    if report.spilled_after is not None:
        told.append(f"it ran out of memory after {report.spilled_after:,} vectors, and inserted the rest one by one")
    return told


def _progress(done: float, phase: str) -> None:
    tell("index", phase, round(done * 100), 100)
