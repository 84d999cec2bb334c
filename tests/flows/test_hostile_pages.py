"""Pages, events and logs in Prefect show what rows and servers hold; none of it is a link, a picture or markup."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from markdown_it import MarkdownIt
from prefect import flow
from rowvec_tasks import artifacts
from rowvec_tasks.logging_filter import log_sentences

from rowvec.errors import AwaitingJobs, TargetError
from rowvec.ledger.history import History
from rowvec.operations.audit import Audit, AuditReport, Finding, LostObject
from rowvec.pipeline import Pipeline
from rowvec.stages.report import Check, RestoreReport
from tests.support.cli_process import PrefectServer
from tests.support.prefect_api import answered
from tests.unit.test_display import HOSTILE, MARKDOWN, obeyed

pytestmark = pytest.mark.flow

FOREIGN = f"{MARKDOWN} {HOSTILE}\n\n# ours?"
PAGES = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def report(name: str) -> RestoreReport:
    check = Check(name="rows", ok=False, detail=FOREIGN, rows=(FOREIGN,))
    return RestoreReport(
        run_id=1, pipeline=name, manifest=FOREIGN, rows=1, missing=1, artifacts=1, lost=(FOREIGN,), embedded=0,
        consistent=False, k=10, recall_at_k=None, checksum="ab", checks=(check,), seconds={"total": 1.0},
    )  # fmt: skip


def acts(text: str) -> list[str]:
    """What a page does besides showing text, headings and tables: links elsewhere, pictures, HTML."""
    found: list[str] = []
    for token in PAGES.parse(text):
        found += [token.content] if token.type == "html_block" else []
        for part in token.children or []:
            href = str(part.attrs.get("href", ""))
            if part.type in ("image", "html_inline") or (
                part.type == "link_open" and not href.startswith("/artifacts/")
            ):
                found.append(part.type)
    return found


def texts(value: Any) -> list[str]:
    """Every text in a JSON value."""
    if isinstance(value, dict):
        return [text for one in value.values() for text in texts(one)]
    if isinstance(value, list):
        return [text for one in value for text in texts(one)]
    return [value] if isinstance(value, str) else []


def test_no_artifact_does_what_a_row_or_an_error_says(
    prefect_api: None, prefect_server: PrefectServer, paintings: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = paintings.model_copy(update={"name": "hostile-pages"})

    # What the ledger says of earlier runs; it is tested with its database elsewhere.
    def nothing(_: Pipeline) -> History:
        return History(runs=(), rejects=())

    monkeypatch.setattr(artifacts, "look_back", nothing)
    audited = Audit(
        findings=(Finding(key=(FOREIGN,), kind="stale", reason=FOREIGN),),
        counts={"missing": 0, "stale": 1, "orphaned": 0, "corrupt": 0},
        objects=(LostObject(name=FOREIGN, reason=FOREIGN),),
    )

    @flow
    def publishing() -> None:
        artifacts.show(named, report(named.name))
        artifacts.show_audit(AuditReport(pipeline=named.name, found=audited))
        artifacts.show_index(named, {"reason": FOREIGN, "index": FOREIGN})
        artifacts.show_failure(named, TargetError(FOREIGN))
        artifacts.show_waiting(named, AwaitingJobs(FOREIGN, jobs=1, texts=1))

    publishing()
    pages = found(prefect_server, named.name)
    assert len({page["key"] for page in pages}) >= 6
    for page in pages:
        data = json.loads(page["data"]) if page["type"] == "table" else page["data"]
        for text in texts([data, page["description"]]):
            assert (acts(text), obeyed(text)) == ([], []), (page["key"], text)
    assert len([page for page in pages if page["key"].endswith("-summary")]) == 3
    assert any("http" in text for page in pages for text in texts(page["data"]))


def found(server: PrefectServer, name: str) -> list[dict[str, Any]]:
    """All artifacts of a pipeline."""
    filters = {"artifacts": {"key": {"like_": f"{name}-%"}}}
    return answered("POST", f"{server.api}/artifacts/filter", filters)


def test_a_log_of_a_run_holds_nothing_that_a_terminal_obeys(
    prefect_api: None, caplog: pytest.LogCaptureFixture
) -> None:
    log_sentences()

    @flow
    def logging_one() -> None:
        logging.getLogger("prefect.flow_runs").warning("%s", HOSTILE)

    with caplog.at_level(logging.WARNING):
        logging_one()
    written = [record.getMessage() for record in caplog.records if "owned" in record.getMessage()]
    assert written
    assert [text for text in written if obeyed(text)] == []


def test_a_failed_stage_and_its_run_have_a_state_that_a_terminal_can_show(prefect_api: None) -> None:
    @flow
    def failing() -> None:
        raise TargetError(FOREIGN)

    state: Any = failing(return_state=True)
    assert state.message is not None
    assert obeyed(state.message.replace("\n", "")) == []
