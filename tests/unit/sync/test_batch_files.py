"""The pure parts of batch jobs: how files are cut, what their lines mean, and which step comes next."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rowvec.embedders.openai.batch_files import Entry, JobLimits, numbered, read_line, request_line, within
from rowvec.stages.batch_api.submit import Situation, decide

entries = st.lists(
    st.builds(
        Entry,
        fingerprint=st.binary(min_size=32, max_size=32),
        line=st.binary(min_size=1, max_size=40),
        tokens=st.integers(1, 50),
    ),
    max_size=60,
)
situations = st.builds(
    Situation,
    eligible=st.integers(0, 20),
    at_least=st.integers(1, 20),
    unfinished=st.integers(0, 3),
    awaited=st.booleans(),
    barred=st.booleans(),
    overdue=st.booleans(),
    waited=st.floats(0, 100),
    wait=st.floats(0, 100),
)


@given(entries, st.integers(1, 9), st.integers(40, 120), st.none() | st.integers(50, 120))
def test_jobs_hold_all_entries_in_order_and_none_is_over_its_limits(
    given_entries: list[Entry], inputs: int, size: int, tokens: int | None
) -> None:
    limits = JobLimits(inputs=inputs, bytes=size, tokens=tokens)
    found = list(numbered(given_entries, limits))
    assert [entry for _, entry in found] == given_entries
    assert all(after - before in (0, 1) for (before, _), (after, _) in pairwise(found))
    jobs: dict[int, list[Entry]] = {}
    for job, entry in found:
        jobs.setdefault(job, []).append(entry)
    for held in jobs.values():
        assert len(held) <= inputs
        assert sum(len(entry.line) for entry in held) <= size
        assert tokens is None or sum(entry.tokens for entry in held) <= tokens
    # No job is smaller than necessary: the first entry of the next job would not have fitted.
    for job in range(len(jobs) - 1):
        both = [*jobs[job], jobs[job + 1][0]]
        too_long = sum(len(entry.line) for entry in both) > size
        too_many = tokens is not None and sum(entry.tokens for entry in both) > tokens
        assert len(both) > inputs or too_long or too_many


@given(entries, st.none() | st.integers(0, 500))
def test_within_takes_the_longest_head_that_fits(given_entries: list[Entry], tokens: int | None) -> None:
    taken = list(within(given_entries, tokens))
    assert taken == given_entries[: len(taken)]
    if tokens is None:
        assert taken == given_entries
        return
    total = sum(entry.tokens for entry in taken)
    assert total <= tokens
    assert len(taken) == len(given_entries) or total + given_entries[len(taken)].tokens > tokens


@given(st.binary(min_size=32, max_size=32), st.text().filter(lambda t: not any("\ud800" <= c <= "\udfff" for c in t)))
def test_a_request_is_one_line_and_names_its_text(fingerprint: bytes, text: str) -> None:
    line = request_line(fingerprint, text, "m", 96)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    request = json.loads(line)
    assert (bytes.fromhex(request["custom_id"]), request["body"]["input"]) == (fingerprint, [text])


@given(st.binary() | st.text().map(str.encode))
def test_no_line_can_break_the_reading(line: bytes) -> None:
    read = read_line(line)
    assert read is None or isinstance(read.fingerprint, bytes)


@given(situations)
def test_what_to_do_next(now: Situation) -> None:
    step = decide(now)
    wanted = now.eligible >= now.at_least and not now.overdue
    assert (step == "submit") == (wanted and not now.barred)
    if step in ("wait", "leave"):
        # A run waits only if a job is unfinished, and no longer than the limit.
        assert now.unfinished
        assert (step == "wait") == (now.waited < now.wait)
    if step == "go on":
        assert not (now.unfinished and now.awaited)
    # Every run ends: if no job is unfinished and nothing can be submitted, it goes on.
    assert decide(replace(now, unfinished=0, awaited=False, barred=True)) == "go on"
