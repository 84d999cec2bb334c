"""The command line finds every flow by its entry point."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import pytest

from rowvec.cli.flow_loader import load_flow
from rowvec.errors import UsageError

FLOWS = Path(__file__).parents[3] / "flows"


def test_every_flow_is_registered() -> None:
    registered = {point.name: point.value for point in entry_points(group="rowvec.flows")}
    names = {file.stem for file in FLOWS.glob("[!_]*.py")}
    assert registered == {name: f"rowvec_flows.{name}:{name}" for name in names}


def test_a_flow_that_is_not_registered_is_one_sentence() -> None:
    with pytest.raises(UsageError, match="the flow 'nonsense' is not installed"):
        load_flow("nonsense")
