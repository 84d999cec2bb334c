"""Who ends right after a fault, and what did each pay? The same faults for rowvec and for what people use today.

Each fault happens to a table of its own. After it the syncer runs once, and then a second time; after each run plain
SQL compares every vector with the one it should be. ``extra`` counts the texts paid for beyond the distinct ones.
``--quick`` uses fewer rows. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import LiteralString

from psycopg import sql

from benchmarks import plots
from benchmarks.arena import Arena, open_arena
from benchmarks.outcome import conclude, options
from benchmarks.provider import Account, Provider, serving
from benchmarks.syncers import Ended, Place, Syncer, start, syncers
from benchmarks.texts import POISON, Wrong, delete, read_texts, wrong_rows
from rowvec.postgres.connection import Connection, connect

_NEW_ROWS = 20
_TAMPERED_ROWS = 5
_SLOW_SECONDS = 3.0

_NEW: LiteralString = "INSERT INTO public.texts VALUES (%s, %s)"
_GONE: LiteralString = "DELETE FROM public.texts WHERE id >= %s AND id %% 2 = 0"
_DROP: LiteralString = "DELETE FROM {table} WHERE {id} < %(first)s"
# Each row gets the vector of the row whose key is twice its own.
_SWAP: LiteralString = """
    UPDATE {table} AS mine SET embedding = other.embedding
    FROM (SELECT {id} AS of, embedding FROM {table}) AS other
    WHERE {id} >= %(first)s AND {id} < %(end)s AND other.of = 2 * {id}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One syncer before one fault; its vector table is not filled yet."""

    syncer: Syncer
    place: Place
    provider: Provider
    connection: Connection
    rows: int
    limit: float

    def sync(self) -> Ended:
        """Run one sync to its end."""
        return start(self.syncer, self.place).wait(self.limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one fault did to one syncer."""

    fault: str
    syncer: str
    befell: bool
    """False if the syncer had ended or failed before the fault could happen."""
    statuses: tuple[int, int]
    """The exit statuses of the run that follows the fault and of the run after it."""
    first: Wrong
    then: Wrong
    paid: int
    distinct: int
    output: str
    """The last line that a failed run wrote."""

    @property
    def extra(self) -> int:
        """Texts paid for more than once."""
        return self.paid - self.distinct

    @property
    def verdict(self) -> str:
        """The result in a few words."""
        if not self.befell:
            return "not reached"
        if not self.first.rows:
            return "right"
        unsaid = "" if self.statuses[0] else ", unsaid"
        if not self.then.rows:
            return f"right after one more run{unsaid}"
        return f"wrong: {self.then}{'' if self.statuses[1] else ', unsaid'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to a syncer, up to and including the run that must repair it."""

    name: str
    befall: Callable[[Scene], Ended | None]
    """Returns None if the fault could not happen."""
    large: bool = False
    """Whether the fault needs a table whose sync takes a while."""
    account: Account = field(default_factory=Account)


def killed(scene: Scene) -> Ended | None:
    """kill -9 when a third of the texts are paid for, then the next run."""
    running = start(scene.syncer, scene.place)
    if not running.until(lambda: scene.provider.bill().paid >= scene.rows / 3):
        return None
    running.kill()
    return scene.sync()


def deleted_meanwhile(scene: Scene) -> Ended | None:
    """Delete half of the new rows while the provider has their texts."""
    if scene.sync().status:
        return None
    for number in range(_NEW_ROWS):
        scene.connection.execute(_NEW, (scene.rows + number, new_text(number)))
    running = start(scene.syncer, scene.place)
    if not running.until(lambda: scene.provider.bill().in_flight > 0):
        return None
    scene.connection.execute(_GONE, (scene.rows,))
    return running.wait(scene.limit)


def poisoned(scene: Scene) -> Ended | None:
    """Make one row of the table impossible to embed: the provider refuses each request that holds it."""
    scene.connection.execute("UPDATE public.texts SET content = %s WHERE id = %s", (f"Words {POISON}", scene.rows // 2))
    return scene.sync()


def tampered(scene: Scene) -> Ended | None:
    """Delete some vectors in the syncer's table, and overwrite others."""
    if scene.sync().status:
        return None
    held = scene.syncer.held
    parts = {"table": sql.SQL(held.table), "id": sql.SQL(held.id)}
    keys = {"first": _TAMPERED_ROWS, "end": 2 * _TAMPERED_ROWS}
    scene.connection.execute(sql.SQL(_SWAP).format(**parts), keys)
    scene.connection.execute(sql.SQL(_DROP).format(**parts), keys)
    return scene.sync()


def lost(scene: Scene) -> Ended | None:
    """Delete all that the syncer keeps on this machine, and some rows of the source."""
    if scene.sync().status:
        return None
    delete(scene.connection, 0)
    for name in scene.syncer.keeps:
        _remove(scene.place.state / name)
    return scene.sync()


FAULTS = (
    Fault(name="kill -9 in the middle", befall=killed, large=True),
    Fault(name="rows deleted while embedding", befall=deleted_meanwhile, account=Account(latency=_SLOW_SECONDS)),
    Fault(name="poison row", befall=poisoned, account=Account(poison=POISON)),
    Fault(name="tampered target", befall=tampered),
    Fault(name="local state lost", befall=lost),
)


def main() -> None:
    """Let each fault happen to each syncer, and print what came of it."""
    arguments = _arguments()
    if arguments.quick:
        arguments.rows, arguments.small = 3_000, 300
    texts = read_texts(arguments.data, arguments.column, arguments.rows)
    chosen = [one for one in syncers(arguments.only) if one.installed]
    found: list[Outcome] = []
    with open_arena(arguments.logs) as arena, ThreadPoolExecutor(arguments.at_once) as threads:
        for fault in FAULTS:
            arena.fill(texts if fault.large else texts[: arguments.small], arguments.dimensions, _later())
            for one in threads.map(partial(_try, arena, fault, arguments), chosen):
                found.append(one)
                print(f"{one.fault}: {one.syncer}: {one.verdict}, {one.extra} extra", file=sys.stderr, flush=True)
    _tell(found, chosen, arguments)


def _try(arena: Arena, fault: Fault, arguments: argparse.Namespace, syncer: Syncer) -> Outcome:
    with serving(fault.account) as provider:
        place = arena.enter(syncer, provider, fault.account, arguments.dimensions, to="faults")
        with connect(place.database) as connection:
            scene = Scene(
                syncer=syncer,
                place=place,
                provider=provider,
                connection=connection,
                rows=arguments.rows if fault.large else arguments.small,
                limit=arguments.limit,
            )
            ended = fault.befall(scene)
            first = wrong_rows(connection, syncer.held)
            again = _once_more(scene, fault)
            then = wrong_rows(connection, syncer.held)
            bill = provider.bill()
        arena.leave(syncer, to="faults")
    return Outcome(
        fault=fault.name,
        syncer=syncer.name,
        befell=ended is not None,
        statuses=(ended.status if ended else -1, again.status),
        first=first,
        then=then,
        paid=bill.paid,
        distinct=bill.distinct,
        output=again.output if again.status else ended.output if ended and ended.status else "",
    )


def _once_more(scene: Scene, fault: Fault) -> Ended:
    """The second run. After tampering, it is the command that the syncer's documentation gives for that."""
    repair = scene.syncer.repair
    if fault.befall is tampered and repair is not None:
        return start(scene.syncer, scene.place, repair(scene.place)).wait(scene.limit)
    return scene.sync()


def _tell(found: list[Outcome], chosen: list[Syncer], arguments: argparse.Namespace) -> None:
    for one in chosen:
        print(f"{one.name}: {', '.join(f'{name} {version}' for name, version in one.versions.items())}")
    print(f"{'':31}{'':12}{'paid':>8}{'distinct':>10}{'extra':>8}  after the next run")
    for one in found:
        print(f"{one.fault:31}{one.syncer:12}{one.paid:>8}{one.distinct:>10}{one.extra:>8}  {one.verdict}")
        if one.output:
            print(f"{'':71}{one.output[:160]}")
    right = {
        one.name: sum(each.befell and not each.first.rows for each in found if each.syncer == one.name)
        for one in chosen
    }
    then = {
        one.name: sum(each.befell and not each.then.rows for each in found if each.syncer == one.name) for one in chosen
    }
    extra = {one.name: sum(each.extra for each in found if each.syncer == one.name) for one in chosen}
    panels = [
        plots.Bars(title="right after the next run", label=f"of {len(FAULTS)} faults", values=right),
        plots.Bars(title="right after one run more", label=f"of {len(FAULTS)} faults", values=then),
        plots.Bars(title="paid more than once", label="texts", values=extra),
    ]
    plots.draw(arguments.plot, "After a fault", panels)
    shares: dict[str, float | None] = {f"right {name}": round(each / len(FAULTS), 2) for name, each in right.items()}
    shares |= {f"right after one more {name}": round(each / len(FAULTS), 2) for name, each in then.items()}
    figures = {
        "rows": arguments.rows,
        "small": arguments.small,
        "quick": arguments.quick,
        "dimensions": arguments.dimensions,
        "of_peers": {one.name: one.versions for one in chosen},
        "extra": extra,
        "faults": len(FAULTS),
        "results": [{**asdict(one), "extra": one.extra, "verdict": one.verdict} for one in found],
    }
    conclude("faults", shares, {"right after one more rowvec": 1.0}, figures)


def new_text(number: int) -> str:
    """The content of an added row."""
    return f"A row that came later, the {number}th"


def _later() -> list[str]:
    return [new_text(number) for number in range(_NEW_ROWS)]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _arguments() -> argparse.Namespace:
    parser = options(__doc__, "3,000 and 300 rows", "75 programs start, each of which needs some seconds")
    parser.add_argument("--rows", type=int, default=20_000, help="of the table whose sync is killed")
    parser.add_argument("--small", type=int, default=1_000, help="rows of the other tables")
    parser.add_argument(
        "--data", type=Path, help="a Parquet file of texts; by default texts are made up, a seventh of them repeated"
    )
    parser.add_argument("--column", default="title", help="of the file")
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds after which a run is killed")
    parser.add_argument(
        "--at-once", type=int, default=os.cpu_count() or 1, help="how many syncers run at the same time"
    )
    parser.add_argument("--only", nargs="+", help="names of syncers")
    parser.add_argument("--logs", type=Path, help="a folder for what the syncers write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
