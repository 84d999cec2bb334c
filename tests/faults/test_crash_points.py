"""Commands that are killed at points of their runs; ``make crash`` kills every command at every point."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.crash_points.cases import CASES, Case
from tests.support.crash_points.scene import scene
from tests.support.crash_points.trial import attempt, uninterrupted
from tests.support.servers.lines import Server

# A trial takes a second of processor time. These are spread over a run.
SAMPLE = {"sync, table, later": 1, "prune --compact": 1}

pytestmark = [
    pytest.mark.needs("a superuser", "each trial begins with a copy of a database under the same number"),
    pytest.mark.needs("no pooler", "the pooler would keep the sessions of a database that is copied"),
]


@pytest.mark.parametrize("case", [case for case in CASES if case.name in SAMPLE], ids=lambda case: case.name)
def test_a_killed_command_that_is_run_again_ends_as_if_it_had_not_been_killed(
    case: Case, line_server: Server, tmp_path: Path
) -> None:
    with scene(line_server.url, "crash_points", tmp_path / "scene", case) as played:
        wanted = uninterrupted(played)
        points = wanted.faults(1)
        number = SAMPLE[case.name]
        chosen = [points[(2 * i + 1) * len(points) // (2 * number)] for i in range(number)]
        trials = [attempt(played, wanted, at) for at in chosen]
    assert [(*map(str, trial.at), trial.findings) for trial in trials if trial.verdict != "same"] == []
