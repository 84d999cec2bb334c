"""OpenTelemetry: one span per run and per stage; nothing is sent unless the OTEL_* variables ask for it.

This uses the API alone, which does nothing without a configured SDK. Spans hold names of pipelines, stages and classes,
and numbers. They never hold a row's content, its key, or a sentence that could contain one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode

from rowvec.runtime import telemetry_export

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def span(name: str, **attributes: str | int) -> Generator[None]:
    """A span around a piece of work. If the work raises, the span records the error's class and not its message."""
    telemetry_export.start()
    tracer = trace.get_tracer("rowvec")
    named = {f"rowvec.{key}": value for key, value in attributes.items()}
    with tracer.start_as_current_span(
        name, attributes=named, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield
        except BaseException as error:
            current.set_attribute("error.type", type(error).__name__)
            current.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


def traced(stage: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Wrap a stage in a span with its name, its pipeline, its run and its batch."""

    def decorate(work: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(work)

        @wraps(work)
        def within_span(*args: P.args, **kwargs: P.kwargs) -> R:
            with span(f"rowvec {stage}", stage=stage, **_of(signature.bind(*args, **kwargs).arguments)):
                return work(*args, **kwargs)

        return within_span

    return decorate


def _of(given: dict[str, Any]) -> dict[str, str | int]:
    """The pipeline, run and batch among a stage's arguments, by their own names or as fields of a Run or a Batch."""
    carrier = given.get("run") or given.get("batch")
    found = {
        "pipeline": given["pipeline"].name,
        "run_id": given.get("run_id", getattr(carrier, "run_id", None)),
        "batch": given.get("number", getattr(carrier, "number", None)),
    }
    return {name: value for name, value in found.items() if value is not None}
