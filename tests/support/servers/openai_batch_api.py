"""The Batch API of the stand-in for OpenAI: files and jobs over real HTTP, faults included.

Jobs end when ``settle`` says so: at once where ``hold`` is false, else by ``finish``.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email import policy
from email.parser import BytesParser
from typing import Any, Literal, cast

from tests.support.waiting import PATIENCE_SECONDS

End = Literal["completed", "expired", "cancelled", "failed"]
Answer = Callable[[dict[str, Any]], tuple[int, dict[str, Any], int]]
"""Status, body and tokens of one request of a job."""

MOST_REQUESTS = 50_000
MOST_BYTES = 200_000_000


@dataclass(slots=True, kw_only=True)
class Job:
    """A job, as its owner and the test see it."""

    id: str
    input_file: str
    metadata: dict[str, str]
    status: str = "validating"
    output_file: str | None = None
    error_file: str | None = None
    errors: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    tokens: int = 0

    def as_json(self) -> dict[str, Any]:
        """The protocol's own form."""
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": "/v1/embeddings",
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_file,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output_file,
            "error_file_id": self.error_file,
            "created_at": 1_700_000_000,
            "metadata": self.metadata,
        }


@dataclass(slots=True, kw_only=True)
class Batches:
    """All files and jobs of the server; its attributes may be changed while it runs."""

    answer: Answer
    hold: bool = False
    """Whether jobs stay under way until ``finish``."""
    end: End = "completed"
    """How jobs end that are not held."""
    answered: int | None = None
    """Of such a job, how many requests are made before it ends; None: all."""
    queue_tokens: int | None = None
    """The account's limit of tokens in unfinished jobs."""
    missing: bool = False
    """Whether the server has no Batch API at all."""
    cut_creates: int = 0
    """So many jobs are made, and the connection is cut before that is said."""
    held_create: threading.Event | None = None
    """While set to an event, a job is made, and that is said when the event is set."""
    cut_downloads: int = 0
    """So many downloads end in the middle."""
    held_download: threading.Event | None = None
    held: int = 0
    """How many wait for one of the events."""
    jobs: dict[str, Job] = field(default_factory=dict[str, Job])
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def handle(self, method: str, path: str, query: str, headers: Any, body: bytes) -> tuple[int, Any] | None:
        """Status and body (JSON or bytes) of a request; None: cut the connection."""
        parts = path.strip("/").split("/")
        match method, parts:
            case _ if self.missing:
                return 404, _error(f"Invalid URL ({method} {path})", "404")
            case "POST", ["files"]:
                return self._upload(headers, body)
            case "GET", ["files", name, "content"]:
                return self._download(name)
            case "DELETE", ["files", name]:
                gone = self.files.pop(name, None)
                return (200, {"id": name, "object": "file", "deleted": True}) if gone is not None else _no(name)
            case "POST", ["batches"]:
                return self._create(json.loads(body))
            case "GET", ["batches"]:
                return 200, self._page(query)
            case "GET", ["batches", name]:
                job = self.jobs.get(name)
                return (200, job.as_json()) if job else _no(name)
            case _:
                return 404, _error(f"Invalid URL ({method} {path})", "404")

    def finish(self, end: End = "completed", answered: int | None = None) -> None:
        """End all jobs that are under way, after so many of their requests."""
        with self._lock:
            for job in self.jobs.values():
                if job.status in ("validating", "in_progress"):
                    self._end(job, end, answered)

    def _upload(self, headers: Any, body: bytes) -> tuple[int, Any]:
        head = f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode()
        found: dict[str, bytes] = {}
        for part in BytesParser(policy=policy.default).parsebytes(head + body).iter_parts():
            name = part["content-disposition"].params["name"]
            found[name] = cast("bytes", part.get_payload(decode=True))
        if found.get("purpose") != b"batch":
            return 400, _error("'purpose' must be batch", "invalid_purpose")
        if len(found["file"]) > MOST_BYTES:
            return 400, _error("The file is too large.", "file_too_large")
        with self._lock:
            name = f"file-{len(self.files) + len(self.jobs)}-{time.monotonic_ns()}"
            self.files[name] = found["file"]
        return 200, _file(name, len(found["file"]))

    def _download(self, name: str) -> tuple[int, Any] | None:
        if name not in self.files:
            return _no(name)
        self._wait(self.held_download)
        if self.cut_downloads:
            self.cut_downloads -= 1
            return None
        return 200, self.files[name]

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any] | None:
        with self._lock:
            number = len(self.jobs) + 1
            job = Job(id=f"batch_{number}", input_file=wanted["input_file_id"], metadata=wanted.get("metadata") or {})
            self.jobs[job.id] = job
            self._validate(job)
            if job.status == "in_progress" and not self.hold:
                self._end(job, self.end, self.answered)
        self._wait(self.held_create)
        if self.cut_creates:
            self.cut_creates -= 1
            return None
        # As told at its making, whatever has become of it since.
        return 200, {**job.as_json(), "status": "validating", "output_file_id": None, "error_file_id": None}

    def _wait(self, event: threading.Event | None) -> None:
        if event is not None:
            self.held += 1
            event.wait(PATIENCE_SECONDS)

    def _page(self, query: str) -> dict[str, Any]:
        given = dict(pair.split("=") for pair in query.split("&") if "=" in pair)
        newest = list(reversed(self.jobs.values()))
        names = [job.id for job in newest]
        start = names.index(given["after"]) + 1 if "after" in given else 0
        # Smaller pages than are asked for, so that a test turns them.
        page = newest[start : start + 2]
        return {
            "object": "list",
            "data": [job.as_json() for job in page],
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
            "has_more": start + 2 < len(newest),
        }

    def _validate(self, job: Job) -> None:
        requests = [json.loads(line) for line in self.files[job.input_file].splitlines()]
        names = [request["custom_id"] for request in requests]
        inputs = sum(len(request["body"]["input"]) for request in requests)
        # Close enough for a queue: a token is about four characters.
        job.tokens = sum(len(text) for request in requests for text in request["body"]["input"]) // 4
        queued = sum(other.tokens for other in self.jobs.values() if other.status == "in_progress")
        problem = None
        if len(set(names)) != len(names):
            problem = ("duplicate_custom_id", "The custom_id was used before.")
        elif len(requests) > MOST_REQUESTS or inputs > MOST_REQUESTS:
            problem = ("too_many_tasks", "The batch has too many requests.")
        elif any(request["url"] != "/v1/embeddings" for request in requests):
            problem = ("mismatched_url", "The url is not that of the batch.")
        elif self.queue_tokens is not None and queued + job.tokens > self.queue_tokens:
            problem = ("token_limit_exceeded", "Enqueued token limit reached. Please try again later.")
        job.status = "failed" if problem else "in_progress"
        job.errors = [{"code": problem[0], "message": problem[1]}] if problem else []

    def _end(self, job: Job, end: End, answered: int | None) -> None:
        requests = [json.loads(line) for line in self.files[job.input_file].splitlines()]
        made = requests if answered is None else requests[:answered]
        good: list[bytes] = []
        bad: list[bytes] = []
        for request in made if end != "failed" else []:
            status, body, _ = self.answer(request["body"])
            line = _line(request, {"status_code": status, "request_id": "r", "body": body}, None)
            (good if status == 200 else bad).append(line)
        code = {"expired": "batch_expired", "cancelled": "batch_cancelled"}.get(end)
        if code:
            bad += [_line(r, None, {"code": code, "message": "It was not executed."}) for r in requests[len(made) :]]
        job.status = end
        if end == "failed":
            job.errors = [{"code": "invalid_request", "message": "The file cannot be used."}]
        # Answers come in any order.
        job.output_file, job.error_file = self._keep(job, "out", good[1::2] + good[::2]), self._keep(job, "err", bad)

    def _keep(self, job: Job, kind: str, lines: list[bytes]) -> str | None:
        if not lines:
            return None
        name = f"file-{kind}-{job.id}"
        self.files[name] = b"".join(lines)
        return name


def _line(request: dict[str, Any], response: dict[str, Any] | None, error: dict[str, str] | None) -> bytes:
    line = {"id": "batch_req", "custom_id": request["custom_id"], "response": response, "error": error}
    return json.dumps(line).encode() + b"\n"


def _file(name: str, size: int) -> dict[str, Any]:
    common = {
        "id": name,
        "object": "file",
        "bytes": size,
        "created_at": 1,
        "filename": "f.jsonl",
        "status": "processed",
    }
    return {**common, "purpose": "batch"}


def _no(name: str) -> tuple[int, dict[str, Any]]:
    return 404, _error(f"No such object: {name}", "not_found")


def _error(message: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
