"""Reading a pipeline file: YAML in, a Pipeline out, and errors that name file, line and key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

import yaml
from pydantic import ValidationError

from rowvec.errors import UsageError
from rowvec.pipeline.mistakes import Error, mistakes
from rowvec.pipeline.model import Pipeline


class _Loader(yaml.SafeLoader):
    """A loader with the booleans of YAML 1.2, true and false, so that ``on``, a key of the index, is a word."""

    yaml_implicit_resolvers = {  # noqa: RUF012 # PyYAML's own attribute
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_WORDS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")

MOST_BYTES = 4_000_000
"""Of a pipeline file: what is read of one, wherever it is."""
# Characters. Far above what a person writes, and far below what would slow the reader.
_LONGEST = 1_000_000
_DEEPEST = 32
_QUOTED = re.compile(r"'[^']{2,}'")
_MOST_VALUES = 10_000
_PATH = re.compile(r"\b[a-z_]+(?:\.[a-z_]+)+\b")


def load(path: str | Path) -> Pipeline:
    """The pipeline of a file, with relative paths made absolute from the file's folder. References stay unresolved.

    Raises ``UsageError`` with one line for each mistake.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or 'no such file'})") from None
    return _parsed(_text(str(path), content), str(path), path.absolute().parent)


def parse(text: str, path: Path) -> Pipeline:
    """The pipeline in the text of a file, as ``load`` returns it; ``path`` is where the file is, or will be."""
    return _parsed(text, str(path), path.absolute().parent)


def parse_at(url: str, content: bytes) -> Pipeline:
    """The pipeline in the bytes of a file at a URL, of which ``MOST_BYTES`` and one more were read.

    The file has no folder, so relative paths in it are refused. Raises as ``load``.
    """
    return _parsed(_text(url, content), url, None)


def _text(path: str, content: bytes) -> str:
    if len(content) > MOST_BYTES:
        raise UsageError(f"{path}: is larger than {MOST_BYTES:,} bytes, and a pipeline file is not")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{path}: cannot be read (not UTF-8)") from None


def _parsed(text: str, path: str, folder: Path | None) -> Pipeline:
    """``path``: where the file is, for messages; ``folder``: what relative paths are relative to."""
    try:
        _refuse_oddities(path, text)
        node = yaml.compose(text, Loader=_Loader)
        _check_nodes(path, node)
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 # a safe loader, with fewer truth values
    except ValueError as error:
        # A number of thousands of digits, the 45th of a month.
        raise UsageError(f"{path}: not YAML: a value in it cannot be read ({error}); put it in quotes") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        # The parser quotes the text at the error, and that may be an unquoted secret.
        problem = _QUOTED.sub("a word", error.problem or "it cannot be parsed")
        raise UsageError(f"{path}:{line}: not YAML: {problem}; put values that begin with a sign in quotes") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path}: holds no pipeline; write the keys name, source, embedder and target")
    try:
        pipeline = Pipeline.model_validate(data)
    except ValidationError as error:
        found = mistakes(cast("list[Error]", error.errors()))
        placed = sorted(_placed(node, at, sentence) for at, sentence in found)
        raise UsageError("\n".join(f"{path}:{line}: {what}" for line, what in placed)) from None
    return _anchored(path, pipeline, folder)


def _anchored(path: str, pipeline: Pipeline, folder: Path | None) -> Pipeline:
    def absolute(key: str, url: str) -> str:
        if "://" in url or url.startswith(("${", "{{")):
            return url
        if folder is None and not Path(url).is_absolute():
            raise UsageError(
                f"{path}: {key} is the relative path {url!r}, and the pipeline file is no file of this machine; write "
                "a URL or an absolute path there"
            )
        return str(folder / url) if folder else url

    artifacts = pipeline.artifacts.model_copy(update={"url": absolute("artifacts.url", pipeline.artifacts.url)})
    source = pipeline.source
    if source.kind != "postgres":
        source = source.model_copy(update={"path": absolute("source.path", source.path)})
    if source.kind == "images" and source.images is not None:
        source = source.model_copy(update={"images": absolute("source.images", source.images)})
    return pipeline.model_copy(update={"artifacts": artifacts, "source": source})


def _placed(node: yaml.Node | None, path: tuple[str | int, ...], sentence: str) -> tuple[int, str]:
    """The line of a mistake, and what it is: the key, what was found and what is expected."""
    line, _ = _line_of(node, list(path))
    if not path:
        # A mistake between two parts names both paths: the first one in the file is where to look.
        named = (_line_of(node, list(path.split("."))) for path in _PATH.findall(sentence))
        line = next((there for there, whole in named if whole), line)
    return line, f"{'.'.join(map(str, path)) or 'the file'}: {sentence}"


def _line_of(node: yaml.Node | None, keys: list[str | int]) -> tuple[int, bool]:
    """The line (from 1) of the deepest part of the path that the file has, and whether it has all of it."""
    line = node.start_mark.line + 1 if node else 1
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            entry = next(((k, v) for k, v in node.value if k.value == key), None)
            if entry is None:
                return line, False
            line, node = entry[0].start_mark.line + 1, entry[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1 if node else line
        else:
            return line, False
    return line, True


def _refuse_oddities(path: str, text: str) -> None:
    """Refuse what no pipeline needs and what breaks YAML readers: tags that create objects, and deep nesting."""
    if len(text) > _LONGEST:
        raise UsageError(f"{path}: has {len(text):,} characters, and a pipeline file at most {_LONGEST:,}")
    depth = 0
    # The parser reads events in a loop; everything after it is recursive.
    for event in yaml.parse(text, Loader=_Loader):
        where = f"{path}:{event.start_mark.line + 1 if event.start_mark else 1}"
        tag: object = getattr(event, "tag", None)
        if tag not in (None, "!", "tag:yaml.org,2002:str"):
            raise UsageError(f"{where}: not YAML for a pipeline: a value begins with ! (a tag); put it in quotes")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise UsageError(f"{where}: is nested more than {_DEEPEST} deep, which no pipeline is")


def _check_nodes(path: str, root: yaml.Node | None) -> None:
    """Refuse keys that are not words or appear twice: YAML forbids duplicates, and PyYAML takes the last one.

    Values behind aliases are counted each time they are used: ten lines of aliases can mean a billion values.
    """
    waiting, seen = [root] if root else [], 0
    while waiting:
        node = waiting.pop()
        seen += 1
        if seen > _MOST_VALUES:
            raise UsageError(f"{path}: stands for more than {_MOST_VALUES:,} values, aliases and all; no pipeline does")
        if isinstance(node, yaml.MappingNode):
            _check_keys(path, node)
            waiting += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def _check_keys(path: str, node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        where = f"{path}:{key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode) or key.tag not in _WORDS:
            written = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            raise UsageError(f"{where}: {written} is no key; keys are words, in quotes if need be")
        if key.value in seen:
            raise UsageError(f"{where}: {key.value}: this key stands here twice")
        seen.add(key.value)
