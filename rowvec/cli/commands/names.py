"""The commands ``rowvec rename`` and ``rowvec adopt``: which pipeline name belongs to which vector table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rowvec.cli.commands.options import AsJson, File, load
from rowvec.cli.output import emit, out
from rowvec.runtime.figures import counted

if TYPE_CHECKING:
    from rowvec.operations.adopt_store import AdoptedStore
    from rowvec.operations.names import Adopted, Renamed


def rename(
    file: File,
    old_name: Annotated[str, typer.Argument(help="The name that the pipeline had.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Give a pipeline the new name that is in its file.

    Everything that the ledger has under the old name gets the new one: all generations, what was paid for, rejects,
    the month's budget. Images in the store are copied. The vector table, its functions and views stay as they are.
    Artifacts and manifests stay under the old name in the store; the next sync writes a manifest under the new one, and
    until then rowvec restore needs the old name. Prefect's deployments hold the old name until you deploy them again.
    """
    from rowvec.operations import names

    done = names.rename(load(file), old_name)
    emit(done.as_json(), as_json, lambda: _show(_renamed(done)))


def adopt(file: File, as_json: AsJson = False) -> None:
    """Give the pipeline's name to the table in its file, if the name belongs to another table.

    If the other table still exists, its pipeline gets the name with -old, with all that was paid for: write that name
    into its file to sync it further. If the other table is gone, because it was renamed or dropped, all that was paid
    for under the name belongs to this table. A vector table that this database's ledger does not know is taken in, if
    its vectors are of the file's embedder. Runs and rejects of the ledger stay with the pipeline that had them.

    If the name belongs to the table already, but other databases write to the pipeline's store too, this database
    replaces them: a restore takes its last run from now on, and a prune deletes what only they needed. The same if this
    database was set back to an earlier state, and the store has a later one: its vectors are taken over.
    """
    pipeline = load(file)
    from rowvec.operations import names
    from rowvec.operations.adopt_store import adopt_store

    done = names.adopt(pipeline)
    store = adopt_store(pipeline) if done.already else None
    found = done.as_json() | ({"store": store.as_json()} if store else {})
    emit(found, as_json, lambda: _show(_store_adopted(store) if store else _adopted(done)))


def _show(sentence: str) -> None:
    out.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _renamed(done: Renamed) -> str:
    if done.already:
        return f"{done.table} has the name {done.name} already; nothing was changed."
    return (
        f"{done.table} is the pipeline {done.name} now. Run rowvec sync: it writes a manifest under the new name. What "
        f"the store has under {done.old_name} stays there and is still used."
    )


def _store_adopted(done: AdoptedStore) -> str:
    given_up, reused = counted(len(done.given_up), "manifests"), counted(done.vectors, "vectors")
    return (
        f"The store of {done.pipeline} belongs to this database alone now. {counted(done.ledgers, 'other databases')} "
        f"wrote to it: {given_up} given up, {reused} that only they had reused here. Each of them needs an "
        "artifacts.url of its own."
    )


def _adopted(done: Adopted) -> str:
    if done.already:
        return f"The name {done.name} belongs to {done.table} already; nothing was changed."
    parts = [f"The name {done.name} belongs to {done.table} now."]
    if done.former_name:
        parts.append(
            f"{done.former_table} is the pipeline {done.former_name}: write that name into its file to sync it further."
        )
    elif done.former_table:
        parts.append(f"{done.former_table} is gone, and what was paid for it belongs to {done.table}.")
    if done.other_rows:
        have = counted(done.other_rows, "rows have", "row has")
        parts.append(f"{have} another content than the vector; the next sync embeds it.")
    return " ".join([*parts, "Run rowvec sync."])
