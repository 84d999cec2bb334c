"""Keeps an index fit: it is rebuilt for a stated reason, compared with the one it replaces, and recorded."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from rowvec.index import history
from rowvec.index.build import IndexReport, IndexState, ensure_index, index_state
from rowvec.index.choice import fits
from rowvec.index.effort import graphs, raised_settings, search_efforts
from rowvec.index.history import Looked
from rowvec.index.raised_search import keep_raised_search, raised_search
from rowvec.index.recall import Found, RecallReport, measured_recall, remedy
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
    """The index that serves; the old one if the wanted one would find less."""
    recall: RecallReport | None
    """None if there is no index."""
    reason: Reason | None
    """Why an index was built; None if none was."""
    notes: tuple[str, ...]
    """What was found and done, one sentence each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Present:
    """A valid index and its recall."""

    state: IndexState
    chosen: IndexChoice
    """As it was chosen."""
    choice: IndexChoice
    """As it is searched: with more candidates, if it finds too little with those that it was chosen with."""
    recall: RecallReport | None
    over: dict[str, Any] | None
    """See ``history.measured_over``."""
    known: bool = False
    """Whether the recall comes from the ledger and was not measured now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Upkeep:
    """One look after a table's index."""

    connection: Connection
    table: VectorTable
    choice: IndexChoice
    looked: Looked
    wanted: Recall

    def ways(self, choice: IndexChoice) -> tuple[IndexChoice, ...]:
        """The ways to search an index, the cheapest first."""
        return search_efforts(choice, self.wanted.k)

    def measured_over(self, choice: IndexChoice) -> dict[str, Any] | None:
        return history.measured_over(self.connection, self.table, choice, self.looked)


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
    """Give the table a valid index according to ``choice`` with the recall that is ``wanted``.

    An index with too little recall is first searched with more candidates, see ``search_efforts``; what suffices is
    kept in the ledger. An index that is missing, invalid, different from the choice, outgrown or worn, or has too
    little recall all the same, is rebuilt next to the one that serves, and measured there. If the new one has too
    little recall, and less than the old one, it is dropped again. ``asked``: rebuild in any case. ``measure``: measure
    recall even if nothing can have changed since the last measurement. Raises like ``ensure_index``.
    """
    upkeep = _Upkeep(connection=connection, table=table, choice=choice, looked=looked, wanted=wanted)
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
    present = _present(upkeep, serving or next(reversed(others), None), None if measure else known)
    if present is not None and present.state is serving:
        _note_present(upkeep, present, known)
        if reason is None and present.recall is not None and not present.recall.passed:
            reason = too_little(present.recall)
    if reason is None or (futile and present is not None):
        return _left_alone(upkeep, present, reason)
    return _build(upkeep, reason, present)


def _present(upkeep: _Upkeep, state: IndexState | None, known: history.Build | None) -> _Present | None:
    """The present index and its recall; None if there is none, or none is wanted.

    ``known``: the ledger's entry of the index, if its recall may be used, because a measurement reads every vector.
    """
    choice = upkeep.choice
    if state is None or choice.kind == "none":
        return None
    chosen = choice
    if not fits(state.present, choice):
        chosen = replace(
            state.present,
            oversampling=choice.oversampling,
            oversampling_given=choice.oversampling_given,
            ef_search=choice.ef_search,
            probes=choice.probes,
        )
    kept = raised_search(upkeep.connection, upkeep.table, state.name, chosen)
    over = upkeep.measured_over(kept)
    recall = history.standing_recall(upkeep.connection, known, over, upkeep.wanted) if known else None
    if recall is not None:
        return _Present(state=state, chosen=chosen, choice=kept, recall=recall, over=over, known=True)
    ways = upkeep.ways(chosen)
    found = measured_recall(
        upkeep.connection, upkeep.table, ways[ways.index(kept) if kept in ways else 0 :], upkeep.wanted
    )
    searched = found.choice if found else chosen
    return _Present(
        state=state,
        chosen=chosen,
        choice=searched,
        recall=found.report if found else None,
        over=history.searched_as(over, searched),
    )


def _note_present(upkeep: _Upkeep, present: _Present, known: history.Build | None) -> None:
    """Record the present index, its wear and its recall in the ledger."""
    connection, table, looked = upkeep.connection, upkeep.table, upkeep.looked
    if known is None:
        reason = Reason(why="found", sentence="it was there")
        build_id = history.note_build(connection, table, present.state.name, present.chosen, reason, looked, None)
    else:
        build_id = known.build_id
        if looked.served_wear is not None:
            history.note_wear(connection, build_id, looked.served_wear)
    if not present.known:
        history.note_recall(connection, build_id, present.recall, present.over)
        keep_raised_search(connection, build_id, present.chosen, present.choice)


def _left_alone(upkeep: _Upkeep, present: _Present | None, reason: Reason | None) -> Kept:
    connection, table, choice = upkeep.connection, upkeep.table, upkeep.choice
    if present is None:
        dropped = ensure_index(connection, table, choice).dropped
        notes = (f"dropped {', '.join(dropped)}: {choice.reason}",) if dropped else ()
        return Kept(choice=choice, recall=None, reason=None, notes=notes)
    if reason is None:
        ensure_index(connection, table, choice)
        wear = upkeep.looked.served_wear
        note = f"{present.state.name} was left alone" + (f": {wear.written()}" if wear else "")
        note += _raised(present)
    else:
        note = (
            f"{present.state.name} was left alone, though {reason.sentence}: the last {TRIES} builds over nearly "
            f"the same rows found too little; {remedy(present.choice)}, or run rowvec index --rebuild"
        )
        logger.warning("%s", note)
    return Kept(choice=present.choice, recall=present.recall, reason=None, notes=(note,))


def _raised(present: _Present) -> str:
    """A clause for a note: how the index is searched, if not as it was chosen."""
    changes = raised_settings(present.chosen, present.choice)
    return f"; so that it finds enough, it is searched with {changes}" if changes else ""


def _build(upkeep: _Upkeep, reason: Reason, present: _Present | None) -> Kept:
    notes: list[str] = []
    why = reason
    before = present.state.present if present and fits(present.state.present, upkeep.choice) else None
    for choice in graphs(upkeep.choice, before, TRIES, too_weak=reason.why == "recall"):
        present, found, more = _build_once(upkeep, why, present, choice)
        notes.extend(more)
        if found is None or found.passed:
            break
        why = too_little(found)
    return Kept(
        choice=present.choice if present else upkeep.choice,
        recall=present.recall if present else None,
        reason=reason,
        notes=tuple(notes),
    )


def _build_once(
    upkeep: _Upkeep, why: Reason, present: _Present | None, choice: IndexChoice
) -> tuple[_Present | None, RecallReport | None, list[str]]:
    """Build an index; returns the index that serves afterwards, the new one's recall, and notes."""
    connection, table, wanted, ways = upkeep.connection, upkeep.table, upkeep.wanted, upkeep.ways(choice)
    logger.info("%s.%s: an index is built (%s): %s", table.schema, table.name, why.why, why.sentence)
    measured: list[Found] = []

    def approve(new: IndexState) -> bool:
        found = measured_recall(connection, table, ways, wanted, newest=True)
        if found is None or found.report.index != new.name:
            return True  # too large to measure, or the planner did not use it: it is measured afterwards
        measured.append(found)
        return not is_worse(found.report, present.recall if present else None)

    over = upkeep.measured_over(choice)
    report = ensure_index(connection, table, choice, _progress, rebuild=True, approve=approve)
    found = measured[0] if measured else measured_recall(connection, table, ways, wanted)
    searched, recall = (found.choice, found.report) if found else (choice, None)
    over = history.searched_as(over, searched)
    name = report.new or ""
    build_id = history.note_build(connection, table, name, choice, why, upkeep.looked, report)
    history.note_recall(connection, build_id, recall, over)
    keep_raised_search(connection, build_id, choice, searched)
    notes = _notes(report, why, recall, present)
    if report.refused:
        logger.warning("%s.%s: %s", table.schema, table.name, notes[0])
        return present, recall, notes
    if report.index is None:
        return None, recall, notes
    now = _Present(state=report.index, chosen=choice, choice=searched, recall=recall, over=over)
    return now, recall, [notes[0] + _raised(now), *notes[1:]]


def _notes(report: IndexReport, why: Reason, recall: RecallReport | None, before: _Present | None) -> list[str]:
    name = report.new or ""
    found = "" if recall is None or recall.recall is None else f"; it finds {recall.recall:.3f}"
    notes = [f"{name} was built in {report.seconds:.1f} s ({why.why}: {why.sentence}){found}"]
    if report.refused and before is not None and before.recall is not None:
        notes = [
            f"{name} was built ({why.why}: {why.sentence}), found {recall.recall if recall else 0:.3f} of the nearest, "
            f"and was dropped again: {before.state.name} finds {before.recall.recall:.3f} and stays"
        ]
    if report.memory is not None and report.memory.spills:
        notes.append(report.memory.written())
    if report.spilled_after is not None:
        notes.append(f"it ran out of memory after {report.spilled_after:,} vectors, and inserted the rest one by one")
    return notes


def _progress(done: float, phase: str) -> None:
    tell("index", phase, round(done * 100), 100)
