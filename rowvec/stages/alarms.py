"""Alarms: a name for each kind of outcome of a run. This module decides which ones apply, and the flows send them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rowvec.errors import CostLimitExceeded, QuotaExhausted, RowvecError
from rowvec.pipeline import Pipeline
from rowvec.runtime.figures import counted
from rowvec.stages.report import QUEUE, Check, SyncReport

AlarmName = Literal[
    "rowvec.sync.completed",
    "rowvec.sync.inconsistent",
    "rowvec.sync.recall_low",
    "rowvec.sync.budget_exceeded",
    "rowvec.changes.missed",
    "rowvec.changes.late",
    "rowvec.audit.inconsistent",
]

_KEYS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """One event: ``payload`` holds figures, names and keys, and never a row's content."""

    name: AlarmName
    sentence: str
    payload: dict[str, Any]


def of_sync(report: SyncReport) -> list[Alarm]:
    """The alarms of a sync that reached its verdict: that it succeeded, or what is wrong with the table.

    An index below its required recall and a table that differs from its source are two alarms: searches of the first
    are worse, and searches of the second are wrong.
    """
    figures = {
        name: getattr(report, name)
        for name in ("run_id", "rows", "embedded", "reused", "rejected", "tokens", "cost_usd", "recall_at_k")
    }
    figures["seconds"] = report.seconds.get("total")
    alarms = _missed(report)
    if report.consistent:
        return [Alarm(name="rowvec.sync.completed", sentence=report.verdict(), payload=figures), *alarms]
    failed: dict[AlarmName, list[Check]] = {
        "rowvec.sync.inconsistent": [check for check in report.failed_checks if check.name != "recall"],
        "rowvec.sync.recall_low": [check for check in report.failed_checks if check.name == "recall"],
    }
    for name, checks in failed.items():
        if checks:
            found = [{"check": c.name, "detail": c.detail, "rows": list(c.rows[:_KEYS])} for c in checks]
            sentence = "; ".join(f"{check.name}: {check.detail}" for check in checks)
            alarms.append(Alarm(name=name, sentence=sentence, payload={**figures, "checks": found}))
    return alarms


def _missed(report: SyncReport) -> list[Alarm]:
    """The table is right now, and it was not: without the comparison of everything it would have stayed so."""
    if not report.missed_by_queue:
        return []
    check = next(check for check in report.checks if check.name == QUEUE)
    payload = {"run_id": report.run_id, "missed_by_queue": report.missed_by_queue, "rows": list(check.rows[:_KEYS])}
    return [Alarm(name="rowvec.changes.missed", sentence=check.detail, payload=payload)]


def of_waiting(pipeline: Pipeline, waiting: int, oldest_seconds: float | None) -> list[Alarm]:
    """The alarm that changes wait for longer than the pipeline's ``freshness.alarm_after``."""
    limit = pipeline.freshness.alarm_seconds
    if limit is None or oldest_seconds is None or oldest_seconds <= limit:
        return []
    sentence = (
        f"{pipeline.name}: {counted(waiting, 'changes wait', 'change waits')}, the oldest for {oldest_seconds:,.0f} s, "
        f"and freshness.alarm_after is {pipeline.freshness.alarm_after}: until a sync succeeds, "
        "searches find old vectors"
    )
    payload = {"waiting": waiting, "oldest_seconds": round(oldest_seconds, 1)}
    return [Alarm(name="rowvec.changes.late", sentence=sentence, payload=payload)]


def of_error(error: RowvecError) -> list[Alarm]:
    """The alarms for an error that ended a run, in addition to the failed run itself."""
    match error:
        case CostLimitExceeded() | QuotaExhausted():
            by = "provider" if isinstance(error, QuotaExhausted) else "rowvec"
            payload = {"limit_of": by}
            return [Alarm(name="rowvec.sync.budget_exceeded", sentence=str(error), payload=payload)]
        case _:
            return []
