"""What does it cost to keep the vectors of a table in step, against what people use today?

All syncers have the same table, provider and Postgres, and go through a first sync, one with nothing changed, one with
1 % of the rows changed and one with 1 % deleted. Wall time, requests and texts are counted; after each phase plain SQL
compares every vector of the syncer's own table with the one it should be. ``--quick`` uses few rows and no repeats. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import plots
from benchmarks.arena import Arena, open_arena
from benchmarks.outcome import conclude, options
from benchmarks.provider import Account, Bill, Provider, serving
from benchmarks.syncers import Place, Syncer, start, syncers
from benchmarks.texts import REVISIONS, Wrong, change, delete, read_texts, wrong_rows
from rowvec.postgres.connection import Connection, connect

GOALS = {"cold": 5.0, "unchanged": 10.0}
"""A peer's wall over ours."""

_ENTRY = "sync"

Edit = Callable[[Connection, int], int]
EDITS: dict[str, Edit] = {"unchanged": lambda connection, number: 0, "changed": change, "deleted": delete}
PHASES = ("cold", *EDITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One sync."""

    syncer: str
    phase: str
    number: int
    seconds: float
    """From the start of the command to its end."""
    cpu_seconds: float
    """CPU seconds of the command; other work on the machine changes them far less than the wall."""
    status: int
    output: str
    bill: Bill
    wrong: Wrong


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    if arguments.quick:
        arguments.rows, arguments.repeats = min(arguments.rows, 1_000), 1
    texts = read_texts(arguments.data, arguments.column, arguments.rows)
    account = Account(
        latency=arguments.latency,
        latency_per_text=arguments.latency_per_text,
        requests_per_minute=arguments.requests_per_minute,
        tokens_per_minute=arguments.tokens_per_minute,
    )
    chosen = _taking_part(arguments.only)
    with open_arena(arguments.logs) as arena, serving(account) as provider:
        arena.fill(texts, arguments.dimensions)
        places = {one.name: arena.enter(one, provider, account, arguments.dimensions, to=_ENTRY) for one in chosen}
        found = _measure(arena, provider, chosen, places, arguments)
    _tell(found, chosen, account, len(texts), arguments)


def _measure(
    arena: Arena, provider: Provider, chosen: list[Syncer], places: dict[str, Place], arguments: argparse.Namespace
) -> list[Measured]:
    found: list[Measured] = []
    # Syncers take turns at going first.
    for number in range(arguments.repeats):
        order = chosen[number % len(chosen) :] + chosen[: number % len(chosen)]
        for phase in PHASES if number == 0 else EDITS:
            for syncer in order:
                one = _sync(arena, provider, syncer, places[syncer.name], phase, number, arguments.limit)
                found.append(one)
                print(_line(one), file=sys.stderr, flush=True)
    return found


def _sync(
    arena: Arena, provider: Provider, syncer: Syncer, place: Place, phase: str, number: int, limit: float
) -> Measured:
    with connect(place.database) as connection:
        if phase in EDITS:
            EDITS[phase](connection, number)
        connection.execute("CHECKPOINT")
        provider.reset()
        before = _cpu_of_children()
        ended = start(syncer, place).wait(limit)
        return Measured(
            syncer=syncer.name,
            phase=phase,
            number=number,
            seconds=ended.seconds,
            cpu_seconds=_cpu_of_children() - before,
            status=ended.status,
            output=ended.output if ended.status else "",
            bill=provider.bill(),
            wrong=wrong_rows(connection, syncer.held),
        )


def _tell(
    found: list[Measured], chosen: list[Syncer], account: Account, rows: int, arguments: argparse.Namespace
) -> None:
    ratios = compare(found)
    for one in chosen:
        print(f"{one.name}: {', '.join(f'{name} {version}' for name, version in one.versions.items())}")
    columns = (
        ("s", 9),
        ("CPU s", 8),
        ("requests", 10),
        ("refused", 9),
        ("texts", 9),
        ("distinct", 10),
        ("x rowvec", 10),
    )
    print(f"{'':12}{'phase':12}{''.join(f'{name:>{width}}' for name, width in columns)}  wrong")
    for syncer in chosen:
        for phase in PHASES:
            those = [one for one in found if (one.syncer, one.phase) == (syncer.name, phase)]
            first, seconds = those[0], statistics.median(one.seconds for one in those)
            cpu = statistics.median(one.cpu_seconds for one in those)
            worst = max((one.wrong for one in those), key=lambda wrong: wrong.rows)
            ratio = ratios.get(f"{phase} x {syncer.name}")
            print(
                f"{syncer.name:12}{phase:12}{seconds:>9.1f}{cpu:>8.1f}{first.bill.requests:>10}{first.bill.refused:>9}"
                f"{first.bill.paid:>9}{first.bill.distinct:>10}{ratio if ratio else '':>10}  {worst}"
                + (f"  (exit {first.status}: {first.output[:120]})" if first.status else "")
            )
    shortest = _shortest(found, account)
    print(f"the provider's limit alone makes a first sync of the distinct texts {shortest:.1f} s")
    _draw(found, chosen, rows, arguments.plot)
    goals = {f"{phase} x {one.name}": GOALS[phase] for phase in GOALS for one in chosen if one.name != "rowvec"}
    worst = {one.name: max(each.wrong.rows for each in found if each.syncer == one.name) for one in chosen}
    figures = {
        "rows": rows,
        "dimensions": arguments.dimensions,
        "quick": arguments.quick,
        "provider": asdict(account),
        "shortest_first_sync": round(shortest, 2),
        "of_peers": {one.name: one.versions for one in chosen},
        "wrong": worst,
        "results": [asdict(one) for one in found],
    }
    conclude("sync", ratios, goals, figures)


def _cpu_of_children() -> float:
    """CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compare(found: list[Measured]) -> dict[str, float]:
    """A peer's wall over ours, as the median over the repeats; there is no ratio for a run that failed."""
    ours = {(one.phase, one.number): one.seconds for one in found if one.syncer == "rowvec" and not one.status}
    each: dict[str, list[float]] = {}
    for one in found:
        if one.syncer != "rowvec" and not one.status and (one.phase, one.number) in ours:
            each.setdefault(f"{one.phase} x {one.syncer}", []).append(one.seconds / ours[one.phase, one.number])
    return {name: round(statistics.median(values), 2) for name, values in each.items()}


def _shortest(found: list[Measured], account: Account) -> float:
    """The seconds that the account's tokens per minute alone require for the texts that rowvec had to send."""
    tokens = max((one.bill.tokens for one in found if (one.syncer, one.phase) == ("rowvec", "cold")), default=0)
    return 60 * tokens / account.tokens_per_minute


def _line(one: Measured) -> str:
    outcome = f"exit {one.status}: {one.output[:200]}" if one.status else f"wrong: {one.wrong}"
    return f"{one.phase} {one.number} {one.syncer}: {one.seconds:.1f} s, {one.bill.paid} texts, {outcome}"


def _taking_part(names: list[str] | None) -> list[Syncer]:
    chosen = syncers(names)
    for one in chosen:
        if not one.installed:
            print(
                f"{one.name} is left out: it is not installed in {one.folder}; run make bench-rivals", file=sys.stderr
            )
    return [one for one in chosen if one.installed]


def _draw(found: list[Measured], chosen: list[Syncer], rows: int, into: Path | None) -> None:
    panels: list[plots.Bars | plots.Lines] = []
    for phase in PHASES:
        seconds = {
            one.name: statistics.median(
                each.seconds for each in found if (each.syncer, each.phase) == (one.name, phase)
            )
            for one in chosen
        }
        panels.append(plots.Bars(title=phase, label="seconds, from start to end of the command", values=seconds))
    plots.draw(into, f"One sync of {rows:,} texts", panels)


def _arguments() -> argparse.Namespace:
    parser = options(__doc__, "1,000 rows, no repeats", "20 programs start, each of which needs some seconds")
    parser.add_argument("--rows", type=int, default=69_202)
    parser.add_argument(
        "--data", type=Path, help="a Parquet file of texts; by default texts are made up, a seventh of them repeated"
    )
    parser.add_argument("--column", default="title", help="of the file")
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument(
        "--repeats", type=int, default=2, choices=range(1, REVISIONS + 1), help="of all but the first sync"
    )
    usual = Account()
    parser.add_argument(
        "--latency", type=float, default=usual.latency, help="seconds that each answer of the provider takes"
    )
    parser.add_argument(
        "--latency-per-text", type=float, default=usual.latency_per_text, help="seconds more for each text of a request"
    )
    parser.add_argument("--requests-per-minute", type=int, default=usual.requests_per_minute)
    parser.add_argument("--tokens-per-minute", type=int, default=usual.tokens_per_minute)
    parser.add_argument("--limit", type=float, default=1_800.0, help="seconds after which a sync is killed")
    parser.add_argument("--only", nargs="+", help="names of syncers")
    parser.add_argument("--logs", type=Path, help="a folder for what the syncers write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
