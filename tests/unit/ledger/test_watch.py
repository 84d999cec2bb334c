"""Who may take a lease over: decided from how long its renewals stand still, whatever any clock says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rowvec.ledger.held_lease import HeldLease, Watch
from rowvec.ledger.lease import Lease, Standing
from rowvec.ledger.pipelines import PipelineId
from rowvec.runtime.process import Process, this_process

SECONDS = 20.0
ELSEWHERE = Process(machine="another", pid=1, started=1)

# Seconds between two events, and what happens then.
events = st.lists(
    st.tuples(st.floats(min_value=0.01, max_value=30.0), st.sampled_from(["renewal", "late renewal", "look", "look"])),
    max_size=80,
)


def standing(renewals: int, *, held: bool = True, owner: Process = ELSEWHERE, number: int = 1) -> Standing:
    return Standing(number=number, held=held, renewals=renewals, seconds=SECONDS, owner=owner)


@given(events=events)
def test_no_lease_is_taken_over_while_its_owner_may_begin_a_request(events: list[tuple[float, str]]) -> None:
    watch, now, renewals, began, pending = Watch(), 0.0, 0, 0.0, 0.0
    for pause, what in events:
        now += pause
        match what:
            case "renewal":
                renewals, began = renewals + 1, now
            case "late renewal":
                # It began earlier and is committed only now.
                renewals, began, pending = renewals + 1, max(began, pending), now
            case _:
                if watch.look(standing(renewals), now) == "take":
                    lease = Lease(pipeline_id=PipelineId(1), number=1, seconds=SECONDS, pipeline="paintings")
                    assert HeldLease("", lease, began).is_over(now)
                    return


@given(offset=st.floats(min_value=0, max_value=3.0))
def test_the_lease_of_a_run_that_was_killed_elsewhere_is_taken_over_after_its_length(offset: float) -> None:
    watch, now = Watch(), offset
    while watch.look(standing(3), now) != "take":
        now += 0.2
        assert now < offset + SECONDS + 1
    assert now >= offset + SECONDS


def test_a_gap_between_two_looks_proves_nothing() -> None:
    """The watching process was stopped, or the server was away: then the owner could not renew either."""
    watch = Watch()
    for minute in range(20):
        assert watch.look(standing(3), 60.0 * minute) == "look again"


def test_a_run_that_renews_is_busy_after_a_moment() -> None:
    watch = Watch()
    verdicts = [watch.look(standing(tenths // 30), tenths / 10) for tenths in range(32)]
    assert set(verdicts[:30]) == {"look again"}
    assert verdicts[31] == "busy"


def test_a_lease_that_was_given_up_is_taken_at_once() -> None:
    assert Watch().look(standing(3, held=False), 0.0) == "take"


def test_a_process_that_has_ended_owns_nothing() -> None:
    me = this_process()
    assert Watch().look(standing(3, owner=me), 0.0) == "look again"
    # The number of a process is used again; its start tells the two apart.
    earlier = Process(machine=me.machine, pid=me.pid, started=me.started - 1)
    assert Watch().look(standing(3, owner=earlier), 0.0) == "take"
