"""The custom-run form of a deployment first shows the kinds of source and embedder that its parameters name."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from rowvec_flows.sync import sync

from rowvec.cli.stack.deployments import prefect_file
from rowvec.pipeline import Pipeline

ROOT = Path(__file__).parents[3]
SCHEMA = sync.parameters.model_dump()

TEXTS = {"kind": "postgres", "table": "a", "key": ["id"], "content": "{a}"}
IMAGES = {"kind": "images", "path": "a.csv", "images": "pictures", "key": ["f"], "content": {"image": "f"}}
FILE = {"path": "a.csv", "key": ["id"], "content": "{a}"}
LOCAL = {"kind": "local", "dimensions": 64}
PIPELINES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (TEXTS, LOCAL),
    ({"kind": "csv", **FILE}, LOCAL),
    ({"kind": "parquet", **FILE}, LOCAL),
    (TEXTS, {"kind": "openai", "model": "m", "dimensions": 8}),
    (TEXTS, {"kind": "azure_openai", "model": "m", "dimensions": 8, "base_url": "https://a.example"}),
    (TEXTS, {"kind": "column", "column": "v", "dimensions": 8}),
    (IMAGES, {"kind": "azure_vision", "base_url": "https://a.example"}),
    (IMAGES, {"kind": "openai_images", "model": "m", "dimensions": 8, "base_url": "https://a.example"}),
    (
        IMAGES,
        {"kind": "openai_images", "model": "m", "dimensions": 8, "base_url": "https://a.example", "form": "input"},
    ),
]


def opened(part: str, value: dict[str, Any]) -> str:
    """The kind that Prefect's form shows first: among the kinds with the most keys of the value, the first one."""
    definitions = SCHEMA["definitions"]
    kinds = [definitions[one["$ref"].rsplit("/", 1)[1]] for one in definitions["Pipeline"]["properties"][part]["anyOf"]]
    best = max(kinds, key=lambda kind: len(set(value) & set(kind["properties"])))
    return best["properties"]["kind"]["const"]


def wrong(pipeline: dict[str, Any]) -> set[str]:
    """The parts for which the form shows a wrong kind."""
    return {part for part in ("source", "embedder") if opened(part, pipeline[part]) != pipeline[part]["kind"]}


def test_the_tabs_of_the_form_have_the_names_of_the_kinds_in_the_pipeline_file() -> None:
    titles = {one["title"] for one in SCHEMA["definitions"].values()}
    assert {"postgres", "csv", "parquet", "images", "local", "openai", "azure_openai", "column"} <= titles
    assert {"Pipeline", "Target", "Index"} <= titles


@pytest.mark.parametrize(("source", "embedder"), PIPELINES)
def test_the_form_of_what_up_deploys_opens_with_its_kinds(
    source: dict[str, Any], embedder: dict[str, Any], tmp_path: Path
) -> None:
    target = {"table": "vectors.a"}
    pipeline = Pipeline.model_validate({"name": "a", "source": source, "embedder": embedder, "target": target})
    for made in prefect_file([pipeline], tmp_path, 15, datetime(2026, 1, 1, tzinfo=UTC))["deployments"]:
        assert wrong(made["parameters"]["pipeline"]) == set()


def test_the_forms_of_the_deployments_in_prefect_yaml_open_with_their_kinds() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text("utf-8"))["deployments"]
    assert {one["name"]: wrong(one["parameters"]["pipeline"]) for one in deployments} == {
        name: set() for name in ("paintings", "articles", "catalogue", "images")
    }
