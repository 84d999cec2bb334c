"""Every failure that rowvec expects, in one tree; the branch of an error decides what happens next.

RowvecError
├── RetriableError            the same call may succeed later: retried after a growing, jittered wait
│   ├── RateLimited           the provider says when to come back (``retry_after``)
│   ├── EmbedderUnavailable   5xx, time-out, a cut connection, an unreadable answer
│   ├── StoreUnavailable      the blob store did not answer, or answered 5xx
│   ├── DatabaseUnavailable   the connection was lost, or a lock was not granted in time
│   ├── MergeConflict         another session wrote the vector table: the merge is repeated
│   └── ClusterUnavailable    the Dask or Ray cluster does not answer, or has lost the workers of a batch
├── FatalError                the same call would fail again: the run stops, and its message says what to do
│   ├── UsageError            wrong use: a bad pipeline file, a missing variable (exit status 2)
│   ├── QuotaExhausted        the provider asks for money; waiting does not help
│   ├── EmbedderRefused       key, permission or model is wrong
│   ├── SourceError           the source cannot be read as the pipeline says
│   ├── TargetError           the target database or its vector table cannot be used
│   ├── StoreRefused          the blob store refuses: permission, container or name
│   ├── ArtifactCorrupt       an object's bytes do not agree with their checksum
│   ├── StoreBehind           the store lacks the last manifest that the ledger knows: it was set back
│   ├── LedgerBehind          the store has later manifests of this ledger: the database was set back
│   ├── UnfitValue            a value does not fit its column's type
│   ├── CostLimitExceeded     the run would cost more than its limit
│   │   └── BudgetExceeded    the next request would exceed ``embedder.budget``
│   ├── MachineError          this machine lacks what the command needs: a folder, memory, a server that it starts
│   ├── DeleteLimitExceeded   the run would delete more than ``validation.max_delete_fraction``
│   ├── LessRelevant          the next generation answers labelled questions worse than the live one
│   ├── PipelineBusy          another run of the same pipeline is running
│   ├── LeaseLost             another run of the same pipeline has taken over from this one
│   └── Inconsistent          a check failed: the vectors do not agree with the source
├── AwaitingJobs              not an error: jobs at a provider's Batch API are unfinished, and a later run continues
└── RowError                  one row is rejected into ``rowvec.rejects``; the other rows continue

``RunCancelled`` is not in the tree: nothing that handles a failure may catch it.
"""

from __future__ import annotations

from typing import Literal, TypeVar

from rowvec.runtime.display import shown

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
    "refused",
    "not_removed",
]


class RowvecError(Exception):
    """The root. The message is one sentence for a person that names what failed and what to do.

    It may quote a row or a server, so it is read with control characters written as their codes, wherever it goes.
    """

    def __str__(self) -> str:
        return shown(super().__str__())


class RetriableError(RowvecError):
    """The same call may succeed later."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds to wait, if the other side named them."""


class RateLimited(RetriableError):
    """The provider asks for fewer requests per minute."""


class EmbedderUnavailable(RetriableError):
    """The embedder did not give a usable answer this time."""


class StoreUnavailable(RetriableError):
    """The blob store did not give a usable answer this time."""


class DatabaseUnavailable(RetriableError):
    """The connection to the database was lost, or another session held a lock for too long."""


class MergeConflict(RetriableError):
    """Another session wrote the vector table between the run's reading and its writing."""


class ClusterUnavailable(RetriableError):
    """The cluster that works on batches does not answer, or has lost its workers."""


class FatalError(RowvecError):
    """The same call would fail again."""


class UsageError(FatalError):
    """Wrong use: the command line, the pipeline file or the environment must change first."""


class QuotaExhausted(FatalError):
    """The provider's quota, credit or spend limit is used up."""


class EmbedderRefused(FatalError):
    """The embedder refuses requests with this configuration."""


class SourceError(FatalError):
    """The source cannot be read as the pipeline says."""


class TargetError(FatalError):
    """The target database cannot be used as the pipeline says."""


class StoreRefused(FatalError):
    """The blob store refuses requests with this configuration."""


class ArtifactCorrupt(FatalError):
    """An artifact's bytes do not agree with their checksum."""


class StoreBehind(FatalError):
    """The store does not have the last manifest that the ledger knows: it was set back to an earlier state."""


class LedgerBehind(FatalError):
    """The store has later manifests of this ledger than the ledger knows: the database was set back."""


class UnfitValue(FatalError):
    """A value does not fit its column's type, so that it cannot be sent to the database."""


class CostLimitExceeded(FatalError):
    """The run would cost more than its limit."""


class BudgetExceeded(CostLimitExceeded):
    """The next request would exceed the pipeline's budget; answers that were paid for are kept."""


class MachineError(FatalError):
    """This machine lacks what the command needs: a folder that can be written, memory, a server that it starts."""


class DeleteLimitExceeded(FatalError):
    """The run would delete more rows than the pipeline allows in one run."""


class LessRelevant(FatalError):
    """The next generation answers labelled questions worse than the live one, so it is not switched to."""


class PipelineBusy(FatalError):
    """Another run of the same pipeline is running."""


class LeaseLost(FatalError):
    """Another run of the same pipeline has taken over, because this one did not renew its lease in time."""


class Inconsistent(FatalError):
    """A check failed after the merge."""

    def __init__(self, message: str, report: object = None) -> None:
        super().__init__(message)
        self.report = report
        """The run's report, with the checks that failed and the rows they name."""


class AwaitingJobs(RowvecError):
    """The run ends early because jobs at the provider are unfinished; the next run continues where it stopped."""

    def __init__(self, message: str, *, jobs: int, texts: int) -> None:
        super().__init__(message)
        self.jobs = jobs
        """Unfinished jobs of the pipeline."""
        self.texts = texts
        """Texts in these jobs."""


def raise_if_awaiting(result: R | AwaitingJobs) -> R:
    """The result of a flow that was called as a function. Raises ``AwaitingJobs`` if the flow has left work to a later
    run."""
    if isinstance(result, AwaitingJobs):
        raise result
    return result


class RunCancelled(BaseException):
    """A person has cancelled the run. Raised in the main thread, between any two of its steps."""


class RowError(RowvecError):
    """One row cannot be embedded; it is rejected with this reason."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: RejectReason = reason
        self.detail = detail
