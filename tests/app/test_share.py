"""The public link, and its absence."""

from __future__ import annotations

import threading

import httpx
import pytest

from app.share import Share


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


def test_without_internet_it_is_local_only_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise httpx.ConnectError("no route to host")

    monkeypatch.setattr("gradio.networking.httpx.get", offline)
    share = Share()
    assert opened(share).startswith("Local only: the public link could not be opened")
    assert "no route to host" in share.sentence()
    assert share.host() == ""
    share.close()


def test_the_link_is_known_to_page_and_door(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradio.networking.setup_tunnel", lambda *_: "https://abc.gradio.live")
    share = Share()
    assert share.sentence() == ""
    assert opened(share) == "Public link: https://abc.gradio.live"
    assert share.host() == "abc.gradio.live"
