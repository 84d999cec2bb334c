"""What an audit says of itself, after what it found was mended or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rowvec.errors import Inconsistent
from rowvec.operations.audit import KINDS, Audit
from rowvec.sync.alarms import Alarm


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """The outcome of one audit; ``as_json`` is what ``rowvec audit --json`` prints."""

    pipeline: str
    found: Audit
    """As it is now: after a repair, what is left."""
    repaired: int = 0

    def as_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return self.found.as_json(self.repaired)

    def verdict(self) -> str:
        """One sentence, verdict first."""
        mended = f" {self.repaired:,} repaired." if self.repaired else ""
        if self.found.consistent:
            return f"Consistent: source, artifacts and vector table agree.{mended}"
        counts = [f"{self.found.counts[kind]:,} {kind}" for kind in KINDS if self.found.counts[kind]]
        if self.found.lost:
            counts.append(f"{self.found.lost:,} object(s) lost or spoilt")
        return f"INCONSISTENT: {', '.join(counts)}.{mended}"

    def as_markdown(self) -> str:
        """For a person with ten seconds."""
        kinds = " | ".join(KINDS)
        counts = " | ".join(f"{self.found.counts[kind]:,}" for kind in KINDS)
        lines = [
            f"## {self.verdict()}",
            "",
            f"| {kinds} | objects | repaired |",
            f"|{'--:|' * (len(KINDS) + 2)}",
            f"| {counts} | {self.found.lost:,} | {self.repaired:,} |",
        ]
        if not self.found.consistent:
            lines += ["", "Run it again with `repair` to mend them: from artifacts first, paying for what is nowhere."]
        return "\n".join(lines)

    def alarms(self) -> list[Alarm]:
        """What others are to be told."""
        if self.found.consistent:
            return []
        counts = {**self.found.counts, "objects": self.found.lost, "repaired": self.repaired}
        return [Alarm(name="rowvec.audit.inconsistent", sentence=self.verdict(), payload=counts)]


def conclude_audit(report: AuditReport) -> AuditReport:
    """The report of an audit that found nothing, or left nothing. Raises ``Inconsistent`` otherwise."""
    if report.found.consistent:
        return report
    named = [f"{', '.join(map(str, finding.key))}: {finding.reason}" for finding in report.found.findings[:3]]
    named += [f"{lost.name}: {lost.reason}" for lost in report.found.objects[:3]]
    raise Inconsistent(
        f"the audit of {report.pipeline} found it {report.verdict().rstrip('.')} ({'; '.join(named)}); "
        f"run the audit with repair to mend it"
    )
