"""An image as a row's content, which is a text with its checksum, and as an object in the store with that name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rowvec.errors import TargetError
from rowvec.store.protocol import SUFFIXES

_PREFIX = "sha256:"
_CONTENT = re.compile(rf"{_PREFIX}([0-9a-f]{{64}})")


_MEDIA_TYPES = {suffix: media_type for media_type, suffix in SUFFIXES.items()}
_OBJECT = re.compile(r"([0-9a-f]{2})/([0-9a-f]{64})\.([a-z]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownImage:
    """An image that the ledger knows from a source."""

    sha256: str
    """64 hex digits."""
    media_type: str
    bytes: int
    place: str
    """The file or blob in which a run last saw it."""

    def object_name(self, pipeline: str) -> str:
        """Its name in the store of a pipeline: ``images/<pipeline>/<2 hex digits>/<sha256>.<suffix>``."""
        return f"{objects_prefix(pipeline)}{self.sha256[:2]}/{self.sha256}.{SUFFIXES[self.media_type]}"


def parted(object_name: str, pipeline: str) -> tuple[str, str] | None:
    """The checksum and the media type in an object's name; None if it is not the name of an image."""
    found = _OBJECT.fullmatch(object_name.removeprefix(objects_prefix(pipeline)))
    if found is None or found[1] != found[2][:2] or found[3] not in _MEDIA_TYPES:
        return None
    return found[2], _MEDIA_TYPES[found[3]]


def content_of(sha256: str) -> str:
    """The content of a row whose image has this checksum."""
    return _PREFIX + sha256


def is_image(content: str | None) -> bool:
    """Whether a content names an image."""
    return content is not None and _CONTENT.fullmatch(content) is not None


def sha256_of(content: str) -> str:
    """The checksum that a content names. Raises ``TargetError`` if it names no image."""
    found = _CONTENT.fullmatch(content)
    if found is None:
        raise TargetError(f"the content {content[:40]!r} names no image; was this table made from texts?")
    return found.group(1)


def objects_prefix(pipeline: str) -> str:
    """The prefix of a pipeline's images, which all its generations share."""
    return f"images/{pipeline.partition('.')[0]}/"
