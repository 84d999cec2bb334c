"""``--where``: a filter that a person types becomes SQL in which every value is a parameter."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import LiteralString

from psycopg import sql

from rowvec.errors import UsageError
from rowvec.postgres.columns import PgColumn, listed
from rowvec.postgres.names import Operator, PercentSignsDoubled, TypeName
from rowvec.runtime.suggestion import did_you_mean

_LONGEST = 20_000
_DEEPEST = 64  # far below Python's own limit, and far above what people write

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<string>'(?:[^']|'')*')
  | (?P<quoted>"(?:[^"]|"")+")
  | (?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![\w.]))
  | (?P<word>[^\W\d]\w*)
  | (?P<sign><=|>=|<>|!=|=|<|>|\(|\)|,)
    )""",
    re.VERBOSE,
)
_COMPARISONS: dict[str, LiteralString] = {
    "=": "=",
    "<>": "<>",
    "!=": "<>",
    "<": "<",
    "<=": "<=",
    ">": ">",
    ">=": ">=",
}
_PATTERNS: dict[str, sql.SQL] = {"LIKE": sql.SQL("LIKE"), "ILIKE": sql.SQL("ILIKE")}
_KEYWORDS = frozenset({"AND", "OR", "NOT", "IN", "IS", "NULL", "LIKE", "ILIKE", "BETWEEN", "TRUE", "FALSE"})

_ALLOWED = (
    "a filter is made of COLUMN = VALUE (or <> < <= > >=), [NOT] LIKE, ILIKE, IN (...), BETWEEN ... AND ..., "
    "IS [NOT] NULL, joined by AND, OR, NOT and parentheses; values are numbers, 'strings', true or false"
)


@dataclass(frozen=True, slots=True)
class Where:
    """A condition over the columns of ``t``, with the values of its placeholders."""

    condition: sql.Composable
    parameters: dict[str, str]


EVERYTHING = Where(sql.SQL("true"), {})
"""No filter."""


def parse_where(text: str, columns: tuple[PgColumn, ...]) -> Where:
    """The filter ``text`` over ``columns`` of a table with the alias ``t``.

    Values are compared in the column's own type. A name without quotes matches a column as written, else in lower case.
    No part of the text becomes SQL unchanged. Raises ``UsageError`` for a text that is no filter, with the position of
    the error, counted from 1.
    """
    if len(text) > _LONGEST:
        raise UsageError(f"--where has {len(text):,} characters, and at most {_LONGEST:,} are read")
    parser = _Parser(_tokens(text), {column.name: column for column in columns})
    condition = parser.either(0)
    parser.expect_end()
    return Where(condition, parser.parameters)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    position: int

    @property
    def keyword(self) -> str:
        upper = self.text.upper()
        return upper if self.kind == "word" and upper in _KEYWORDS else ""


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    end = len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            raise UsageError(f"--where cannot be read at character {at + 1}, {text[at : at + 10]!r}: {_ALLOWED}")
        tokens.append(_Token(match.lastgroup, match.group(match.lastgroup), match.start(match.lastgroup) + 1))
        at = match.end()
    return [*tokens, _Token("end", "", len(text) + 1)]


@dataclass(slots=True)
class _Parser:
    """A parser by recursive descent: OR over AND over NOT over one comparison."""

    tokens: list[_Token]
    columns: dict[str, PgColumn]
    parameters: dict[str, str] = field(default_factory=dict[str, str])
    at: int = 0

    def either(self, depth: int) -> sql.Composable:
        terms = [self._all(depth)]
        while self._accept("OR"):
            terms.append(self._all(depth))
        return terms[0] if len(terms) == 1 else sql.SQL("({})").format(sql.SQL(" OR ").join(terms))

    def expect_end(self) -> None:
        if self._next.kind != "end":
            raise self._unexpected("AND, OR or the end")

    @property
    def _next(self) -> _Token:
        return self.tokens[self.at]

    def _accept(self, word: str) -> bool:
        found = self._next.keyword == word or (self._next.kind == "sign" and self._next.text == word)
        self.at += found
        return found

    def _expect(self, word: str) -> None:
        if not self._accept(word):
            raise self._unexpected(word)

    def _unexpected(self, wanted: str) -> UsageError:
        found = "the end" if self._next.kind == "end" else repr(self._next.text[:40])
        return UsageError(
            f"--where has {found} at character {self._next.position}, where {wanted} should be: {_ALLOWED}"
        )

    def _all(self, depth: int) -> sql.Composable:
        terms = [self._negation(depth)]
        while self._accept("AND"):
            terms.append(self._negation(depth))
        return terms[0] if len(terms) == 1 else sql.SQL("({})").format(sql.SQL(" AND ").join(terms))

    def _negation(self, depth: int) -> sql.Composable:
        if depth > _DEEPEST:
            raise UsageError(f"--where is nested more than {_DEEPEST} deep at character {self._next.position}")
        if self._accept("NOT"):
            return sql.SQL("(NOT {})").format(self._negation(depth + 1))
        if self._accept("("):
            inner = self.either(depth + 1)
            self._expect(")")
            return inner
        return self._comparison()

    def _comparison(self) -> sql.Composable:
        column = self._column()
        name = sql.Identifier("t", column.name)
        if self._accept("IS"):
            negated = self._accept("NOT")
            self._expect("NULL")
            return (sql.SQL("({} IS NOT NULL)") if negated else sql.SQL("({} IS NULL)")).format(name)
        if self._next.kind == "sign" and self._next.text in _COMPARISONS:
            operator = _COMPARISONS[self._next.text]
            self.at += 1
            return sql.SQL("({} {} {})").format(
                name, PercentSignsDoubled(Operator(operator, column.pg_type)), self._value(cast_of(column))
            )
        negated = self._accept("NOT")
        condition = self._set_or_range(name, column)
        return sql.SQL("(NOT {})").format(condition) if negated else condition

    def _set_or_range(self, name: sql.Identifier, column: PgColumn) -> sql.Composable:
        if self._accept("IN"):
            self._expect("(")
            values = [self._value(cast_of(column))]
            while self._accept(","):
                values.append(self._value(cast_of(column)))
            self._expect(")")
            equal = PercentSignsDoubled(Operator("=", column.pg_type))
            return sql.SQL("({})").format(
                sql.SQL(" OR ").join(sql.SQL("{} {} {}").format(name, equal, value) for value in values)
            )
        if self._accept("BETWEEN"):
            low = self._value(cast_of(column))
            self._expect("AND")
            least, most = (PercentSignsDoubled(Operator(sign, column.pg_type)) for sign in (">=", "<="))
            high = self._value(cast_of(column))
            return sql.SQL("({0} {1} {2} AND {0} {3} {4})").format(name, least, low, most, high)
        for word, operator in _PATTERNS.items():
            if self._accept(word):
                return sql.SQL("({}::text {} {})").format(name, operator, self._value(sql.SQL("text")))
        raise self._unexpected("a comparison")

    def _column(self) -> PgColumn:
        token = self._next
        if token.kind == "quoted":
            name = token.text[1:-1].replace('""', '"')
        elif token.kind == "word" and not token.keyword:
            name = token.text if token.text in self.columns else token.text.lower()
        else:
            raise self._unexpected("a column")
        if name not in self.columns:
            known = listed(list(self.columns))
            raise UsageError(
                f"--where names {token.text[:80]} at character {token.position}, which is no key or metadata column; "
                f"there are: {known}{did_you_mean(name, self.columns)}"
            )
        self.at += 1
        return self.columns[name]

    def _value(self, cast_to: sql.Composable) -> sql.Composable:
        token = self._next
        if token.kind == "string":
            value = token.text[1:-1].replace("''", "'")
        elif token.kind == "number" or token.keyword in ("TRUE", "FALSE"):
            value = token.text
        elif token.keyword == "NULL":
            raise UsageError(f"--where compares with NULL at character {token.position}: write IS NULL or IS NOT NULL")
        else:
            raise self._unexpected("a value")
        if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
            raise UsageError(f"--where has a character at {token.position} that no text in Postgres can hold")
        self.at += 1
        name = f"where_{len(self.parameters)}"
        self.parameters[name] = value
        return sql.SQL("{}::{}").format(sql.Placeholder(name), cast_to)


def cast_of(column: PgColumn) -> sql.Composable:
    """The column's type without its length: a cast to varchar(3) would cut the value, and match the wrong rows."""
    pg_type = column.pg_type
    if '"' not in pg_type:
        pg_type = re.sub(r"\([^)]*\)", "", pg_type)
    pg_type = re.sub(r"^character(?! varying)", "bpchar", pg_type)  # bare `character` means a length of 1
    pg_type = re.sub(r"^bit(?! varying)\b", "bit varying", pg_type)
    # In a statement with parameters psycopg takes a percent sign for a placeholder, even in a quoted name.
    return PercentSignsDoubled(TypeName(pg_type))
