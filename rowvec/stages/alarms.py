"""Alarms: a name for each kind of outcome of a run. This module decides which ones apply, and the flows send them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rowvec.errors import CostLimitExceeded, QuotaExhausted, RowvecError
from rowvec.stages.report import Check, SyncReport

AlarmName = Literal[
    "rowvec.sync.completed",
    "rowvec.sync.inconsistent",
    "rowvec.sync.recall_low",
    "rowvec.sync.budget_exceeded",
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
    if report.consistent:
        return [Alarm(name="rowvec.sync.completed", sentence=report.verdict(), payload=figures)]
    alarms: list[Alarm] = []
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


def of_error(error: RowvecError) -> list[Alarm]:
    """The alarms for an error that ended a run, in addition to the failed run itself."""
    match error:
        case CostLimitExceeded() | QuotaExhausted():
            by = "provider" if isinstance(error, QuotaExhausted) else "rowvec"
            payload = {"limit_of": by}
            return [Alarm(name="rowvec.sync.budget_exceeded", sentence=str(error), payload=payload)]
        case _:
            return []
