"""What a command has left, without what may differ from run to run: numbers, times, and how the work was divided."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

Connection = psycopg.Connection[tuple[Any, ...]]
State = dict[str, Any]

# A ledger's rows of these tables tell how the work was done, and by how many runs.
_HISTORY = frozenset(
    {
        "artifacts",
        "certificate_blocks",
        "certificates",
        # An erasure that is asked for again after its end has a second certificate.
        "erasures",
        "index_builds",
        "lease_renewals",
        "loaded",
        "looks",
        "migrations",
        "pace_accounts",
        "pace_leases",
    }
    | {"plans", "run_leases", "runs", "spending", "tunings", "stores"}
)

_NUMBER = re.compile(r"[0-9]+")
_INDEX = re.compile(r"(_rowvec_[0-9a-f]+)_[0-9]+")
_RELATIONS = """
    SELECT n.nspname, c.relname, c.relkind::text,
           CASE WHEN c.relkind = 'i' THEN pg_get_indexdef(c.oid) || CASE WHEN i.indisvalid THEN '' ELSE ' INVALID' END
           END
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace LEFT JOIN pg_index AS i ON i.indexrelid = c.oid
    WHERE n.nspname IN ('public', 'rowvec', 'rowvec_changes', 'vectors') AND c.relname !~ '^(scratch|unrecorded)'
"""
_FUNCTIONS = """
    SELECT n.nspname || '.' || p.proname, md5(regexp_replace(p.prosrc, '[0-9]+', 'N', 'g'))
    FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE n.nspname IN ('rowvec', 'rowvec_changes', 'vectors')
"""
_TRIGGERS = "SELECT tgrelid::regclass::text || ' ' || tgname, tgenabled::text FROM pg_trigger WHERE NOT tgisinternal"
_PIPELINES = """
    SELECT name, table_schema, table_name, state, identity::text, journal_whole, artifacts_lost, journal_layout::text
    FROM rowvec.pipelines ORDER BY name
"""
_TABLES = "SELECT name, table_schema, table_name FROM rowvec.pipelines WHERE state <> 'dropped' ORDER BY name"
_LEDGER = """
    SELECT c.relname FROM pg_class AS c WHERE c.relnamespace = 'rowvec'::regnamespace AND c.relkind = 'r'
    AND c.relname NOT LIKE 'scratch%' ORDER BY 1
"""
_SETTLED = """
    SELECT count(*) FROM rowvec.runs WHERE state IN ('running', 'planned')
"""
_ERASING = "SELECT family FROM rowvec.erasures WHERE finished_at IS NULL"
_EMBEDDINGS = """
    SELECT p.name, encode(e.fingerprint, 'hex'), a.name
    FROM rowvec.embeddings AS e JOIN rowvec.pipelines AS p USING (pipeline_id)
    JOIN rowvec.artifacts AS a USING (artifact_id)
"""
_OBJECTS = """
    SELECT name FROM rowvec.artifacts
    UNION SELECT manifest FROM rowvec.runs WHERE manifest IS NOT NULL
    UNION SELECT unnest(superseded) FROM rowvec.stores
"""


def state_of(connection: Connection, folder: Path | None) -> State:
    """What is in the database and in the folder of the case; None if the store belongs to another database."""
    found: State = {
        "relations": sorted(Counter(_relation(row) for row in connection.execute(_RELATIONS)).items()),
        "functions": sorted(Counter(connection.execute(_FUNCTIONS)).items()),
        "triggers": sorted(connection.execute(_TRIGGERS).fetchall()),
    }
    ((ledger, queue),) = connection.execute(
        "SELECT to_regclass('rowvec.pipelines') IS NOT NULL, to_regnamespace('rowvec_changes') IS NOT NULL"
    ).fetchall()
    if queue:
        found["queues"] = _counts(connection, "rowvec_changes", _LEDGER.replace("'rowvec'", "'rowvec_changes'"))
    if ledger:
        found["pipelines"] = [list(row) for row in connection.execute(_PIPELINES)]
        found["rows of the ledger"] = _counts(connection, "rowvec", _LEDGER)
        found["runs at work"] = connection.execute(_SETTLED).fetchone()
        found["erasures at work"] = connection.execute(_ERASING).fetchall()
        for name, schema, table in connection.execute(_TABLES).fetchall():
            found[f"table of {name}"] = _rows(connection, schema, table)
    if folder is not None:
        found |= _files(connection, folder, ledger)
    return found


def differences(wanted: State, found: State) -> list[str]:
    """What is not as wanted, one sentence each."""
    said: list[str] = []
    for name in sorted({*wanted, *found}):
        one, other = wanted.get(name), found.get(name)
        if one == other:
            continue
        if isinstance(one, list) and isinstance(other, list):
            ours, theirs = (Counter(json.dumps(item, default=str) for item in items) for items in (one, other))
            said.append(f"{name}: missing {list(ours - theirs)[:3]}, too many {list(theirs - ours)[:3]}")
        else:
            said.append(f"{name}: {other!r} in place of {one!r}")
    return said


def _plain(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """The row without numbers. An index that replaces another one has a name with a number more, or less."""
    return tuple(_NUMBER.sub("N", _INDEX.sub(r"\1", value)) if isinstance(value, str) else value for value in row)


def _relation(row: tuple[Any, ...]) -> str:
    return " ".join(str(value) for value in _plain(row) if value is not None)


def _counts(connection: Connection, schema: str, tables: str) -> list[tuple[str, int]]:
    found: Counter[str] = Counter()
    for (table,) in connection.execute(tables.encode()).fetchall():
        if table in _HISTORY:
            continue
        count = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(schema, table))
        ((rows,),) = connection.execute(count).fetchall()
        found[re.sub(r"[0-9]+", "N", table)] += rows
    # A run that has nothing to record may leave the table of changed keys, without a row.
    return sorted((table, rows) for table, rows in found.items() if rows or not table.startswith("unrecorded"))


def _rows(connection: Connection, schema: str, table: str) -> list[str]:
    """The rows of a vector table; who wrote them and when is left out."""
    ((there,),) = connection.execute(
        "SELECT to_regclass(format('%%I.%%I', %s::text, %s::text)) IS NOT NULL", (schema, table)
    ).fetchall()
    if not there:
        return ["there is no such table"]
    select = sql.SQL("SELECT (to_jsonb(t) - 'run_id' - 'embedded_at')::text FROM {} AS t ORDER BY 1")
    return [row for (row,) in connection.execute(select.format(sql.Identifier(schema, table)))]


def _files(connection: Connection, folder: Path, ledger: bool) -> State:
    store, spool = folder / "store", folder / "home/spool"
    objects = {p.relative_to(store).as_posix() for p in store.rglob("*") if p.is_file() and not p.name.startswith(".")}
    known = {name for (name,) in connection.execute(_OBJECTS)} if ledger else set[str]()
    embeddings = connection.execute(_EMBEDDINGS).fetchall() if ledger else []
    for name in objects & known:
        if name.startswith("manifests/"):
            known.add(json.loads((store / name).read_bytes())["journal"]["name"])
    marks = [name for name in objects if name.startswith("marks/")]
    return {
        "embeddings": sorted([pipeline, digest] for pipeline, digest, _ in embeddings),
        "artifacts that are not in the store": sorted({name for _, _, name in embeddings} - objects),
        "objects that nothing knows": len(objects - known - set(marks)),
        "marks": len(marks),
        "files of runs": sorted(p.relative_to(spool).as_posix() for p in spool.rglob("*") if p.is_file()),
        "other files at home": sorted(p.name for p in (folder / "home").glob("*") if p.name.startswith("tmp")),
        "temporary files": sorted(p.name for p in folder.iterdir() if p.name not in ("home", "store", "paintings.csv")),
    }
