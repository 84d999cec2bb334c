"""Do searches bring the row that a person looks for? Titles of artworks ask for the texts that they were taken from.

The text of a row has the artist, the subjects and the medium; its title is nowhere in it. The title of a row is a
question, and the row is its answer. ``rowvec evaluate`` asks the questions of two pipelines, which differ in their
dimensions: exactly, through the index, and by vectors and words. Then ``rowvec rebuild --questions`` is asked to make
the better one like the other, and should refuse. ``ROWVEC_SEARCH_DATA`` names a folder with ``tate_artworks.parquet``.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.outcome import conclude, options
from rowvec.postgres.embedded import start_postgres

_SEED = 20_261_201
_LEAST_WORDS = 3
_ROWVEC = "from rowvec.cli import main; main()"
_DIMENSIONS = {"whole": 256, "short": 64}


def main() -> None:
    """Make the rows and the questions, ask them, and print."""
    parser = options(__doc__, "2,000 rows and 100 questions")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--questions", type=int, default=500)
    arguments = parser.parse_args()
    rows, questions = (2_000, 100) if arguments.quick else (arguments.rows, arguments.questions)
    artworks = pq.read_table(Path(os.environ["ROWVEC_SEARCH_DATA"]) / "tate_artworks.parquet").to_pylist()
    with tempfile.TemporaryDirectory(prefix="rvb", dir="/tmp") as name:
        folder = Path(name)
        asked = write(folder, artworks, rows, questions)
        server = start_postgres(folder / "pg")
        try:
            variables = {"ROWVEC_DATABASE_URL": server.get_uri(), "ROWVEC_HOME": str(folder / "home")}
            for pipeline in _DIMENSIONS:
                rowvec(folder, variables, "sync", f"{pipeline}.yaml")
            files = [f"{pipeline}.yaml" for pipeline in _DIMENSIONS]
            found = rowvec(folder, variables, "evaluate", *files, "--questions", "questions.jsonl")
            # The generation of 64 dimensions answers worse, so the one of 256 stays.
            write_pipeline(folder, "whole", _DIMENSIONS["short"])
            refused = rowvec(folder, variables, "rebuild", "whole.yaml", "--questions", "questions.jsonl", status=1)
        finally:
            server.cleanup()
    show(found, rows, asked)
    print(f"rebuild: {refused['error']}")
    ratios = {f"nDCG {mode}": round(one["ndcg"]["mean"], 3) for mode, one in found["differences"].items()}
    figures = {"quick": arguments.quick, "rows": rows, "asked": asked, "evaluation": found, "refused": refused["error"]}
    conclude("relevance", ratios, {}, figures)


def write(folder: Path, artworks: list[dict[str, Any]], rows: int, questions: int) -> int:
    """The source, the questions and the pipelines; returns how many questions there are."""
    titles = Counter(str(artwork["title"]).casefold() for artwork in artworks)
    drawn = random.Random(_SEED).sample([one for one in artworks if one["subjects"]], rows)  # not a secret
    texts = [f"{one['artist']}. {one['subjects']}. {one['medium']}" for one in drawn]
    table = pa.table({"id": [one["id"] for one in drawn], "text": texts})
    pq.write_table(table, folder / "artworks.parquet")
    labelled = [
        {"question": one["title"], "relevant": [one["id"]]}
        for one, text in zip(drawn, texts, strict=True)
        if titles[one["title"].casefold()] == 1
        and not one["title"].startswith("[")
        and len(one["title"].split()) >= _LEAST_WORDS
        and one["title"].casefold() not in text.casefold()
    ][:questions]
    (folder / "questions.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in labelled), "utf-8")
    for name, dimensions in _DIMENSIONS.items():
        write_pipeline(folder, name, dimensions)
    return len(labelled)


def write_pipeline(folder: Path, name: str, dimensions: int) -> None:
    """The pipeline file of this name."""
    pipeline = {
        "name": name,
        "source": {"kind": "parquet", "path": "artworks.parquet", "key": ["id"], "content": "{text}"},
        "embedder": {"kind": "local", "dimensions": dimensions},
        "target": {"table": f"vectors.{name}"},
        "artifacts": {"url": f"./artifacts_{name}"},
        "index": {"kind": "hnsw"},
        "search": {"hybrid": True},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(pipeline), "utf-8")


def rowvec(folder: Path, variables: dict[str, str], *words: str, status: int = 0) -> dict[str, Any]:
    """What the command prints as JSON; it should end with this status."""
    done = subprocess.run(  # noqa: S603 # our own commands
        [sys.executable, "-c", _ROWVEC, *words, "--json"],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != status:
        raise SystemExit(f"rowvec {' '.join(words)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout)


def show(found: dict[str, Any], rows: int, asked: int) -> None:
    """One line per pipeline, mode and measure, and the differences."""
    print(f"{asked:,} titles, {rows:,} texts without them, first {found['k']} rows, 95 % intervals")
    named = [(one["pipeline"], one["modes"]) for one in found["pipelines"]]
    for name, modes in [*named, ("short less whole", found["differences"])]:
        for mode, measures in modes.items():
            written = ", ".join(
                f"{measure} {one['mean']:.3f} ({one['low']:.3f} to {one['high']:.3f})"
                for measure, one in measures.items()
            )
            print(f"{name:18} {mode:9} {written}")


if __name__ == "__main__":
    main()
