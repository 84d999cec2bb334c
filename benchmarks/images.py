"""What of a bare threaded upload's rate do images keep, with checksums, metadata and a ledger?

Small images, unlike each other, are drawn into a folder. The peer sends the same bytes with the same number of threads
and Azure's own client, ``overwrite=False``, and nothing else. Ours is ``rowvec.images.upload_images`` over a stored
plan, ledger and all. Both go into Azurite, in turns, each time into a container of its own. ``--quick`` has fewer
images. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from azure.storage.blob import ContainerClient

from rowvec import images, stages
from rowvec.database import connect, target_url
from rowvec.pipeline import Pipeline
from rowvec.plan import open_plan
from rowvec.references import resolve
from rowvec.run import running
from rowvec.sources.image_places import open_places
from rowvec.stores import open_store
from tests.azurite import Container, serving
from tests.drawn_images import fill

SIDE = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One upload of all images."""

    seconds: float
    cpu: float
    """Of this process, all threads."""
    images: int

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds


def bare(container: Container, files: list[Path]) -> Measured:
    """The peer."""
    client = ContainerClient(container.account_url, container.name, credential=container.key)
    client.create_container()

    def send(path: Path) -> None:
        client.upload_blob(f"{path.parent.name}/{path.name}", path.read_bytes(), overwrite=False)

    started, worked = time.monotonic(), time.process_time()
    with ThreadPoolExecutor(images.THREADS) as pool:
        done = sum(1 for _ in pool.map(send, files))
    return Measured(seconds=time.monotonic() - started, cpu=time.process_time() - worked, images=done)


def ours(pipeline: Pipeline) -> Measured:
    """Extract, which is not measured here; then all batches' images, until they are in the ledger."""
    resolved = resolve(pipeline)
    with running(pipeline, "benchmark") as run, connect(target_url(None)) as connection:
        plan = stages.extract_rows(pipeline, run)
        connection.execute("UPDATE rowvec.images SET uploaded_at = NULL")
        store, places = open_store(resolved.artifacts), open_places(resolved.source)  # pyright: ignore[reportArgumentType] # images
        stored = open_plan(connection, resolved, run.run_id)
        started, worked = time.monotonic(), time.process_time()
        done = [
            images.upload_images(connection, store, places, stored, pipeline.name, number).images
            for number in range(plan.batches)
        ]
        return Measured(seconds=time.monotonic() - started, cpu=time.process_time() - worked, images=sum(done))


def pipeline_into(container: Container, folder: Path) -> Pipeline:
    """The images of a folder, into a container."""
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


def peak() -> float:
    """MB, resident, of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    count, repeats = (1000, 3) if quick else (5000, 3)
    rates: dict[str, list[float]] = {"bare": [], "ours": []}
    cpu: dict[str, list[float]] = {"bare": [], "ours": []}
    ratios: list[float] = []
    peaks: list[float] = []
    with prepared(count) as (host, folder, files):
        size = sum(path.stat().st_size for path in files)
        for repeat in range(repeats + 1):
            pair: dict[str, Measured] = {}
            for name in ("bare", "ours") if repeat % 2 else ("ours", "bare"):
                container = Container(host=host, name=f"bench-{uuid4().hex[:12]}")
                os.environ["BENCHMARK_BLOB_KEY"] = container.key
                before = time.monotonic()
                pair[name] = bare(container, files) if name == "bare" else ours(pipeline_into(container, folder))
                one = pair[name]
                print(
                    f"{repeat} {name:5} {one.rate:8.1f} images/s, {1e3 * one.cpu / count:.2f} ms of CPU each, "
                    f"{one.seconds:.1f} of {time.monotonic() - before:.1f} s, peak {peak():.0f} MB",
                    flush=True,
                )
            peaks.append(peak())
            assert pair["bare"].images == pair["ours"].images == count
            if repeat:  # connections, imports and the server's own warming are the first round's
                ratios.append(pair["ours"].rate / pair["bare"].rate)
                for name, one in pair.items():
                    rates[name].append(one.rate)
                    cpu[name].append(1e3 * one.cpu / count)
    result = {
        "images": count,
        "megabytes": round(size / 1e6, 1),
        "rate": {name: round(statistics.median(found), 1) for name, found in rates.items()},
        "cpu_ms": {name: round(statistics.median(found), 2) for name, found in cpu.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "peak_mb_after_each_round": [round(one) for one in peaks],
        "busy": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
