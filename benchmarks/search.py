"""What do bits with exact rerank gain over pgvector's HNSW on floats at equal recall, and what does shortening cost?

Run it with ``python -m benchmarks.search [--quick]``; benchmarks/README.md says what it measures and against what.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa
import pyarrow.parquet
from psycopg import sql

from benchmarks import plots
from benchmarks.contenders import NUMBERS, Client, Contender, Request, Setting, contenders, request
from benchmarks.outcome import conclude, options
from benchmarks.requests import Rate, connection_to, measure_rate, start_worker
from benchmarks.synthetic import BLOCK_ROWS, Floats, Spectrum
from rowvec.embedders import open_embedder
from rowvec.index.build import ensure_index, index_state
from rowvec.index.recall import distances, interval
from rowvec.pipeline.embedders import LocalEmbedder
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.embedded import start_postgres
from rowvec.postgres.migrations import install
from rowvec.postgres.tables.create import create_table
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable
from rowvec.stages.binarize import binarize
from rowvec.stages.load import copy_rows
from rowvec.vectors.bits import bits_for
from rowvec.vectors.layout import dense

DATA_VARIABLE = "ROWVEC_SEARCH_DATA"
"""The environment variable with the folder of ``openai_*.parquet`` files, each with a column ``embedding``."""

K = 10
AT_LEAST = 0.95
OURS = {1: "bits and rerank, rowvec", 2: "2 bits and rerank, rowvec", 3: "3 bits and rerank, rowvec"}
"""By bits per dimension; the ratios are of those that a new table gets for its dimensions."""

GOALS = {
    256: {"requests": 1.0, "bytes": 2.0},
    512: {"requests": 1.0, "bytes": 2.0},
    1024: {"requests": 3.0, "bytes": 10.0},
    1536: {"requests": 3.0, "bytes": 10.0},
    3072: {"requests": 4.0, "bytes": 12.0, "build": 5.0},
}
"""Ratios of ours against the HNSW index on halfvec, by dimensions; from 1,024 up at 100,000 rows."""

_PARQUET: Any = pyarrow.parquet  # type checkers do not see its functions
_SEED = 20_240_229
_TEXT = "x" * 144
_NO_INDEX = IndexChoice(kind="none", reason="Built anew.")
_EXPLAINED = 50
# The server adds in single precision: a row that is only this much farther than the k-th neighbour counts as near.
_TIE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSet:
    """A set of vectors to search, read block by block; the vectors are the same each time."""

    name: str
    rows: int
    dimensions: int
    blocks: Callable[[], Iterator[Floats]]


@dataclass(frozen=True, slots=True)
class Truth:
    """Queries, which are rows of the set, and their distance to every row."""

    keys: npt.NDArray[np.int64]
    queries: Floats
    distances: npt.NDArray[np.float32]
    """Cosine distances ``(q, n)``; that of a query to its own row is infinite."""
    farthest: npt.NDArray[np.float32]
    """``(q,)``: the distance of the k-th true neighbour."""

    def recall(self, answers: list[list[int]]) -> float:
        """The mean share of the k nearest in the answers; a row as near as the k-th counts as one of them."""
        shares = [
            sum(self.distances[i, row] <= self.farthest[i] + _TIE for row in [r for r in rows if r != key][:K]) / K
            for i, (key, rows) in enumerate(zip(self.keys.tolist(), answers, strict=True))
        ]
        return float(np.mean(shares))


def main() -> None:
    parser = options(__doc__, f"5,000 x 3,072 and short turns, of ours only {OURS[1]!r}")
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get(DATA_VARIABLE),
        help="folder of openai_*.parquet; without it vectors are made up",
    )
    parser.add_argument("--rows", type=int, default=100_000, help="of each synthetic set")
    parser.add_argument("--dimensions", type=int, nargs="*", default=[1536, 3072], help="of the synthetic sets")
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds of requests in each turn")
    parser.add_argument(
        "--shared-buffers", default="2GB", help="shared buffers of the server; floats gain most from more"
    )
    parser.add_argument("--precision", choices=["float32", "float16"], default="float32", help="of the vector table")
    parser.add_argument("--plain", action="store_true", help="store vectors in their rows, not in TOAST")
    parser.add_argument("--peers-effort", type=int, default=64, help="ef_construction of the peer's index")
    parser.add_argument("--only", default="", help="contenders whose names contain this, and the peer")
    parser.add_argument("--no-real", action="store_true", help="leave out the real sets")
    parser.add_argument(
        "--titles", type=Path, help="a Parquet file with the column title: its texts by the local model"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.queries, arguments.rounds, arguments.seconds = 5_000, 100, 2, 0.3
        arguments.dimensions, arguments.no_real, arguments.only = [3072], True, arguments.only or OURS[1]
    sets = [*_titles(arguments.titles), *_sets(arguments)]
    folder = Path(tempfile.mkdtemp(prefix="rvsearch", dir="/tmp"))
    try:
        results = [_measure(folder / str(number), one, arguments) for number, one in enumerate(sets)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _plot(results, arguments.plot)
    conclude("search", _ratios(results), _goals(results), {"quick": arguments.quick, "results": results})


def _sets(arguments: argparse.Namespace) -> list[VectorSet]:
    if arguments.data is None:
        return [
            _synthetic(Spectrum.made_up(dimensions), arguments.rows, dimensions, "made up")
            for dimensions in arguments.dimensions
        ]
    files = sorted(Path(arguments.data).glob("openai_*.parquet"))
    if not files:
        raise SystemExit(f"{arguments.data} has no openai_*.parquet: give another folder with --data")
    real = {file.stem.removeprefix("openai_text-embedding-"): _read(file) for file in files}
    sets: list[VectorSet] = []
    if not arguments.no_real:
        sets += [_in_memory(name, vectors) for name, vectors in real.items()]
    for dimensions in arguments.dimensions:
        # The larger model gives the first half of its vectors if it is asked for half the dimensions.
        model = max((v for v in real.values() if v.shape[1] >= dimensions), key=lambda v: v.shape[1])
        sets.append(_synthetic(Spectrum.of(_unit(model[:, :dimensions])), arguments.rows, dimensions, "synthetic"))
    return sets


def _titles(path: Path | None) -> list[VectorSet]:
    """The distinct titles of a file, as 256-dimensional vectors of the local model."""
    if path is None:
        return []
    titles = [
        title
        for title in _PARQUET.read_table(path, columns=["title"]).column(0).unique().to_pylist()
        if title and title.strip()
    ]
    embedder = open_embedder(LocalEmbedder(kind="local"))
    vectors = np.empty((len(titles), embedder.identity.dimensions), np.float32)
    for answer in embedder.embed(titles):
        vectors[answer.positions] = dense(answer.vectors)
    return [_in_memory("titles", vectors[np.linalg.norm(vectors, axis=1) > 0])]


def _in_memory(name: str, vectors: Floats) -> VectorSet:
    def blocks() -> Iterator[Floats]:
        for first in range(0, len(vectors), BLOCK_ROWS):
            yield vectors[first : first + BLOCK_ROWS]

    return VectorSet(name=name, rows=len(vectors), dimensions=vectors.shape[1], blocks=blocks)


def _synthetic(spectrum: Spectrum, rows: int, dimensions: int, name: str) -> VectorSet:
    return VectorSet(name=name, rows=rows, dimensions=dimensions, blocks=lambda: spectrum.draw(rows))


def _read(path: Path) -> Floats:
    column = _PARQUET.read_table(path, columns=["embedding"]).column(0).combine_chunks()
    return np.ascontiguousarray(column.flatten().to_numpy().reshape(len(column), -1), np.float32)


def _unit(vectors: Floats) -> Floats:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _measure(folder: Path, one: VectorSet, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all contenders on one set, in a Postgres of its own."""
    url, stop = _server(folder, arguments.shared_buffers)
    table = VectorTable(
        schema="public",
        name="items",
        key=(PgColumn("id", "bigint"),),
        metadata=(PgColumn("author", "text"),),
        dimensions=one.dimensions,
        precision=arguments.precision,
    )
    truth = _truth(one, min(arguments.queries, one.rows // 2))
    try:
        with (
            connect(url) as connection,
            ProcessPoolExecutor(2, get_context("spawn"), initializer=start_worker) as workers,
        ):
            install(connection)
            wanted = [c for c in contenders(table, arguments.peers_effort)[1:] if arguments.only in c.name]
            needed = [n for n in NUMBERS if n == 1 or any(c.index.bits == n for c in wanted)]
            tables = {bits: replace(table, name=f"items_{bits}", bits=bits) for bits in needed}
            for each in tables.values():
                _load(connection, each, one, plain=arguments.plain)
            found = _contend(connection, workers, url, tables, truth, arguments)
    finally:
        stop()
    result = {"set": one.name, "rows": one.rows, "dimensions": one.dimensions, "queries": len(truth.keys)}
    result |= {"precision": table.precision, "plain": arguments.plain}
    result |= {"peers_effort": arguments.peers_effort, "shared_buffers": arguments.shared_buffers}
    result |= {
        "busy": os.getloadavg()[0],
        "contenders": found,
    }
    _print_table(result)
    return result


def _server(folder: Path, shared_buffers: str) -> tuple[str, Callable[[], None]]:
    server = start_postgres(folder)
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER SYSTEM SET shared_buffers = {}").format(sql.Literal(shared_buffers)))
    server.cleanup()
    server = start_postgres(folder)
    return server.get_uri(), server.cleanup


def _load(connection: Connection, table: VectorTable, one: VectorSet, *, plain: bool) -> None:
    """Load the set as a first sync does: one table, binary COPY."""
    create_table(connection, table)
    if plain:
        connection.execute(sql.SQL("ALTER TABLE {} ALTER embedding SET STORAGE PLAIN").format(table.identifier))
    names = {"run_id": 1, "embedded_at": 0}
    copy_rows(connection, table.identifier, table.columns, _batches(table, one), names)
    connection.execute_alone(sql.SQL("VACUUM ANALYZE {}").format(table.identifier), {})


def _batches(table: VectorTable, one: VectorSet) -> Iterator[pa.RecordBatch]:
    first = 0
    for vectors in one.blocks():
        n = len(vectors)
        digest = pa.array([bytes(32)] * n, pa.binary(32))
        values = {
            "id": pa.array(np.arange(first, first + n)),
            "author": pa.array([f"author {i % 977}" for i in range(first, first + n)]),
            "content": pa.array([_TEXT] * n),
            "fingerprint": digest,
            "metadata_hash": digest,
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), table.dimensions),
            "embedding_bits": pa.array([row.tobytes() for row in binarize(vectors, table.bits)]),
        }
        schema = table.artifact_schema
        yield pa.record_batch([values[name].cast(schema.field(name).type) for name in schema.names], schema=schema)
        first += n


def _truth(one: VectorSet, queries: int) -> Truth:
    """Exact distances in double precision, computed from the vectors as they were drawn."""
    keys = np.sort(np.random.default_rng(_SEED).choice(one.rows, queries, replace=False))
    drawn = _rows(one, keys)
    found = [distances("cosine", block.astype(np.float64), drawn.astype(np.float64)) for block in one.blocks()]
    every = np.concatenate(found, axis=1).astype(np.float32)
    every[np.arange(queries), keys] = np.inf
    return Truth(keys, drawn, every, np.partition(every, K - 1, axis=1)[:, K - 1])


def _rows(one: VectorSet, keys: npt.NDArray[np.int64]) -> Floats:
    first, found = 0, list[Floats]()
    for block in one.blocks():
        found.append(block[keys[(keys >= first) & (keys < first + len(block))] - first])
        first += len(block)
    return np.concatenate(found)


def _contend(
    connection: Connection,
    workers: ProcessPoolExecutor,
    url: str,
    tables: dict[int, VectorTable],
    truth: Truth,
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Measure the peer first and keep its index; then each contender, whose requests take turns with the peer's."""
    table = peers = tables[1]
    peer, *others = contenders(table, arguments.peers_effort)
    rows: list[dict[str, Any]] = []
    peers_built = _build(connection, table, peer)
    _keep(connection, table)
    client = connection_to(url)
    peers_setting, sweep = _cheapest(connection, client, table, peer, truth)
    pages = _pages(client, request(connection, table, peer, peers_setting), truth)
    rows.append(_row(peer, peers_setting, sweep, truth, peers_built) | {"pages": pages})
    _tell(table, rows[0])
    built = _NO_INDEX, peers_built
    for contender in others:
        if arguments.only not in contender.name:
            continue
        table = tables[contender.index.bits]
        if contender.index != built[0]:
            built = contender.index, _build(connection, table, contender)
        setting, sweep = _cheapest(connection, client, table, contender, truth)
        row = _row(contender, setting, sweep, truth, built[1])
        row["pages"] = _pages(client, request(connection, table, contender, setting), truth)
        for connections in (1, 2):
            pairs: list[tuple[Rate, Rate]] = []
            for number in range(arguments.rounds + 1):
                # The two take turns at going first, so that other work on the machine affects both.
                turns = [(peers, peer, peers_setting), (table, contender, setting)]
                rates = [
                    measure_rate(workers, url, request(connection, t, c, s), truth.queries, connections, arguments)
                    for t, c, s in (turns if number % 2 else turns[::-1])
                ]
                pairs.append((rates[0], rates[1]) if number % 2 else (rates[1], rates[0]))
            # The first round fills caches and maps pages.
            row |= _rates(pairs[1:], connections)
        row["bytes_ratio"] = round(peers_built[0] / row["bytes"], 2) if row["bytes"] else None
        row["build_ratio"] = round(peers_built[1] / row["build_seconds"], 2) if row["build_seconds"] else None
        rows.append(row)
        _tell(table, row)
    seen = [r for r in rows[1:] if "peer_rps_1" in r]
    for name in ("rps_1", "rps_2", "cpu_ms"):
        rows[0][name] = round(statistics.median([r[f"peer_{name}"] for r in seen]), 2) if seen else None
    return rows


def _build(connection: Connection, table: VectorTable, contender: Contender) -> tuple[int, float]:
    """Drop the contender's other indexes and build its index with rowvec's own code; returns its bytes and seconds."""
    ensure_index(connection, table, _NO_INDEX, readers=False)
    if contender.index.kind == "none":
        return 0, 0.0
    report = ensure_index(connection, table, contender.index, readers=False)
    assert report.built
    assert report.index is not None
    return report.index.bytes, report.seconds


def _keep(connection: Connection, table: VectorTable) -> None:
    """Rename the peer's index: under another name rowvec does not drop it, so it stays while contenders have theirs."""
    for state in index_state(connection, table):
        old = sql.Identifier(table.schema, state.name)
        connection.execute(sql.SQL("ALTER INDEX {} RENAME TO the_peers").format(old))


def _cheapest(
    connection: Connection, client: Client, table: VectorTable, contender: Contender, truth: Truth
) -> tuple[Setting, list[tuple[str, float]]]:
    """The first setting that reaches the recall, or else the nearest one; and the recall of each setting tried."""
    sweep: list[tuple[str, float]] = []
    best: tuple[Setting, float] | None = None
    for setting in contender.settings:
        query_form = request(connection, table, contender, setting)
        query_form.prepare(client)
        recall = truth.recall([query_form.run(client, query) for query in truth.queries])
        sweep.append((setting.name, round(recall, 4)))
        if best is None or recall > best[1]:
            best = setting, recall
        if recall >= AT_LEAST:
            break
    assert best
    return best[0], sweep


def _pages(client: Client, query_form: Request, truth: Truth) -> float:
    """The mean number of pages that a search reads.

    It measures the walk, and depends neither on the kind of distance nor on how busy the machine is.
    """
    query_form.prepare(client)
    return round(statistics.mean(query_form.pages(client, query) for query in truth.queries[:_EXPLAINED]), 1)


def _row(
    contender: Contender,
    setting: Setting,
    sweep: list[tuple[str, float]],
    truth: Truth,
    built: tuple[int, float],
) -> dict[str, Any]:
    recall = dict(sweep)[setting.name]
    low, high = interval(recall, len(truth.keys))
    return {
        "name": contender.name,
        "setting": setting.name,
        "recall": recall,
        "low": round(low, 4),
        "high": round(high, 4),
        "sweep": sweep,
        "bytes": built[0],
        "build_seconds": round(built[1], 1),
    }


def _rates(pairs: list[tuple[Rate, Rate]], connections: int) -> dict[str, Any]:
    """Medians over the rounds. Ratios are taken within each round, because the peer ran just before or after."""
    peer, own = [p for p, _ in pairs], [o for _, o in pairs]
    row: dict[str, Any] = {
        f"rps_{connections}": round(statistics.median(o.per_second for o in own), 1),
        f"peer_rps_{connections}": round(statistics.median(p.per_second for p in peer), 1),
        f"ratio_{connections}": round(statistics.median(o.per_second / p.per_second for p, o in pairs), 2),
    }
    if connections == 1:
        row["cpu_ms"] = round(statistics.median(o.cpu_ms for o in own), 2)
        row["peer_cpu_ms"] = round(statistics.median(p.cpu_ms for p in peer), 2)
    return row


def _tell(table: VectorTable, row: dict[str, Any]) -> None:
    """Print the results so far to stderr, because a run takes long."""
    rates = {name: value for name, value in row.items() if name not in ("name", "sweep")}
    print(f"{table.dimensions} {row['name']}: {rates}", file=sys.stderr, flush=True)


def _print_table(result: dict[str, Any]) -> None:
    print(
        f"\n{result['set']}, {result['rows']:,} x {result['dimensions']:,}, {result['queries']} queries, "
        f"load average {result['busy']:.1f}\n"
        f"{'index':<34}{'setting':<16}{'recall@10':>10}{'95 %':>12}{'req/s 1':>9}{'req/s 2':>9}{'CPU ms':>8}"
        f"{'pages':>8}{'MB':>8}{'build s':>9}{'x req 1':>9}{'x req 2':>9}{'x MB':>7}{'x build':>9}"
    )
    for row in result["contenders"]:
        ratios = "".join(
            f"{'' if row.get(name) is None else row[name]:>{width}}"
            for name, width in (("ratio_1", 9), ("ratio_2", 9), ("bytes_ratio", 7), ("build_ratio", 9))
        )
        print(
            f"{row['name']:<34}{row['setting']:<16}{row['recall']:>10.3f}{row['low']:>7.3f}-{row['high']:.2f}"
            f"{row['rps_1'] or 0:>9,.0f}{row['rps_2'] or 0:>9,.0f}{row['cpu_ms'] or 0:>8.2f}{row['pages']:>8,.0f}"
            f"{row['bytes'] / 1e6:>8.1f}{row['build_seconds']:>9.1f}{ratios}"
        )


def _ratios(results: list[dict[str, Any]]) -> dict[str, float | None]:
    """Ratios of ours over plain pgvector's HNSW on halfvec. Real sets are too small for an index, except the titles."""
    ratios: dict[str, float | None] = {}
    for result in results:
        name = OURS[bits_for(result["dimensions"])]
        ours = next((row for row in result["contenders"] if row["name"] == name), None)
        if ours is None or result["set"] not in ("synthetic", "made up", "titles"):
            continue
        named = {"requests": "ratio_1", "requests on 2": "ratio_2", "bytes": "bytes_ratio", "build": "build_ratio"}
        ratios |= {f"{name} {result['dimensions']}": ours.get(key) for name, key in named.items()}
        ratios[f"recall {result['dimensions']}"] = ours["recall"]
    return ratios


def _goals(results: list[dict[str, Any]]) -> dict[str, float]:
    measured = {result["dimensions"] for result in results} & GOALS.keys()
    goals = {f"{name} {d}": goal for d in sorted(measured) for name, goal in GOALS[d].items()}
    return goals | {f"recall {d}": AT_LEAST for d in sorted(measured)}


def _plot(results: list[dict[str, Any]], into: Path | None) -> None:
    panels = [
        plots.Bars(
            title=f"{one['set']}, {one['rows']:,} x {one['dimensions']:,}",
            label="requests per second on one connection",
            values={f"{row['name']} ({row['recall']:.2f})": row["rps_1"] or 0.0 for row in one["contenders"]},
        )
        for one in results
    ]
    plots.draw(into, f"Searches, in brackets recall@{K}; a bar under {AT_LEAST} is not comparable", panels)


if __name__ == "__main__":
    main()
