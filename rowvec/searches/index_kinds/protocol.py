"""What rowvec asks of a kind of index: what to build, how a search finds more, and when an index is as good as wanted.

A kind is a class without state. All of them, pgvector's own too, answer the same questions; the answers given here suit
a graph whose search has one setting of effort. Validity is not asked: Postgres knows it of each index. Nor is the
progress of a build, because Postgres has a row in ``pg_stat_progress_create_index`` for each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from psycopg import sql

from rowvec.pipeline.indexes import AnyIndex
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import Metric

Option = str | int | float | bool

_OPERATORS: dict[Metric, str] = {"cosine": "cosine", "l2": "l2", "inner_product": "ip"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sought:
    """What one search asks of its index, each an SQL expression of an integer."""

    shortlist: sql.Composable
    """Rows that the index should bring."""
    oversampling: sql.Composable
    most_visits: sql.Composable
    """Entries after which the index has cost as much as an exact search."""
    visits: sql.Composable | None = None
    """With a filter: entries that the index is expected to look at for its shortlist."""


class IndexMethod:
    """How one kind of index is built and searched."""

    access_method: ClassVar[str]
    """As CREATE INDEX names it, after USING."""
    extension: ClassVar[str]
    """As CREATE EXTENSION names it: where the access method comes from."""
    types: ClassVar[Mapping[str, int]]
    """The most dimensions by pgvector's type: vector, halfvec, bit; of sparsevec the most nonzeros."""
    prefers_bits: ClassVar[bool] = False
    """Whether ``index.on: auto`` takes the bits of vectors that are long enough; only if ``types`` has bit."""
    default_effort: ClassVar[int] = 100
    """Of a search, if nothing raised it."""
    most_effort: ClassVar[int] = 1_000
    gone_share: ClassVar[float] = 0.1
    """The share of the vectors of a build that may be gone or replaced before the index is rebuilt."""

    def operator_class(self, type_name: str, metric: Metric) -> str:
        """The operator class for a column of this type; those of most extensions are called like pgvector's."""
        return "bit_hamming_ops" if type_name == "bit" else f"{type_name}_{_OPERATORS[metric]}_ops"

    def options(self, wanted: Any, rows: int) -> Mapping[str, Option]:
        """What CREATE INDEX has after WITH, for so many rows. ``wanted``: the pipeline's ``index`` part."""
        del wanted, rows
        return {}

    def settings(
        self, choice: IndexChoice, effort: sql.Composable, sought: Sought
    ) -> Mapping[str, sql.Composable | str | int]:
        """The settings of a search, made for its transaction alone: names, and values or SQL expressions of values.

        ``effort``: an SQL expression of an integer, from ``default_effort`` up to ``most_effort``.
        """
        raise NotImplementedError

    def needed_memory(self, rows: int, dimensions: int, choice: IndexChoice) -> int:
        """Bytes that a build takes, with a margin; 0 if it is unknown."""
        del rows, dimensions, choice
        return 0

    def index_bytes(self, rows: int, dimensions: int, choice: IndexChoice) -> int:
        """Bytes of an index on disk, about."""
        return rows * (value_bytes(dimensions, choice) + 100)

    def faults(self, pgvector: tuple[int, ...]) -> str | None:
        """What a report says about an index under this version of pgvector; None if there is nothing to say."""
        del pgvector

    @property
    def product(self) -> str:
        """What messages call the extension."""
        return "pgvector" if self.extension == "vector" else self.extension

    # pgvector's own kinds keep their settings in fields of ``IndexChoice`` that the ledger had before there were
    # others, and build a stronger graph if one finds too little. What follows is the same for all other kinds.

    def designed(self, choice: IndexChoice, wanted: AnyIndex, rows: int) -> IndexChoice:
        """The choice with what CREATE INDEX needs."""
        written = {name: _written(value) for name, value in self.options(wanted, rows).items()}
        return replace(choice, options=tuple(sorted(written.items())))

    def with_options(self, choice: IndexChoice) -> Mapping[str, Option]:
        """What CREATE INDEX has after WITH."""
        return dict(choice.options)

    def present(self, choice: IndexChoice, options: Mapping[str, str]) -> IndexChoice:
        """The choice that an index with these storage parameters was built by."""
        return replace(choice, options=tuple(sorted(options.items())))

    def fits(self, present: IndexChoice, choice: IndexChoice) -> bool:
        """Whether an index on the same column, built as ``present``, is as good as one built as ``choice``."""
        return present.options == choice.options

    def outgrown(self, other: IndexChoice, choice: IndexChoice) -> str | None:
        """Why an index like the choice, for fewer rows, no longer suits; None if that is not what is wrong with it."""
        del other, choice

    def over_more_rows(self, choice: IndexChoice, rows: int) -> IndexChoice:
        """A choice that was tuned over at most half as many rows."""
        del rows
        return choice

    def stronger(self, choice: IndexChoice) -> IndexChoice:
        """The choice with more effort of the build; itself if there is no more."""
        return choice

    def not_weaker(self, choice: IndexChoice, present: IndexChoice, *, too_weak: bool) -> IndexChoice:
        """The choice, built with no less effort than a present index of its kind; with more if that is too weak."""
        del present, too_weak
        return choice

    def effort(self, choice: IndexChoice) -> int:
        """The effort that a search of this choice makes at its own oversampling."""
        return choice.effort or self.default_effort

    def with_effort(self, choice: IndexChoice, effort: int) -> IndexChoice:
        """The choice, searched with another effort."""
        return replace(choice, effort=effort)

    def harder(self, choice: IndexChoice, factor: int, k: int) -> IndexChoice:
        """The choice with so many times the effort of a search for ``k`` rows, up to the limit."""
        least = self.effort(choice)
        if reranks(choice):
            least = max(least, k * choice.oversampling)
        return self.with_effort(choice, max(least, min(self.most_effort, least * factor)))

    def effort_of(self, choice: IndexChoice, sought: Sought) -> sql.Composed:
        """The effort of one search, as SQL, before its limit."""
        if reranks(choice):
            effort = sql.SQL("greatest({}, {})").format(sql.Literal(self.effort(choice)), sought.shortlist)
        else:
            # On whole floats there is no shortlist that oversampling could lengthen: it scales the effort.
            effort = sql.SQL("greatest({} * {} / {}, {})").format(
                sql.Literal(self.effort(choice)),
                sought.oversampling,
                sql.Literal(choice.oversampling),
                sought.shortlist,
            )
        if sought.visits is None:
            return effort
        return sql.SQL("greatest({}, {})").format(effort, sought.visits)

    def settings_of(self, choice: IndexChoice, sought: Sought) -> Mapping[str, sql.Composable]:
        """The settings of one search, each an SQL expression of a text."""
        effort = sql.SQL("least({}, {})").format(sql.Literal(self.most_effort), self.effort_of(choice, sought))
        found = self.settings(choice, effort, sought)
        return {name: _as_text(value) for name, value in found.items()}

    def written(self, choice: IndexChoice) -> str:
        """How an index is built, for a message: what follows its kind and column."""
        named = ", ".join(f"{name} {value}" for name, value in choice.options)
        return f" with {named}" if named else ""

    def searched(self, choice: IndexChoice) -> str:
        """How it is searched, for the report of a tuning."""
        return f"effort {self.effort(choice):,}"

    def build_effort(self, choice: IndexChoice) -> float:
        """How much longer a build takes than that of a default graph."""
        del choice
        return 1.0

    def keys_to_raise(self, choice: IndexChoice) -> Sequence[str] | None:
        """The keys of the pipeline file whose larger values find more; None if only another index does."""
        del choice
        return []

    def most_parts(self, rows: int, dimensions: int, choice: IndexChoice, memory: int) -> int | None:
        """Of a kind whose build is refused for lack of memory: with how many lists it is not. None for other kinds."""
        del rows, dimensions, choice, memory


def reranks(choice: IndexChoice) -> bool:
    """Whether a search ranks a shortlist of the index again, by the whole vectors."""
    return choice.on == "bits" or choice.prefix > 0


def value_bytes(dimensions: int, choice: IndexChoice) -> int:
    """Bytes of one vector in the index."""
    held = choice.prefix or dimensions
    if choice.on == "bits":
        return choice.bits * held // 8
    return held * (2 if choice.opclass.startswith("half") else 4)


def _written(value: Option) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _as_text(value: sql.Composable | str | int) -> sql.Composable:
    return sql.SQL("({})::text").format(value) if isinstance(value, sql.Composable) else sql.Literal(str(value))
