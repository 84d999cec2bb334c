"""The notebook in examples/ is executed as a reader would, and shows what it should."""

from __future__ import annotations

import io
import shutil
from base64 import b64decode
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import PIL.Image as pillow
import pytest
from nbclient import NotebookClient

from tests.support.cli_process import PrefectServer

EXAMPLES = Path(__file__).parents[2] / "examples"


def executed(folder: Path) -> Any:
    """The notebook after a run in a copy of its folder."""
    shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("gallery"))
    notebook = nbformat.read(folder / "gallery.ipynb", as_version=4)
    NotebookClient(
        notebook, timeout=180, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return notebook


def texts(notebook: Any) -> str:
    """What the notebook's cells printed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(output["text"] for output in outputs if output["output_type"] == "stream")


def pictures(notebook: Any) -> list[pillow.Image]:
    """What the notebook's cells drew."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    found = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return [pillow.open(io.BytesIO(b64decode(png))) for png in found]


@pytest.mark.flow
def test_the_gallery_is_searched_three_ways(
    database_url: str, prefect_server: PrefectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every cell, with all its pictures."""
    for name, value in (
        ("ROWVEC_DATABASE_URL", database_url),
        ("ROWVEC_HOME", str(tmp_path / "home")),
        ("PREFECT_API_URL", prefect_server.api),
        # The kernel and its files leave no trace in the home folder.
        ("IPYTHONDIR", str(tmp_path / "ipython")),
        ("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime")),
    ):
        monkeypatch.setenv(name, value)
    # The kernel starts in another folder, so it needs the checkout on its path, like an installed package.
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    notebook = executed(tmp_path / "examples")
    printed = texts(notebook)
    assert "320 pictures drawn" in printed
    assert "320 images embedded, 0 vectors reused" in printed
    assert "0 new, 0 changed, 320 unchanged, 0 embedded" in printed
    assert printed.count("Consistent") == 2
    drawn = pictures(notebook)
    assert len(drawn) == 3
    for picture in drawn:
        assert picture.width > 1000
        assert np.asarray(picture.convert("RGB")).std() > 30
    page = (tmp_path / "examples/gallery/found.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 10
    assert page.index("asked.jpg") < page.index("Sea waves 3")


def test_the_notebook_in_the_repository_was_run_and_names_no_machine() -> None:
    kept = nbformat.read(EXAMPLES / "gallery.ipynb", as_version=4)
    nbformat.validate(kept)
    assert len(pictures(kept)) == 3
    assert str(Path.home()) not in texts(kept)
    assert "/tmp/" not in texts(kept)  # noqa: S108 # looked for, not used
