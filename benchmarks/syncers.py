"""The syncers of benchmarks/sync.py and faults.py: how each is set up and started, and where it keeps its vectors."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import yaml
from psycopg import sql

from benchmarks.provider import KEY, MODEL, Account
from benchmarks.texts import Held

ENVIRONMENTS = Path(__file__).parent / ".rivals"
"""One virtual environment per peer, made by ``make bench-rivals``, because their pins clash."""

_RIVALS = Path(__file__).parent / "rivals"
_PGAI = str(ENVIRONMENTS / "pgai" / "bin" / "pgai")
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What one syncer works with; no other syncer uses it."""

    database: str
    base_url: str
    account: Account
    dimensions: int
    state: Path
    """The folder for all that the syncer keeps on this machine."""
    prefect_api: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A command that has ended."""

    seconds: float
    status: int
    """The exit status; a negative number is the signal that ended the command."""
    output: str
    """The last line that it wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Syncer:
    """One way to keep the vectors of a table."""

    name: str
    packages: tuple[str, ...]
    """The packages whose versions are printed; the first one must be installed."""
    held: Held
    command: Callable[[Place], list[str]]
    prepare: Callable[[Place], None] = lambda place: None
    environment: Callable[[Place], dict[str, str]] = lambda place: {}
    repair: Callable[[Place], list[str]] | None = None
    """The command its documentation gives for a table that something else wrote into; None: another sync."""
    keeps: tuple[str, ...] = field(default=())
    """Which part of its state is on this machine, in words."""

    @property
    def folder(self) -> Path:
        """The folder of its virtual environment."""
        return ENVIRONMENTS / self.name

    @property
    def versions(self) -> dict[str, str]:
        """The installed versions of its packages; packages that are not installed are left out."""
        if self.name == "rowvec":
            return {name: importlib.metadata.version(name) for name in self.packages}
        paths = [str(path) for path in self.folder.glob("lib/python3*/site-packages")]
        found = {one.name.lower(): one.version for one in importlib.metadata.distributions(path=paths)}
        return {name: found[name] for name in self.packages if name in found}

    @property
    def installed(self) -> bool:
        """Whether it can take part."""
        return self.packages[0] in self.versions


class Running:
    """A running command in a process group of its own."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        """Start the command; its output is appended to ``log``."""
        self._log = log
        self._began = time.perf_counter()
        with log.open("a") as file:
            self._process = subprocess.Popen(  # noqa: S603 # a syncer's own command
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def at_work(self) -> bool:
        """Whether the command is still running."""
        return self._process.poll() is None

    def kill(self) -> Ended:
        """Kill the command at once, with all processes that it has started."""
        os.killpg(self._process.pid, signal.SIGKILL)
        return self.wait(None)

    def wait(self, limit: float | None) -> Ended:
        """Wait until the command ends, and return how; it is killed after ``limit`` seconds."""
        try:
            self._process.wait(limit)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Also if the benchmark itself is being stopped.
            if self.at_work:
                os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        lines = [line for line in self._log.read_text("utf-8", "replace").splitlines() if line.strip()]
        return Ended(seconds=time.perf_counter() - self._began, status=status, output=lines[-1] if lines else "")

    def until(self, holds: Callable[[], bool]) -> bool:
        """Wait until a condition holds; False if the command ended before that."""
        while self.at_work:
            if holds():
                return True
            time.sleep(_POLL_SECONDS)
        return False


def start(syncer: Syncer, place: Place, command: list[str] | None = None) -> Running:
    """Start one sync, or another command of the syncer's."""
    place.state.mkdir(parents=True, exist_ok=True)
    environment = {
        "OPENAI_API_KEY": KEY,
        "OPENAI_BASE_URL": place.base_url,
        # No syncer sends telemetry or looks for models during a measurement.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "COCOINDEX_DISABLE_USAGE_TRACKING": "1",
        **syncer.environment(place),
    }
    return Running(command or syncer.command(place), environment, place.state.parent / f"{place.state.name}.log")


def syncers(names: list[str] | None = None) -> list[Syncer]:
    """rowvec first, then its peers; if ``names`` is given, only those."""
    everyone = [_rowvec(), _langchain(), _llamaindex(), _cocoindex(), _pgai()]
    known = [one.name for one in everyone]
    for name in names or ():
        if name not in known:
            raise SystemExit(f"there is no syncer {name!r}; there are {', '.join(known)}")
    return [one for one in everyone if names is None or one.name in names]


def _rowvec() -> Syncer:
    program = str(Path(sys.executable).parent / "rowvec")

    def file(place: Place) -> Path:
        return place.state / "texts.yaml"

    def prepare(place: Place) -> None:
        content: dict[str, Any] = {
            "name": "texts",
            "source": {"kind": "postgres", "table": "public.texts", "key": ["id"], "content": "{content}"},
            "embedder": {
                "kind": "openai",
                "model": MODEL,
                "dimensions": place.dimensions,
                "base_url": place.base_url,
                "requests_per_minute": place.account.requests_per_minute,
                "tokens_per_minute": place.account.tokens_per_minute,
            },
            "target": {"table": "vectors.texts"},
            # The peers build no index by default.
            "index": {"kind": "none"},
        }
        place.state.mkdir(parents=True, exist_ok=True)
        file(place).write_text(yaml.safe_dump(content), "utf-8")

    return Syncer(
        name="rowvec",
        packages=("rowvec", "prefect"),
        held=Held(table="vectors.texts", id="id"),
        prepare=prepare,
        command=lambda place: [program, "sync", str(file(place))],
        repair=lambda place: [program, "audit", str(file(place)), "--repair"],
        environment=lambda place: {
            "ROWVEC_DATABASE_URL": place.database,
            "ROWVEC_HOME": str(place.state / "home"),
            "PREFECT_API_URL": place.prefect_api,
        },
        keeps=("artifacts", "home"),
    )


def _langchain() -> Syncer:
    return Syncer(
        name="langchain",
        packages=("langchain-postgres", "langchain-core", "langchain-classic", "langchain-openai"),
        held=Held(table="public.langchain_texts", id="(langchain_metadata->>'source')::bigint"),
        command=lambda place: _script(place, "langchain", "langchain_index"),
        keeps=("record_manager_cache.sql",),
    )


def _llamaindex() -> Syncer:
    return Syncer(
        name="llamaindex",
        packages=("llama-index-core", "llama-index-vector-stores-postgres", "llama-index-embeddings-openai"),
        held=Held(table="public.data_texts", id="(metadata_->>'ref_doc_id')::bigint"),
        command=lambda place: _script(place, "llamaindex", "llamaindex_pipeline"),
        keeps=("pipeline_storage",),
    )


def _cocoindex() -> Syncer:
    return Syncer(
        name="cocoindex",
        packages=("cocoindex", "litellm"),
        held=Held(table="coco.texts", id="id"),
        command=lambda place: [_python("cocoindex"), str(_RIVALS / "cocoindex_app.py")],
        environment=lambda place: {
            "SYNC_DATABASE": place.database,
            "SYNC_BASE_URL": place.base_url,
            "SYNC_MODEL": MODEL,
            "SYNC_DIMENSIONS": str(place.dimensions),
            "COCOINDEX_DB": str(place.state / "cocoindex.db"),
        },
        keeps=("cocoindex.db",),
    )


def pgai_environment() -> dict[str, str]:
    """Where its worker finds an encoding that it would download: LlamaIndex' wheel contains the same file."""
    encodings = list(ENVIRONMENTS.glob("llamaindex/lib/python3*/site-packages/llama_index/core/_static/tiktoken_cache"))
    return {"TIKTOKEN_CACHE_DIR": str(encodings[0])} if encodings else {}


def _pgai() -> Syncer:
    return Syncer(
        name="pgai",
        packages=("pgai", "litellm"),
        held=Held(table="public.texts_embeddings_store", id="id"),
        prepare=lambda place: prepare_pgai(place.database, place.base_url, place.dimensions),
        command=lambda place: [_PGAI, "vectorizer", "worker", "--once", "-d", place.database],
        environment=lambda place: pgai_environment(),
    )


def prepare_pgai(database: str, base_url: str, dimensions: int, *, existing: bool = True) -> None:
    """Install pgai's schema and triggers. ``existing``: whether its worker embeds the rows that are there already."""
    subprocess.run([_PGAI, "install", "-d", database], check=True, capture_output=True)  # noqa: S603 # its own
    statement = sql.SQL(
        "SELECT ai.create_vectorizer('public.texts'::regclass, loading => ai.loading_column('content'), "
        "embedding => ai.embedding_openai({model}, {dimensions}, base_url => {url}), chunking => ai.chunking_none(), "
        "destination => ai.destination_table('texts_embeddings'), enqueue_existing => {existing})"
    )
    parts = {"model": MODEL, "dimensions": dimensions, "url": base_url, "existing": existing}
    with psycopg.connect(database) as connection:
        connection.execute(statement.format(**{name: sql.Literal(value) for name, value in parts.items()}))


def _python(name: str) -> str:
    return str(ENVIRONMENTS / name / "bin" / "python")


def _script(place: Place, environment: str, module: str) -> list[str]:
    words = {"database": place.database, "base-url": place.base_url, "model": MODEL, "state": place.state}
    given = [f"--{name}={value}" for name, value in words.items()]
    return [_python(environment), str(_RIVALS / f"{module}.py"), *given, f"--dimensions={place.dimensions}"]
