"""The page's own files: packed as the browser asked, kept by their content, and nothing else is served."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import brotli
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from app.page.first.files import PAGE_STYLES, STYLES, PageFiles, page_files

OWN = page_files()
SCRIPT = "conversation.js"


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(Starlette(routes=[Mount("/keepwarm", OWN)]))


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip, deflate, br, zstd", "br"),
        ("br;q=0.5, gzip", "br"),
        ("BR", "br"),
        ("gzip;q=1.0, identity", "gzip"),
        ("br;q=0, gzip", "gzip"),
        ("br; q=0.0, gzip;q=0", ""),
        ("brotli, x-gzip", ""),
        ("", ""),
    ],
)
def test_a_file_comes_as_it_was_asked_for(client: TestClient, accepted: str, encoding: str) -> None:
    with client.stream("GET", f"/keepwarm/{SCRIPT}", headers={"accept-encoding": accepted}) as response:
        raw = b"".join(response.iter_raw())
    unpack = {"br": brotli.decompress, "gzip": gzip.decompress, "": bytes}[encoding]
    assert unpack(raw).decode() == OWN.text(SCRIPT)
    assert response.headers.get("content-encoding", "") == encoding
    assert response.headers["vary"] == "Accept-Encoding"
    assert re.fullmatch(r"(text|application)/javascript(; charset=utf-8)?", response.headers["content-type"])


def test_what_has_its_content_in_its_name_is_kept_and_what_has_not_is_asked_for(client: TestClient) -> None:
    kept, fresh = client.get(f"/keepwarm/{OWN.version}/{SCRIPT}"), client.get(f"/keepwarm/{SCRIPT}")
    assert kept.text == fresh.text == OWN.text(SCRIPT)
    assert kept.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert fresh.headers["cache-control"] == "no-cache"
    again = client.get(f"/keepwarm/{SCRIPT}", headers={"if-none-match": fresh.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", fresh.headers["etag"])
    other = client.get(
        f"/keepwarm/{SCRIPT}", headers={"if-none-match": fresh.headers["etag"], "accept-encoding": "identity"}
    )
    assert (other.status_code, other.text) == (200, OWN.text(SCRIPT))  # not the packed one's tag
    assert client.head(f"/keepwarm/{SCRIPT}").content == b""
    assert client.post(f"/keepwarm/{SCRIPT}").status_code == 405


@pytest.mark.parametrize(
    "path",
    ["", "/", "/nothing.js", "/../mount.py", "/%2e%2e/mount.py", "/0123456789abcdef/bus.js", "/{v}", "/{v}/{v}/bus.js"],
)
def test_nothing_else_is_there(client: TestClient, path: str) -> None:
    assert client.get(f"/keepwarm{path.format(v=OWN.version)}").status_code == 404


def test_any_change_of_any_file_changes_the_version(tmp_path: Path) -> None:
    for name in STYLES:
        (tmp_path / f"{name}.css").write_text(f"/* {name} */")
    (tmp_path / "a.js").write_text("1")
    first = PageFiles(tmp_path)
    assert first.text(PAGE_STYLES) == "\n".join(f"/* {name} */" for name in STYLES)
    assert PageFiles(tmp_path).version == first.version
    (tmp_path / "a.js").rename(tmp_path / "b.js")
    renamed = PageFiles(tmp_path)
    (tmp_path / "b.js").write_text("2")
    assert len({first.version, renamed.version, PageFiles(tmp_path).version}) == 3


def test_modules_ask_for_nothing_that_is_not_preloaded() -> None:
    asked = {name for module in OWN.modules for name in re.findall(r'from "\./([\w.]+)"', OWN.text(module))}
    assert asked <= set(OWN.modules)
    assert asked | {"start.js"} == set(OWN.modules)  # and nothing is loaded that no one asks for
