"""Every failure that rowvec expects, in one tree whose branches alone decide what happens next.

RowvecError
├── RetriableError            the same call may succeed later: tried again with a growing, jittered wait
│   ├── RateLimited           the provider says when to come back (``retry_after``)
│   ├── EmbedderUnavailable   5xx, time-out, a cut connection, an answer that cannot be read
│   ├── StoreUnavailable      the blob store did not answer, or answered 5xx
│   ├── DatabaseUnavailable   the connection was lost, or a lock was not had in time
│   ├── MergeConflict         somebody else wrote the vector table: the merge is done anew
│   └── ClusterUnavailable    the Dask or Ray cluster does not answer, or lost those who worked on a batch
├── FatalError                trying again changes nothing: the run stops, and its message says what to do
│   ├── UsageError            wrong use: a bad pipeline file, a missing variable (exit status 2)
│   ├── QuotaExhausted        the provider wants money, not patience
│   ├── EmbedderRefused       key, permission or model is wrong
│   ├── SourceError           the source cannot be read as the pipeline says
│   ├── TargetError           the target database or its vector table cannot be used
│   ├── StoreRefused          the blob store says no: permission, container, name
│   ├── ArtifactCorrupt       an object's bytes do not agree with their checksum
│   ├── CostLimitExceeded     the run would cost more than it may
│   │   └── BudgetExceeded    the next request would pass ``embedder.budget``
│   ├── DeleteLimitExceeded   the run would delete more than ``validation.max_delete_fraction``
│   ├── PipelineBusy          another run of the same pipeline is at work
│   └── Inconsistent          a check failed: the vectors are not what the source says
├── AwaitingJobs              nothing is wrong: a provider's Batch API is at work, and a later run goes on
└── RowError                  one row is set aside in ``rowvec.rejects``; the others go on
"""

from __future__ import annotations

from typing import Literal, TypeVar

R = TypeVar("R")

RejectReason = Literal[
    "too_long",
    "invalid_input",
    "invalid_vector",
    "null_key",
    "duplicate_key",
    "unreadable",
    "empty",
    "missing_image",
    "not_an_image",
    "broken_image",
    "image_too_large",
]


class RowvecError(Exception):
    """The root: its message is one sentence for a person, naming what failed and what to do."""


class RetriableError(RowvecError):
    """The same call may succeed later."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds to wait, when the other side named them."""


class RateLimited(RetriableError):
    """The provider asks for a slower pace."""


class EmbedderUnavailable(RetriableError):
    """The embedder did not give a usable answer this time."""


class StoreUnavailable(RetriableError):
    """The blob store did not give a usable answer this time."""


class DatabaseUnavailable(RetriableError):
    """The database went away or kept a lock from us."""


class MergeConflict(RetriableError):
    """The vector table was written by somebody else between our reading and our writing."""


class ClusterUnavailable(RetriableError):
    """The cluster that batches are worked on does not answer, or lost its workers."""


class FatalError(RowvecError):
    """Trying again changes nothing."""


class UsageError(FatalError):
    """Wrong use: the command line, the pipeline file or the environment must change first."""


class QuotaExhausted(FatalError):
    """The provider's quota, credit or spend limit is used up."""


class EmbedderRefused(FatalError):
    """The embedder will not serve us as configured."""


class SourceError(FatalError):
    """The source cannot be read as the pipeline says."""


class TargetError(FatalError):
    """The target database cannot be used as the pipeline says."""


class StoreRefused(FatalError):
    """The blob store will not serve us as configured."""


class ArtifactCorrupt(FatalError):
    """An artifact's bytes do not agree with their checksum."""


class CostLimitExceeded(FatalError):
    """What a run would cost is more than it may."""


class BudgetExceeded(CostLimitExceeded):
    """The next request would pass the pipeline's budget; what was paid for is kept."""


class DeleteLimitExceeded(FatalError):
    """More rows would be deleted than the pipeline allows in one run."""


class PipelineBusy(FatalError):
    """Another run of the same pipeline is at work."""


class Inconsistent(FatalError):
    """A check failed after the merge."""

    def __init__(self, message: str, report: object = None) -> None:
        super().__init__(message)
        self.report = report
        """The run's report, with the checks that failed and the rows they name."""


class AwaitingJobs(RowvecError):
    """A run that ends before it is done, for jobs at the provider are not; the next run goes on where it stopped."""

    def __init__(self, message: str, *, jobs: int, texts: int) -> None:
        super().__init__(message)
        self.jobs = jobs
        """Unfinished jobs of the pipeline."""
        self.texts = texts
        """Texts in them."""


def raise_if_awaiting(result: R | AwaitingJobs) -> R:
    """The result of a flow that was called as a function. Raises ``AwaitingJobs`` if the flow has left work to a later
    run."""
    if isinstance(result, AwaitingJobs):
        raise result
    return result


class RowError(RowvecError):
    """One row cannot be embedded; it is set aside with this reason."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: RejectReason = reason
        self.detail = detail
