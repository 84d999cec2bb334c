"""The settings that the embedded Postgres gets for a machine, and what is said of a server that is too small."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rowvec.index.build_memory import small_buffers
from rowvec.postgres.embedded.machine import GIB, MIB, Machine, settings

amounts = st.integers(min_value=0, max_value=1 << 50)


def bytes_of(value: str) -> int:
    assert value.endswith("MB")
    return int(value[:-2]) * MIB


def test_a_large_machine_with_much_data() -> None:
    assert settings(Machine(memory=24 * GIB, data=100 * GIB, disk=500 * GIB, shared=24 * GIB)) == {
        "shared_buffers": "4096MB",
        "effective_cache_size": "12288MB",
        "maintenance_work_mem": "1024MB",
        "max_wal_size": "4096MB",
        "dynamic_shared_memory_type": "posix",
    }


def test_a_quarter_of_what_the_other_processes_leave() -> None:
    of_8 = settings(Machine(memory=8 * GIB, data=100 * GIB, disk=5 * GIB, shared=64 * MIB))
    assert (of_8["shared_buffers"], of_8["effective_cache_size"]) == ("1920MB", "4096MB")
    assert (of_8["maintenance_work_mem"], of_8["max_wal_size"]) == ("512MB", "1024MB")
    # A container has 64 MB in /dev/shm, and the workers of a parallel build share the graph there.
    assert of_8["dynamic_shared_memory_type"] == "mmap"


def test_a_container_in_which_the_other_processes_need_the_memory_has_what_postgres_has_by_default() -> None:
    assert settings(Machine(memory=GIB, data=0, disk=GIB, shared=None))["shared_buffers"] == "128MB"


def test_a_server_with_little_data_does_not_look_through_buffers_that_nothing_fills() -> None:
    assert settings(Machine(memory=64 * GIB, data=40 * MIB, disk=GIB, shared=None))["shared_buffers"] == "1104MB"


@given(memory=amounts, data=amounts, disk=amounts, shared=st.none() | amounts)
def test_on_every_machine_each_value_is_one_that_postgres_takes(
    memory: int, data: int, disk: int, shared: int | None
) -> None:
    made = settings(Machine(memory=memory, data=data, disk=disk, shared=shared))
    buffers = bytes_of(made["shared_buffers"])
    assert 128 * MIB <= buffers <= 4 * GIB
    assert buffers <= max(128 * MIB, memory // 4)
    assert bytes_of(made["effective_cache_size"]) >= buffers
    assert 64 * MIB <= bytes_of(made["maintenance_work_mem"]) <= GIB
    assert GIB <= bytes_of(made["max_wal_size"]) <= 4 * GIB


def test_buffers_that_are_smaller_than_the_index_are_named_with_what_an_insert_costs() -> None:
    assert small_buffers(100 * MIB, 128 * MIB, 3.0) is None
    said = small_buffers(300 * MIB, 128 * MIB, 11.54)
    assert said == (
        "the index, 300 MiB, is larger than shared_buffers of the server, 128 MiB: searches and merges read the disk, "
        "and a merge took 11.5 ms for each vector that it wrote; set shared_buffers to 400 MiB or more"
    )
    assert "a merge took" not in (small_buffers(300 * MIB, 128 * MIB, None) or "")
