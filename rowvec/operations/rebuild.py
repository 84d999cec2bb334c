"""Rebuild: the steps of the rebuild flow between its syncs: plan, compare, switch, roll back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from psycopg import sql

from rowvec.errors import CostLimitExceeded, UsageError
from rowvec.index.recall import SEED
from rowvec.index.tuning.results import present_index
from rowvec.ledger.behind import refuse_if_behind
from rowvec.ledger.generations import Generation, by_settings, list_generations, live_of
from rowvec.ledger.pipelines import check_name
from rowvec.operations.additions import carry_additions
from rowvec.operations.relevance.evaluate import Evaluation, compare_generations
from rowvec.operations.relevance.labels import read_labelled
from rowvec.operations.switch import begin, both_held, next_generation, switch_tables, table_of
from rowvec.pipeline import Pipeline
from rowvec.pipeline.model import BILLED, What
from rowvec.pipeline.parts import table_identifier
from rowvec.pipeline.references import resolve
from rowvec.pipeline.sources import CHUNK
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection, open_target
from rowvec.postgres.fragments import same_key
from rowvec.postgres.migrations import install
from rowvec.postgres.queries import query
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable, count_rows
from rowvec.searches.query import search
from rowvec.searches.request import SearchRequest
from rowvec.stages.dry_run import plan
from rowvec.stages.report import SyncReport
from rowvec.store.open import open_store
from rowvec.vectors.layout import Embeddings

_QUERIES = 100
# Rows sampled per query row, so that each query row is drawn from several.
_ROWS_PER_QUERY = 50
# Hits per row in a table of chunks, because several chunks of one row may be near.
_HITS_PER_ROW = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How much the search results of two generations have in common."""

    k: int
    questions: int
    shared: float
    """The mean share of the k nearest rows that both generations find; from 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """What the steps of a rebuild have returned."""

    following: Pipeline
    """The pipeline that built the next generation."""
    syncs: tuple[SyncReport, ...]
    """Of the next generation, in order."""
    live_sync: SyncReport
    """Of the live generation, before the comparison."""
    comparison: Comparison
    relevance: Evaluation | None
    """How both answer labelled questions; None if there are none."""
    retired_table: str | None
    """The table of the generation before; None if there was no switch."""
    started: float
    """On the monotonic clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildReport:
    """The outcome of a rebuild; ``as_json`` is what ``rowvec rebuild --json`` prints."""

    pipeline: str
    generation: int
    table: str
    """The table of the new generation; after the switch, this is the vector table's own name."""
    switched: bool
    retired_table: str | None
    """The table of the generation before, kept until ``rowvec rebuild --drop-old``."""
    rows: int
    what: What
    """Texts or images; for images, ``tokens`` counts the service's transactions."""
    embedded: int
    reused: int
    tokens: int
    cost_usd: float
    recall_before: float | None
    recall_after: float | None
    comparison: Comparison
    relevance: dict[str, Any] | None
    """How the live generation and the new one answer labelled questions; None if there were none."""
    consistent: bool
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return asdict(self)

    def verdict(self) -> str:
        """One sentence."""
        shared = f"of the {self.comparison.k} nearest rows {self.comparison.shared:.0%} are the same"
        if not self.switched:
            return f"Built, not switched: {self.table} has {self.rows:,} vectors; {shared}."
        return (
            f"Switched: {self.table} has {self.rows:,} new vectors; {shared}. {self.retired_table} keeps the old ones."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """How a caller runs each step of a rebuild."""

    begin: Callable[[Pipeline, float | None], Pipeline]
    sync: Callable[[Pipeline], SyncReport]
    live_pipeline: Callable[[Pipeline], Pipeline]
    compare: Callable[[Pipeline, Pipeline], Comparison]
    judge: Callable[[Pipeline, Pipeline, Path, bool], Evaluation]
    switch: Callable[[Pipeline, Pipeline], str]


def rebuild(
    pipeline: Pipeline, max_cost: float | None, steps: Steps, *, to_switch: bool, questions: Path | None = None
) -> RebuildReport:
    """The order of a rebuild: build, bring both generations up to date, compare, and switch if ``to_switch``.

    ``max_cost``: see ``begin_rebuild``. ``questions``: a file of labelled questions; if the next generation answers
    them worse, there is no switch. Raises what the steps raise.
    """
    if questions is not None:
        # A file that cannot be used is refused before anything is paid for.
        read_labelled(questions, len(pipeline.source.key))
    started = time.monotonic()
    following = steps.begin(pipeline, max_cost)
    built = steps.sync(following)
    # The live generation is synced with its own settings, so that both hold the same rows when they are compared.
    live = steps.live_pipeline(pipeline)
    before = steps.sync(live)
    caught_up = steps.sync(following)
    comparison = steps.compare(pipeline, following)
    relevance = None if questions is None else steps.judge(live, following, questions, to_switch)
    syncs, retired = (built, caught_up), None
    if to_switch:
        retired = steps.switch(pipeline, following)
        # Writes the new generation's manifest, and takes over the rows that changed during the switch.
        syncs = (*syncs, steps.sync(pipeline))
    rebuilt = Rebuilt(
        following=following,
        syncs=syncs,
        live_sync=before,
        comparison=comparison,
        relevance=relevance,
        retired_table=retired,
        started=started,
    )
    return finish_rebuild(pipeline, rebuilt)


def plan_rebuild(pipeline: Pipeline) -> dict[str, Any]:
    """What building the next generation would take, in rows, tokens and US dollars; nothing is spent or kept.

    Raises ``UsageError`` and ``TargetError`` as ``next_generation`` does.
    """
    following = next_generation(pipeline)
    return {
        "generation": int(following.pipeline.name.partition(".")[2]),
        "table": ".".join(table_identifier(following.pipeline.target.table)),
        "begun": following.begun is not None,
        **plan(following.pipeline).as_json(),
    }


def begin_rebuild(pipeline: Pipeline, max_cost: float | None = None) -> Pipeline:
    """The pipeline that builds the next generation, after its cost was checked against ``max_cost`` US dollars.

    Raises ``CostLimitExceeded`` before anything is spent or dropped; ``UsageError`` if there is nothing to build, or if
    ``max_cost`` is given and the price is not configured; ``TargetError`` if something that the user added to the
    table cannot be carried over; ``PipelineBusy`` if another rebuild is at work; ``LedgerBehind`` or ``StoreBehind`` if
    database or store was set back.
    """
    following = next_generation(pipeline)
    _refuse_if_behind(following.pipeline)
    if max_cost is not None:
        found = plan(following.pipeline)
        if found.tokens and not found.cost_usd:
            priced = "thousand_transactions" if found.what == "images" else "million_tokens"
            raise UsageError(f"--max-cost needs the price of {pipeline.embedder.model}: set embedder.cost_per_{priced}")
        if found.cost_usd > max_cost:
            raise CostLimitExceeded(
                f"this rebuild would embed {found.embedded:,} {found.what}, {found.tokens:,} {BILLED[found.what]}, "
                f"for about ${found.cost_usd:,.2f}, and --max-cost allows ${max_cost:,.2f}; nothing was spent"
            )
    begin(pipeline, following)
    return following.pipeline


def _refuse_if_behind(following: Pipeline) -> None:
    """As the syncs of the rebuild do, but before a generation is begun, or one with other settings dropped."""
    resolved = resolve(following, frozenset({"target", "artifacts"}))
    with open_target(resolved, "rowvec rebuild") as connection:
        refuse_if_behind(connection, open_store(resolved.artifacts), following.name)


def live_pipeline(pipeline: Pipeline) -> Pipeline:
    """The pipeline that syncs the live table. Raises ``UsageError`` if there is no vector table yet."""
    with open_target(resolve(pipeline, frozenset({"target"})), "rowvec rebuild") as connection:
        live = live_of(list_generations(connection, pipeline.name), pipeline)
    return by_settings(live, pipeline)


def compare(pipeline: Pipeline, following: Pipeline) -> Comparison:
    """Search both generations for the neighbours of the same rows, each with its own vectors and its own index."""
    k = pipeline.validation.recall.k
    with open_target(resolve(pipeline, frozenset({"target"})), "rowvec compare") as connection:
        known = list_generations(connection, pipeline.name)
        live, new = live_of(known, pipeline), next(g for g in known if g.name == following.name)
        tables = [table_of(connection, pipeline, g) for g in (live, new)]
        choices = [present_index(connection, table, pipeline.index) for table in tables]
        shares: list[float] = []
        for key, vectors in _pairs(connection, tables[0], tables[1]):
            answers = [
                _neighbours(connection, table, choice, vector, key, k)
                for table, choice, vector in zip(tables, choices, vectors, strict=True)
            ]
            most = max(len(answer) for answer in answers)
            shares.append(len(answers[0] & answers[1]) / most if most else 1.0)
    return Comparison(k=k, questions=len(shares), shared=mean(shares) if shares else 0.0)


def judge(live: Pipeline, following: Pipeline, questions: Path, to_switch: bool) -> Evaluation:
    """Ask labelled questions of both generations; see ``compare_generations``, and what it raises."""
    return compare_generations(live, following, questions, to_switch=to_switch)


def switch(pipeline: Pipeline, following: Pipeline) -> str:
    """Make the next generation the live one; returns the name of the table that keeps the one before.

    Raises ``UsageError`` if the next generation does not exist any more; ``PipelineBusy`` if either generation has a
    run under way; ``TargetError`` and ``DatabaseUnavailable`` as ``carry_additions`` and ``switch_tables`` do.
    """
    with open_target(resolve(pipeline, frozenset({"target"})), "rowvec switch") as connection:
        known = list_generations(connection, pipeline.name)
        new = next((g for g in known if g.name == following.name), None)
        if new is None:
            return _switched_before(known, pipeline)
        return _switch_to(connection, pipeline, known, new)


def rollback(pipeline: Pipeline) -> str:
    """Make the generation before the live one again; returns the name of the table that keeps the present one.

    Its rows are as old as the switch: a sync with the settings it was built with brings it up to date. Raises
    ``UsageError`` if there is no generation to go back to; ``PipelineBusy`` if either generation has a run under way;
    ``TargetError`` and ``DatabaseUnavailable`` as ``carry_additions`` and ``switch_tables`` do.
    """
    with open_target(resolve(pipeline, frozenset({"target"})), "rowvec rollback") as connection:
        install(connection)
        known = list_generations(connection, pipeline.name)
        check_name(connection, pipeline)
        retired = [g for g in known if g.state == "retired"]
        if not retired:
            raise UsageError(f"{pipeline.name} has no generation to go back to: it was dropped, or there never was one")
        newest = max(retired, key=lambda g: g.last_run or 0)
        return _switch_to(connection, pipeline, known, newest)


def finish_rebuild(pipeline: Pipeline, rebuilt: Rebuilt) -> RebuildReport:
    """The report of a rebuild."""
    done, retired = rebuilt.syncs, rebuilt.retired_table
    number = int(rebuilt.following.name.partition(".")[2])
    named = pipeline.target.table if retired else rebuilt.following.target.table.replace('"', "")
    return RebuildReport(
        pipeline=pipeline.name,
        generation=number,
        table=named,
        switched=retired is not None,
        retired_table=retired,
        rows=done[-1].rows,
        what=done[-1].what,
        embedded=sum(report.embedded for report in done),
        reused=sum(report.reused for report in done),
        tokens=sum(report.tokens for report in done),
        cost_usd=sum(report.cost_usd for report in done),
        recall_before=rebuilt.live_sync.recall_at_k,
        recall_after=done[-1].recall_at_k,
        comparison=rebuilt.comparison,
        relevance=rebuilt.relevance and rebuilt.relevance.as_json(),
        consistent=all(report.consistent for report in done),
        seconds=round(time.monotonic() - rebuilt.started, 3),
    )


def _switch_to(connection: Connection, pipeline: Pipeline, known: list[Generation], new: Generation) -> str:
    live = live_of(known, pipeline)
    with both_held(connection, pipeline, live, new):
        carry_additions(connection, live, new, (live.settings or pipeline, new.settings or pipeline))
        now, former = (
            present_index(connection, table_of(connection, pipeline, g), pipeline.index) for g in (new, live)
        )
        return switch_tables(connection, pipeline, new, now, former).retired_table


def _switched_before(known: list[Generation], pipeline: Pipeline) -> str:
    """The result of a switch that is tried again after its answer was lost: the switch was made the first time."""
    retired = next((g for g in known if g.state == "retired"), None)
    if retired is None:
        raise UsageError(f"the next generation of {pipeline.name} does not exist any more; run rowvec rebuild again")
    return f"{retired.schema}.{retired.table}"


def _neighbours(
    connection: Connection,
    table: VectorTable,
    choice: IndexChoice,
    vector: Embeddings,
    key: tuple[Any, ...],
    k: int,
) -> set[tuple[Any, ...]]:
    """Keys of the ``k`` source rows nearest to the row with the key ``key``, without that row."""
    names = [column.name for column in _source_key(table)]
    # Several chunks of one row may be near.
    wanted = (k + 1) * (1 if len(names) == len(table.key) else _HITS_PER_ROW)
    hits = search(connection, table, choice, SearchRequest(vector, wanted))
    rows = dict.fromkeys(tuple(hit.key[name] for name in names) for hit in hits)
    rows.pop(key, None)
    return set(list(rows)[:k])


def _source_key(table: VectorTable) -> tuple[PgColumn, ...]:
    """The key of the source's rows: the table's key without the number of the chunk."""
    return tuple(column for column in table.key if column.name != CHUNK)


def _pairs(
    connection: Connection, live: VectorTable, new: VectorTable
) -> list[tuple[tuple[Any, ...], tuple[Embeddings, Embeddings]]]:
    """Keys of source rows with their vectors in both generations; for a row in chunks, those of its first chunk."""
    percent = min(100.0, 100.0 * _QUERIES * _ROWS_PER_QUERY / max(1, count_rows(connection, live)))
    key = _source_key(live)
    names = [sql.Identifier("l", c.name) for c in key]
    first = [
        sql.SQL(" AND {} = 0").format(sql.Identifier(side, CHUNK))
        for side, table in (("l", live), ("n", new))
        if len(table.key) > len(key)
    ]
    parts = {"live_send": live.layout.send, "next_send": new.layout.send}
    parts |= {"live_norm": live.layout.norm, "next_norm": new.layout.norm}
    statement = query(
        "rebuild",
        "pairs",
        key=sql.SQL(", ").join(names),
        live=live.identifier,
        next=new.identifier,
        same_key=same_key(key, "l", "n") + sql.SQL("").join(first),
        key_text=sql.SQL(" || ' ' || ").join(sql.SQL("{}::text").format(name) for name in names),
        percent=sql.Literal(percent),
        seed=sql.Literal(SEED),
        limit=sql.Literal(_QUERIES),
        **parts,
    )
    rows = connection.execute(statement).fetchall()
    return [(tuple(row[:-2]), (live.layout.of_wires([row[-2]])[0], new.layout.of_wires([row[-1]])[0])) for row in rows]
