"""The command ``rowvec demo``."""

from __future__ import annotations

from rowvec.cli.commands.options import AsJson
from rowvec.cli.flow_loader import load_flow
from rowvec.cli.output import emit, err
from rowvec.cli.prefect_server import prefect_api
from rowvec.cli.progress_bars import shown_progress


def demo(as_json: AsJson = False) -> None:
    """Sync and search a gallery of 240 paintings on the embedded Postgres: no account, no network."""
    from rowvec.cli.demo import gallery  # late: only this command needs it

    with shown_progress(err):
        sync_flow = load_flow("sync")
        with prefect_api():
            report = gallery.run(sync_flow, quiet=as_json)
    emit(report, as_json, lambda: None)
