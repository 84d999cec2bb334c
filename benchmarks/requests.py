"""Requests per second, on one connection or on several at once, each in a process of its own."""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
from pgvector.psycopg import register_vector

from benchmarks.contenders import Client, Request
from benchmarks.synthetic import Floats

_WARM_REQUESTS = 20
# All processes connect and warm up within this time, and then start together.
_LEAD_SECONDS = 0.4

_connections: dict[str, Client] = {}


@dataclass(frozen=True, slots=True)
class Rate:
    """What one turn measured."""

    per_second: float
    cpu_ms: float
    """CPU of the server's process per request: other work on the machine changes it far less than the rate. 0 if the
    server's process cannot be seen."""


def start_worker() -> None:
    """Limit numpy to one thread: the server needs the cores."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"


def measure_rate(
    workers: ProcessPoolExecutor,
    url: str,
    request: Request,
    queries: Floats,
    connections: int,
    arguments: argparse.Namespace,
) -> Rate:
    """Send requests in sequence on each of ``connections`` for ``arguments.seconds``. ``queries``: ``(q, d)``."""
    start = time.time() + _LEAD_SECONDS
    share = len(queries) // connections
    running = [
        workers.submit(_requests, url, request, queries[i * share : (i + 1) * share], start, arguments.seconds)
        for i in range(connections)
    ]
    counted = [one.result() for one in running]
    made = sum(number for number, _, _ in counted)
    return Rate(
        per_second=sum(number / seconds for number, seconds, _ in counted),
        cpu_ms=sum(cpu for _, _, cpu in counted) / made * 1000,
    )


def _requests(url: str, request: Request, queries: Floats, start: float, seconds: float) -> tuple[int, float, float]:
    """The number of requests, the seconds they took, and the server's CPU seconds."""
    connection = connection_to(url)
    request.prepare(connection)
    for query in queries[:_WARM_REQUESTS]:
        request.run(connection, query)
    pid = connection.info.backend_pid
    time.sleep(max(0.0, start - time.time()))
    made, began, used = 0, time.perf_counter(), _cpu_seconds(pid)
    while (passed := time.perf_counter() - began) < seconds or not made:
        request.run(connection, queries[made % len(queries)])
        made += 1
    return made, passed, _cpu_seconds(pid) - used


def connection_to(url: str) -> Client:
    """This process's own connection, kept from turn to turn as a pool keeps it.

    A new server process must map each page of the shared buffers the first time it uses it, which costs more than
    reading it. A client that opens one connection per request pays for that, and for much else.
    """
    if url not in _connections:
        _connections[url] = psycopg.connect(url, autocommit=True)
        register_vector(_connections[url])
    return _connections[url]


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process on this machine, in ticks of a hundredth of a second."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0
