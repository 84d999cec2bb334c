"""Folders that cannot be written, or have no room: one sentence that names the folder, and never a traceback."""

from __future__ import annotations

import os
import subprocess
from itertools import chain, repeat
from pathlib import Path

import pytest

from rowvec.errors import MachineError
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.runtime import memory
from rowvec.runtime.home import home, local_faults
from tests.support import paintings as gallery
from tests.support.cli_process import CLI, Ended, write_pipeline
from tests.support.fault_outcomes import Rowvec, last_line
from tests.support.forked_commands import Mounts

_FULL = 'mount -t tmpfs -o size=64k none "$0" && (cat /dev/zero > "$0/fill" 2>/dev/null || true)'
_READ_ONLY = 'mount -t tmpfs -o ro none "$0"'


def within(mount: str, folder: Path, *words: str | Path, **environment: str) -> subprocess.Popen[str]:
    """The command in an interpreter of its own, for which this folder is another file system."""
    folder.mkdir()
    return subprocess.Popen(  # noqa: S603 # ours
        ["unshare", "-m", "sh", "-c", f'{mount} && shift 0 && exec "$@"', folder, CLI, *words],  # noqa: S607 # the system's
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> Ended:
    stdout, stderr = process.communicate(timeout=120)
    return Ended(status=process.returncode, stdout=stdout, stderr=stderr)


def test_a_folder_that_is_full_or_read_only_is_named_in_one_sentence(
    source: Connection, paintings: Pipeline, tmp_path: Path, rowvec: Rowvec
) -> None:
    file = write_pipeline(paintings, tmp_path)
    named, filled = tmp_path / "named", tmp_path / "f"
    named.mkdir()
    filled.mkdir()
    read_only, full = Mounts(before=_READ_ONLY, folder=named), Mounts(before=_FULL, folder=filled)
    closed = rowvec.within(read_only, "sync", file, ROWVEC_HOME=str(named / "home"))
    # Prefect wants a home of its own to be there; with a server of the user's nothing has to be written to it.
    unused = within(_READ_ONLY, tmp_path / "p", "plan", file, "--json", PREFECT_HOME=str(tmp_path / "p/x"))
    own = within(_FULL, tmp_path / "g", "sync", file, "--json", ROWVEC_HOME=str(tmp_path / "g"), PREFECT_API_URL="")
    ends = [closed, ended(unused), rowvec.within(full, "sync", file, ROWVEC_HOME=str(filled)), ended(own)]
    assert [end.status for end in ends] == [1, 0, 1, 1], ends
    assert f"{named}/home for the files of rowvec cannot be made (Read-only file system)" in ends[0].json["error"]
    assert "there is no room left" in ends[2].json["error"]
    assert str(tmp_path / "f") in ends[2].json["error"]
    assert str(tmp_path / "g") in ends[3].json["error"]
    for end in (ends[0], ends[2], ends[3]):
        assert last_line(end) == f"rowvec: {end.json['error']}"
    state = source.execute("SELECT error FROM rowvec.runs").fetchall()
    assert any(str(tmp_path / "f") in error for (error,) in state), state
    assert any("there is no room left" in error for (error,) in state), state


def test_a_home_that_cannot_be_made_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "file/home"))
    with pytest.raises(MachineError, match=r"file/home .* cannot be made \(File exists\); set ROWVEC_HOME"):
        home()


def test_an_error_that_is_not_of_a_folder_is_not_called_one() -> None:
    with pytest.raises(ConnectionRefusedError), local_faults():
        raise ConnectionRefusedError(111, "Connection refused")


GROUPS = Path("/sys/fs/cgroup/memory")


@pytest.mark.skipif(not os.access(GROUPS, os.W_OK), reason="needs a memory group of its own")
def test_a_container_with_too_little_memory_is_told_before_anything_is_started(
    source: Connection, paintings: Pipeline, tmp_path: Path
) -> None:
    file = write_pipeline(paintings, tmp_path)
    group = GROUPS / f"rowvec-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(400 << 20), "utf-8")
        words = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", CLI, "sync", file, "--json"]
        environment = {**os.environ, "PREFECT_API_URL": ""}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 # ours
    finally:
        group.rmdir()
    end = Ended(status=done.returncode, stdout=done.stdout, stderr=done.stderr)
    assert end.status == 1, end
    assert "needs 314 MiB of memory, and the limit of its container or service has" in end.json["error"]
    assert "of its 400 MiB left; nothing was paid for" in end.json["error"]
    assert last_line(end) == f"rowvec: {end.json['error']}"
    assert source.execute("SELECT count(*) FROM rowvec.runs").fetchone() == (0,)


def test_a_comparison_that_fills_the_memory_ends_in_one_sentence(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the comparison itself finds out how many rows a file has."""
    monkeypatch.setenv("ROWVEC_DATABASE_URL", database_url)
    monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
    file = tmp_path / "rows.csv"
    file.write_text("id,text\n1,The emu runs\n", "utf-8")
    of_file = {"kind": "csv", "path": str(file), "key": ["id"], "content": "{text}"}
    made = gallery.pipeline(str(tmp_path / "artifacts"), source=of_file)
    assert gallery.sync(made).embedded == 1

    def fails_after(looks: int) -> None:
        free = chain(repeat(1 << 30, looks), repeat(31 << 20))
        with monkeypatch.context() as full:
            full.setattr(memory, "memory", lambda: memory.Memory(free=next(free), limit=512 << 20, of="its limit"))
            with pytest.raises(MachineError, match=r"the comparison with the source needs 32 MiB .* has 31 MiB of its"):
                gallery.sync(made)

    fails_after(looks=0)
    file.write_text("id,text\n1,The emu runs\n2,The owl flies\n", "utf-8")
    # The hashes were compared, and the new row is read.
    fails_after(looks=2)
    report = gallery.sync(made)
    assert (report.embedded, report.consistent) == (1, True)
