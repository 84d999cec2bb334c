"""The wheel holds every file that belongs in it, and claims no import name that a user could need."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tests.support import wheel


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of all files in the wheel, without its metadata."""
    with zipfile.ZipFile(wheel.build(tmp_path_factory.mktemp("wheel"))) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_claims_three_import_names(files: set[str]) -> None:
    assert {Path(name).parts[0] for name in files} == {"rowvec", "rowvec_flows", "rowvec_tasks"}


def test_every_file_of_the_three_folders_is_in_the_wheel(files: set[str]) -> None:
    tree = {
        f"{import_name}/{path.relative_to(wheel.ROOT / folder).as_posix()}"
        for folder, import_name in wheel.FOLDERS.items()
        for path in (wheel.ROOT / folder).rglob("*")
        if path.suffix in {".py", ".sql", ".csv", ".yaml"} or path.name == "py.typed"
    }
    assert {"rowvec/sql/merge.sql", "rowvec/cli/demo/paintings.csv", "rowvec/py.typed"} <= tree
    assert files == tree
