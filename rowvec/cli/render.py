"""How the result of each command looks on a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rowvec.cli.output import out, table
from rowvec.images.content import is_image
from rowvec.runtime.display import one_line
from rowvec.runtime.figures import counted, dollars

if TYPE_CHECKING:
    from rowvec.index.tuning.results import Tuning
    from rowvec.ledger.plans import PlannedRow
    from rowvec.operations.pruned import Pruned
    from rowvec.operations.rebuild import RebuildReport
    from rowvec.operations.rejects import RejectsReport
    from rowvec.operations.setup.finding import Finding, State
    from rowvec.operations.setup.init import Written
    from rowvec.operations.status import PipelineStatus
    from rowvec.pipeline.model import What
    from rowvec.stages.dry_run import PlanReport
    from rowvec.stages.report import Check, RestoreReport, SyncReport

_COUNTS = ("new", "changed", "metadata_only", "deleted", "unchanged", "empty", "rejected")
_TEXT_WIDTH = 200
# More columns than these would be a few characters wide each.
_MOST_COLUMNS = 8
_FIGURES = ("distance", "score", "vector_rank", "text_rank")


_VERDICTS = {"consistent": "green", "inconsistent": "red", "failed": "red", "abandoned": "red"}


def statuses(rows: Sequence[PipelineStatus], planned: dict[str, str]) -> None:
    """Print how pipelines stand, and below the table why the last run of one failed."""
    if not rows:
        out.print("No pipeline has run against this database yet.")
        return
    columns = ("pipeline", "verdict", "rows", "pending", "rejected", "this month", "last run", "next sync")
    lines = [
        (
            row.pipeline,
            row.verdict,
            row.rows,
            row.pending,
            row.rejected,
            dollars(row.cost_this_month_usd).replace("less than ", "<"),
            _minute(row.last_run.started_at) if row.last_run else None,
            _minute(datetime.fromisoformat(planned[row.pipeline])) if row.pipeline in planned else None,
        )
        for row in rows
    ]
    # Without a server there is no schedule to show, and the others get its room.
    shown = len(columns) if planned else -1
    table("", columns[:shown], [line[:shown] for line in lines], right=("rows", "pending", "rejected", "this month"))
    for row in rows:
        if row.waiting is not None:
            out.print(f"{row.pipeline}: {_freshness(row)}.", soft_wrap=True)
        if row.awaiting:
            out.print(f"{row.pipeline}: {counted(row.awaiting, 'texts')} in jobs at the provider.")
        if row.last_run and row.last_run.error and row.verdict in _VERDICTS:
            out.print(f"{row.pipeline}: {one_line(row.last_run.error)}", style=_VERDICTS[row.verdict], soft_wrap=True)


def _freshness(row: PipelineStatus) -> str:
    """What waits in the queue of changes, and what was last proved of the whole table."""
    waits = "no change waits"
    if row.oldest_seconds is not None:
        waits = counted(row.waiting or 0, "changes wait", "change waits")
        waits += f", the oldest for {row.oldest_seconds:,.0f} s"
    if row.looked_at and (datetime.now(UTC) - row.looked_at).total_seconds() > 1:
        waits += f" (as of {_minute(row.looked_at)})"
    if row.verified_at is None:
        return f"{waits}; the whole source was not compared since the last doubt"
    return f"{waits}; the whole source was last compared {_minute(row.verified_at)}, by run {row.verified_run}"


def _minute(moment: datetime) -> str:
    return f"{moment.astimezone():%m-%d %H:%M}"


def drafted(written: Written) -> None:
    """Print what was guessed in a new pipeline file, and what to do next."""
    out.print(f"Wrote {one_line(str(written.file))}. Read what it guessed:", style="bold", soft_wrap=True)
    for guess in written.draft.guesses:
        out.print(f"- {one_line(guess)}", soft_wrap=True)
    if written.sets:
        out.print(f"Set {written.sets} to the URL that you gave; the file does not hold it.", soft_wrap=True)
    out.print(f"Next: rowvec check {shlex.quote(one_line(str(written.file)))}", soft_wrap=True)


_STYLES: dict[State, str] = {"ok": "green", "warning": "yellow", "fault": "red"}


def finding(found: Finding) -> None:
    """Print one line of a check, and what to do below it."""
    lines = [f"{found.state:<8}{found.name:<12} {one_line(found.detail)}"]
    if found.remedy:
        lines.append(f"{'':<21}{one_line(found.remedy)}")
    out.print("\n".join(lines), style=_STYLES[found.state], soft_wrap=True)


def checked(faults: int, warnings: int) -> None:
    """Print the outcome of a check."""
    if faults:
        out.print(f"{counted(faults, 'faults')}, {counted(warnings, 'warnings')}: a sync would fail.", style="bold red")
    else:
        out.print(f"No faults, {counted(warnings, 'warnings')}: a sync can run.", style="bold green")


def sync(report: SyncReport, wall: float | None = None) -> None:
    """Print a sync's report, the verdict first; ``wall``: seconds of the command as a whole."""
    style = "bold green" if report.consistent else "bold red"
    out.print(report.verdict(), style=style, markup=False, highlight=False)
    counts = {name: getattr(report, name) for name in (*_COUNTS, "pending")}
    _show_counts(f"Run {report.run_id} of {report.pipeline}", counts)
    recall = "no index, exact search" if report.recall_at_k is None else f"recall@{report.k} {report.recall_at_k:.3f}"
    stored = f" {report.images:,} put into the store," if report.what == "images" else ""
    out.print(
        f"{counted(report.embedded, report.what)} embedded,{stored} {counted(report.reused, 'vectors')} reused; "
        f"{_bill(report)}{recall}; {report.seconds.get('total', 0):.1f} s"
        + ("" if wall is None else f", {wall:.1f} s for the whole command"),
        highlight=False,
    )
    _show_notes(report.notes)
    _show_failed(report.failed_checks)


def _bill(report: SyncReport) -> str:
    """What was paid; empty for images that were embedded without a service."""
    if report.what == "images" and not report.tokens:
        return ""
    return f"{report.tokens:,} {_billed(report.what)}, {dollars(report.cost_usd)}; "


def _billed(what: What) -> str:
    """The unit that an embedder bills."""
    from rowvec.pipeline.model import BILLED  # late: the help of a command prints no report

    return BILLED[what]


def restore(report: RestoreReport) -> None:
    """Print a restore's report, the verdict first."""
    style = "bold green" if report.consistent else "bold red"
    out.print(report.verdict(), style=style, markup=False, highlight=False)
    recall = "no index, exact search" if report.recall_at_k is None else f"recall@{report.k} {report.recall_at_k:.3f}"
    out.print(
        f"From {report.manifest}; {recall}; {report.seconds['total']:.1f} s. Nothing was embedded.", highlight=False
    )
    _show_failed(report.failed_checks)


def plan(found: PlanReport) -> None:
    """Print what a sync would do."""
    _show_counts("A sync would find", {name: getattr(found, name) for name in _COUNTS})
    out.print(
        f"It would embed {counted(found.embedded, found.what)} and reuse {counted(found.reused, 'vectors')}: "
        f"about {found.tokens:,} {_billed(found.what)}, {dollars(found.cost_usd)}. Nothing was spent.",
        highlight=False,
    )
    _show_rows(found.rows or ())
    _show_notes(found.notes)
    if found.awaiting_jobs:
        out.print(
            f"At the provider already: {counted(found.awaiting_jobs, 'batch jobs')} with "
            f"{counted(found.awaiting_texts, 'texts')}.",
            highlight=False,
        )
    budget = found.budget
    if budget is not None:
        limits = {"this run": budget.per_run, "this month": budget.per_month}
        named = " and ".join(f"${limit:,.4f} for {of}" for of, limit in limits.items() if limit is not None)
        enough = "enough" if budget.enough else "NOT ENOUGH: the sync would stop before it spends more"
        out.print(
            f"The budget allows {named}; ${budget.spent_this_month:,.4f} were spent this month, "
            f"${budget.left:,.4f} are left: {enough}.",
            highlight=False,
        )


def _show_rows(rows: Sequence[PlannedRow]) -> None:
    if rows:
        lines = (
            (row.action.replace("_", " "), ", ".join(map(str, row.key)), _short(row.old), _short(row.new))
            for row in rows
        )
        table(f"{len(rows):,} of the rows", ("action", "key", "old", "new"), lines)


def _show_notes(notes: Iterable[str]) -> None:
    for note in notes:
        out.print(f"Note: {note}.", style="yellow", markup=False, highlight=False, soft_wrap=True)


def awaiting(sentence: str) -> None:
    """Print why a run ended early, and that a later run finishes its work."""
    out.print(sentence, style="bold yellow", markup=False, highlight=False, soft_wrap=True)


def search(query: str, results: list[dict[str, Any]]) -> None:
    """Print results as a table, the nearest first."""
    if not results:
        out.print("Nothing found.")
        return
    columns = list(results[0])
    if len(columns) > _MOST_COLUMNS:
        for number, result in enumerate(results, 1):
            out.print(f"{number}.", style="bold")
            for name in columns:
                out.print(f"  {one_line(name)}: {one_line(_cell(name, result[name]))}", soft_wrap=True)
        return
    lines = ([_cell(name, result[name]) for name in columns] for result in results)
    table(f"“{query}”", columns, lines, right=_FIGURES)


def _cell(name: str, value: Any) -> str:
    if name in ("score", "distance"):
        return _figure(value)
    if name == "content":
        # An image's content is its checksum, which means nothing to a person.
        return "an image" if is_image(value) else _short(value)
    if name == "neighbours":
        return " | ".join(f"{near['chunk']}: {_short(near['content'])}" for near in value) or "-"
    return "-" if value is None else _short(str(value))


def _figure(value: float | None) -> str:
    """A distance has no number if a vector is zero, or if its components are too large."""
    return "-" if value is None else f"{value:.3f}"


def audit(found: dict[str, Any]) -> None:
    """Print what an audit found."""
    good = found["consistent"]
    out.print("Consistent." if good else "INCONSISTENT.", style="bold green" if good else "bold red")
    _show_counts("Audit", {name: found[name] for name in ("missing", "stale", "orphaned", "corrupt", "repaired")})
    for lost in found["objects"]:
        out.print(f"{lost['name']}: {lost['reason']}", style="red", markup=False, highlight=False)
    if found["rows"]:
        table(
            "Offending rows", ("key", "reason"), ((", ".join(map(str, r["key"])), r["reason"]) for r in found["rows"])
        )
    _show_notes(found.get("notes", ()))
    if not good:
        out.print(
            "Run again with --repair: it takes vectors from artifacts and pays only for those that exist nowhere."
        )


def prune(found: Pruned) -> None:
    """Print what was deleted, or would be."""
    counts = {
        "artifacts": found.artifacts,
        "images": found.images,
        "journal_entries": found.journal_entries,
        "manifests": found.manifests,
        "kept_artifacts": found.kept_artifacts,
        "compacted": found.compacted,
        "runs": found.runs,
    }
    _show_counts("Deleted" if found.applied else "Would be deleted", counts)
    out.print(f"{found.bytes:,} bytes of artifacts, {found.image_bytes:,} of images.", highlight=False)
    if found.note:
        out.print(found.note, markup=False, highlight=False, soft_wrap=True)
    if not found.applied:
        out.print("Nothing was changed; run again with --apply to delete them.")


def rejects(found: RejectsReport) -> None:
    """Print the rejected rows."""
    if found.retried:
        out.print(f"The next sync tries {counted(found.retried, 'rows')} again.", highlight=False)
        return
    if not found.rejects:
        out.print("No rows are rejected.")
        return
    rows = ((", ".join(map(str, r.key)), r.reason, r.detail, r.attempts) for r in found.rejects)
    table(f"{found.count:,} rejected rows", ("key", "reason", "detail", "attempts"), rows, right=("attempts",))


def _show_counts(title: str, counts: dict[str, int]) -> None:
    """Print numbers next to each other, in one line of a table."""
    names = [name.replace("_", " ") for name in counts]
    table(title, names, [counts.values()], right=names)


def _show_failed(checks: tuple[Check, ...]) -> None:
    for check in checks:
        out.print(f"FAILED {check.name}: {check.detail}", style="red", markup=False, highlight=False)
        if check.rows:
            out.print(f"  rows: {', '.join(check.rows[:10])}", markup=False, highlight=False)


def _short(text: str | None) -> str:
    line = " ".join((text or "").split())
    return line if len(line) <= _TEXT_WIDTH else line[: _TEXT_WIDTH - 1] + "…"


def index(found: dict[str, Any]) -> None:
    """Print the state of the index, and what was done to it."""
    if found["index"] is None:
        out.print(f"No index: {found['reason']}", markup=False, highlight=False)
        return
    recall = (
        "recall not measured" if found["recall_at_k"] is None else f"recall@{found['k']} {found['recall_at_k']:.3f}"
    )
    size = f"{found['bytes'] / 2**20:,.1f} MiB over {found['rows']:,} rows"
    what = f"{found['index']}: {found['kind']} on {found['on']}, {size}, {recall}. {found['reason']}"
    out.print(what, markup=False, highlight=False, soft_wrap=True)
    because = found["built_because"]
    out.print(f"Built: {because['sentence']}." if because else "Nothing had to be built.", markup=False)
    for sentence in found["said"]:
        out.print(sentence, markup=False, highlight=False, soft_wrap=True)


def tuning(found: Tuning) -> None:
    """Print what a tuner measured, and mark the choice."""
    title = (
        f"{found.sampled_rows:,} of {found.rows:,} rows, {found.queries} of them as queries; required "
        f"recall@{found.k} {found.at_least:.2f}"
    )
    rows = [("exact search", "1.000", "", f"{found.exact_ms:,.1f}", f"{1000 / found.exact_ms:,.0f}", "0", "")]
    rows += [
        (
            m.name + (" ◀" if found.is_choice(m) else ""),
            f"{m.recall:.3f}",
            f"{m.low:.3f}",
            f"{m.median_ms:,.1f}",
            f"{m.per_second:,.0f}",
            f"{m.bytes / 2**20:,.1f}",
            f"{m.build_seconds:,.1f}",
        )
        for m in found.measured
    ]
    columns = ("index", "recall", "low 95 %", "ms", "per s", "MiB", "build s")
    table(title, columns, rows, right=columns[1:])
    for name, why in found.skipped:
        out.print(f"Not measured: {name}: {why}.", markup=False, highlight=False)
    out.print(found.reason, style="bold", markup=False, highlight=False, soft_wrap=True)
    out.print(
        found.kept or "The next sync follows this choice; rowvec index applies it at once.",
        markup=False,
        highlight=False,
    )


def rebuild(report: RebuildReport) -> None:
    """Print a rebuild's report, the verdict first."""
    out.print(report.verdict(), style="bold green", markup=False, highlight=False, soft_wrap=True)
    recall = ["exact" if r is None else f"{r:.3f}" for r in (report.recall_before, report.recall_after)]
    out.print(
        f"{counted(report.embedded, report.what)} embedded, {counted(report.reused, 'vectors')} reused; "
        f"{report.tokens:,} "
        f"{_billed(report.what)}, {dollars(report.cost_usd)}; "
        f"recall@{report.comparison.k} {recall[0]} before, {recall[1]} after; "
        f"{report.seconds:.1f} s",
        highlight=False,
    )
    for mode, measures in (report.relevance or {"differences": {}})["differences"].items():
        ndcg = measures["ndcg"]
        out.print(
            f"{mode}: nDCG@{report.comparison.k} of the questions changes by {ndcg['mean']:+.3f} "
            f"({ndcg['low']:+.3f} to {ndcg['high']:+.3f})",
            highlight=False,
        )
    if report.switched:
        out.print("rowvec rebuild --rollback goes back, --drop-old drops the old generation.", highlight=False)


def rebuild_plan(found: dict[str, Any]) -> None:
    """Print what a rebuild would do and cost."""
    out.print(
        f"Generation {found['generation']} would be built in {found['table']}: {found['new']:,} rows, of which "
        f"{found['reused']:,} can reuse vectors; {found['embedded']:,} {found['what']} to embed, about "
        f"{found['tokens']:,} {_billed(found['what'])}, ${found['cost_usd']:,.4f}. Nothing was spent.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def rolled_back(name: str, retired: str) -> None:
    """Print which generation is live now."""
    out.print(
        f"{name} is the earlier generation again; {retired} is the other one. Put the earlier settings back into the "
        "pipeline file, and run rowvec sync to bring it in step.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def dropped(tables: list[str]) -> None:
    """Print which generations were dropped."""
    out.print(f"Dropped: {', '.join(tables)}." if tables else "There was nothing to drop.", markup=False)
