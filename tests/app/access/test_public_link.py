"""The public link, and its absence."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import httpx
import pytest

from app.access.public_link import Share
from app.page.gradio_import import gradio
from tests.polling import pause

tunneling = gradio.tunneling
URL = "https://tunnel.invalid/frpc"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the tunnel's program. Neither the program nor its checksum exists yet."""
    path = tmp_path / "frpc" / "program"
    monkeypatch.setattr(tunneling, "BINARY_PATH", str(path))
    monkeypatch.setattr(tunneling, "BINARY_FOLDER", path.parent)
    monkeypatch.setattr(tunneling, "BINARY_URL", URL)
    monkeypatch.setattr(tunneling, "CHECKSUMS", {URL: ""})
    monkeypatch.setattr(tunneling, "CURRENT_TUNNELS", [])
    monkeypatch.setattr("gradio.networking.GRADIO_SHARE_SERVER_ADDRESS", "tunnel.invalid:7000")
    return path


def tunnel_script(mark: Path) -> bytes:
    """A program that leaves a mark when it runs, and prints what the real one prints."""
    return f"#!/bin/sh\ntouch {mark}\necho start proxy success: https://abc.gradio.live\nexec sleep 60\n".encode()


def publish(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Sets the checksum that Gradio knows to that of `content`."""
    monkeypatch.setitem(tunneling.CHECKSUMS, URL, hashlib.sha256(content).hexdigest())


def lay(program: Path, content: bytes) -> None:
    program.parent.mkdir(exist_ok=True)
    program.write_bytes(content)
    program.chmod(0o700)


def offer(monkeypatch: pytest.MonkeyPatch, content: bytes) -> list[str]:
    """Sets what a download of the program returns; the list fills with the requested addresses."""
    asked: list[str] = []

    def get(url: str, **_: object) -> httpx.Response:
        asked.append(url)
        return httpx.Response(200, content=content, request=httpx.Request("GET", url))

    monkeypatch.setattr("gradio.tunneling.httpx.get", get)
    return asked


def opened(share: Share) -> str:
    said: list[str] = []
    done = threading.Event()

    def say(sentence: str) -> None:
        said.append(sentence)
        done.set()

    share.open("127.0.0.1", 1, say)
    assert done.wait(10)
    assert said == [share.sentence()]
    return said[0]


def test_without_internet_it_is_local_only_and_says_why(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise httpx.ConnectError("no route to host")

    monkeypatch.setattr("gradio.networking.httpx.get", offline)
    share = Share()
    assert opened(share).startswith("Local only: the public link could not be opened")
    assert "no route to host" in share.sentence()
    assert share.host() == ""
    share.close()


def test_the_link_is_known_to_page_and_door(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "it-ran"
    publish(monkeypatch, tunnel_script(mark))
    assert offer(monkeypatch, tunnel_script(mark)) == []
    share = Share()
    assert share.sentence() == ""
    assert opened(share) == "Public link: https://abc.gradio.live"
    assert share.host() == "abc.gradio.live"
    assert mark.exists()
    (tunnel,) = tunneling.CURRENT_TUNNELS
    process = tunnel.proc
    share.close()
    assert process is not None
    process.wait(10)
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()


def test_a_download_with_a_wrong_checksum_is_not_run_and_does_not_stay(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "it-ran"
    publish(monkeypatch, b"what Gradio published")
    asked = offer(monkeypatch, tunnel_script(mark))
    for _ in range(2):  # at the second start, too
        share = Share()
        assert opened(share).startswith("Local only: the tunnel's program was downloaded, but its checksum")
        assert share.host() == ""
        assert not program.exists()
    pause(0.2)
    assert not mark.exists()
    assert asked == [URL, URL]
    assert tunneling.CURRENT_TUNNELS == []


@pytest.mark.parametrize("is_published", [True, False])
def test_a_program_on_disk_with_a_wrong_checksum_is_not_run(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_published: bool
) -> None:
    mark = tmp_path / "it-ran"
    publish(monkeypatch, b"what Gradio published")
    if not is_published:
        tunneling.CHECKSUMS.clear()
    lay(program, tunnel_script(mark))
    asked = offer(monkeypatch, b"what Gradio published")
    share = Share()
    sentence = opened(share)
    assert sentence.startswith("Local only: ")
    assert (str(program) if is_published else "publishes no checksum") in sentence
    pause(0.2)
    assert not mark.exists()
    assert asked == []
    assert program.exists()  # it may belong to someone else
