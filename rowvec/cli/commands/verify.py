"""The command ``rowvec verify``."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rowvec.cli import verified
from rowvec.cli.commands.options import AsJson, load
from rowvec.cli.output import emit, out
from rowvec.errors import UsageError


def verify(
    file: Annotated[
        Path | None, typer.Argument(help="The pipeline file; left out with --proof.", show_default=False)
    ] = None,
    root: Annotated[
        str | None,
        typer.Option(help="The root to verify against, 64 hex digits; left out: that of the last certificate."),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Only the row with this key; a key of several columns as a JSON array.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="With --key: write the proof of the row to this file.")] = None,
    proof: Annotated[
        Path | None, typer.Option(help="Check a proof against --root; needs neither database nor pipeline file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the vector table, or one row, against the root that the last run has certified.

    Without --key it hashes every row of the table in one pass and, if the root is another one, names the rows. It reads
    neither the source nor the artifacts: rowvec audit compares with these.
    """
    _check(file, root, key, to, proof)
    if proof is not None and root is not None:
        _check_proof(proof, root, as_json)
    elif file is not None and key:
        _prove(file, key, to, as_json)
    elif file is not None:
        from rowvec.operations.verify import conclude_verify
        from rowvec.operations.verify import verify as verify_table

        found = conclude_verify(verify_table(load(file), root))
        emit(found.as_json(), as_json, lambda: verified.show(found))


def _check(file: Path | None, root: str | None, key: str | None, to: Path | None, proof: Path | None) -> None:
    if (file is None) == (proof is None):
        raise UsageError("name a pipeline file, or a proof with --proof")
    if root is not None and not re.fullmatch("[0-9a-f]{64}", root):
        raise UsageError("--root must be 64 hex digits in lower case")
    if proof is not None and (root is None or key):
        raise UsageError("--proof needs --root, from a place that you trust, and no --key: the proof names its row")
    if to is not None and not key:
        raise UsageError("--to needs --key: a proof is of one row")
    if key and root is not None:
        raise UsageError("--key proves the row against the last certificate; check the proof with --proof and --root")


def _check_proof(file: Path, root: str, as_json: bool) -> None:
    from rowvec.operations.verify import check_proof, read_proof

    found = read_proof(file)
    check_proof(found, root)
    shown = {"verified": True, **asdict(found)}
    emit(shown, as_json, lambda: _say(found.fingerprint, found.key, found.table, "The proof holds"))


def _prove(file: Path, key: str, to: Path | None, as_json: bool) -> None:
    from rowvec.operations.verify import prove

    found = prove(load(file), key)
    if to is not None:
        to.write_text(json.dumps(asdict(found), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    emit(asdict(found), as_json, lambda: _say(found.fingerprint, found.key, found.table, f"Run {found.run_id}"))


def _say(fingerprint: str | None, key: tuple[str, ...], table: str, who: str) -> None:
    had = "had this row" if fingerprint else "had no row with this key"
    out.print(f"{who}: {table} {had}: ({', '.join(key)}).", markup=False, highlight=False, soft_wrap=True)
