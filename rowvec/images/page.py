"""Pictures of search results as one HTML file, with embedded thumbnails and links to the full images."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import PIL.Image as pillow

from rowvec.errors import UsageError
from rowvec.images.found import FoundPicture

_QUALITY = 82

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1917; --soft: #78716c; --paper: #fafaf9; --card: #fff; --line: #e7e5e4;
        --query: #c2410c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #f5f5f4; --soft: #a8a29e; --paper: #1c1917; --card: #292524; --line: #44403c; --query: #fb923c; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem; max-width: 80rem; background: var(--paper); color: var(--ink);
       font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.35rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
p { margin: 0 0 1.5rem; color: var(--soft); }
ul { list-style: none; margin: 0; padding: 0; display: grid; gap: 1rem;
     grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); }
li { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; overflow: hidden; }
li.query { border: 2px solid var(--query); }
.frame { display: flex; height: 13rem; align-items: center; justify-content: center; background: var(--paper);
         color: var(--soft); }
.frame img { max-width: 100%; max-height: 100%; display: block; }
.caption { padding: .6rem .8rem .75rem; overflow-wrap: anywhere; }
.title { font-weight: 600; }
.soft { color: var(--soft); font-size: .85rem; }
.query .soft { color: var(--query); }
"""


def write_page(question: str, subtitle: str, pictures: Sequence[FoundPicture], into: Path) -> None:
    """Write the page; every text of a row is escaped. Raises ``UsageError`` if the file cannot be written."""
    cards = "\n".join(_card(picture) for picture in pictures)
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # With this policy a row's text could not run or load anything even if an escape were missing.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        # The links hold signatures, so other sites must not receive this page as the referrer.
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(question)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(question)}</h1>\n<p>{escape(subtitle)}</p>\n<ul>\n{cards}\n</ul>\n</body>\n</html>\n"
    )
    try:
        into.write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(
            f"--html {into} cannot be written ({error.strerror}); name a .html in an existing folder"
        ) from error


def _card(picture: FoundPicture) -> str:
    image = "not in the store"
    if picture.thumbnail is not None:
        width, height = picture.thumbnail.size
        image = (
            f'<img src="{_data_url(picture.thumbnail)}" alt="{escape(picture.title)}" width="{width}" '
            f'height="{height}" style="height: auto; width: auto">'
        )
    if picture.link is not None:
        image = f'<a href="{escape(picture.link)}" rel="noreferrer">{image}</a>'
    is_query = picture.distance is None
    below = "searched by" if is_query else f"distance {picture.distance:.3f}"
    lines = [f'<div class="title">{escape(picture.title)}</div>']
    if picture.details:
        lines.append(f'<div class="soft">{escape(picture.details)}</div>')
    lines.append(f'<div class="soft">{below}</div>')
    css = ' class="query"' if is_query else ""
    return f'<li{css}><div class="frame">{image}</div><div class="caption">{"".join(lines)}</div></li>'


def _data_url(thumbnail: pillow.Image) -> str:
    out = io.BytesIO()
    thumbnail.save(out, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
