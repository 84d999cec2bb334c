"""What the source holds and what embedding it may cost, in plain Python, and the edits that a source is made to suffer.

Neither database nor product comes into it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

POISON = "POISON"
"""The embedder refuses a text that holds it."""

MOST_ROWS = 60

_TITLES = (None, "", " ", "red", "green", "blue", "gold", "same", "same")
_DESCRIPTIONS = (None, "", "\t", "of the sea", "of a horse", "same")
_AUTHORS = (None, "", "Klee", "Turner", "Kahlo", "Hokusai")
_WHITE = " \t\n\r\f\v"


@dataclass(frozen=True, slots=True)
class Painting:
    """A row of the source, less its key."""

    title: str | None
    description: str | None
    author: str | None
    year: int | None

    @property
    def content(self) -> str:
        """What the pipeline's template makes of it."""
        return f"{self.title or ''}\n{self.description or ''}"

    @property
    def has_content(self) -> bool:
        """Whether there is anything to embed."""
        return bool(self.content.strip(_WHITE))

    @property
    def is_poison(self) -> bool:
        """Whether the embedder refuses it."""
        return POISON in self.content


Rows = dict[int, Painting]
Stored = tuple[str, str | None, int | None]
"""Content, author and year: what a row of the vector table shows."""


def wanted(rows: Rows) -> dict[int, Stored]:
    """f(source): what the vector table must hold, by key."""
    return {id_: (p.content, p.author, p.year) for id_, p in rows.items() if p.has_content and not p.is_poison}


def refused(rows: Rows) -> dict[int, str]:
    """What must be among the rejects, by key."""
    return {id_: p.content for id_, p in rows.items() if p.has_content and p.is_poison}


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of the source: what becomes of each row it touches, None where it goes."""

    name: str
    changes: tuple[tuple[int, Painting | None], ...]

    def __str__(self) -> str:
        if len(self.changes) > 8:
            return f"{self.name}: {len(self.changes)} rows"
        return f"{self.name}: " + ", ".join(
            f"{id_} gone" if p is None else f"{id_} = {(p.title, p.description, p.author, p.year)}"
            for id_, p in self.changes
        )

    def apply(self, rows: Rows) -> Rows:
        """The rows after it."""
        after = dict(rows)
        for id_, painting in self.changes:
            if painting is None:
                after.pop(id_, None)
            else:
                after[id_] = painting
        return after


@dataclass(slots=True)
class Author:
    """Makes up edits, remembering what was: contents come back, and rows that were dropped."""

    chance: random.Random
    rows: Rows = field(default_factory=dict[int, Painting])
    _former: list[Painting] = field(default_factory=list[Painting])
    _dropped: Rows = field(default_factory=dict[int, Painting])
    _next_id: int = 1
    _number: int = 0

    def first(self) -> Edit:
        """The rows that a sequence begins with."""
        return self._made("begin", {self._new_id(): self._painting() for _ in range(self.chance.randint(5, 40))})

    def edit(self) -> Edit:
        """The next edit."""
        makers: list[Callable[[], Edit]] = [
            self._insert,
            self._content,
            self.rewrite,
            self.rewrite,
            self._metadata,
            self._delete,
            self._key,
            self._swap,
            self._blank,
            self._poison,
            self._back,
            self._back,
            self._drop_many,
            self._put_back,
        ]
        if not self.rows:
            makers = [self._insert, self._put_back]
        return self.chance.choice(makers)()

    def _insert(self) -> Edit:
        room = MOST_ROWS - len(self.rows)
        return self._made(
            "insert", {self._new_id(): self._painting() for _ in range(min(room, self.chance.randint(1, 5)))}
        )

    def _content(self) -> Edit:
        return self._made("update content", {i: self._with_content(self.rows[i]) for i in self._some()})

    def rewrite(self) -> Edit:
        """Many texts that were never paid for, so that there is something to interrupt."""
        ids = self.chance.sample(sorted(self.rows), len(self.rows) // 2)
        return self._made("rewrite many", {i: self._with_new_content(self.rows[i]) for i in sorted(ids)})

    def _metadata(self) -> Edit:
        changed = {
            i: replace(self.rows[i], author=self.chance.choice(_AUTHORS), year=self._year()) for i in self._some()
        }
        return self._made("update metadata", changed)

    def _delete(self) -> Edit:
        return self._made("delete", dict.fromkeys(self._some()))

    def _key(self) -> Edit:
        changes: dict[int, Painting | None] = {}
        for id_ in self._some():
            changes |= {id_: None, self._new_id(): self.rows[id_]}
        return self._made("change key", changes)

    def _swap(self) -> Edit:
        some = self._some()
        a, b = some[0], some[-1]
        one, other = self.rows[a], self.rows[b]
        return self._made(
            "swap",
            {
                a: replace(one, title=other.title, description=other.description),
                b: replace(other, title=one.title, description=one.description),
            },
        )

    def _blank(self) -> Edit:
        empty = self.chance.choice((None, "", "\n "))
        return self._made("blank", {i: replace(self.rows[i], title=empty, description=empty) for i in self._some()})

    def _poison(self) -> Edit:
        return self._made("poison", {i: replace(self.rows[i], title=f"{POISON} {i % 3}") for i in self._some()})

    def _back(self) -> Edit:
        """A, B, A: contents that were there once."""
        if not self._former:
            return self._content()
        changes: dict[int, Painting | None] = {}
        for i in self._some():
            former = self.chance.choice(self._former)
            changes[i] = replace(self.rows[i], title=former.title, description=former.description)
        return self._made("bring back content", changes)

    def _drop_many(self) -> Edit:
        ids = sorted(self.rows)
        gone = self.chance.sample(ids, self.chance.randint(len(ids) // 2, len(ids)))
        self._dropped |= {i: self.rows[i] for i in gone}
        return self._made("drop many", dict.fromkeys(sorted(gone)))

    def _put_back(self) -> Edit:
        back = {i: p for i, p in self._dropped.items() if i not in self.rows}
        back = dict(list(back.items())[: MOST_ROWS - len(self.rows)])
        self._dropped = {}
        return self._made("put back", back) if back else self._insert()

    def _made(self, name: str, changes: dict[int, Painting | None] | dict[int, Painting]) -> Edit:
        made = Edit(name, tuple(changes.items()))
        self._former += [self.rows[i] for i, _ in made.changes if i in self.rows and self.rows[i].has_content]
        self.rows = made.apply(self.rows)
        return made

    def _some(self) -> list[int]:
        ids = sorted(self.rows)
        return self.chance.sample(ids, min(len(ids), self.chance.randint(1, 6)))

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _year(self) -> int | None:
        return self.chance.choice((None, 0, self.chance.randint(1400, 2000)))

    def _painting(self) -> Painting:
        return self._with_content(Painting(None, None, self.chance.choice(_AUTHORS), self._year()))

    def _with_content(self, painting: Painting) -> Painting:
        """Half the time a text that nothing else has, else one of a few."""
        if self.chance.random() < 0.5:
            return self._with_new_content(painting)
        title, description = self.chance.choice(_TITLES), self.chance.choice(_DESCRIPTIONS)
        return replace(painting, title=title, description=description)

    def _with_new_content(self, painting: Painting) -> Painting:
        self._number += 1
        return replace(painting, title=f"Painting {self._number}", description=self.chance.choice(_DESCRIPTIONS))


@dataclass(slots=True)
class Bill:
    """What was paid for, and what may have been."""

    ever: set[str] = field(default_factory=set[str])
    """Distinct texts that the source has ever held when a run began."""
    paid: Counter[str] = field(default_factory=Counter[str])
    in_flight: int = 0
    """Texts that interruptions may have cost."""
    excused: set[str] = field(default_factory=set[str])
    """Texts that were in flight at an interruption, or whose artifact was destroyed on purpose."""
    again: int = 0
    """Texts that were paid for again, their artifact being destroyed."""

    def pay(self, paid: Counter[str], kept_before: set[str], kept: set[str], in_flight: int) -> None:
        """A run paid for these texts; ``in_flight`` of them an interruption may have cost.

        Nothing may be paid that could be had, nothing twice, and what is paid must be kept.
        """
        needless = sorted(set(paid) & kept_before)
        assert not needless, f"paid for what could be had: {needless}"
        twice, lost = paid - Counter(set(paid)), set(paid) - kept
        assert twice.total() + len(lost) <= in_flight, f"paid twice: {sorted(twice)}; not kept: {sorted(lost)}"
        again = {text for text in paid if self.paid[text]}
        assert again <= self.excused, f"paid again, and never destroyed: {sorted(again - self.excused)}"
        assert set(paid) <= self.ever, f"paid for texts that were not asked for: {sorted(set(paid) - self.ever)}"
        self.again += len(again)
        self.in_flight += in_flight
        self.excused |= lost
        self.paid += paid

    def close(self) -> None:
        """At the end of a sequence."""
        most = len(self.ever) + self.in_flight + self.again
        assert self.paid.total() <= most, f"{self.paid.total()} texts were paid for, at most {most} should have been"
