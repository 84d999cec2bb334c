"""The commands ``rowvec deploy`` and ``rowvec automations``: what a Prefect server of the user's own should do."""

from __future__ import annotations

import os
import shlex
from datetime import timedelta
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer

from rowvec.cli.commands.options import AsJson
from rowvec.cli.output import as_typed, emit, err, out
from rowvec.errors import MachineError, UsageError
from rowvec.runtime.prefect_server import prefect_module


def deploy(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Pipeline files: paths, or https URLs.", show_default=False)
    ],
    pool: Annotated[str, typer.Option(help="The work pool; made, with type process, if it is missing.")] = "rowvec",
    every: Annotated[
        float | None, typer.Option(min=0.1, help="Sync every so many minutes.", show_default=False)
    ] = None,
    cron: Annotated[
        str | None, typer.Option(help="Sync at the times of this cron expression.", show_default=False)
    ] = None,
    timezone: Annotated[str, typer.Option(help="The time zone of --cron.")] = "UTC",
    name: Annotated[
        str | None, typer.Option(help="The deployment's name; left out: the pipeline's.", show_default=False)
    ] = None,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Sync as soon as a row changes: runs of the flow watch, one after the other."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make or update one deployment per pipeline file, on the Prefect server of PREFECT_API_URL.

    Its runs read the file when they start: edit it, and the next run follows. Without --every, --cron and --watch the
    schedules stay as they are; a new deployment then has none.
    """
    if sum((every is not None, cron is not None, watch)) > 1:
        raise UsageError("--every, --cron and --watch exclude each other; give one of them")
    if name is not None and len(files) > 1:
        raise UsageError("--name is the name of one deployment; give one file with it")
    from rowvec.operations.changes import check_has_queue
    from rowvec.pipeline.references import variables_of
    from rowvec.store.pipeline_files import read_pipeline

    pipelines = {file: read_pipeline(file) for file in files}
    for pipeline in pipelines.values() if watch else ():
        check_has_queue(pipeline)
    names = [pipeline.name for pipeline in pipelines.values()]
    if len(set(names)) < len(files):
        raise UsageError(f"two of the files are of one pipeline ({', '.join(sorted(names))}); give each once")
    deployments, flow = prefect_module().deployments(), _flow("watch" if watch else "sync")
    with deployments.server() as client:
        pool_type, is_new = deployments.ensure_pool(client, pool)
        made = [
            deployments.deploy(
                client,
                flow,
                deployments.Wanted(
                    file=file,
                    pipeline=pipeline,
                    name=name or pipeline.name,
                    folder=Path.cwd(),
                    cron=cron,
                    timezone=timezone,
                    every=None if every is None else timedelta(minutes=every),
                    watch=watch,
                ),
                pool,
                pool_type,
            )
            for file, pipeline in pipelines.items()
        ]
    found = {
        "deployments": [
            {"name": one.name, "url": one.url, "file": one.file, "created": one.created, "schedules": one.schedules}
            for one in made
        ],
        "pool": {"name": pool, "type": pool_type, "created": is_new},
        "variables": sorted({name for pipeline in pipelines.values() for name in variables_of(pipeline)}),
        "worker": _worker(deployments.api_url(), pool),
    }
    emit(found, as_json, lambda: _show_deployed(found))


def automations(
    apply: Annotated[bool, typer.Option("--apply", help="Make them; without it, they are only listed.")] = False,
    receiver: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="TYPE/NAME",
            help="The Prefect block that is told of alarms: webhook/NAME, slack-webhook/NAME, ...",
            show_default=False,
        ),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Let an audit with repair follow an inconsistency that a sync finds.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Tell a person of alarms, and start repairs, by automations on the Prefect server of PREFECT_API_URL."""
    if apply and receiver is None and not repair:
        raise UsageError(
            "nobody would be told: name the block to tell with --to webhook/NAME (or slack-webhook/NAME, ...; create "
            "it in the Prefect UI under Blocks), or ask for --repair; nothing was made"
        )
    server, module = prefect_module().deployments(), prefect_module().automations()
    with server.server() as client:
        audits = module.audit_deployments(client) if repair else {}
        if repair and not audits:
            raise UsageError("--repair needs a deployment of the flow audit with the tags rowvec and audit; deploy one")
        if apply:
            wanted = [*(module.alarms(module.receiver(receiver)) if receiver else []), *module.repairs(audits)]
            module.apply(client, wanted)
        else:
            wanted = [*module.alarms(module.receiver(receiver) if receiver else None), *module.repairs(audits)]
        shown = module.compare(client, wanted)
    found = {
        "applied": apply,
        "receiver": receiver,
        "automations": [{"name": one.name, "description": one.description, "present": one.present} for one in shown],
    }
    emit(found, as_json, lambda: _show_automations(found))


def _show_deployed(found: dict[str, Any]) -> None:
    for one in found["deployments"]:
        done = "made" if one["created"] else "is up to date"
        when = "; ".join(one["schedules"]) or "only when somebody starts it (--every, --cron)"
        out.print(f"{one['name']}: {done}, from {one['file']}; runs {when}", soft_wrap=True)
        if one["url"]:
            out.print(f"  {one['url']}", soft_wrap=True)
    pool = found["pool"]
    if pool["created"]:
        out.print(f"The work pool {pool['name']} was missing, and was made with type {pool['type']}.", soft_wrap=True)
    if pool["type"] != "process":
        out.print(
            f"Runs of {pool['name']} are no processes of this machine: each file must be where they run, at the same "
            "path, or have an https URL.",
            soft_wrap=True,
        )
    named = ", ".join(found["variables"])
    where = f", in an environment with {named}" if named else ""
    out.print(f"Runs need a worker. Start one{where}:", soft_wrap=True)
    out.print(f"  {found['worker']}", soft_wrap=True)


def _show_automations(found: dict[str, Any]) -> None:
    for one in found["automations"]:
        state = "made" if found["applied"] else "there" if one["present"] else "missing"
        out.print(f"{one['name']}: {state}. {one['description']}", soft_wrap=True)
    if found["receiver"] is None:
        err.print("No receiver is named, so alarms reach nobody: --to webhook/NAME tells a block of them.")
    if not found["applied"]:
        err.print("Nothing was changed; --apply makes them.")


def _worker(api: str, pool: str) -> str:
    """The command that starts a worker, as it works in this shell."""
    # A profile has the address otherwise, and an address with a password is nothing to print.
    named = (
        f"PREFECT_API_URL={shlex.quote(api)} " if os.environ.get("PREFECT_API_URL") == api and "@" not in api else ""
    )
    return f"{named}{as_typed('prefect')} worker start --pool {shlex.quote(pool)}"


def _flow(name: str) -> Any:
    for point in entry_points(group="rowvec.flows", name=name):
        return point.load()
    raise MachineError("the flows of rowvec are not installed; install rowvec again")
