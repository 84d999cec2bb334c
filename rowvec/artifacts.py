"""ROUGH."""

from __future__ import annotations
import hashlib, os, shutil
from collections.abc import Iterator
from dataclasses import dataclass, asdict
from pathlib import Path
import json
import numpy as np, pyarrow as pa, pyarrow.parquet as pq


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    name: str
    sha256: str
    rows: int
    bytes: int


class Store:
    def __init__(self, url):
        self.root = Path(url)

    def put(self, name, path, sha256, metadata=None):
        p = self.root / name
        p.parent.mkdir(parents=True, exist_ok=True)
        if p.exists():
            return False
        shutil.copy(path, p)
        return True

    def get(self, name, into, sha256):
        shutil.copy(self.root / name, into)

    def checksum(self, name):
        p = self.root / name
        return hashlib.sha256(p.read_bytes()).hexdigest() if p.exists() else None

    def names(self, prefix=""):
        return iter(())


def open_store(a):
    return Store(a.url)


def write_bits(spool, bits, dimensions):
    with pa.memory_map(str(spool)) as s, pa.OSFile(str(bits), "wb") as o:
        r = pa.ipc.open_file(s)
        sch = pa.schema([pa.field("embedding_bits", pa.binary((dimensions + 7) // 8))])
        with pa.ipc.new_file(o, sch) as w:
            for i in range(r.num_record_batches):
                b = r.get_batch(i)
                v = b.column("embedding").flatten().to_numpy().reshape(-1, dimensions)
                k = np.packbits(v > 0, axis=1)
                w.write_batch(
                    pa.record_batch(
                        [
                            pa.FixedSizeBinaryArray.from_buffers(
                                pa.binary(k.shape[1]), len(k), [None, pa.py_buffer(k.tobytes())]
                            )
                        ],
                        schema=sch,
                    )
                )


def write_artifact(spool, bits, into, table, pipeline, identity):
    n = 0
    with (
        pq.ParquetWriter(
            into,
            table.artifact_schema,
            compression={
                c.name if c.name != "embedding" else "embedding.list.element": "none" for c in table.artifact_schema
            },
            use_dictionary=False,
        ) as w,
        pa.memory_map(str(spool)) as s,
    ):
        r = pa.ipc.open_file(s)
        rb = pa.ipc.open_file(str(bits)) if bits else None
        for i in range(r.num_record_batches):
            b = r.get_batch(i)
            cols = list(b.columns)
            if rb:
                cols.append(rb.get_batch(i).column(0))
            w.write_batch(pa.record_batch(cols, schema=table.artifact_schema))
            n += b.num_rows
    d = Path(into).read_bytes()
    h = hashlib.sha256(d).hexdigest()
    return Artifact(name=f"artifacts/{pipeline}/{h[:2]}/{h}.parquet", sha256=h, rows=n, bytes=len(d))


def upload(store, path, artifact):
    return store.put(artifact.name, path, artifact.sha256)


def read_artifact(path):
    return pq.ParquetFile(path).iter_batches(2048)


def read_vectors(path, fps):
    t = pq.read_table(path, columns=["fingerprint", "embedding"])
    f = t["fingerprint"].to_pylist()
    seen = set()
    idx = []
    for i, x in enumerate(f):
        if x in fps and x not in seen:
            seen.add(x)
            idx.append(i)
    sub = t.take(idx)
    v = sub["embedding"].combine_chunks()
    d = v.type.list_size
    return [f[i] for i in idx], v.flatten().to_numpy().reshape(-1, d)
