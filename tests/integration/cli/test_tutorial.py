"""The blocks of two tutorials run in their order, and print what the pages say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import LiteralString, cast

import numpy as np
import numpy.typing as npt
import pytest

from rowvec.postgres.connection import Connection
from tests.support import cli_process
from tests.support.cli_process import PrefectServer
from tests.support.servers.openai_server import KEY, meant, serve

TUTORIALS = Path(__file__).parents[3] / "docs/tutorials"


def _of_full_length(model: str, texts: list[str], dimensions: int) -> list[npt.NDArray[np.float32]]:
    """The local model's vectors with zeros behind them, which change no distance: the search finds what it means."""
    return [np.pad(vector, (0, dimensions - len(vector))) for vector in meant(model, texts, 256)]


def _pattern(block: str) -> re.Pattern[str]:
    """What a block of output matches: … is any text of a line; at the end, and as a whole line, also more lines."""
    pattern = re.sub("^…$", "(?s:.*)", "\n".join(re.escape(line) for line in block.splitlines()), flags=re.MULTILINE)
    return re.compile(re.sub("…$", "(?s:.*)", pattern).replace("…", ".*"))


@pytest.mark.parametrize(
    ("page", "number_of_commands"),
    [
        pytest.param(
            "own-table.md",
            7,
            marks=[
                pytest.mark.needs("pgvector 0.8.4", "rowvec check warns of an older one"),
                pytest.mark.needs("no pooler", "rowvec check warns of it"),
            ],
        ),
        ("images.md", 3),
    ],
)
def test_the_tutorial_prints_what_it_says(
    page: str,
    number_of_commands: int,
    prefect_server: PrefectServer,
    connection: Connection,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (TUTORIALS / page).read_text("utf-8")
    commands = 0
    with serve(key=KEY) as server:
        server.vectors = _of_full_length
        printed = ""
        for language, block in re.findall(r"^```(sql|python|sh|text)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            if language == "sql":
                connection.execute(cast("LiteralString", block))
            elif language == "python":
                exec(compile(block, page, "exec", dont_inherit=True), {"__name__": "page"})  # noqa: S102 # the page's own code is what is tested
            elif language == "sh":
                _, *words = shlex.split(block)
                ended = cli_process.start(
                    prefect_server.api,
                    *words,
                    ROWVEC_DATABASE_URL=database_url,
                    OPENAI_API_KEY=KEY,
                    OPENAI_BASE_URL=server.url,
                    COLUMNS="100",
                ).wait()
                assert ended.status == 0, ended
                printed = "\n".join(line.rstrip() for line in ended.stdout.strip().splitlines())
                commands += 1
            else:
                assert _pattern(block.strip()).fullmatch(printed), f"{words}\n{printed}"  # pyright: ignore[reportPossiblyUnboundVariable] # an output follows a command
    assert commands == number_of_commands
