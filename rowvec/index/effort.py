"""What finds more of the nearest rows: first more effort of a search, then more effort of a build. Pure functions."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import accumulate, repeat

from rowvec.postgres.vector_index import IndexChoice
from rowvec.searches.request import MOST_OVERSAMPLING
from rowvec.searches.statement import DEFAULT_EF_SEARCH, DEFAULT_EF_SHORTLIST

MOST_SEARCH_EFFORT = 4
"""A search is raised to at most this many times the candidates that its index was chosen with."""

_FACTORS = (1, 2, MOST_SEARCH_EFFORT)

# pgvector's own limit is 1,000 for both; a search that looks at more is slower than the exact search of many tables.
_MOST_EF_SEARCH = 1_000
# A build takes about m * ef_construction: these are 24 times a default graph on floats.
_MOST_M, _MOST_EF_CONSTRUCTION = 48, 512


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
    ]
    return " and ".join(
        f"{name} of {now:,} instead of {was:,}" if was else f"{name} of {now:,}"
        for name, was, now in settings
        if now != was
    )


def stronger_graph(choice: IndexChoice) -> IndexChoice:
    """The choice with half as many links again and twice the candidates while building; itself at the limit.

    The limit is 48 links and 512 candidates. Only for a graph whose size the pipeline leaves to rowvec.
    """
    if choice.kind != "hnsw" or not choice.graph_by_rows:
        return choice
    m = max(choice.m, min(_MOST_M, choice.m * 3 // 2))
    effort = max(choice.ef_construction, min(_MOST_EF_CONSTRUCTION, choice.ef_construction * 2))
    return replace(choice, m=m, ef_construction=max(effort, 2 * m))


def graphs(choice: IndexChoice, present: IndexChoice | None, tries: int, *, too_weak: bool) -> tuple[IndexChoice, ...]:
    """What is built in turn, until one finds enough: ``tries`` choices, each with a stronger graph if that is possible.

    ``present``: an index of this choice; none is built with less effort. ``too_weak``: it does not find enough, however
    it is searched.
    """
    first = choice
    if present is not None and choice.graph_by_rows:
        again = replace(choice, m=present.m, ef_construction=present.ef_construction)
        again = stronger_graph(again) if too_weak else again
        first = again if again.m * again.ef_construction > choice.m * choice.ef_construction else choice
    return tuple(accumulate(repeat(first, tries), lambda graph, _: stronger_graph(graph)))


def _searched(choice: IndexChoice, factor: int, k: int) -> IndexChoice:
    if factor == 1 or choice.kind == "none":
        return choice
    reranks = choice.on == "bits" or choice.prefix > 0
    oversampling = choice.oversampling
    if reranks and not choice.oversampling_given:
        oversampling = max(oversampling, min(MOST_OVERSAMPLING, oversampling * factor))
    if choice.kind == "ivfflat":
        probes = choice.probes or math.ceil(math.sqrt(choice.lists) * choice.oversampling / 2)
        return replace(choice, oversampling=oversampling, probes=min(max(1, choice.lists), probes * factor))
    least = choice.ef_search or (DEFAULT_EF_SHORTLIST if reranks else DEFAULT_EF_SEARCH)
    if reranks:
        least = max(least, k * choice.oversampling)
    return replace(choice, oversampling=oversampling, ef_search=max(least, min(_MOST_EF_SEARCH, least * factor)))
