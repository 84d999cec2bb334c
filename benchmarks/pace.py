"""How much of a provider's limit is used, and how often must it say no?

A server that speaks OpenAI's protocol, in a process of its own, allows so many requests or tokens a minute, of which a
tenth may be used at once. Our embedder sends it texts for a while: with the limits in the pipeline, and without, so
that they are learned from its headers and refusals. ``--quick`` is shorter.
"""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

from benchmarks import plots
from benchmarks.outcome import conclude, options
from benchmarks.servers import provider
from rowvec.embedders import open_embedder
from rowvec.pipeline_embedders import OpenAIEmbedder

KEY = "sk-pace"
BURST_SECONDS = 6.0
REQUESTS_A_MINUTE = 600
TOKENS_A_MINUTE = 60_000
TEXT = "a painting of the sea in winter, oil on canvas, signed at the lower left "


def texts(seconds: float) -> Iterator[str]:
    """Distinct texts until the time is up."""
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        number += 1
        yield f"{TEXT}{number}"


def measured(seconds: float, *, told: bool, **limits: float) -> dict[str, Any]:
    """One run against one limit."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in limits.items()]
    with provider(f"--burst-seconds={BURST_SECONDS}", "--latency=0.2", *words) as origin:
        known = {name: int(value) for name, value in limits.items()} if told else {}
        config = OpenAIEmbedder(
            kind="openai",
            model="text-embedding-3-small",
            dimensions=96,
            base_url=f"{origin}/v1",
            api_key="${PACE_KEY}",
            max_batch_inputs=1 if "requests_per_minute" in limits else 20,
            concurrency=16,
            **known,  # pyright: ignore[reportArgumentType] # numbers by the names of the limits
        ).model_copy(update={"api_key": KEY})
        embedder = open_embedder(config)
        # Imports, the tokenizer and the first connection are not the pace's.
        list(embedder.embed(["warm"]))
        started = time.monotonic()
        answered = sum(len(answer.positions) for answer in embedder.embed(texts(seconds)))
        took = time.monotonic() - started
        with urllib.request.urlopen(f"{origin}/stats") as answer:  # noqa: S310 # our own server
            stats = json.loads(answer.read())
    used = stats["statuses"].get("200", 0) if "requests_per_minute" in limits else stats["tokens"]
    (limit,) = limits.values()
    # The rate that can be kept up; what may be used at once in the beginning is on top, so a run may show more than 1.
    allowed = limit * took / 60
    return {
        "of_limit": round(used / allowed, 3),
        "refused_share": round(stats["statuses"].get("429", 0) / stats["requests"], 4),
        "answered": answered,
        "seconds": round(took, 1),
    }


def main() -> None:
    """Measure and print."""
    arguments = options(__doc__, "9 s a limit instead of 50").parse_args()
    seconds = 9.0 if arguments.quick else 50.0
    os.environ["PACE_KEY"] = KEY
    found: dict[str, dict[str, Any]] = {}
    for name, limit in (
        ("requests", {"requests_per_minute": REQUESTS_A_MINUTE}),
        ("tokens", {"tokens_per_minute": TOKENS_A_MINUTE}),
    ):
        for told in (True, False):
            key = f"{name} {'told' if told else 'learned'}"
            found[key] = measured(seconds, told=told, **limit)
            print(f"{key:20} {found[key]}", flush=True)
    of_limit: dict[str, float | None] = {key: one["of_limit"] for key, one in found.items()}
    refused = {f"refused, {key}": one["refused_share"] for key, one in found.items()}
    panels = [
        plots.Bars(title="used", label="of the limit", values={k: one["of_limit"] for k, one in found.items()}, goal=1),
        plots.Bars(title="refused", label="share of the requests", values=refused),
    ]
    plots.draw(arguments.plot, "A provider's limit", panels)
    conclude("pace", {**of_limit, **refused}, {}, {"quick": arguments.quick, "limits": found})


if __name__ == "__main__":
    main()
