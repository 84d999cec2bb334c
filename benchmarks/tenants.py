"""How much faster is a search for one tenant if each tenant has a partition with an index of its own?

The peer is one table with one HNSW index, and the same filter on the tenant, which the primary key serves too. Both are
searched by rowvec's search function. Tenants are skewed: the n-th largest has 1/n of the rows of the largest. Of each
class of tenants, requests of both take turns. Recall is against the exact neighbours within the tenant.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pgvector import Vector
from psycopg import sql
from psycopg.types.json import Jsonb

from benchmarks.outcome import conclude, options
from benchmarks.plots import Bars, draw
from benchmarks.synthetic import Spectrum
from rowvec.pipeline import Pipeline
from rowvec.pipeline.partitioning import PartitionBy
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.embedded import start_postgres
from rowvec.postgres.migrations import install
from rowvec.postgres.tables.create import create_table
from rowvec.postgres.tables.partitions import make_missing
from rowvec.postgres.vector_table import VectorTable
from rowvec.stages.binarize import binarize
from rowvec.stages.index import serve
from rowvec.stages.load import copy_rows

K = 10
_SEED = 20_261_130
_TEXT = "A text of some length, such as a paragraph of a letter. " * 3

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Tenants:
    """Vectors, and the tenant of each: the number of its place by size, from 0."""

    vectors: Floats
    of: npt.NDArray[np.int64]

    @staticmethod
    def draw(tenants: int, rows: int, dimensions: int) -> Tenants:
        """At least one row per tenant, and about ``rows`` in all."""
        shares = 1 / np.arange(1, tenants + 1)
        sizes = np.maximum(1, np.round(rows * shares / shares.sum())).astype(int)
        of = np.random.default_rng(_SEED).permutation(np.repeat(np.arange(tenants), sizes))
        return Tenants(np.concatenate(list(Spectrum.made_up(dimensions).draw(len(of)))), of)

    def batches(self, table: VectorTable) -> Iterator[pa.RecordBatch]:
        """The rows as an artifact has them."""
        schema = table.artifact_schema
        for first in range(0, len(self.of), 1_000):
            vectors = self.vectors[first : first + 1_000]
            digest = pa.array([bytes(32)] * len(vectors), pa.binary(32))
            values = {
                "tenant": pa.array([_name(n) for n in self.of[first : first + 1_000]]),
                "id": pa.array(np.arange(first, first + len(vectors))),
                "content": pa.array([_TEXT] * len(vectors)),
                "fingerprint": digest,
                "metadata_hash": digest,
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), table.dimensions),
                "embedding_bits": pa.array([row.tobytes() for row in binarize(vectors, table.bits)]),
            }
            yield pa.record_batch([values[n].cast(schema.field(n).type) for n in schema.names], schema=schema)

    def queries(self, lowest: int, highest: int, number: int) -> list[tuple[int, Floats, set[int]]]:
        """Tenants of places ``lowest`` to ``highest`` - 1 in turn, each with a vector near one of its rows, and the ids
        of the nearest rows."""
        random = np.random.default_rng(_SEED + lowest)
        found: list[tuple[int, Floats, set[int]]] = []
        for tenant in random.integers(lowest, highest, size=number).tolist():
            rows = np.flatnonzero(self.of == tenant)
            near = self.vectors[random.choice(rows)] + random.standard_normal(self.vectors.shape[1]) * 0.02
            query = (near / np.linalg.norm(near)).astype(np.float32)
            nearest = rows[np.argsort(-(self.vectors[rows] @ query))[:K]]
            found.append((tenant, query, set(nearest.tolist())))
        return found


def main() -> None:
    """Load, index, search, and print."""
    parser = options(__doc__, "100 tenants, 20,000 rows of 64 dimensions")
    parser.add_argument("--tenants", type=int, default=1_000)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--queries", type=int, default=200, help="per class of tenants")
    parser.add_argument("--rounds", type=int, default=5, help="the first is not counted")
    parser.add_argument("--hash", type=int, default=32, help="partitions of the table that is split by hash")
    given = parser.parse_args()
    if given.quick:
        given.tenants, given.rows, given.dimensions, given.queries, given.rounds = 100, 20_000, 64, 50, 3
    drawn = Tenants.draw(given.tenants, given.rows, given.dimensions)
    with tempfile.TemporaryDirectory(prefix="rowvec-tenants-") as folder:
        server = start_postgres(Path(folder))
        try:
            with connect(server.get_uri()) as connection:
                install(connection)
                found = _contend(connection, drawn, given)
        finally:
            server.cleanup()
    ratios = {f"{name}: {one}": row["ratio"] for one, rows in found["classes"].items() for name, row in rows.items()}
    panels = [
        Bars(title=f"{one} tenants", label="requests/s", values={name: row["rate"] for name, row in rows.items()})
        for one, rows in found["classes"].items()
    ]
    draw(given.plot, "Filtered search for one tenant", panels)
    conclude("tenants", ratios, {}, found)


def _contend(connection: Connection, drawn: Tenants, given: argparse.Namespace) -> dict[str, Any]:
    tables = {
        "one table": _table("whole", given, None),
        "a partition per tenant": _table("by_tenant", given, PartitionBy(columns=("tenant",))),
        f"{given.hash} partitions by hash": _table(
            "by_hash", given, PartitionBy(columns=("tenant",), kind="hash", partitions=given.hash)
        ),
    }
    built: dict[str, Any] = {}
    for name, table in tables.items():
        built[name] = _build(connection, table, drawn)
        print(f"{name}: loaded in {built[name]['load_s']:.0f} s, indexed in {built[name]['index_s']:.0f} s")
    classes = {
        "the largest 10": (0, 10),
        "the others": (10, given.tenants),
    }
    if given.tenants > 100:
        classes = {"the largest 10": (0, 10), "the next 90": (10, 100), "the others": (100, given.tenants)}
    measured = {one: _measure(connection, tables, drawn.queries(*places, given.queries), given.rounds)
                for one, places in classes.items()}  # fmt: skip
    sizes = np.bincount(drawn.of, minlength=given.tenants)
    print(f"\n{given.tenants:,} tenants, {len(drawn.of):,} rows of {given.dimensions} dimensions, k = {K}")
    for one, rows in measured.items():
        low, high = classes[one]
        print(f"\n{one} tenants, {sizes[high - 1]:,} to {sizes[low]:,} rows each")
        for name, row in rows.items():
            print(f"  {name:28} {row['rate']:8.0f} requests/s  {row['ratio']:5.2f}x  recall {row['recall']:.3f}")
    settings = {name: getattr(given, name) for name in ("tenants", "dimensions", "queries", "rounds")}
    return {"rows": len(drawn.of), **settings, "built": built, "classes": measured}


def _table(name: str, given: argparse.Namespace, split: PartitionBy | None) -> VectorTable:
    return VectorTable(
        schema="public",
        name=name,
        key=(PgColumn("tenant", "text"), PgColumn("id", "bigint")),
        metadata=(),
        dimensions=given.dimensions,
        partition_by=split,
    )


def _build(connection: Connection, table: VectorTable, drawn: Tenants) -> dict[str, float]:
    """Load a table, and let rowvec keep its index as a run does."""
    started = time.monotonic()
    split = table.partition_by
    with connection.transaction():
        create_table(connection, table)
        staging = replace(table, name=f"{table.name}_staging", partition_by=None)
        create_table(connection, staging)
        constants = {"run_id": 1, "embedded_at": 0}
        copy_rows(connection, staging.identifier, staging.columns, drawn.batches(staging), constants)
        make_missing(connection, table, staging.identifier)
        fill = sql.SQL("INSERT INTO {} SELECT * FROM {}").format(table.identifier, staging.identifier)
        connection.execute(fill)
        connection.execute(sql.SQL("DROP TABLE {}").format(staging.identifier))
    connection.execute_alone(sql.SQL("VACUUM ANALYZE {}").format(table.identifier), {})
    loaded = time.monotonic()
    pipeline = Pipeline.model_validate(
        {
            "name": "tenants",
            "source": {"kind": "postgres", "table": "public.texts", "key": ["tenant", "id"], "content": "{body}"},
            "embedder": {"kind": "local", "dimensions": 64},
            "target": {"table": f"public.{table.name}", "partition_by": split},
            "index": {"kind": "hnsw", "on": "float"},
            "validation": {"recall": {"queries": 20, "at_least": 0.9}},
        }
    )
    served = serve(connection, table, pipeline)
    return {
        "load_s": loaded - started,
        "index_s": time.monotonic() - loaded,
        "lowest_recall": (served.recall and served.recall.recall) or 0.0,
    }


def _measure(
    connection: Connection, tables: dict[str, VectorTable], queries: list[tuple[int, Floats, set[int]]], rounds: int
) -> dict[str, dict[str, float]]:
    """Requests per second of one connection, the median of the rounds, and the mean recall."""
    rates: dict[str, list[float]] = {name: [] for name in tables}
    recalls: dict[str, float] = {}
    for number in range(rounds):
        # They take turns at going first, so that other work on the machine affects all of them.
        names = list(tables)[:: 1 if number % 2 else -1]
        for name in names:
            call = sql.SQL("SELECT id FROM {} (%s::vector, {}, filter => %s)").format(
                sql.Identifier("public", f"{tables[name].name}_search"), sql.Literal(K)
            )
            started = time.monotonic()
            answers = [
                {id_ for (id_,) in connection.execute(call, (Vector(q).to_text(), Jsonb({"tenant": _name(t)})))}
                for t, q, _ in queries
            ]
            rates[name].append(len(queries) / (time.monotonic() - started))
            recalls[name] = float(np.mean([len(a & n) / len(n) for a, (_, _, n) in zip(answers, queries, strict=True)]))
    peer = rates["one table"][1:]
    return {
        name: {
            "rate": median(found[1:]),
            "ratio": median(ours / theirs for ours, theirs in zip(found[1:], peer, strict=True)),
            "recall": recalls[name],
        }
        for name, found in rates.items()
    }


def _name(tenant: int) -> str:
    return f"tenant {tenant}"


if __name__ == "__main__":
    main()
