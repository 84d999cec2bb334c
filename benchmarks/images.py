"""How much of a bare threaded upload's rate do images keep, with checksums, metadata and a ledger?

Small images, all different, are drawn into a folder. The peer sends the same bytes with the same number of threads and
Azure's own client, ``overwrite=False``, and nothing else. Ours is ``rowvec.stages.images.upload.upload_images`` over a
stored plan, with the ledger. Both upload into one Azurite, one slice of the images at a time, in turns, so that other
work on the machine affects both. ``--quick`` uses fewer images. The last line is one JSON object.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from azure.storage.blob import ContainerClient

from benchmarks import plots
from benchmarks.memory import peak_mb
from benchmarks.outcome import conclude, options
from rowvec.ledger.plans import open_plan
from rowvec.ledger.runs import running
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import connect, target_url
from rowvec.sources.images.locations import open_places
from rowvec.stages.extract import stage
from rowvec.stages.images import upload as images
from rowvec.stages.work import Work
from tests.support.images import fill
from tests.support.servers.azurite import Container, serving

SIDE = 96
GOALS = {"rate": 0.80, "memory": 1.2}
"""Images per second over those of a bare upload; the client's peak after all slices over that after the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One upload of all images."""

    seconds: float
    cpu: float
    """CPU seconds of this process, all threads."""
    images: int

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds


def bare(container: Container, files: list[Path]) -> Measured:
    """The peer: Azure's own client and threads, nothing else."""
    client = ContainerClient(container.account_url, container.name, credential=container.key)

    def send(path: Path) -> None:
        client.upload_blob(f"{path.parent.name}/{path.name}", path.read_bytes(), overwrite=False)

    started, worked = time.monotonic(), time.process_time()
    with ThreadPoolExecutor(images.THREADS) as pool:
        done = sum(1 for _ in pool.map(send, files))
    return Measured(seconds=time.monotonic() - started, cpu=time.process_time() - worked, images=done)


@contextmanager
def planned(pipeline: Pipeline) -> Generator[Callable[[list[str]], Measured]]:
    """A function that uploads the images with the given paths.

    The plan holds all images; the ledger is set so that the others count as uploaded.
    """
    resolved = resolve(pipeline)
    assert resolved.source.kind == "images"
    with running(pipeline, "benchmark") as run, connect(target_url(None)) as connection:
        plan = stage.run(pipeline, run)
        places = open_places(resolved.source)
        work = Work(
            pipeline=resolved,
            connection=connection,
            plan=open_plan(connection, resolved, run.run_id),
            lease=run.lease,
        )

        def upload(names: list[str]) -> Measured:
            connection.execute("UPDATE rowvec.images SET uploaded_at = now()")
            connection.execute("UPDATE rowvec.images SET uploaded_at = NULL WHERE place = ANY (%s)", (names,))
            started, worked = time.monotonic(), time.process_time()
            done = [images.upload_images(work, places, number).images for number in range(plan.batches)]
            return Measured(seconds=time.monotonic() - started, cpu=time.process_time() - worked, images=sum(done))

        yield upload


def pipeline_into(container: Container, folder: Path) -> Pipeline:
    """A pipeline from the images of a folder into a container."""
    return Pipeline.model_validate(
        {
            "name": "benchmark",
            "source": {
                "kind": "images",
                "path": str(folder),
                "key": ["image_file"],
                "content": {"image": "image_file"},
            },
            "embedder": {"kind": "local_image"},
            "target": {"table": "vectors.benchmark"},
            "artifacts": {"url": container.url, "credential": "${BENCHMARK_BLOB_KEY}"},
        }
    )


@contextmanager
def prepared(count: int) -> Generator[tuple[str, Path, list[Path]]]:
    """A blob server, and a folder with its files."""
    with tempfile.TemporaryDirectory(prefix="rv") as place, serving() as host:
        os.environ |= {"ROWVEC_HOME": f"{place}/home"}
        os.environ.pop("ROWVEC_DATABASE_URL", None)
        folder = Path(place) / "images"
        yield host, folder, fill(folder, count, SIDE)


def main() -> None:
    """Measure and print."""
    arguments = options(__doc__, "1,000 images instead of 5,000").parse_args()
    count, slices = (1000, 5) if arguments.quick else (5000, 20)
    found: dict[str, list[Measured]] = {"bare": [], "ours": []}
    peaks: list[int] = []
    with prepared(count) as (host, folder, files):
        container = Container(host=host, name=f"bench-{uuid4().hex[:12]}")
        os.environ["BENCHMARK_BLOB_KEY"] = container.key
        ContainerClient(container.account_url, container.name, credential=container.key).create_container()
        size = sum(path.stat().st_size for path in files)
        with planned(pipeline_into(container, folder)) as upload:
            for number in range(slices):
                some = files[number::slices]
                names = [path.relative_to(folder).as_posix() for path in some]
                for name in ("bare", "ours") if number % 2 else ("ours", "bare"):
                    one = bare(container, some) if name == "bare" else upload(names)
                    assert one.images == len(some)
                    found[name].append(one)
                peaks.append(peak_mb())
                pair = {name: round(ones[-1].rate, 1) for name, ones in found.items()}
                print(f"{number:2} {pair} images/s, peak {peaks[-1]} MB", flush=True)
    # The first slice pays for connections, imports and the server's own warm-up.
    bares, ours = found["bare"][1:], found["ours"][1:]
    rates = {name: round(statistics.median(one.rate for one in ones[1:]), 1) for name, ones in found.items()}
    cpu_ms = {
        name: round(1e3 * sum(one.cpu for one in ones[1:]) / sum(one.images for one in ones[1:]), 2)
        for name, ones in found.items()
    }
    ratios = {
        "rate": round(statistics.median(o.rate / b.rate for o, b in zip(ours, bares, strict=True)), 3),
        "rate of sums": round(sum(b.seconds for b in bares) / sum(o.seconds for o in ours), 3),
        "client CPU": round(cpu_ms["ours"] / cpu_ms["bare"], 3),
        "memory": round(peaks[-1] / peaks[0], 3),
    }
    figures = {
        "quick": arguments.quick,
        "images": count,
        "megabytes": round(size / 1e6, 1),
        "rate": rates,
        "cpu_ms": cpu_ms,
        "peak_mb": {"after the first slice": peaks[0], "after the last": peaks[-1]},
    }
    panels = [
        plots.Bars(title="images a second", label="median of the slices", values=rates),
        plots.Bars(title="client CPU", label="ms an image", values=cpu_ms),
    ]
    plots.draw(arguments.plot, f"{count:,} small images into Azurite", panels)
    conclude("images", ratios, GOALS, figures)


if __name__ == "__main__":
    main()
