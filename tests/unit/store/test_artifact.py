"""An artifact returns the paid vectors bit for bit, and a corrupt artifact is never read as a sound one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rowvec.errors import ArtifactCorrupt
from rowvec.pipeline.model import Artifacts
from rowvec.postgres.columns import PG_TYPE, PgColumn
from rowvec.postgres.vector_table import VectorTable
from rowvec.stages.binarize import binarize, write_bits
from rowvec.store import artifact as artifacts
from rowvec.store.artifact import Artifact, read_artifact, read_vectors, upload, write_artifact
from rowvec.store.open import open_store
from rowvec.vectors.fingerprint import Identity
from tests.support.examples import examples

IDENTITY = Identity(provider="local", model="wordllama", dimensions=12, preprocessing=1)


def table(dimensions: int = 12, *, bits: bool = True) -> VectorTable:
    """A vector table with a nullable metadata column whose type is transferred as text."""
    return VectorTable(
        schema="vectors",
        name="paintings",
        key=(PgColumn("id", "integer"),),
        metadata=(PgColumn("painted", "date"),),
        dimensions=dimensions,
        bits=bits,
    )


def rows(of: VectorTable, n: int, seed: int = 1) -> pa.RecordBatch:
    """Random rows in the layout of the embed stage's file."""
    random = np.random.default_rng([seed, n])
    schema = pa.schema([field for field in of.artifact_schema if field.name != "embedding_bits"])
    vectors = random.standard_normal(n * of.dimensions).astype(np.float32)
    vectors[::7] *= -0.0
    content = [f"Text {seed} {i}, with é and 猫" for i in range(n)]
    columns = {
        "id": pa.array(np.arange(n, dtype=np.int32)),
        "painted": pa.array([None if i % 3 else "1889-06-01" for i in range(n)], pa.string()),
        "content": pa.array(content),
        "fingerprint": pa.array([hashlib.sha256(text.encode()).digest() for text in content], pa.binary(32)),
        "metadata_hash": pa.array([random.bytes(32) for _ in range(n)], pa.binary(32)),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors), type=of.layout.arrow),
    }
    return pa.record_batch([columns[field.name] for field in schema], schema=schema)


def write(folder: Path, of: VectorTable, batches: list[pa.RecordBatch]) -> tuple[Path, Artifact]:
    """Write an artifact through the same files as a run."""
    spool, bits, into = folder / "embedded.arrow", folder / "bits.arrow", folder / "artifact.parquet"
    schema = pa.schema([field for field in of.artifact_schema if field.name != "embedding_bits"])
    with pa.OSFile(str(spool), "wb") as sink, pa.ipc.new_file(sink, schema) as out:
        for batch in batches:
            out.write_batch(batch)
    if of.bits:
        write_bits(spool, bits, of.dimensions, of.bits)
    return into, write_artifact(spool, bits if of.bits else None, into, of, "paintings", IDENTITY)


def vectors_of(data: pa.Table, dimensions: int) -> npt.NDArray[np.float32]:
    """The embeddings as ``(n, d)``."""
    return data["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, dimensions)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), max_size=6),
    dimensions=st.integers(1, 40),
    bits=st.booleans(),
    group=st.sampled_from([1, 1000, 5000, 1 << 26]),
)
def test_rows_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], dimensions: int, bits: bool, group: int
) -> None:
    of = table(dimensions, bits=bits)
    batches = [rows(of, n, seed) for seed, n in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifacts, "_GROUP_BYTES", group)
        path, artifact = write(tmp_path_factory.mktemp("artifact"), of, batches)
    found = pa.Table.from_batches(read_artifact(path), schema=of.artifact_schema)
    wanted = pa.Table.from_batches(
        batches, schema=pa.schema([f for f in of.artifact_schema if f.name != "embedding_bits"])
    )
    assert artifact.rows == found.num_rows == sum(sizes)
    for name in wanted.column_names:
        if name != "embedding":
            assert found[name].to_pylist() == wanted[name].to_pylist()
    if sum(sizes):
        # Compared as bytes, because -0.0 equals 0.0 but has other bits.
        assert vectors_of(found, dimensions).tobytes() == vectors_of(wanted, dimensions).tobytes()
        if bits:
            packed = b"".join(found["embedding_bits"].to_pylist())
            assert packed == binarize(vectors_of(wanted, dimensions)).tobytes()


def test_an_artifact_is_named_by_its_content(tmp_path: Path) -> None:
    path, artifact = write(tmp_path, table(), [rows(table(), 100)])
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert artifact == Artifact(
        name=f"artifacts/paintings/{digest[:2]}/{digest}.parquet", sha256=digest, rows=100, bytes=len(content)
    )
    again, other = tmp_path / "again", tmp_path / "other"
    again.mkdir()
    other.mkdir()
    assert write(again, table(), [rows(table(), 100)])[1] == artifact
    assert write(other, table(), [rows(table(), 100, seed=2)])[1].name != artifact.name
    store = open_store(Artifacts(url=str(tmp_path / "store")))
    assert upload(store, path, artifact) is True
    assert upload(store, path, artifact) is False


def test_an_artifact_names_its_format_pipeline_and_identity(tmp_path: Path) -> None:
    path, _ = write(tmp_path, table(), [rows(table(), 10)])
    schema = pq.read_schema(path)
    assert schema.metadata[b"rowvec.format"] == b"rowvec.artifact/1"
    assert schema.metadata[b"rowvec.pipeline"] == b"paintings"
    assert Identity(**json.loads(schema.metadata[b"rowvec.identity"])) == IDENTITY
    assert schema.field("painted").metadata[PG_TYPE] == b"date"
    assert schema.field("id").metadata[PG_TYPE] == b"integer"


def test_batches_and_row_groups_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "_GROUP_BYTES", 500_000)
    of = table(64)
    path, _ = write(tmp_path, of, [rows(of, 5000), rows(of, 1), rows(of, 300)])
    read = [batch.num_rows for batch in read_artifact(path)]
    assert sum(read) == 5301
    assert max(read) == 2048
    metadata = pq.read_metadata(path)
    sizes = [metadata.row_group(i).num_rows * (64 * 4 + 8 + 64 + 40) for i in range(metadata.num_row_groups)]
    assert len(sizes) > 3
    assert max(sizes) <= 500_000


def test_only_wanted_vectors_are_read_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "_GROUP_BYTES", 20_000)
    of = table(64)
    batch = rows(of, 500)
    path, _ = write(tmp_path, of, [batch, batch])
    held = batch.column("fingerprint").to_pylist()
    wanted = {held[3], held[400], held[499], bytes(32)}
    found, vectors = read_vectors(path, wanted)
    assert isinstance(vectors, np.ndarray)
    assert sorted(found) == sorted(wanted - {bytes(32)})
    given_vectors = vectors_of(pa.Table.from_batches([batch]), 64)
    for fingerprint, vector in zip(found, vectors, strict=True):
        assert vector.tobytes() == given_vectors[held.index(fingerprint)].tobytes()
    assert vectors.dtype == np.float32
    nothing, none = read_vectors(path, {bytes(32)})
    assert isinstance(none, np.ndarray)
    assert nothing == []
    assert none.shape == (0, 64)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def cut_in_the_middle(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3] + content[len(content) // 3 + 5000 :])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def no_parquet(path: Path) -> None:
    path.write_bytes(b"PAR1" + bytes(1000) + b"PAR1")


def foreign(path: Path) -> None:
    pq.write_table(pa.table({"fingerprint": [b"x"], "embedding": [[1.0]]}), path)


def lying(path: Path) -> None:
    schema = pa.schema([("fingerprint", pa.string())], metadata={b"rowvec.format": artifacts.FORMAT})
    pq.write_table(pa.table({"fingerprint": ["x"]}, schema=schema), path)


def some_without_vectors(path: Path) -> None:
    data = pq.read_table(path)
    index = data.schema.get_field_index("embedding")
    vectors = [None, *data["embedding"].to_pylist()[1:]]
    nullable = pa.field("embedding", data.schema.field(index).type)
    pq.write_table(data.set_column(index, nullable, [pa.array(vectors, nullable.type)]), path)


def misnamed(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"metadata_hash", b"\xffetadata_hash"))


def another_format(path: Path) -> None:
    data = pq.read_table(path)
    pq.write_table(data.replace_schema_metadata({b"rowvec.format": b"rowvec.artifact/2"}), path)


@pytest.mark.parametrize(
    "spoil", [cut, cut_in_the_middle, empty, no_parquet, foreign, lying, some_without_vectors, misnamed, another_format]
)
def test_a_corrupt_or_foreign_file_is_named(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path, _ = write(tmp_path, table(), [rows(table(), 3000)])
    held = {batch.column("fingerprint")[0].as_py() for batch in read_artifact(path)}
    spoil(path)
    with pytest.raises(ArtifactCorrupt, match=r"artifact\.parquet"):
        list(read_artifact(path))
    with pytest.raises(ArtifactCorrupt, match=r"artifact\.parquet"):
        read_vectors(path, held)


@settings(max_examples=examples(100))
@given(spot=st.floats(0, 1, exclude_max=True), footer=st.booleans(), bit=st.integers(0, 7), cut_there=st.booleans())
def test_a_changed_file_is_read_or_its_name_is_in_the_error(
    corruptible: tuple[Path, bytes, set[bytes]], spot: float, footer: bool, bit: int, cut_there: bool
) -> None:
    path, content, held = corruptible
    # The footer is a small part of the file, but it decides how the rest is read.
    start = len(content) - 4000 if footer else 0
    at = start + int(spot * (len(content) - start))
    path.write_bytes(content[:at] + (b"" if cut_there else bytes([content[at] ^ 1 << bit]) + content[at + 1 :]))
    with contextlib.suppress(ArtifactCorrupt):
        list(read_artifact(path))
    with contextlib.suppress(ArtifactCorrupt):
        read_vectors(path, held)


@pytest.fixture(scope="module")
def corruptible(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, set[bytes]]:
    """A file that a test may corrupt, its sound content, and its fingerprints."""
    of = table(16)
    path, _ = write(tmp_path_factory.mktemp("corruptible"), of, [rows(of, 300)])
    held = {fingerprint for batch in read_artifact(path) for fingerprint in batch.column("fingerprint").to_pylist()}
    return path, path.read_bytes(), held


def test_a_writer_that_fails_leaves_no_file(tmp_path: Path) -> None:
    of = table()
    path, _ = write(tmp_path, of, [rows(of, 10)])
    path.unlink()
    (tmp_path / "bits.arrow").write_bytes(b"ARROW1")
    with pytest.raises(pa.ArrowInvalid):
        write_artifact(tmp_path / "embedded.arrow", tmp_path / "bits.arrow", path, of, "paintings", IDENTITY)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bits.arrow", "embedded.arrow"]


_WRITE_AND_READ = """
import sys, threading, time
from pathlib import Path
from rowvec.store.artifact import read_artifact
from tests.unit.store.test_artifact import rows, table, write

most = 0
def watch():
    global most
    while True:  # what is ours: the mapped files' pages belong to the page cache
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        most = max(most, int(lines["RssAnon"].split()[0]))
        time.sleep(0.001)

of = table(1024)
block = rows(of, 2048)
threading.Thread(target=watch, daemon=True).start()
list(read_artifact(write(Path(sys.argv[1]), of, [block])[0]))
before = most
path, _ = write(Path(sys.argv[1]), of, [block] * 40)
for batch in read_artifact(path):
    pass
print(path.stat().st_size // 1024, most - before)
"""


def test_a_large_artifact_is_written_and_read_in_constant_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WRITE_AND_READ, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[3])  # noqa: S603 # ours
    size, grown = map(int, done.stdout.split())
    assert size > 300 * 1024
    assert grown < 160 * 1024, f"{grown} KiB for an artifact of {size} KiB"
