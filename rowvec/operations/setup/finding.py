"""What a check found: one sentence, whether it is good, and what to do if it is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rowvec.errors import RowvecError

State = Literal["ok", "warning", "fault"]
"""``warning``: a sync works, but it could be faster, cheaper or safer. ``fault``: a sync would fail, or give a wrong
result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of ``rowvec check``."""

    name: str
    """What was looked at, in a few words."""
    state: State
    detail: str
    """What was found."""
    remedy: str | None = None
    """What to do; a statement in it is for an administrator to run. None if the state is ok."""

    def as_json(self) -> dict[str, Any]:
        """The finding as one JSON object."""
        return asdict(self)


def ok(name: str, detail: str) -> Finding:
    """A finding that needs nothing."""
    return Finding(name=name, state="ok", detail=detail)


def warning(name: str, detail: str, remedy: str) -> Finding:
    """A finding that a sync can live with."""
    return Finding(name=name, state="warning", detail=detail, remedy=remedy)


def fault(name: str, detail: str, remedy: str | None = None) -> Finding:
    """A finding that a sync would fail at. Without ``remedy``, the detail says what to do, as errors of rowvec do."""
    return Finding(name=name, state="fault", detail=detail, remedy=remedy)


def guarded(name: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of ``look``; an error of rowvec that it raises is its last one."""
    try:
        yield from look()
    except RowvecError as error:
        for line in str(error).splitlines():
            yield fault(name, line)
