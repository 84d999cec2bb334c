"""The order of the pages: a page takes the place of its longest prefix in ``extra.order`` of mkdocs.yml."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mkdocs.utils import nest_paths

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Write the navigation of all pages. Raises ``ValueError`` for a page in no known folder."""
    order: list[str] = config.extra["order"]

    def place(uri: str) -> tuple[int, str]:
        known = [prefix for prefix in order if uri.startswith(prefix)]
        if not known:
            raise ValueError(f"docs/{uri} is in no folder that extra.order of mkdocs.yml names")
        return order.index(max(known, key=len)), uri

    config.nav = nest_paths(sorted((page.src_uri for page in files.documentation_pages()), key=place))
    return files
