"""What finds more of the nearest rows: first more effort of a search, then more effort of a build. Pure functions."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, repeat

from rowvec.postgres.vector_index import IndexChoice
from rowvec.searches.index_kinds import method_of
from rowvec.searches.index_kinds.protocol import reranks
from rowvec.searches.request import MOST_OVERSAMPLING

MOST_SEARCH_EFFORT = 4
"""A search is raised to at most this many times the candidates that its index was chosen with."""

_FACTORS = (1, 2, MOST_SEARCH_EFFORT)


def search_efforts(choice: IndexChoice, k: int) -> tuple[IndexChoice, ...]:
    """The choice, and the same index searched with twice and with four times the candidates; the cheapest first.

    ``k``: the neighbours that recall is measured for. A setting that the pipeline file names stays as it is.
    """
    return tuple(dict.fromkeys(_searched(choice, factor, k) for factor in _FACTORS))


def raised_settings(before: IndexChoice, choice: IndexChoice) -> str:
    """What differs between two ways to search one index, for a message; empty if nothing does."""
    settings = [
        ("an oversampling", before.oversampling, choice.oversampling),
        ("an ef_search", before.ef_search, choice.ef_search),
        ("probes", before.probes, choice.probes),
        ("a search effort", before.effort, choice.effort),
    ]
    return " and ".join(
        f"{name} of {now:,} instead of {was:,}" if was else f"{name} of {now:,}"
        for name, was, now in settings
        if now != was
    )


def graphs(choice: IndexChoice, present: IndexChoice | None, tries: int, *, too_weak: bool) -> tuple[IndexChoice, ...]:
    """What is built in turn, until one finds enough: ``tries`` choices, each with a stronger graph if that is possible.

    ``present``: an index of this choice; none is built with less effort. ``too_weak``: it does not find enough, however
    it is searched.
    """
    method = method_of(choice.kind)
    first = choice if present is None else method.not_weaker(choice, present, too_weak=too_weak)
    return tuple(accumulate(repeat(first, tries), lambda graph, _: method.stronger(graph)))


def _searched(choice: IndexChoice, factor: int, k: int) -> IndexChoice:
    if factor == 1 or choice.kind == "none":
        return choice
    oversampling = choice.oversampling
    if reranks(choice) and not choice.oversampling_given:
        oversampling = max(oversampling, min(MOST_OVERSAMPLING, oversampling * factor))
    return replace(method_of(choice.kind).harder(choice, factor, k), oversampling=oversampling)
