"""How the comparison of a vector table with a root looks on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rowvec.cli.output import out, table

if TYPE_CHECKING:
    from rowvec.operations.verify import Verified


def show(found: Verified) -> None:
    """Print the verdict, and the rows that are not the certified ones."""
    out.print(found.verdict(), style="bold green" if found.verified else "bold red", soft_wrap=True)
    if found.note:
        out.print(found.note, soft_wrap=True)
    if found.differences:
        rows = ((one.change, ", ".join(one.key) if one.key else "-", one.digest) for one in found.differences)
        table("Other rows than certified", ("change", "key", "digest of the key"), rows)
    out.print(found.told_of_chain(), soft_wrap=True)
    out.print(f"Certified root: {found.root}\nRoot of {found.table}: {found.found}", soft_wrap=True)
