"""The command that erases the traces of deleted rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rowvec.cli.commands.options import AsJson, File, load
from rowvec.cli.output import emit, out
from rowvec.cli.render import table
from rowvec.errors import UsageError

if TYPE_CHECKING:
    from rowvec.operations.erasure.certificate import Certificate
    from rowvec.operations.erasure.forget import Erasure


def forget_rows(
    file: File,
    key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY", help="The key of a deleted row; several columns as a JSON array. Can be given several times."
        ),
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="A file with one key per line.")] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Erase; without it, the command only lists where the traces are.")
    ] = False,
    certificate: Annotated[
        Path | None, typer.Option(help="A folder for the certificate, as JSON and as Markdown.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Erase what deleted rows have left in the store, the ledger and older generations.

    The source must have deleted the rows, and a sync must have followed. Without a key, the command finishes an erasure
    that was killed, and applies artifacts.erase_deleted_after. It runs without Prefect, which would keep the keys.
    """
    written = [*(key or ()), *(_lines(keys) if keys else ())]
    if (key is not None or keys is not None) and not written:
        raise UsageError(f"{keys or '--key'} has no key; write one per line")
    if certificate is not None:
        if not apply:
            raise UsageError("--certificate is for an erasure: give --apply with it, or leave it out")
        _make(certificate)
    pipeline = load(file)
    from rowvec.operations.erasure.forget import forget

    found = forget(pipeline, written, apply=apply)
    if certificate is not None and found.certificate is not None:
        _write(certificate, found.certificate)
    emit(found.as_json(), as_json, lambda: _show(found))


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise UsageError(f"--keys {file} cannot be read: {reason}") from None


def _make(folder: Path) -> None:
    """Before anything is erased: see that the certificate can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--certificate {folder} cannot be made: {error.strerror}") from None


def _write(folder: Path, certificate: Certificate) -> None:
    name = f"{certificate.pipeline}-erasure-{certificate.number}"
    (folder / f"{name}.json").write_text(json.dumps(certificate.as_json(), indent=1) + "\n", "utf-8")
    (folder / f"{name}.md").write_text(certificate.as_markdown(), "utf-8")


def _show(found: Erasure) -> None:
    rows = [
        ("artifacts", found.artifacts),
        ("journal entries", found.journal_entries),
        ("images", found.images),
        *((f"rows of {name}", count) for name, count in found.tables.items()),
        ("texts that other rows have too, which stay", found.shared),
    ]
    title = f"Traces of {found.keys:,} keys" + (", erased" if found.applied else "")
    table(title, ("where", "count"), rows, right=("count",))
    for name in () if found.applied else found.places:
        out.print(name, markup=False, highlight=False, soft_wrap=True)
    if found.certificate is not None:
        out.print("What could not be reached:")
        for sentence in found.certificate.not_reached:
            out.print(f"- {sentence}", markup=False, highlight=False, soft_wrap=True)
        number = found.certificate.number
        out.print(f"The certificate is in rowvec.erasures, with the number {number}.", highlight=False)
    elif not found.applied:
        refused = f"It is refused now: {found.refused}." if found.refused else "Run again with --apply to erase them."
        out.print(f"Nothing was changed. {refused}", markup=False, highlight=False, soft_wrap=True)
