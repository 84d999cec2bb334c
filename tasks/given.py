"""The pipeline that a flow run was given: itself, or the path or URL of its file, which is read when the run starts."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from prefect.runtime import flow_run
from pydantic import ValidationError, WithJsonSchema

from rowvec.errors import UsageError
from rowvec.pipeline import Pipeline
from rowvec.store.pipeline_files import read_pipeline

PipelineOrFile = Annotated[Pipeline | Path | str, WithJsonSchema({"type": "string"})]
"""What every flow takes as ``pipeline``. A form asks for the file alone: a pipeline has one place, and is edited there.
Callers in Python may pass a ``Pipeline``."""

_LONGEST_STEM = 60


def loaded(given: PipelineOrFile | dict[str, Any], run_id: str | None = None) -> Pipeline:
    """The pipeline; the same run reads its file once, so that its name, its work and its end are of one content.

    ``run_id``: of the flow run that was given it, if it is not the present one. Raises ``UsageError`` if the file, or a
    pipeline among the parameters of an older deployment, is wrong.
    """
    if isinstance(given, Pipeline):
        return given
    if isinstance(given, dict):
        try:
            return Pipeline.model_validate(given)
        except ValidationError as error:
            raise UsageError(f"the parameter pipeline is no pipeline: {error.errors()[0]['msg']}") from None
    run = run_id or flow_run.get_id()
    return _read(str(given), run) if run else read_pipeline(str(given))


def stem(given: PipelineOrFile | dict[str, Any]) -> str:
    """What to call a run whose pipeline cannot be read: the name of the file without its suffix."""
    return Path(str(given)).stem[:_LONGEST_STEM] if isinstance(given, (str, Path)) else "pipeline"


@lru_cache(maxsize=4)
def _read(place: str, _run_id: str) -> Pipeline:
    return read_pipeline(place)
