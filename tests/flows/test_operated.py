"""Deployments on a stock server with a worker: a schedule fires, a run is watched, cancelled, killed."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import psutil
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.workers.process import ProcessWorker
from psycopg import sql
from psycopg.conninfo import make_conninfo
from rowvec_tasks.cancellation import ASK_SECONDS, SENTENCE

from rowvec.cli.demo.gallery import create_gallery_once
from tests.support import forked_engine
from tests.support.cli_process import Command, Ended, command_forks, serving
from tests.support.forked_commands import ForkedProcess
from tests.support.prefect_api import answered
from tests.support.run_folder import short_folder
from tests.support.waiting import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = PATIENCE_SECONDS

pytestmark = [pytest.mark.flow, pytest.mark.xdist_group("operated")]


@dataclass(slots=True)
class Operated:
    """A server with this repository's deployments and one of our own, and a worker that can be killed."""

    api: str
    database: str
    environment: dict[str, str]
    folder: Path
    workers: list[ForkedProcess] = field(default_factory=list[ForkedProcess])

    def prefect(self, *words: str) -> Ended:
        """Prefect's own command, in the root of the checkout."""
        return self.run_command("prefect", ROOT, "--no-prompt", *words)

    def run_command(self, program: Literal["rowvec", "prefect"], folder: Path, *words: str) -> Ended:
        """Run a command in a folder to its end."""
        environment = {**self.environment, "PWD": str(folder)}
        return Command(command_forks().start(list(words), environment, folder=folder, program=program)).wait()

    @property
    def file(self) -> str:
        """The pipeline file of our own, whose source is a table."""
        return str(self.folder / "gallery.yaml")

    def start_worker(self) -> None:
        """Start one more worker."""
        words = ["worker", "start", "--pool", "rowvec"]
        self.workers.append(command_forks().start(words, self.environment, folder=self.folder, program="prefect"))

    def ask(self, what: str, **body: Any) -> Any:
        """The server's answer."""
        return answered("POST", f"{self.api}/{what}", body)

    def deployment(self, name: str) -> dict[str, Any]:
        """A deployment by its flow and name."""
        return answered("GET", f"{self.api}/deployments/name/{name}")

    def run(self, name: str, *, stock: bool = False, **parameters: Any) -> str:
        """Start a run of a deployment, as the custom-run form does; returns its id.

        ``stock``: in an interpreter of its own, as a worker starts it; the others are forked, which is quicker.
        """
        deployment = self.deployment(name)["id"]
        variables = {"command": f"{sys.executable} -m prefect.engine"} if stock else {}
        body = {"parameters": parameters, "job_variables": variables}
        return self.ask(f"deployments/{deployment}/create_flow_run", **body)["id"]

    def flow_run(self, run_id: str) -> dict[str, Any]:
        """A run as the server knows it."""
        return answered("GET", f"{self.api}/flow_runs/{run_id}")

    def wait(self, run_id: str, *states: str) -> dict[str, Any]:
        """Wait until the run is in a state of one of these types or names; returns the run."""
        found: list[dict[str, Any]] = []

        def reached() -> bool:
            found[:] = [self.flow_run(run_id)]
            return not {found[0]["state_type"], found[0]["state_name"]}.isdisjoint(states)

        wait_for(reached)
        return found[0]

    def process_of(self, run_id: str) -> psutil.Process:
        """The process that a worker has started for a run."""
        found: list[psutil.Process] = []

        def there() -> bool:
            for process in psutil.process_iter():
                try:
                    if process.environ().get("PREFECT__FLOW_RUN_ID") == run_id:
                        found.append(process)
                except psutil.Error:
                    continue
            return bool(found)

        wait_for(there)
        # Several processes of the run have the variable: the oldest is the worker's own child.
        return min(found, key=lambda process: process.create_time())

    def artifact(self, key: str) -> dict[str, Any]:
        """The newest artifact of a key."""
        named = {"key": {"any_": [key]}}
        return self.ask("artifacts/filter", artifacts=named, sort="CREATED_DESC", limit=1)[0]

    def logs(self, run_id: str, level: int = 0) -> list[str]:
        """What a run has logged at this level or above."""
        flow_run = {"flow_run_id": {"any_": [run_id]}, "level": {"ge_": level}}
        return [line["message"] for line in self.ask("logs/filter", logs=flow_run, limit=200)]

    def tasks(self, run_id: str) -> set[str]:
        """The states of a run's tasks."""
        return {task["state_type"] for task in self.ask("task_runs/filter", flow_runs={"id": {"any_": [run_id]}})}

    def ledger(self) -> tuple[str, str | None]:
        """State and error of the newest run in the ledger."""
        with psycopg.connect(self.database) as connection:
            row = connection.execute("SELECT state, error FROM rowvec.runs ORDER BY run_id DESC LIMIT 1").fetchone()
        assert row is not None
        return row

    def leftovers(self) -> list[str]:
        """Plan and staging tables."""
        with psycopg.connect(self.database) as connection:
            found = connection.execute("SELECT relname FROM pg_class WHERE relname ~ '^(plan|staging)_[0-9]+$'")
            return [name for (name,) in found]

    def edit(self, statement: str) -> None:
        """Change the gallery."""
        with psycopg.connect(self.database) as connection:
            connection.execute(statement.encode())

    def sync_first(self) -> None:
        """Sync the gallery, if no test has done so yet: tests run in any order, and each process has its own server."""
        with psycopg.connect(self.database) as connection:
            found = connection.execute("SELECT to_regclass('vectors.gallery')").fetchone()
        if found == (None,):
            self.wait(self.run("sync/gallery"), "COMPLETED")

    def syncs(self, pipeline: str) -> list[dict[str, Any]]:
        """The syncs that a watcher has started, the first one first."""
        named = {"name": {"like_": f"{pipeline}-changes"}}
        return self.ask("flow_runs/filter", flow_runs=named, sort="START_TIME_ASC")

    @contextmanager
    def held(self, pipeline: str) -> Generator[str]:
        """Within this context a watcher's sync, by its id, waits before its merge for rows that have just changed."""
        with (
            closing(psycopg.connect(self.database)) as holder,
            psycopg.connect(self.database, autocommit=True) as watch,
        ):
            holder.execute(sql.SQL("LOCK TABLE {} IN SHARE MODE").format(sql.Identifier("vectors", pipeline)))
            self.edit("UPDATE paintings SET description = description || ' Seen again.' WHERE id % 5 = 0")
            waiting = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'rowvec merge' AND datname = %s"
            wait_for(lambda: watch.execute(waiting, (watch.info.dbname,)).fetchone())
            yield self.syncs(pipeline)[-1]["id"]

    @contextmanager
    def held_at_merge(self, *, stock: bool = False) -> Generator[str]:
        """Within this context a run, by its id, waits before its merge, because its vector table is locked."""
        self.sync_first()
        self.edit("UPDATE paintings SET description = description || ' Seen again.' WHERE id % 5 = 0")
        with (
            closing(psycopg.connect(self.database)) as holder,
            psycopg.connect(self.database, autocommit=True) as watch,
        ):
            holder.execute("LOCK TABLE vectors.gallery IN SHARE MODE")
            run_id = self.run("sync/gallery", stock=stock)
            waiting = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'rowvec merge' AND datname = %s"
            wait_for(lambda: watch.execute(waiting, (watch.info.dbname,)).fetchone())
            assert self.leftovers()
            yield run_id


def wait_for(holds: Callable[[], object]) -> None:
    """Wait until something holds, with pauses, so that the server that is asked can do its work."""
    end = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < end, "that never came to hold"
        time.sleep(0.3)


def fork_runs(api: str, command: str) -> None:
    """Make this command the one of all runs of the work pool that ask for no other."""
    template = ProcessWorker.get_default_base_job_template()
    template["variables"]["properties"]["command"]["default"] = command
    answered("PATCH", f"{api}/work_pools/rowvec", {"base_job_template": template})


@pytest.fixture(scope="module")
def operated(cluster: str, tmp_path_factory: pytest.TempPathFactory, prefect_database: Path) -> Generator[Operated]:
    """Server, deployments and worker, started as deployments/README.md says; and a pipeline of our own."""
    folder = tmp_path_factory.mktemp("operated")
    database = make_conninfo(cluster, dbname="operated")
    with psycopg.connect(cluster, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE operated TEMPLATE template_rowvec"))
    create_gallery_once(database)
    # It looks for schedules often, and makes few runs of each: it makes a hundred otherwise.
    quick = {
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        "PREFECT_SERVER_SERVICES_SCHEDULER_MAX_RUNS": "2",
        "PREFECT_SERVER_SERVICES_SCHEDULER_MIN_RUNS": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    prefect = short_folder("rvop")
    with serving(prefect / "home", prefect_database, **quick) as server:
        environment = {
            **os.environ,
            **quick,
            "PREFECT_HOME": str(folder / "client"),
            "PREFECT_API_URL": server.api,
            "ROWVEC_HOME": str(folder / "home"),
            "ROWVEC_DATABASE_URL": database,
            "ROWVEC_ARTIFACTS": str(folder / "artifacts"),
            "CATALOGUE_PATH": str(folder / "catalogue.parquet"),
        }
        it = Operated(api=server.api, database=database, environment=environment, folder=folder)
        sample = (files("rowvec.cli.demo") / "paintings.yaml").read_text()
        own = sample.replace("name: paintings", "name: gallery").replace("vectors.paintings", "vectors.gallery")
        Path(it.file).write_text(own)
        done = it.run_command("rowvec", folder, "deploy", "gallery.yaml")
        assert done.status == 0, done
        for more in ((), ("--prefect-file", "deployments/examples/prefect.yaml")):
            done = it.prefect("deploy", "--all", *more)
            assert done.status == 0, done
        with forked_engine.serve(command_forks(), prefect / "engine"):
            fork_runs(it.api, forked_engine.command(prefect / "engine"))
            it.start_worker()
            yield it
        for worker in it.workers:
            for process in [*_children(worker.pid), worker.pid]:
                _kill(process)
            worker.communicate(WAIT_SECONDS)
    shutil.rmtree(prefect, ignore_errors=True)
    with psycopg.connect(cluster, autocommit=True) as connection:
        connection.execute("DROP DATABASE operated WITH (FORCE)")


def test_all_deployments_are_there_with_their_schedules_limits_and_forms(operated: Operated) -> None:
    found = operated.ask("deployments/filter")
    flows = {flow["id"]: flow["name"] for flow in operated.ask("flows/filter")}
    named = {f"{flows[one['flow_id']]}/{one['name']}": one for one in found}
    assert set(named) == {
        *(f"sync/{name}" for name in ("paintings", "articles", "catalogue", "images", "gallery")),
        *(f"{flow}/paintings" for flow in ("audit", "prune", "forget", "rebuild", "restore", "index", "watch")),
    }
    scheduled = {name for name, one in named.items() if any(s["active"] for s in one["schedules"])}
    assert scheduled == {"sync/paintings", "audit/paintings", "prune/paintings"}
    assert {one["global_concurrency_limit"]["limit"] for one in found} == {1}
    strategies = {name: one["concurrency_options"]["collision_strategy"] for name, one in named.items()}
    waits = {*(f"sync/{name}" for name in ("paintings", "catalogue", "images", "gallery")), "watch/paintings"}
    assert {name for name, strategy in strategies.items() if strategy == "ENQUEUE"} == waits
    assert set(strategies.values()) == {"ENQUEUE", "CANCEL_NEW"}
    assert named["sync/gallery"]["parameters"] == {"pipeline": "gallery.yaml"}
    # The form asks for a file and for what a person would change, each with its help.
    form = named["sync/paintings"]["parameter_openapi_schema"]["properties"]
    assert {name: one["description"].partition(" ")[0] for name, one in form.items()} == {
        "pipeline": "The",
        "allow_deletes": "Whether",
        "when_busy": "While",
        "wait_minutes": "How",
        "cause": "Why",
    }
    assert form["pipeline"]["type"] == "string"


def test_a_schedule_fires_and_its_run_shows_and_tells_what_it_did(operated: Operated) -> None:
    deployment = operated.deployment("sync/paintings")["id"]
    soon = (datetime.now(UTC) + timedelta(seconds=3)).isoformat()
    hourly = {"active": True, "schedule": {"interval": 3600, "anchor_date": soon}}
    answered("POST", f"{operated.api}/deployments/{deployment}/schedules", [hourly])
    done = {"name": {"like_": "paintings-schedule-"}, "state": {"type": {"any_": ["COMPLETED"]}}}
    wait_for(lambda: operated.ask("flow_runs/filter", flow_runs=done))
    run = operated.ask("flow_runs/filter", flow_runs=done)[0]
    assert "auto-scheduled" in run["tags"]
    assert run["state"]["message"] == "Consistent: 240 vectors agree with the source."
    assert operated.ledger() == ("succeeded", None)
    shown = {key: operated.artifact(f"paintings-{key}") for key in ("summary", "checks", "history", "rejects")}
    assert {artifact["flow_run_id"] for artifact in shown.values()} == {run["id"]}
    summary = shown["summary"]["data"]
    assert summary.startswith("## Consistent: 240 vectors agree with the source.")
    assert f"/artifacts/artifact/{shown['checks']['id']}" in summary
    assert "| rows | 240 | 240 | 240 |" in shown["history"]["data"]
    sent = {"event": {"name": ["rowvec.sync.completed", "prefect.asset.materialization.succeeded"]}}
    wait_for(lambda: operated.ask("events/filter", filter=sent)["total"] >= 2)
    events = {event["event"]: event for event in operated.ask("events/filter", filter=sent)["events"]}
    assert events["rowvec.sync.completed"]["resource"]["prefect.resource.id"] == "rowvec.pipeline.paintings"
    assert events["rowvec.sync.completed"]["payload"]["rows"] == 240
    asset = events["prefect.asset.materialization.succeeded"]
    assert asset["resource"]["prefect.resource.id"] == "postgres://localhost/operated/vectors.paintings"
    assert any(related["prefect.resource.id"].endswith("/paintings.csv") for related in asset["related"])


def test_an_expected_failure_is_a_sentence(operated: Operated) -> None:
    operated.sync_first()
    operated.edit("CREATE TABLE sold AS SELECT * FROM paintings WHERE id > 9")
    operated.edit("DELETE FROM paintings WHERE id > 9")
    run = operated.wait(operated.run("sync/gallery"), "FAILED", "COMPLETED", "CRASHED", "CANCELLED")
    assert run["state_type"] == "FAILED", run["state"]
    operated.edit("INSERT INTO paintings SELECT * FROM sold")
    operated.edit("DROP TABLE sold")
    assert run["name"].startswith("gallery-manual-")
    assert run["state"]["message"].startswith("this run would delete 231 of 240 vectors")
    summary = operated.artifact("gallery-summary")
    assert summary["flow_run_id"] == run["id"]
    assert summary["description"].startswith("FAILED: this run would delete")
    # The last lines of a run arrive after its state.
    wait_for(lambda: run["state"]["message"] in operated.logs(run["id"], logging.ERROR))
    assert "Traceback" not in "\n".join(operated.logs(run["id"]))


def test_an_audit_that_finds_something_fails_and_one_by_hand_that_is_watched_repairs_it(operated: Operated) -> None:
    operated.sync_first()
    operated.edit("UPDATE vectors.gallery SET embedding_bits = ~embedding_bits WHERE id = 8")
    found = operated.wait(operated.run("audit/paintings", pipeline=operated.file), "FAILED", "COMPLETED")
    assert (found["name"], found["state_type"]) == ("gallery-audit-manual", "FAILED")
    assert "8: " in found["state"]["message"]
    assert operated.artifact("gallery-audit")["description"] == "INCONSISTENT: 1 corrupt."
    by_hand = (
        "deployment",
        "run",
        "audit/paintings",
        "--param",
        f"pipeline={operated.file}",
        "--param",
        "repair=true",
        "--watch",
        "--watch-interval",
        "1",
    )
    watched = operated.prefect(*by_hand)
    assert "finished successfully" in watched.stdout, watched
    assert operated.artifact("gallery-audit")["description"].endswith("1 repaired.")


def test_an_event_starts_a_run_of_the_catalogue(operated: Operated) -> None:
    wares = {"sku": ["a1", "b2"], "name": ["Anvil", "Bell"], "summary": ["to beat on", "to ring"], "price": [9.5, 3.0]}
    pq.write_table(pa.table(wares), operated.folder / "catalogue.parquet")
    written = {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": "catalogue.written",
        "resource": {"prefect.resource.id": "catalogue"},
    }
    answered("POST", f"{operated.api}/events", [written])
    named = {"name": {"like_": "catalogue-event"}}
    wait_for(lambda: operated.ask("flow_runs/filter", flow_runs=named))
    (run,) = operated.ask("flow_runs/filter", flow_runs=named)
    assert operated.wait(run["id"], "COMPLETED", "FAILED")["state_type"] == "COMPLETED"
    assert operated.artifact("catalogue-summary")["data"].startswith("## Consistent: 2 vectors")


def test_while_a_run_is_at_work_another_is_queued_or_skipped_by_its_policy(operated: Operated) -> None:
    same = operated.file
    with operated.held_at_merge() as first:
        summary = operated.artifact("gallery-summary")["id"]
        # A run of the same deployment, whose runs queue.
        queued = operated.run("sync/gallery")
        # A run of another deployment of the same pipeline: its lock keeps them apart.
        skipped = operated.run("sync/articles", pipeline=same)
        message = operated.wait(skipped, "Skipped", "COMPLETED", "FAILED")["state"]["message"]
        assert message == "skipped: another run of the pipeline gallery is at work"
        assert operated.flow_run(queued)["state_name"] == "AwaitingConcurrencySlot"
        assert operated.flow_run(first)["state_name"] == "Running"
        # A skipped run has not failed, so it leaves the summary of the pipeline as it is.
        assert operated.artifact("gallery-summary")["id"] == summary
    for run_id in (first, queued):
        assert operated.wait(run_id, "COMPLETED", "FAILED")["state_type"] == "COMPLETED"


def test_a_run_that_is_cancelled_says_so_in_one_sentence_and_leaves_nothing_behind(operated: Operated) -> None:
    with operated.held_at_merge() as run_id:
        # As the button of the UI does.
        operated.ask(f"flow_runs/{run_id}/set_state", state={"type": "CANCELLING"})
        operated.wait(run_id, "CANCELLED")
    assert operated.ledger() == ("cancelled", SENTENCE)
    assert operated.logs(run_id, logging.WARNING) == [SENTENCE]
    wait_for(lambda: operated.tasks(run_id) == {"COMPLETED", "CANCELLED"})
    assert operated.leftovers() == []


def test_a_run_whose_process_is_killed_is_crashed_and_leaves_nothing_behind(operated: Operated) -> None:
    with operated.held_at_merge(stock=True) as run_id:
        operated.process_of(run_id).kill()
        operated.wait(run_id, "CRASHED")
    # The ledger is told first, and then what the run has left is dropped.
    wait_for(lambda: operated.ledger()[0] != "running" and operated.leftovers() == [])
    state, error = operated.ledger()
    assert state == "abandoned"
    assert error is not None
    assert error.startswith(f"the flow run {run_id} was ended from outside: ")


@pytest.mark.soak
def test_a_run_whose_worker_is_killed_ends_and_another_worker_takes_the_next(operated: Operated) -> None:
    with operated.held_at_merge(stock=True) as run_id:
        operated.workers[-1].send_signal(signal.SIGKILL)
        operated.start_worker()
        operated.wait(run_id, "CRASHED")
    assert operated.wait(operated.run("sync/gallery"), "COMPLETED", "FAILED")["state_type"] == "COMPLETED"
    assert operated.ledger() == ("succeeded", None)
    assert operated.leftovers() == []


@pytest.mark.soak
def test_a_watcher_of_a_worker_outlives_its_cancelled_sync_and_a_cancelled_watcher_ends_with_its_sync(
    operated: Operated,
) -> None:
    text = Path(operated.file).read_text().replace("gallery", "kept")
    key = "  key: [id]\n"
    assert key in text
    file = operated.folder / "kept.yaml"
    file.write_text(text.replace(key, f"{key}  changes: {{by: trigger}}\n"))
    watcher = operated.run("watch/paintings", stock=True, pipelines=[str(file)], every=0.2)
    # The table may have been synced by no test yet, or by others.
    wait_for(lambda: [run["state_type"] for run in operated.syncs("kept")] == ["COMPLETED"])
    with operated.held("kept") as sync:
        # As the button of the UI does.
        operated.ask(f"flow_runs/{sync}/set_state", state={"type": "CANCELLING"})
        time.sleep(ASK_SECONDS + 1)
    assert operated.wait(sync, "CANCELLED", "COMPLETED", "CRASHED")["state_type"] == "CANCELLED"
    wait_for(lambda: [run["state_type"] for run in operated.syncs("kept")] == ["COMPLETED", "CANCELLED", "COMPLETED"])
    assert operated.flow_run(watcher)["state_name"] == "Running"
    assert operated.ledger() == ("succeeded", None)
    with operated.held("kept") as sync:
        operated.ask(f"flow_runs/{watcher}/set_state", state={"type": "CANCELLING"})
        operated.wait(watcher, "CANCELLED")
    wait_for(lambda: operated.flow_run(sync)["state_type"] == "CANCELLED")
    wait_for(lambda: operated.ledger()[0] == "cancelled" and operated.leftovers() == [])


def _children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
