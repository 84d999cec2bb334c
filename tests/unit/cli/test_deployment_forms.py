"""The custom-run forms ask for a pipeline file and for what a person would change, and the samples are as they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from rowvec_flows.audit import audit
from rowvec_flows.forget import forget
from rowvec_flows.index import index
from rowvec_flows.prune import prune
from rowvec_flows.rebuild import rebuild
from rowvec_flows.restore import restore
from rowvec_flows.sync import sync
from rowvec_flows.watch import watch

from rowvec.pipeline.file import load
from rowvec.pipeline.references import resolve, variables_of

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("flow", [audit, forget, index, prune, rebuild, restore, sync, watch])
def test_a_form_has_a_file_and_no_field_of_a_pipeline_and_each_field_has_its_help(flow: Any) -> None:
    form = flow.parameters.model_dump()
    if flow is watch:
        assert form["required"] == ["pipelines"]
        assert form["properties"]["pipelines"]["items"] == {"type": "string"}
    else:
        assert form["required"] == ["pipeline"]
        assert form["properties"]["pipeline"]["type"] == "string"
    assert form["definitions"] == {}
    assert all(one["description"] for one in form["properties"].values())
    # A field that may be None opens with a question for its type.
    assert [name for name, one in form["properties"].items() if "anyOf" in one] == []
    assert flow.description
    assert "Args:" not in flow.description


@pytest.mark.parametrize("file", ["prefect.yaml", "deployments/examples/prefect.yaml"])
def test_each_deployment_names_a_pipeline_file_that_loads_and_its_pipeline(file: str) -> None:
    for made in yaml.safe_load((ROOT / file).read_text("utf-8"))["deployments"]:
        given = made["parameters"]
        for file in given.get("pipelines") or [given["pipeline"]]:
            pipeline = load(ROOT / file)
            assert (made["name"], f"pipeline:{pipeline.name}" in made["tags"]) == (pipeline.name, True)


def test_the_sample_needs_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = load(ROOT / "deployments/pipelines/paintings.yaml")
    assert variables_of(sample) == frozenset()
    assert resolve(sample) == sample
    assert "SOURCE_DATABASE_URL" in variables_of(load(ROOT / "deployments/examples/articles.yaml"))
