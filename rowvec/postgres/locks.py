"""Every advisory lock of the project: one number per kind of work, so that no two kinds share a number by accident.

An advisory lock is named by two integers: a member of ``LockSpace``, and what the lock is about. A number never
changes, because versions of rowvec that run against one database at the same time must meet at the same lock.
"""

from __future__ import annotations

from enum import IntEnum


class LockSpace(IntEnum):
    """The first integer of each advisory lock; the sentence after a member names the second one."""

    RUN = 0x72760001
    """A run of a version that knew no leases; by pipeline id, held by that run's session. Now only looked at."""

    MERGE = 0x72760002
    """One merge per vector table at a time; by pipeline id, held until the merge's transaction ends."""

    SPENDING = 0x72760004
    """One reservation of money at a time; by a hash of the pipeline's family."""

    PROVENANCE_VIEW = 0x72760005
    """One process at a time replaces a provenance view; by a hash of the view's name."""

    SEARCH_FUNCTION = 0x72760007
    """One process at a time replaces a search function; by a hash of the function's name."""

    MIGRATION = 0x726F7776
    """One process at a time migrates the schema ``rowvec``. The only lock without a second integer."""
