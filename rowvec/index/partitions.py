"""Looks after the indexes of a table that is split: each partition is served as a table of its own.

All partitions are searched by one function, with the settings of the partition that needs the most effort.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from rowvec.index.build import IndexState, index_state
from rowvec.index.choice import fits
from rowvec.index.raised_search import raised_search
from rowvec.index.recall import RecallReport
from rowvec.index.vacuum import vacuum_if_due
from rowvec.index.wear import Reason, vacuum_due
from rowvec.postgres.connection import Connection
from rowvec.postgres.tables.partitions import (
    Partition,
    analyze,
    count_by_partition,
    drop_empty,
    partitions_of,
    rows_at_analyze,
)
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable

# A report has one sentence per partition that something was done to, up to this many.
_LISTED = 5

# Statistics are gathered again once a table has this share of rows more or fewer, and by more than a few.
_OUTDATED_SHARE = 0.2
_OUTDATED_ROWS = 50

Chooser = Callable[[int, bool], IndexChoice]
"""The index for a table of so many rows, which has an index already or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The index that a table or its partitions have now."""

    choice: IndexChoice
    """Of partitions: as all of them are searched."""
    rows: int
    recall: RecallReport | None
    """Of partitions: the lowest of all; None if there is no index."""
    reason: Reason | None
    """Why an index was built, of partitions the first one; None if none was."""
    notes: tuple[str, ...]


def serve_partitions(
    connection: Connection, table: VectorTable, choose: Chooser, serve: Callable[[VectorTable], Served]
) -> Served:
    """Serve each partition that has or needs an index, and drop the partitions that have no row any more."""
    rows = count_by_partition(connection, table)
    found = partitions_of(connection, table)
    notes = _without_empty(connection, table, [each for each in found if each.table.name not in rows])
    found = [each for each in found if each.table.name in rows]
    _analyze_outdated(connection, table, found, rows)
    served: list[Served] = []
    for each in found:
        if each.indexed or choose(rows[each.table.name], False).kind != "none":
            served.append(serve(each.table))
        else:
            notes += _vacuumed(connection, each)
    indexed = [one for one in served if one.choice.kind != "none"]
    measured = [one.recall for one in indexed if one.recall is not None]
    if found:
        notes.insert(0, f"{len(indexed):,} of {len(found):,} partitions have an index, and the others need none")
    return Served(
        choice=_together(indexed) if indexed else choose(max(rows.values(), default=0), False),
        rows=sum(rows.values()),
        recall=lowest(measured),
        reason=next((one.reason for one in served if one.reason), None),
        notes=(*notes, *_listed(served)),
    )


def partitions_as_they_are(
    connection: Connection, table: VectorTable, choose: Chooser
) -> tuple[IndexChoice, tuple[str, ...]] | None:
    """How the partitions are searched, and notes; reads the catalog and no row. None if one of them lacks its index."""
    states: dict[str, list[IndexState]] = {}
    for state in index_state(connection, table):
        if state.valid and not state.partial:
            states.setdefault(state.table, []).append(state)
    found = partitions_of(connection, table)
    choices: list[tuple[int, IndexChoice]] = []
    for each in found:
        there = states.get(each.table.name, [])
        choice = choose(each.estimate, bool(there))
        if bool(there) != (choice.kind != "none") or not all(fits(state.present, choice) for state in there):
            return None
        choices.append((each.estimate, choice))
    notes = [note for each in found for note in _vacuumed(connection, each)]
    if not states:
        return choose(max((rows for rows, _ in choices), default=0), False), tuple(notes)
    _, largest = max(((r, c) for r, c in choices if c.kind != "none"), key=lambda pair: pair[0])
    return raised_search(connection, table, "", largest), tuple(notes)


def lowest(reports: Sequence[RecallReport]) -> RecallReport | None:
    """The lowest recall that was measured. A partition of one row has none, and says nothing about the others."""
    return min(reports, key=lambda one: (one.recall is None, one.recall), default=None)


def _together(served: Sequence[Served]) -> IndexChoice:
    """How all partitions are searched: as the largest one, with the most effort that any of them needs."""
    largest = max(served, key=lambda one: one.rows).choice
    choices = [one.choice for one in served]
    return replace(
        largest,
        oversampling=max(choice.oversampling for choice in choices),
        ef_search=max(choice.ef_search for choice in choices),
        probes=max(choice.probes for choice in choices),
    )


def _without_empty(connection: Connection, table: VectorTable, empty: list[Partition]) -> list[str]:
    if table.partition_by is None or table.partition_by.kind != "list" or not empty:
        return []
    dropped = drop_empty(connection, table, [each.table for each in empty])
    return [f"dropped {dropped:,} of {len(empty):,} empty partitions"]


def _analyze_outdated(
    connection: Connection, table: VectorTable, found: Iterable[Partition], rows: dict[str, int]
) -> None:
    """The planner and the search functions rely on the numbers of rows; autovacuum never looks at the whole table."""
    if _is_outdated(rows_at_analyze(connection, table), sum(rows.values())):
        analyze(connection, [table])  # and all partitions
    else:
        analyze(connection, [each.table for each in found if _is_outdated(each.analyzed, rows.get(each.table.name, 0))])


def _is_outdated(before: int, now: int) -> bool:
    return abs(now - before) > max(_OUTDATED_ROWS, _OUTDATED_SHARE * before)


def _vacuumed(connection: Connection, partition: Partition) -> list[str]:
    note = vacuum_if_due(connection, partition.table) if vacuum_due(partition.live, partition.dead) else None
    return [f"{partition.table.name}: {note}"] if note else []


def _listed(served: Sequence[Served]) -> list[str]:
    """The notes of partitions that an index was built for, or whose recall is too low; the others are only counted."""
    told = [one for one in served if one.reason is not None or (one.recall is not None and not one.recall.passed)]
    notes = [note for one in told[:_LISTED] for note in one.notes]
    return [*notes, f"and so for {len(told) - _LISTED:,} more partitions"] if len(told) > _LISTED else notes
