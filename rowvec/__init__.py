"""rowvec keeps vectors in Postgres (pgvector) consistent with the rows they were computed from.

    import rowvec

    pipeline = rowvec.load("articles.yaml")
    print(rowvec.plan(pipeline).cost_usd)
    print(rowvec.sync(pipeline).verdict())
    for hit in rowvec.search(pipeline, "sea storms", k=5, where="year >= 1900"):
        print(hit.key, hit.distance)

``__all__`` is the public interface; the errors that a caller may catch are in ``rowvec.errors``. Everything else may
change in any version. This module imports nothing until a name is used, and never Prefect: the flows are in
``rowvec_flows``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rowvec import errors
    from rowvec.ledger.plans import PlannedRow
    from rowvec.ledger.rejects import Reject
    from rowvec.ledger.spending import BudgetOutlook
    from rowvec.operations.audit import Audit, Finding, LostObject, audit
    from rowvec.operations.rejects import RejectsReport, rejects
    from rowvec.operations.search import SearchMode, search
    from rowvec.operations.search_pictures import show_pictures
    from rowvec.operations.status import LastRun, PipelineStatus, status
    from rowvec.operations.sync import sync
    from rowvec.pipeline import Pipeline
    from rowvec.pipeline.file import load
    from rowvec.searches.query import Chunk, Hit
    from rowvec.stages.dry_run import PlanReport, plan
    from rowvec.stages.report import Check, SyncReport

    __version__: str

__all__ = [
    "Audit",
    "BudgetOutlook",
    "Check",
    "Chunk",
    "Finding",
    "Hit",
    "LastRun",
    "LostObject",
    "Pipeline",
    "PipelineStatus",
    "PlanReport",
    "PlannedRow",
    "Reject",
    "RejectsReport",
    "SearchMode",
    "SyncReport",
    "__version__",
    "audit",
    "errors",
    "load",
    "plan",
    "rejects",
    "search",
    "show_pictures",
    "status",
    "sync",
]

_MODULES = {
    "rowvec.ledger.plans": ("PlannedRow",),
    "rowvec.ledger.rejects": ("Reject",),
    "rowvec.ledger.spending": ("BudgetOutlook",),
    "rowvec.operations.audit": ("Audit", "Finding", "LostObject", "audit"),
    "rowvec.operations.rejects": ("RejectsReport", "rejects"),
    "rowvec.operations.search": ("SearchMode", "search"),
    "rowvec.operations.search_pictures": ("show_pictures",),
    "rowvec.operations.status": ("LastRun", "PipelineStatus", "status"),
    "rowvec.operations.sync": ("sync",),
    "rowvec.pipeline": ("Pipeline",),
    "rowvec.pipeline.file": ("load",),
    "rowvec.searches.query": ("Chunk", "Hit"),
    "rowvec.stages.dry_run": ("PlanReport", "plan"),
    "rowvec.stages.report": ("Check", "SyncReport"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

if not TYPE_CHECKING:
    # Late: the whole core takes half a second to import. A type checker, which would accept any name here, sees the
    # imports above.
    def __getattr__(name):
        if name == "__version__":
            from importlib.metadata import version

            value = version("rowvec")
        elif name == "errors":
            value = import_module("rowvec.errors")
        elif name in _MODULE_OF:
            value = getattr(import_module(_MODULE_OF[name]), name)
        else:
            raise AttributeError(f"module 'rowvec' has no attribute {name!r}; rowvec.__all__ lists the public names")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
