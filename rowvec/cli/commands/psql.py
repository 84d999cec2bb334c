"""The command ``rowvec psql``."""

from __future__ import annotations

import os
import subprocess

import typer

from rowvec.errors import UsageError


def psql(context: typer.Context) -> None:
    """Open the embedded database in psql; what follows is passed on to it, as in `rowvec psql -c "SELECT 1"`."""
    if os.environ.get("ROWVEC_DATABASE_URL"):
        raise UsageError(
            'ROWVEC_DATABASE_URL names a database of yours, and this command opens the embedded one: run psql "'
            '$ROWVEC_DATABASE_URL", or unset the variable'
        )
    from rowvec.postgres.embedded import embedded_database_url
    from rowvec.postgres.embedded.cluster import program

    # This process holds the server until psql ends.
    url = embedded_database_url()
    done = subprocess.run([program("psql"), url, *context.args], check=False)  # noqa: S603 # the wheel's own program
    if done.returncode:
        raise typer.Exit(1)
