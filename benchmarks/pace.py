"""How much of a provider's limit does an embedder use, and how often is it refused?

A server that speaks OpenAI's protocol, in a process of its own, allows a number of requests or tokens per minute, of
which a tenth may be used at once. Our embedder sends it texts for a while: first with the limits in the pipeline, then
without, so that it learns them from headers and refusals. With ``--processes 2`` two processes use the account at once,
and each has the account's whole limit in its pipeline: first together, with leases in a ledger, then each as if it were
alone. ``--quick`` is shorter. The last line is one JSON object, whose ``ratios`` are shares of the limit.
"""

from __future__ import annotations

import json
import tempfile
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.outcome import conclude, options
from benchmarks.servers import provider
from rowvec.embedders import open_embedder
from rowvec.postgres.connection import connect
from rowvec.postgres.embedded import release_postgres, start_postgres
from rowvec.postgres.migrations import install
from tests.support.paced_process import asking, config, texts

KEY = "sk-pace"
BURST_SECONDS = 6.0
REQUESTS_A_MINUTE = 600
TOKENS_A_MINUTE = 60_000
# Not counted: until then processes start, use what may be used at once, and agree on their shares.
SETTLED_SECONDS = 15.0


@contextmanager
def limited(**limits: float) -> Generator[str]:
    """The origin of a provider with these limits."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in limits.items()]
    with provider(f"--burst-seconds={BURST_SECONDS}", "--latency=0.2", *words) as origin:
        yield origin


def stats_of(origin: str) -> dict[str, Any]:
    """How many requests and tokens the server has counted so far."""
    with urllib.request.urlopen(f"{origin}/stats") as answer:  # noqa: S310 # our own server
        return json.loads(answer.read())


def measured(seconds: float, *, announced: bool, **limits: float) -> dict[str, Any]:
    """One run against one limit."""
    with limited(**limits) as origin:
        known = {name: int(value) for name, value in limits.items()} if announced else {}
        inputs = 1 if "requests_per_minute" in limits else 20
        embedder = open_embedder(config(KEY, base_url=f"{origin}/v1", max_batch_inputs=inputs, concurrency=16, **known))
        # The time of imports, the tokenizer and the first connection has nothing to do with the rate limit.
        list(embedder.embed(["warm"]))
        started = time.monotonic()
        answered = sum(len(answer.positions) for answer in embedder.embed(texts(seconds)))
        took = time.monotonic() - started
        stats = stats_of(origin)
    used = stats["statuses"].get("200", 0) if "requests_per_minute" in limits else stats["tokens"]
    (limit,) = limits.values()
    # The sustained rate. What may be used at once at the start comes on top of it, so a run may show more than 1.
    allowed = limit * took / 60
    return {
        "of_limit": round(used / allowed, 3),
        "refused_share": round(stats["statuses"].get("429", 0) / stats["requests"], 4),
        "answered": answered,
        "seconds": round(took, 1),
    }


@contextmanager
def ledger() -> Generator[str]:
    """The DSN of a database whose ledger holds the leases of the shared rate limit."""
    with tempfile.TemporaryDirectory(prefix="pace") as folder:
        server = start_postgres(Path(folder) / "postgres")
        with connect(server.get_uri()) as connection:
            install(connection)
        yield server.get_uri()
        release_postgres(server)


def measured_together(seconds: float, processes: int, database: str | None) -> dict[str, Any]:
    """Several processes against one limit.

    They share it by leases in the ledger of ``database``; with None, each uses the whole limit.
    """
    with limited(requests_per_minute=REQUESTS_A_MINUTE) as origin:
        embedder = {
            "base_url": f"{origin}/v1",
            "api_key": KEY,
            "max_batch_inputs": 1,
            "concurrency": 16,
            "requests_per_minute": REQUESTS_A_MINUTE,
        }
        settings = {"embedder": embedder, "database": database, "seconds": 3600}
        with asking(processes, settings):
            time.sleep(SETTLED_SECONDS)
            started, before = time.monotonic(), stats_of(origin)
            time.sleep(seconds)
            took, after = time.monotonic() - started, stats_of(origin)
    answered, refused = (after["statuses"].get(s, 0) - before["statuses"].get(s, 0) for s in ("200", "429"))
    return {
        "of_limit": round(answered / (REQUESTS_A_MINUTE * took / 60), 3),
        "refused_share": round(refused / max(1, answered + refused), 4),
        "answered": answered,
        "seconds": round(took, 1),
    }


def main() -> None:
    """Measure and print."""
    parser = options(__doc__, "9 s a limit instead of 50")
    parser.add_argument("--processes", type=int, default=1, help="that use one account at once")
    arguments = parser.parse_args()
    seconds = 9.0 if arguments.quick else 50.0
    found = by_processes(seconds, arguments.processes) if arguments.processes > 1 else by_limit(seconds)
    of_limit: dict[str, float | None] = {key: one["of_limit"] for key, one in found.items()}
    refused = {f"refused, {key}": one["refused_share"] for key, one in found.items()}
    panels = [
        plots.Bars(title="used", label="of the limit", values={k: one["of_limit"] for k, one in found.items()}, goal=1),
        plots.Bars(title="refused", label="share of the requests", values=refused),
    ]
    plots.draw(arguments.plot, "A provider's limit", panels)
    conclude("pace", {**of_limit, **refused}, {}, {"quick": arguments.quick, "limits": found})


def by_processes(seconds: float, processes: int) -> dict[str, Any]:
    """Measure several processes: first together, then each as if it were alone."""
    with ledger() as database:
        result = {
            f"{processes} processes together": measured_together(seconds, processes, database),
            f"{processes} processes apart": measured_together(seconds, processes, None),
        }
    for name, one in result.items():
        print(f"{name:24} {one}", flush=True)
    return result


def by_limit(seconds: float) -> dict[str, Any]:
    """Measure one process with each limit: first with the limit in the pipeline, then learned."""
    result: dict[str, Any] = {}
    for name, limit in (
        ("requests", {"requests_per_minute": REQUESTS_A_MINUTE}),
        ("tokens", {"tokens_per_minute": TOKENS_A_MINUTE}),
    ):
        for announced in (True, False):
            key = f"{name} {'told' if announced else 'learned'}"
            result[key] = measured(seconds, announced=announced, **limit)
            print(f"{key:20} {result[key]}", flush=True)
    return result


if __name__ == "__main__":
    main()
