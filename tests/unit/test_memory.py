"""The memory that a command counts on is what its container leaves it, and not what the machine has."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from rowvec.errors import MachineError
from rowvec.ledger import plans
from rowvec.runtime import memory as module
from rowvec.runtime.memory import MIB, Memory, memory, require


def group(folder: Path, version: int, limit: str, used: int, reclaimable: int = 0) -> None:
    """A group's files, as the kernel shows them."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}[version]
    for name, value in zip(names, (limit, str(used)), strict=True):
        (folder / name).write_text(f"{value}\n", "utf-8")
    kind = "inactive_file" if version == 2 else "total_inactive_file"
    (folder / "memory.stat").write_text(f"anon 1\n{kind} {reclaimable}\n", "utf-8")


def in_group(folder: Path, line: str) -> tuple[Path, Path]:
    """``/proc`` of a process in the group that the line names, and where groups are."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(f"5:devices:/x\n{line}\n", "utf-8")
    return folder / "proc", folder / "cgroup"


@pytest.mark.parametrize(("version", "line", "top"), [(2, "0::/app/run", ""), (1, "4:cpu,memory:/app/run", "memory")])
def test_the_limit_of_a_group_or_of_one_above_it_counts(tmp_path: Path, version: int, line: str, top: str) -> None:
    proc, groups = in_group(tmp_path, line)
    group(groups / top / "app/run", version, {1: str(1 << 62), 2: "max"}[version], 50 * MIB)
    group(groups / top / "app", version, str(512 * MIB), 400 * MIB, reclaimable=100 * MIB)
    found = memory(proc, groups)
    assert (found.limit, found.free) == (512 * MIB, 212 * MIB)
    # In a container, the path of the host does not exist, and the container's own group is what is mounted.
    (tmp_path / "proc/self/cgroup").write_text(line.replace("/app/run", "/kubepods/pod1") + "\n", "utf-8")
    group(groups / top, version, str(256 * MIB), 56 * MIB)
    assert memory(proc, groups).free == 200 * MIB


def test_without_a_limit_the_machine_has_what_it_has(tmp_path: Path) -> None:
    found = memory(tmp_path, tmp_path)
    assert found.limit == psutil.virtual_memory().total
    group(tmp_path / "cgroup", 2, "max", 1)
    assert memory(*in_group(tmp_path, "0::/")).limit == found.limit


def test_too_little_memory_is_one_sentence_with_both_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    little = Memory(free=100 * MIB, limit=512 * MIB, of="the limit of its container or service")
    monkeypatch.setattr(module, "memory", lambda: little)
    with pytest.raises(MachineError, match=r"this sync needs 200 MiB .* has 100 MiB of its 512 MiB left; nothing was"):
        require(200 * MIB, "this sync")
    require(100 * MIB, "this sync")


def test_batches_are_smaller_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = plans.count_batches(100_000)
    little = Memory(free=300 * MIB, limit=512 * MIB, of="the limit of its container or service")
    monkeypatch.setattr(module, "memory", lambda: little)
    assert plans.count_batches(100_000) == 4 * usual - 3
    assert plans.count_batches(8_000_000) == plans.USUAL_BATCHES


@pytest.mark.parametrize("weight", [1, 5])
def test_batches_are_few_and_none_is_larger_than_its_limit(weight: int) -> None:
    assert plans.count_batches(0, weight) == 0
    for rows in (1, 8_192, 8_193, 500_000, 8_388_608, 8_388_609, 100_000_000):
        batches = plans.count_batches(rows, weight)
        assert batches <= plans.USUAL_BATCHES or rows > plans.USUAL_BATCHES * plans.MAX_BATCH_ROWS
        assert rows <= batches * plans.MAX_BATCH_ROWS
    assert plans.count_batches(100_000_000, weight) == 763
