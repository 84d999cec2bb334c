"""A process that asks an embedder for as long as it may, sharing its rate limit with other processes.

``python -m tests.support.paced_process SETTINGS`` starts one.

SETTINGS is a JSON object: ``embedder`` (as in a pipeline file, with its key), ``database`` (whose ledger keeps the
pace; null: it paces itself alone) and ``seconds``. Each answer is told in a line: how many texts it holds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from rowvec.embedders import open_embedder
from rowvec.embedders.rate_limit.shared import shared_pace
from rowvec.pipeline.embedders import OpenAIEmbedder

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

    process: subprocess.Popen[str]
    answered: list[float] = field(default_factory=list[float])
    """When each text was, by the monotonic clock of the one who looks."""

    def between(self, start: float, end: float) -> int:
        """Texts answered in that time."""
        return sum(start <= at < end for at in tuple(self.answered))

    def kill(self) -> None:
        """Send SIGKILL, so that the process cannot give back its lease."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def listen(self) -> None:
        """Note answers until there are no more."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answered += [time.monotonic()] * int(line)


@contextmanager
def asking(number: int, settings: dict[str, Any]) -> Generator[list[Asking]]:
    """So many processes with the same settings; those that are left are ended."""
    with ExitStack() as stack:
        processes: list[Asking] = []
        for _ in range(number):
            command = [sys.executable, "-m", "tests.support.paced_process", json.dumps(settings)]
            started = Asking(stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)))  # noqa: S603 # ours
            stack.callback(started.process.kill)
            threading.Thread(target=started.listen, daemon=True).start()
            processes.append(started)
        yield processes


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
