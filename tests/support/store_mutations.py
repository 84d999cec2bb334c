"""Random changes to a store of rowvec's: to bytes, to manifests, to rows of the journal, and to Parquet files."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.forged_store import ForgedStore, write_manifest

SQL = "CREATE TABLE public.canary (x int)"

STRINGS = [
    f"text); {SQL}; COMMIT; --",
    f'"; {SQL}; --',
    f"'; {SQL}; --",
    f"$$; {SQL}; $$",
    "%s%(x)s{}{table}",
    "../../../../outside",
    "/var/outside",
    "manifests/paintings/../../../outside.json",
    "artifacts/paintings/ab/" + "ab" * 32 + ".parquet",
    "a\x00b",
    "\x1b[2J\n\r",
    "\ud800",
    "😀" * 50,
    "x" * 100_000,
    "",
    "NaN",
    "integer",
    "public.paintings",
    "vector(99999999)",
    "bit(2147483647)",
    "numeric(1000,1000)[][]",
]
NUMBERS: list[Any] = [-1, 0, 1, 2**31, 2**63, 2**64, 10**400, 1.5, -0.0, 1e308, float("nan"), float("inf")]
VALUES: list[Any] = [*STRINGS, *NUMBERS, None, True, [], {}, [[]], {"a": {"a": 1}}, ["x", "y"], [["x", "text"]]]


def mutate(chance: random.Random, number: int, of: Path, into: Path) -> bool:
    """Write a changed copy of the store ``of``; returns whether checksums were made to fit the change.

    Successive numbers take the kinds of changes in turn, nine numbers a turn; eight turns try all that is not random.
    But for one kind, the marks of ledgers are copied as they are, so that a newest manifest that is gone is noticed.
    """
    kinds = [_bytes, _summed_bytes, _manifest, _manifest, _manifest, _journal, _parquet, _files, _too_much]
    turn, kind = divmod(number, len(kinds))
    return kinds[kind](chance, turn, of, into)


def _bytes(chance: random.Random, _turn: int, of: Path, into: Path) -> bool:
    ForgedStore(of).write(into)
    path = chance.choice(sorted(path for path in into.rglob("*") if path.is_file()))
    path.write_bytes(_changed(chance, path.read_bytes()))
    return False


def _summed_bytes(chance: random.Random, _turn: int, of: Path, into: Path) -> bool:
    forged = ForgedStore(of)
    name = chance.choice(sorted(forged.objects))
    forged.objects[name] = _changed(chance, forged.objects[name])
    forged.write(into)
    return True


def _changed(chance: random.Random, content: bytes) -> bytes:
    at, length = chance.randrange(len(content) + 1), chance.choice([1, 2, 8, 100])
    # The end of a Parquet file decides how the rest is read.
    at = max(0, len(content) - chance.randrange(1500)) if chance.random() < 0.4 else at
    piece = content[at : at + length]
    return content[:at] + chance.choice(
        [
            b"",
            bytes(b ^ 1 << chance.randrange(8) for b in piece) + content[at + length :],
            chance.randbytes(length) + content[at + length :],
            chance.randbytes(length) + content[at:],
            content[at + length :],
            piece * 1000 + content[at:],
        ]
    )


def _manifest(chance: random.Random, _turn: int, of: Path, into: Path) -> bool:
    forged = ForgedStore(of)
    for _ in range(chance.choice([1, 1, 1, 3])):
        place, key = chance.choice(list(_places(chance.choice(forged.manifests))))
        value = chance.choice(VALUES)
        if isinstance(place, dict) and chance.random() < 0.15:
            del place[key]
        elif isinstance(place, list) and chance.random() < 0.15:
            place.insert(key, value)
        else:
            place[key] = value
    forged.write(into)
    return True


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Where in a piece of JSON a value stands: its container, and its key there."""
    found: list[tuple[Any, Any]] = []
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found.append((value, key))
        found += _places(value[key])
    return found


def _journal(chance: random.Random, _turn: int, of: Path, into: Path) -> bool:
    forged = ForgedStore(of)
    name = chance.choice([name for name in sorted(forged.objects) if name.endswith(".zst")])
    lines = pa.CompressedInputStream(pa.BufferReader(forged.objects[name]), "zstd").read().decode().splitlines()
    for _ in range(chance.choice([1, 1, 3])):
        at = chance.randrange(len(lines))
        cells = lines[at].split(",")
        text = str(chance.choice(VALUES)).encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        cells[chance.randrange(len(cells))] = chance.choice([text, '"' + text.replace('"', '""') + '"', "\\.", ""])
        lines[at] = ",".join(cells)
        lines = chance.choice([lines, lines, lines * 2, lines[1:]]) or [""]
    forged.objects[name] = pa.compress("\n".join([*lines, ""]).encode(), "zstd", asbytes=True)
    forged.write(into)
    return True


def _parquet(chance: random.Random, turn: int, of: Path, into: Path) -> bool:
    forged = ForgedStore(of)
    name = chance.choice([name for name in sorted(forged.objects) if name.endswith(".parquet")])
    held = pq.read_table(pa.BufferReader(forged.objects[name]))
    options: dict[str, Any] = {"use_dictionary": False, "compression": "zstd"}
    held = _TABLES[turn % len(_TABLES)](held, chance)
    options.update(
        chance.choice([{}, {}, {"use_dictionary": True}, {"data_page_version": "2.0"}, {"row_group_size": 1}])
    )
    out = pa.BufferOutputStream()
    pq.write_table(held, out, **options)
    forged.objects[name] = out.getvalue().to_pybytes()
    forged.write(into)
    return True


def _without_column(table: pa.Table, chance: random.Random) -> pa.Table:
    return table.drop_columns([chance.choice(table.column_names)])


def _renamed(table: pa.Table, chance: random.Random) -> pa.Table:
    return table.rename_columns([chance.choice(["content", "embedding", "x", name]) for name in table.column_names])


def _other_contents(table: pa.Table, chance: random.Random) -> pa.Table:
    texts = [chance.choice(STRINGS).encode("utf-8", "replace").decode() for _ in range(len(table))]
    return table.set_column(table.schema.get_field_index("content"), table.schema.field("content"), [pa.array(texts)])


def _other_format(table: pa.Table, chance: random.Random) -> pa.Table:
    return table.replace_schema_metadata({b"rowvec.format": chance.choice([b"rowvec.artifact/2", b"x", b""])})


def _twice(table: pa.Table, chance: random.Random) -> pa.Table:
    return pa.concat_tables([table] * chance.choice([2, 3]))


def _half(table: pa.Table, chance: random.Random) -> pa.Table:
    return table.slice(0, len(table) // chance.choice([2, 3]))


def _one_column_more(table: pa.Table, chance: random.Random) -> pa.Table:
    return table.append_column("more", pa.array([chance.choice(STRINGS[:4])] * len(table)))


def _vectors(dimensions: int) -> pa.DataType:
    return pa.list_(pa.field("element", pa.float32(), nullable=False), dimensions)


def _with_vectors(table: pa.Table, chance: random.Random) -> pa.Table:
    """The table with vectors of other dimensions, or that are no numbers."""
    before = table.schema.field("embedding").type.list_size
    dimensions = chance.choice([1, before - 1, before, before, before + 1])
    value = chance.choice([float("nan"), float("inf"), 0.0, 1.0])
    flat = pa.array([value] * (dimensions * len(table)), pa.float32())
    kind = _vectors(dimensions)
    field = pa.field("embedding", kind, nullable=False)
    at = table.schema.get_field_index("embedding")
    return table.set_column(at, field, pa.FixedSizeListArray.from_arrays(flat, type=kind))


_TABLES: list[Callable[[pa.Table, random.Random], pa.Table]] = [
    _without_column,
    _renamed,
    _other_contents,
    _other_format,
    _twice,
    _half,
    _one_column_more,
    _with_vectors,
]


def _files(chance: random.Random, turn: int, of: Path, into: Path) -> bool:
    ForgedStore(of).write(into)
    paths = sorted(path for path in into.rglob("*") if path.is_file())
    path, other = chance.choice(paths), chance.choice(paths)
    what = turn % 7
    content = path.read_bytes()
    if what == 0:
        path.unlink()
    elif what == 1:
        path.write_bytes(other.read_bytes())
    elif what == 2:
        path.unlink()
        path.symlink_to(chance.choice(["/dev/zero", "/etc/passwd", other]))
    elif what == 3:
        path.unlink()
        os.mkfifo(path)
    elif what == 4:
        path.unlink()
        path.mkdir()
    elif what == 5:
        for name in ("newest.json", "29990101T000000.000000Z-9-" + "0" * 12 + ".json", "-.json", "x" * 200 + ".json"):
            (into / "manifests/paintings" / name).write_bytes(content)
    else:
        moved = into.parent / f"{into.name}-outside"
        path.parent.rename(moved)
        path.parent.symlink_to(moved)
    return False


def _too_much(chance: random.Random, turn: int, of: Path, into: Path) -> bool:
    forged = ForgedStore(of)
    _AMOUNTS[turn % len(_AMOUNTS)](chance, forged)
    forged.write(into)
    for path in into.glob("manifests/*/*.json"):
        content = path.read_bytes()
        if _NESTED in content:
            path.unlink()
            write_manifest(into, content.replace(_NESTED, b"[" * 200_000 + b"]" * 200_000))
    return True


_NESTED = b'"nested"'
_SEVERAL, _MANY = 16 << 20, 50_000


def _nested(chance: random.Random, forged: ForgedStore) -> None:
    manifest = chance.choice(forged.manifests)
    manifest[chance.choice(list(manifest))] = "nested"


def _many_values(chance: random.Random, forged: ForgedStore) -> None:
    manifest = chance.choice(forged.manifests)
    name = chance.choice(["artifacts", "runs", "follows"])
    manifest[name] = (manifest[name] or ["x"]) * (_MANY // 10)


def _many_columns(chance: random.Random, forged: ForgedStore) -> None:
    for manifest in forged.manifests:
        more = [[f"c{number}", chance.choice(["text", "x" * 10_000])] for number in range(1_600)]
        manifest["layout"]["metadata"] = [*manifest["layout"]["metadata"], *more][:1_600]


def _many_rows(_chance: random.Random, forged: ForgedStore) -> None:
    _change_journal(forged, lambda lines: lines * (_MANY // len(lines)))


def _long_value(chance: random.Random, forged: ForgedStore) -> None:
    value = chance.choice(["x" * _SEVERAL, '"' + "\n" * _SEVERAL + '"', '"' + "x" * _SEVERAL])
    _change_journal(forged, lambda lines: [",".join([value, *line.split(",")[1:]]) for line in lines[:1]])


def _change_journal(forged: ForgedStore, change: Callable[[list[str]], list[str]]) -> None:
    for name in [name for name in forged.objects if name.endswith(".zst")]:
        lines = pa.CompressedInputStream(pa.BufferReader(forged.objects[name]), "zstd").read().decode().splitlines()
        content = "\n".join([*change(lines), ""]).encode()
        forged.objects[name] = pa.compress(content, "zstd", asbytes=True)


def _long_content(chance: random.Random, forged: ForgedStore) -> None:
    name = chance.choice([name for name in sorted(forged.objects) if name.endswith(".parquet")])
    held = pq.read_table(pa.BufferReader(forged.objects[name]))
    texts = pa.array(["x" * _SEVERAL, *held.column("content").to_pylist()[1:]])
    held = held.set_column(held.schema.get_field_index("content"), held.schema.field("content"), texts)
    out = pa.BufferOutputStream()
    pq.write_table(held, out, use_dictionary=chance.random() < 0.5, compression="zstd")
    forged.objects[name] = out.getvalue().to_pybytes()


def _other_mark(chance: random.Random, forged: ForgedStore) -> None:
    for mark in forged.marks.values():
        mark[chance.choice(list(mark))] = chance.choice(VALUES)


def _many_marks(chance: random.Random, forged: ForgedStore) -> None:
    ((name, mark),) = forged.marks.items()
    for _ in range(50):
        ledger = str(UUID(bytes=chance.randbytes(16)))
        forged.marks[f"{name.rpartition('/')[0]}/{ledger}"] = {**mark, "ledger": ledger}


_AMOUNTS: list[Callable[[random.Random, ForgedStore], None]] = [
    _nested,
    _many_values,
    _many_columns,
    _many_rows,
    _long_value,
    _long_content,
    _other_mark,
    _many_marks,
]
