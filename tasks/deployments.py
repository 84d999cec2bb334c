"""Makes deployments on a Prefect server: one per pipeline file, whose runs read the file when they start."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import Flow, get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions, DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import get_current_settings
from prefect.utilities.urls import url_for

from rowvec.errors import MachineError, UsageError
from rowvec.pipeline import Pipeline

PROCESS = "process"
"""The type of work pools whose runs are processes of the worker's machine."""

_SLUG = "rowvec"
"""Of the schedule that is made here. Other schedules of a deployment are its owner's, and stay."""
_WATCH_MINUTES = 59.8
"""A watcher ends just before the next one is due: each hour one takes over, so one that was killed is replaced."""
_PULL_STEP = "prefect.deployments.steps.set_working_directory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The deployment of one pipeline file."""

    file: str
    """Path or URL; a relative path is relative to ``folder``."""
    pipeline: Pipeline
    """What the file says now, for names; runs read the file again."""
    name: str
    folder: Path
    """The working directory of its runs, if they are processes of this machine."""
    cron: str | None = None
    timezone: str = "UTC"
    every: timedelta | None = None
    watch: bool = False
    """Whether runs watch the source's queue of changes, one after the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """A deployment on the server."""

    name: str
    url: str | None
    """Its page in the UI."""
    file: str
    created: bool
    """False if it was there and was brought up to date."""
    schedules: tuple[str, ...]
    """What starts a run, besides a person."""


def api_url() -> str:
    """The API of the configured server. Raises ``UsageError`` if none is configured."""
    url = get_current_settings().api.url
    if not url:
        raise UsageError(
            "no Prefect server is configured: set PREFECT_API_URL; without one, rowvec up FILE starts a server and "
            "deploys the file there"
        )
    return url


@contextmanager
def server() -> Generator[SyncPrefectClient]:
    """A client of the configured server. Within this context its failures are ``MachineError``, one sentence each."""
    url = api_url()
    try:
        with get_client(sync_client=True) as client:
            yield client
    except PrefectHTTPStatusError as error:
        refused = error.response.status_code
        reason = "set PREFECT_API_AUTH_STRING or PREFECT_API_KEY" if refused in (401, 403) else error.response.text
        raise MachineError(f"the Prefect server at {url} refuses, with status {refused}: {reason}") from None
    except httpx.HTTPError as error:
        raise MachineError(
            f"no Prefect server answers at {url} ({type(error).__name__}); start it, or set PREFECT_API_URL to another"
        ) from None


def ensure_pool(client: SyncPrefectClient, name: str) -> tuple[str, bool]:
    """The type of the work pool, and whether it was made just now: as one of processes, if it was missing."""
    try:
        return client.read_work_pool(name).type, False
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type=PROCESS))
        return PROCESS, True


def deploy(client: SyncPrefectClient, flow: Flow[..., Any], wanted: Wanted, pool: str, pool_type: str) -> Deployed:
    """Make the deployment, or bring it up to date; twice in a row the second time changes nothing.

    A schedule that ``wanted`` does not name stays as it is, and so does whether it is active.
    """
    present = _present(client, f"{flow.name}/{wanted.name}")
    schedules = _schedules(wanted, present.schedules if present else [])
    by_process = pool_type == PROCESS
    deployment_id = client.create_deployment(
        flow_id=client.create_flow_from_name(flow.name),
        name=wanted.name,
        entrypoint=f"{flow.fn.__module__}:{flow.fn.__name__}",
        description=flow.description,
        tags=["rowvec", flow.name, pipeline_tag(wanted.pipeline.name)],
        work_pool_name=pool,
        # The parameters that somebody has set in the UI stay, but for the file.
        parameters={**(present.parameters if present else {}), **_given(wanted, by_process=by_process)},
        parameter_openapi_schema=flow.parameters.model_dump_for_openapi(),
        enforce_parameter_schema=True,
        schedules=schedules,
        pull_steps=[{_PULL_STEP: {"directory": str(wanted.folder)}}] if by_process else [],
        path=".",
        # A sync that is due while one is at work should still run.
        concurrency_limit=1,
        concurrency_options=ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
        paused=present.paused if present else False,
        job_variables=dict(present.job_variables or {}) if present else {},
    )
    return Deployed(
        name=f"{flow.name}/{wanted.name}",
        url=page(deployment_id),
        file=wanted.file,
        created=present is None,
        schedules=tuple(_written(schedule) for schedule in schedules),
    )


def page(deployment_id: UUID) -> str | None:
    """The page of a deployment in the UI."""
    return url_for("deployment", obj_id=deployment_id)


def pipeline_tag(name: str) -> str:
    """The tag of all deployments of a pipeline."""
    return f"pipeline:{name}"


def _present(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def _given(wanted: Wanted, *, by_process: bool) -> dict[str, Any]:
    """The parameters that say what the runs work on."""
    place = _place(wanted, by_process=by_process)
    return {"pipelines": [place], "minutes": _WATCH_MINUTES} if wanted.watch else {"pipeline": place}


def _place(wanted: Wanted, *, by_process: bool) -> str:
    """What the runs get as ``pipeline``: below their working directory a relative path, which a form can show."""
    if "://" in wanted.file:
        return wanted.file
    path = (wanted.folder / wanted.file).absolute()
    return str(path.relative_to(wanted.folder)) if by_process and path.is_relative_to(wanted.folder) else str(path)


def _schedules(wanted: Wanted, present: list[DeploymentSchedule]) -> list[DeploymentScheduleCreate]:
    """All schedules that the deployment should have: the server replaces all of them."""
    kept = [
        DeploymentScheduleCreate(schedule=one.schedule, active=one.active, parameters=one.parameters, slug=one.slug)
        for one in present
    ]
    due = _due(wanted)
    if due is None:
        return kept
    for one in kept:
        if one.slug == _SLUG:
            if not _same(one.schedule, due):
                one.schedule = due
            return kept
    return [*kept, DeploymentScheduleCreate(schedule=due, active=True, slug=_SLUG)]


def _due(wanted: Wanted) -> CronSchedule | IntervalSchedule | None:
    if wanted.watch:
        return CronSchedule(cron="0 * * * *", timezone="UTC")
    if wanted.cron is not None:
        try:
            return CronSchedule(cron=wanted.cron, timezone=wanted.timezone)
        except ValueError:
            raise UsageError(
                f"{wanted.cron!r} in {wanted.timezone} is no schedule; write five fields, as '15 3 * * *', and a time "
                "zone as Europe/Berlin"
            ) from None
    return IntervalSchedule(interval=wanted.every) if wanted.every is not None else None


def _same(one: object, other: CronSchedule | IntervalSchedule) -> bool:
    """Whether two schedules are due at the same times; an interval counts from when it was first set."""
    if isinstance(one, IntervalSchedule) and isinstance(other, IntervalSchedule):
        return one.interval == other.interval
    return one == other


def _written(schedule: DeploymentScheduleCreate) -> str:
    due = schedule.schedule
    if isinstance(due, IntervalSchedule):
        text = f"every {due.interval.total_seconds() / 60:g} minutes"
    elif isinstance(due, CronSchedule):
        text = f"cron {due.cron} ({due.timezone or 'UTC'})"
    else:
        text = due.rrule if isinstance(due, RRuleSchedule) else "at no time"
    return text if schedule.active else f"{text}, not active"
