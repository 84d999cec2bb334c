"""Verify: checks a vector table, or one row of it, against the root that a run has certified."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from psycopg import errors as pg
from psycopg import sql
from pydantic import TypeAdapter, ValidationError

from rowvec.errors import ArtifactCorrupt, Inconsistent, PipelineBusy, UsageError
from rowvec.ledger import pipelines
from rowvec.ledger.behind import refuse_if_behind
from rowvec.ledger.certificates import buckets, follow_chain, newest, vector_type
from rowvec.ledger.generations import effective
from rowvec.ledger.journal import has_changes, replay
from rowvec.ledger.known_manifests import known_manifests
from rowvec.ledger.pipelines import PipelineId
from rowvec.operations.erasure.keys import parse_keys
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import Connection, open_target, use_one_snapshot, without_blocking
from rowvec.postgres.fragments import key_digest, key_json, same_key
from rowvec.postgres.migrations import install
from rowvec.postgres.names import ScratchTable
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable, stored_table
from rowvec.runtime.figures import counted
from rowvec.runtime.home import home
from rowvec.store.manifest import Certificate, read_chain, read_link
from rowvec.store.open import open_store
from rowvec.store.protocol import Store
from rowvec.vectors.hash_tree import Proof, branch_of, fault, root_of

LISTED = 100
_NEEDED = frozenset({"target", "artifacts"})
# A bucket of a table with 1,000,000,000 rows has 15,000 of them, in 1.5 MB of hex.
_LARGEST_PROOF = 16 << 20
_PROOF = TypeAdapter(Proof)

Change = Literal["changed", "added", "removed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A row that is not the one that was certified."""

    change: Change
    digest: str
    """Of its key, in hex; it is all that the tree has of a row that was removed."""
    key: tuple[str, ...] | None
    """None if neither the vector table nor the journal has such a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A vector table against a root; ``as_json`` is what ``rowvec verify --json`` prints."""

    pipeline: str
    table: str
    verified: bool
    """Whether the table has the root that was asked for."""
    run_id: int
    """The run of the last certificate."""
    rows: int
    """Rows that it certified."""
    root: str
    """The root that was asked for: by default, that of the certificate."""
    found: str
    """The root that the vector table has."""
    counts: dict[Change, int]
    differences: tuple[Difference, ...]
    """The first ones by digest, up to ``LISTED``."""
    certificates: int
    """Certificates in the ledger, each of which follows the one before it."""
    chain_gaps: tuple[int, ...]
    """Runs whose certificate does not."""
    note: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return asdict(self)

    def told_of_chain(self) -> str:
        """One sentence about the certificates in the ledger."""
        if self.certificates == 1:
            return "The ledger has one certificate, so there is no chain yet."
        chain = f"{self.certificates:,} certificates are chained"
        if not self.chain_gaps:
            return f"{chain}, each to the one before it."
        runs = ", ".join(map(str, self.chain_gaps[:5])) + (", ..." if len(self.chain_gaps) > 5 else "")
        return (
            f"{chain}, but not those of {counted(len(self.chain_gaps), 'runs')} ({runs}): a restore has brought back "
            "runs that this ledger did not have, or somebody has edited it."
        )

    def verdict(self) -> str:
        """One sentence, verdict first."""
        if self.verified:
            return f"Verified: {counted(self.rows, 'rows have', 'row has')} the root of run {self.run_id}."
        told = [f"{number:,} {change}" for change, number in self.counts.items() if number]
        first = f"; the first is {self.differences[0].change}: {_named(self.differences[0])}" if told else ""
        return f"NOT VERIFIED: {self.table} has another root{': ' if told else ''}{', '.join(told)}{first}."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    connection: Connection
    store: Store
    pipeline: Pipeline
    pipeline_id: PipelineId
    table: VectorTable
    certificate: Certificate
    is_current: bool
    """Whether the ledger's tree has the root of the certificate."""

    @property
    def name(self) -> str:
        """The vector table."""
        return f"{self.table.schema}.{self.table.name}"

    @property
    def owner(self) -> sql.Literal:
        """Whose tree and certificates."""
        return sql.Literal(self.pipeline_id)


def verify(pipeline: Pipeline, root: str | None = None) -> Verified:
    """Hash every row of the vector table, in one pass, and compare with the last certificate, or with ``root``.

    The chain of all certificates is computed again too.

    Raises ``UsageError`` if there is no certificate yet, ``PipelineBusy`` if a run has written rows that no certificate
    covers, ``ArtifactCorrupt`` if the store and the ledger do not have the same certificate, or if one in the ledger
    was edited, ``LedgerBehind`` or ``StoreBehind`` if database or store was set back.
    """
    with _opened(effective(pipeline)) as work:
        found, counts, differences, note = without_blocking(lambda: _compare(work))
        chain = follow_chain(work.connection, work.pipeline_id)
        wanted = root or work.certificate.root
        if found != wanted and found == work.certificate.root:
            note = _told_of_root(work, wanted)
        if any(one.key is None for one in differences):
            differences = _named_by_journal(work, differences)
        return Verified(
            pipeline=work.pipeline.name,
            table=work.name,
            verified=found == wanted,
            run_id=work.certificate.run_id,
            rows=work.certificate.rows,
            root=wanted,
            found=found,
            counts=counts,
            differences=differences,
            certificates=chain.certificates,
            chain_gaps=chain.gaps,
            note=note,
        )


def conclude_verify(found: Verified) -> Verified:
    """The report, if the table has the root. Raises ``Inconsistent`` with it otherwise."""
    if found.verified:
        return found
    raise Inconsistent(f"{found.verdict()}{f' {found.note}' if found.note else ''}", found)


def prove(pipeline: Pipeline, key: str) -> Proof:
    """The proof of one row, or that no row has this key: it holds against the root without the database.

    ``key``: as ``erasure.keys.parse_keys`` takes it. Raises ``Inconsistent`` if the vector table has another row than
    the one that was certified, ``UsageError`` if the key does not fit the table, and what ``verify`` raises.
    """
    with _opened(effective(pipeline)) as work:
        (parsed,) = parse_keys([key], [column.name for column in work.table.key]) or [None]
        if parsed is None:
            raise UsageError("the key is empty")
        proof = without_blocking(lambda: _proof(work, parsed))
        if wrong := fault(proof, work.certificate.root):
            raise Inconsistent(
                f"the row ({', '.join(proof.key)}) of {work.name} is not the one that run {proof.run_id} has "
                f"certified: {wrong}; rowvec verify compares the whole table"
            )
        return proof


def read_proof(file: Path) -> Proof:
    """A proof from a file, which somebody else may have written. Raises ``UsageError`` if it is none."""
    try:
        if file.stat().st_size > _LARGEST_PROOF:
            raise UsageError(f"{file} is not a proof of rowvec: it is larger than any")
        return _PROOF.validate_json(file.read_bytes())
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part)[:60] for part in first["loc"][:4]) or "its JSON"
        raise UsageError(f"{file} is not a proof of rowvec: {where}: {first['msg'][:200]}") from None


def check_proof(proof: Proof, root: str) -> None:
    """Check a proof without database and store. Raises ``Inconsistent`` if it does not hold against ``root``."""
    if wrong := fault(proof, root):
        raise Inconsistent(f"the proof of the row ({', '.join(proof.key)}) does not hold against the root: {wrong}")


@contextmanager
def _opened(pipeline: Pipeline) -> Generator[_Work]:
    resolved = resolve(pipeline, _NEEDED)
    with open_target(resolved, "rowvec verify") as connection:
        install(connection)
        pipeline_id = pipelines.find(connection, pipeline)
        table = stored_table(connection, resolved)
        last = newest(connection, pipeline_id)
        if last is None:
            raise UsageError(
                f"no run of the pipeline {pipeline.name} has certified its vector table yet: the next sync that "
                "changes a row does, if it compares the whole source"
            )
        if last.certificate.vector != vector_type(table):
            raise UsageError(f"run {last.certificate.run_id} has certified vectors of another type than the table has")
        work = _Work(
            connection=connection,
            store=open_store(resolved.artifacts),
            pipeline=pipeline,
            pipeline_id=pipeline_id,
            table=table,
            certificate=last.certificate,
            is_current=last.is_current,
        )
        refuse_if_behind(connection, work.store, pipeline.name)
        _check_store(work)
        yield work


def _check_store(work: _Work) -> None:
    """Read the certificate in the store as well: somebody who can write to the database may not write there."""
    run = sql.Literal(work.certificate.run_id)
    statement = query("certificates", "manifest_of_run", run_id=run, pipeline_id=work.owner)
    (name,) = work.connection.execute(statement).fetchone() or (None,)
    if name is None:
        raise ArtifactCorrupt(f"the ledger does not know the manifest of run {work.certificate.run_id}")
    link = read_link(work.store, name, known_manifests(work.connection, work.pipeline.name).checksums)
    if link.manifest.certificate is None and not work.is_current:
        # An erasure has taken it out; the comparison says that the table has changed since.
        return
    if link.manifest.certificate != work.certificate:
        raise ArtifactCorrupt(f"{work.store.location(name)} has another certificate than the ledger")


def _refuse_pending(work: _Work) -> None:
    current = newest(work.connection, work.pipeline_id)
    is_last = current is not None and current.certificate == work.certificate
    if not is_last or has_changes(work.connection, work.pipeline_id):
        raise PipelineBusy(
            f"a run of the pipeline {work.pipeline.name} has written rows that no certificate covers yet: verify again "
            "when it has ended; if it was killed, run rowvec sync first"
        )


def _compare(work: _Work) -> tuple[str, dict[Change, int], tuple[Difference, ...], str | None]:
    """The root of the vector table; if it is another one, the number of differences by kind, and the first of them."""
    counts: dict[Change, int] = {"changed": 0, "added": 0, "removed": 0}
    with work.connection.transaction():
        use_one_snapshot(work.connection)
        _refuse_pending(work)
        work.connection.execute(query("certificates", "keep_buckets", buckets=buckets(work.table)))
        found = root_of(work.connection.execute(query("certificates", "hashes_kept")).fetchall())
        if found == work.certificate.root:
            return found, counts, (), None
        certified = query("certificates", "hashes_certified", pipeline_id=work.owner)
        if root_of(work.connection.execute(certified).fetchall()) != work.certificate.root:
            return found, counts, (), _no_tree(work)
        limit = sql.Literal(LISTED)
        rows = work.connection.execute(
            query("certificates", "differences", pipeline_id=work.owner, limit=limit)
        ).fetchall()
        counts |= {change: number for change, _, number in rows}
        keys = _keys(work, work.table.identifier, [digest for _, digest, _ in rows])
    listed = (Difference(change=change, digest=digest.hex(), key=keys.get(digest)) for change, digest, _ in rows)
    return found, counts, tuple(listed), None


def _no_tree(work: _Work) -> str:
    if not work.is_current:
        return (
            f"Runs by the queue have changed the table since run {work.certificate.run_id}, and had no tree to carry "
            "on: the next comparison of the whole source certifies it again."
        )
    return "The hashes per row in the ledger do not have the certified root either; rowvec audit can name rows."


def _told_of_root(work: _Work, root: str) -> str:
    own = f"The table has the root of run {work.certificate.run_id}, which is the last one"
    statement = query("certificates", "run_of_root", pipeline_id=work.owner, root=sql.Literal(root))
    (run_id,) = work.connection.execute(statement).fetchone() or (None,)
    return f"{own}; the root that you gave is of {f'run {run_id}' if run_id else 'no run that the ledger knows'}."


def _keys(work: _Work, rows: sql.Composable, digests: list[bytes]) -> dict[bytes, tuple[str, ...]]:
    """The keys of rows by their digests; reads no vectors."""
    parts = {"digest": key_digest(work.table.key, "t"), "key_json": key_json(work.table.key, "t"), "table": rows}
    found = work.connection.execute(query("certificates", "keys", digests=sql.Literal(digests), **parts)).fetchall()
    return {digest: tuple(key) for digest, key in found}


def _named_by_journal(work: _Work, differences: tuple[Difference, ...]) -> tuple[Difference, ...]:
    """Name the rows that were removed from the vector table: the journal in the store still has their keys."""
    known = known_manifests(work.connection, work.pipeline.name)
    try:
        if known.newest is None:
            return differences
        chain = read_chain(work.store, known.newest, known.checksums)
        with tempfile.TemporaryDirectory(dir=home()) as folder:
            replay(work.connection, work.store, chain, Path(folder))
    except ArtifactCorrupt:
        # An audit says what is wrong there; the rows are known by their digests.
        return differences
    keys = _keys(work, ScratchTable("journal_state"), [bytes.fromhex(one.digest) for one in differences])
    return tuple(
        Difference(change=one.change, digest=one.digest, key=one.key or keys.get(bytes.fromhex(one.digest)))
        for one in differences
    )


def _proof(work: _Work, key: Sequence[str]) -> Proof:
    columns = work.table.key
    typed = (
        sql.SQL("{}::{} AS {}").format(sql.Literal(text), column.type_sql, sql.Identifier(column.name))
        for text, column in zip(key, columns, strict=True)
    )
    printed = (sql.SQL("coalesce({0}, {1})::text").format(*(sql.Identifier(a, c.name) for a in "tk")) for c in columns)
    statement = query(
        "certificates",
        "row",
        texts=sql.SQL(", ").join(printed),
        typed=sql.SQL(", ").join(typed),
        send=work.table.layout.send,
        table=work.table.identifier,
        same_key=same_key(columns, "t", "k"),
    )
    with work.connection.transaction():
        use_one_snapshot(work.connection)
        _refuse_pending(work)
        try:
            *texts, fingerprint, vector_sha256 = work.connection.execute(statement).fetchone() or (None, None)
        except pg.DataError as error:
            raise UsageError(f"({', '.join(key)}) is no key of {work.name}: {error.diag.message_primary}") from error
        paths = sql.Literal(branch_of(texts))
        nodes = work.connection.execute(query("certificates", "branch", pipeline_id=work.owner, paths=paths)).fetchall()
    return Proof(
        pipeline=work.pipeline.name,
        table=work.name,
        run_id=work.certificate.run_id,
        root=work.certificate.root,
        vector=work.certificate.vector,
        key=tuple(texts),
        fingerprint=fingerprint,
        vector_sha256=vector_sha256,
        nodes=tuple(content for (content,) in nodes),
    )


def _named(difference: Difference) -> str:
    return f"({', '.join(difference.key)})" if difference.key else f"the key with the digest {difference.digest}"
