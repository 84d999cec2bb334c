"""A process that asks an embedder for as long as it may, sharing its rate limit with other processes.

``asking`` starts some, forked from a process that has imported the embedder, with SETTINGS as their argument.

SETTINGS is a JSON object: ``embedder`` (as in a pipeline file, with its key), ``database`` (whose ledger keeps the
pace; null: it paces itself alone) and ``seconds``. Each answer is told in a line: how many texts it holds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from rowvec.embedders import open_embedder
from rowvec.embedders.rate_limit.shared import shared_pace
from rowvec.pipeline.embedders import OpenAIEmbedder
from tests.support.cli_process import command_forks
from tests.support.forked_commands import ForkedProcess
from tests.support.waiting import PATIENCE_SECONDS

TEXT = "a painting of the sea in winter, oil on canvas, signed at the lower left "


def config(key: str, **settings: Any) -> OpenAIEmbedder:
    """An embedder's part of a pipeline, whose references are resolved."""
    common: dict[str, Any] = {"kind": "openai", "model": "text-embedding-3-small", "dimensions": 96}
    return OpenAIEmbedder(**common, **settings).model_copy(update={"api_key": key})


def texts(seconds: float) -> Iterator[str]:
    """Distinct texts until the time is up."""
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        number += 1
        yield f"{TEXT}{os.getpid()} {number}"


@dataclass(slots=True)
class Asking:
    """Such a process, as who started it sees it."""

    process: ForkedProcess
    answered: list[float]
    """When each text was, by the monotonic clock of the one who looks."""

    def between(self, start: float, end: float) -> int:
        """Texts answered in that time."""
        return sum(start <= at < end for at in tuple(self.answered))

    def kill(self) -> None:
        """Send SIGKILL, so that the process cannot give back its lease."""
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(PATIENCE_SECONDS)


@contextmanager
def asking(number: int, settings: dict[str, Any]) -> Generator[list[Asking]]:
    """So many processes with the same settings; those that are left are ended."""
    with ExitStack() as stack:
        processes: list[Asking] = []
        for _ in range(number):
            started = _start(settings)
            stack.callback(started.kill)
            processes.append(started)
        yield processes


def _start(settings: dict[str, Any]) -> Asking:
    answered: list[float] = []

    def note(line: str) -> None:
        answered.extend([time.monotonic()] * int(line))

    words = ["tests.support.paced_process", json.dumps(settings)]
    return Asking(command_forks().start(words, dict(os.environ), program="module", heard=note), answered)


def main() -> None:
    """Ask."""
    settings = json.loads(sys.argv[1])
    embedder = open_embedder(config(settings["embedder"].pop("api_key"), **settings["embedder"]))
    database = settings["database"]
    with shared_pace(database, embedder) if database else nullcontext():
        for answer in embedder.embed(texts(settings["seconds"])):
            print(len(answer.positions), flush=True)


if __name__ == "__main__":
    main()
