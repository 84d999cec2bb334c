"""Search by an image, by the real commands over images in a folder and in Azurite; grids and pages of the results."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import urllib.error
import urllib.request
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image as pillow
import pytest
from azure.core.credentials import AccessToken, AzureSasCredential
from azure.storage.blob import ContainerClient, ContainerSasPermissions, generate_container_sas
from typer.testing import CliRunner

from rowvec.cli.app import app
from rowvec.errors import UsageError
from rowvec.images.found import FoundPicture, found_pictures
from rowvec.images.grid import draw_grid
from rowvec.images.page import write_page
from rowvec.operations.search import search
from rowvec.operations.search_pictures import check_outputs, show_pictures
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.store.azure import AzureStore, open_container
from rowvec.store.azure_account import Place
from rowvec.store.folder import FolderStore
from rowvec.store.protocol import Store
from rowvec.store.signed_links import links
from tests.support.cli_process import write_pipeline
from tests.support.images import save
from tests.support.paintings import pipeline as text_pipeline
from tests.support.paintings import sync
from tests.support.servers.azure_vision import KEY, serve
from tests.support.servers.azurite import Container


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 images, in a folder."""
    for number in range(24):
        save(number, tmp_path / f"paintings/p{number:02}.png", side=64)
    return tmp_path / "paintings"


def images(folder: Path, artifacts: dict[str, str] | None = None, **embedder: Any) -> Pipeline:
    """The pipeline over the folder."""
    return Pipeline.model_validate(
        {
            "name": "paintings",
            "source": {
                "kind": "images",
                "path": str(folder),
                "key": ["image_file"],
                "content": {"image": "image_file"},
                "metadata": ["width", "media_type"],
            },
            "embedder": embedder or {"kind": "local_image"},
            "target": {"table": "vectors.paintings"},
            "artifacts": artifacts or {"url": str(folder.parent / "artifacts")},
        }
    )


@pytest.fixture
def query_image(folder: Path) -> Path:
    """The ninth image, as a bad JPEG and larger."""
    path = folder.parent / "asked.jpg"
    with pillow.open(folder / "p09.png") as picture:
        picture.convert("RGB").resize((150, 150)).save(path, quality=50)
    return path


def run(*words: str | Path) -> tuple[int, str]:
    """The command in this process: its exit status, or the error it raised, and its stdout."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, UsageError):
        return 2, str(result.exception)
    return result.exit_code, result.stdout


class _Page(HTMLParser):
    """What a page shows and where it leads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[bytes] = []
        self.hrefs: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        if tag == "img":
            source = found["src"] or ""
            assert source.startswith("data:image/jpeg;base64,")
            self.images.append(base64.b64decode(source.partition(",")[2]))
        if tag == "a":
            self.hrefs.append(found["href"] or "")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.usefixtures("source")
def test_an_image_finds_itself_and_its_like_as_table_json_grid_and_page(folder: Path, query_image: Path) -> None:
    wanted = images(folder)
    assert sync(wanted).consistent
    file = write_pipeline(wanted, folder.parent)
    grid, page = folder.parent / "out.png", folder.parent / "out.html"
    status, out = run("search", file, "--image", query_image, "-k", "5", "--grid", grid, "--html", page, "--json")
    assert status == 0
    results = json.loads(out)["results"]
    assert len(results) == 5
    assert results[0]["image_file"] == "p09.png"
    assert results[0]["distance"] < 0.1 < results[1]["distance"]
    assert set(results[0]) == {"image_file", "width", "media_type", "content", "distance"}
    with pillow.open(grid) as drawn:
        assert drawn.width > 1000
        assert np.asarray(drawn.convert("RGB")).std() > 30
    shown = _Page(page.read_text("utf-8"))
    assert len(shown.images) == 6
    with pillow.open(io.BytesIO(shown.images[1])) as first, pillow.open(folder / "p09.png") as stored:
        assert first.size == stored.size
        difference = np.asarray(first, np.int64) - np.asarray(stored.convert("RGB"), np.int64)
        assert np.abs(difference).mean() < 12
    status, out = run("search", file, "--image", query_image, "-k", "2")
    assert status == 0
    assert "p09.png" in out
    assert "sha256" not in out


@pytest.mark.usefixtures("source")
def test_a_filter_goes_with_an_image(folder: Path, query_image: Path) -> None:
    wanted = images(folder)
    sync(wanted)
    found = [hit.as_json() for hit in search(wanted, query_image, 3, where="image_file <> 'p09.png'")]
    assert len(found) == 3
    assert "p09.png" not in [row["image_file"] for row in found]


@pytest.mark.usefixtures("source")
def test_what_cannot_be_asked_is_one_sentence(folder: Path, query_image: Path) -> None:
    wanted = images(folder)
    sync(wanted)
    file = write_pipeline(wanted, folder.parent)
    broken = folder.parent / "broken.png"
    broken.write_bytes(b"\x89PNG nothing")
    empty = folder.parent / "empty.png"
    empty.write_bytes(b"")
    for words, sentence in (
        ([], "write what to search for, or name an image with --image PATH"),
        (["a text", "--image", query_image], "by a text or by --image, not by both"),
        (["a text"], "knows how images look and nothing of words"),
        (["--image", folder / "none.png"], "there is no image"),
        (["--image", broken], r"broken\.png is .*; search by another image"),
        (["--image", empty], r"^empty\.png is empty; search by another image"),
        (["--image", query_image, "--mode", "hybrid"], "hybrid"),
        (["--image", query_image, "--grid", folder / "no/such.png"], r"--grid .* cannot be written"),
        (["--image", query_image, "--html", folder / "page.txt"], r"ends in \.html"),
        (["--image", query_image, "-k", "500", "--html", folder / "p.html"], None),
    ):
        status, out = run("search", file, *words)
        if sentence is None:
            assert status == 0
            continue
        assert status == 2
        assert re.search(sentence, out)
    texts = text_pipeline(str(folder.parent / "artifacts"))
    with pytest.raises(UsageError, match="--grid shows images, and the source is of kind postgres"):
        check_outputs(texts, folder / "x.png", None)


def test_an_image_over_a_table_of_texts_is_one_sentence(
    source: Connection, paintings: Pipeline, query_image: Path
) -> None:
    del source
    sync(paintings)
    with pytest.raises(UsageError, match="of kind local takes no images"):
        search(paintings, query_image, 3)


@pytest.mark.usefixtures("source")
def test_a_text_finds_images_by_azure_vision(folder: Path, query_image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_VISION_KEY", KEY)
    with serve() as server:
        for number, meaning in ((3, "a lighthouse"), (5, "a lighthouse at night")):
            content = (folder / f"p{number:02}.png").read_bytes()
            server.shows[hashlib.sha256(content).hexdigest()] = meaning
        wanted = images(folder, kind="azure_vision", base_url=server.url, cost_per_thousand_transactions=0.1)
        report = sync(wanted)
        assert report.consistent
        assert (report.embedded, report.tokens, server.billed) == (24, 24, 24)
        assert report.cost_usd == pytest.approx(0.0024)
        found = search(wanted, "a lighthouse", 3)
        assert found[0].key["image_file"] == "p03.png"
        assert found[0].distance == pytest.approx(0, abs=1e-5)
        by_image = search(wanted, folder / "p07.png", 3)
        assert by_image[0].key["image_file"] == "p07.png"
        # Nothing changed: nothing is paid for.
        billed = server.billed
        assert sync(wanted).embedded == 0
        assert server.billed == billed
    show_pictures(wanted, "a lighthouse", found, grid=folder.parent / "grid.svg", page=folder.parent / "page.html")
    assert len(_Page((folder.parent / "page.html").read_text()).images) == 3


def _put(store: Store, folder: Path, numbers: range) -> list[dict[str, Any]]:
    """Images in the store of the pipeline ``g``, and search results that show them."""
    results: list[dict[str, Any]] = []
    for number in numbers:
        path = save(number, folder / f"{number}.png")
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        store.put(f"images/g/{sha256[:2]}/{sha256}.png", path, sha256)
        results.append({"id": number, "title": f"No. {number}", "content": f"sha256:{sha256}", "distance": number / 10})
    return results


def _opened(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 # our own server
        return answer.read()


@pytest.mark.azurite
def test_links_into_a_private_container_open_for_a_while(container: Container, tmp_path: Path) -> None:
    store = open_container(container.url, container.key)
    results = _put(store, tmp_path, range(3))
    pictures = found_pictures(store, "g", results, links(store))
    assert [picture.title for picture in pictures] == ["No. 0", "No. 1", "No. 2"]
    write_page("three", "3 found", pictures, tmp_path / "page.html")
    page = _Page((tmp_path / "page.html").read_text())
    assert len(page.hrefs) == len(page.images) == 3
    for number, href in enumerate(page.hrefs):
        assert _opened(href) == (tmp_path / f"{number}.png").read_bytes()
        assert container.key not in href
        with pytest.raises(urllib.error.HTTPError, match=r"40[34]"):
            _opened(href.partition("?")[0])
    expired = links(store, timedelta(minutes=-1))(
        f"images/g/{results[0]['content'][7:9]}/{results[0]['content'][7:]}.png"
    )
    assert expired is not None
    with pytest.raises(urllib.error.HTTPError, match="403"):
        _opened(expired)


@pytest.mark.azurite
def test_a_sas_token_signs_nothing_and_pictures_are_in_the_page_all_the_same(
    container: Container, tmp_path: Path
) -> None:
    results = _put(open_container(container.url, container.key), tmp_path, range(2))
    sas = generate_container_sas(
        container.account,
        container.name,
        account_key=container.key,
        permission=ContainerSasPermissions(read=True, list=True),
        expiry="2099-01-01T00:00:00Z",
    )
    store = open_container(container.url, sas)
    pictures = found_pictures(store, "g", results, links(store))
    assert all(picture.thumbnail is not None and picture.link is None for picture in pictures)
    write_page("two", "2 found", pictures, tmp_path / "page.html")
    assert "sig=" not in (tmp_path / "page.html").read_text()


class Login:
    """A login whose token the server has no use for."""

    def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        """Any."""
        del scopes
        return AccessToken("none", 2**33)


@pytest.mark.parametrize("credential", [Login(), AzureSasCredential("sig=none")], ids=["login", "sas"])
def test_a_credential_that_cannot_sign_gives_no_links(credential: Any) -> None:
    # Nobody listens at port 9: the key that a login could be lent is not had.
    place = Place(account_url="https://127.0.0.1:9/someone", account="someone", container="pictures", prefix="")
    client = ContainerClient(place.account_url, place.container, credential=credential)
    assert links(AzureStore(client, place))("images/g/ab/abc.png") is None


def test_lost_and_spoilt_images_are_pictures_without_a_thumbnail(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    results = _put(store, tmp_path, range(4))
    (first, second, *_) = sorted((tmp_path / "store/images/g").rglob("*.png"))
    first.unlink()
    second.write_bytes(b"spoilt")
    results[0] |= {"width": 48, "height": 32, "media_type": "image/png"}
    pictures = found_pictures(store, "g", results, links(store))
    assert pictures[0].details == "0 · 48 × 32 · image/png"
    assert sum(picture.thumbnail is None for picture in pictures) == 2
    assert all(picture.link is None for picture in pictures)
    draw_grid("four", pictures, tmp_path / "grid.png")
    write_page("four", "4 found", pictures, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("not in the store") == 2


def test_what_rows_say_is_text_and_never_markup(tmp_path: Path) -> None:
    hostile = "<script>alert('1')</script> \"quoted\" & $\\frac{1}{0}$ \ud83c 画"
    thumbnail = pillow.new("RGB", (30, 20), "red")
    link = 'https://host/a?b=1&c="><script>'
    pictures = [
        FoundPicture(title=hostile, details=hostile, distance=0.5, thumbnail=thumbnail, link=link),
        FoundPicture(title="", details="", distance=float("nan"), thumbnail=None),
    ]
    write_page(hostile, hostile, pictures, tmp_path / "page.html")
    shown = _Page((tmp_path / "page.html").read_text("utf-8"))
    assert "script" not in shown.tags
    assert shown.hrefs == [link]
    assert "".join(shown.text).count("<script>alert('1')</script>") == 5
    draw_grid(hostile.replace("\ud83c", ""), [*pictures[1:]], tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size > 1000


def test_no_results_and_too_many(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    draw_grid("nothing", found_pictures(store, "g", []), tmp_path / "grid.png")
    write_page("nothing", "0 found", [], tmp_path / "page.html")
    with pytest.raises(UsageError, match="201 pictures are too many"):
        found_pictures(store, "g", [{}] * 201)


@pytest.mark.parametrize("name", ["no/such/file", "taken"])
def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path: Path, name: str) -> None:
    for suffix in ("html", "png"):
        (tmp_path / f"taken.{suffix}").mkdir()
    with pytest.raises(UsageError, match=r"--html .* cannot be written"):
        write_page("x", "y", [], tmp_path / f"{name}.html")
    with pytest.raises(UsageError, match=r"--grid .* cannot be written"):
        draw_grid("x", [], tmp_path / f"{name}.png")
