"""Which other sites' pages may call the API: those that were named, and any once every request needs a key."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from app.access.origins import Origins, origin_of
from tests.app.conftest import MODEL, Serve, user
from tests.app.site import Site

BODY = {"model": MODEL, "messages": [user("Hello")]}
NAMED = ("https://chat.example", "chrome-extension://abc", "null")
ALLOW = "Access-Control-Allow-Origin"


def post(site: Site, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{site.url}/v1/chat/completions", json=BODY, headers=named, timeout=30)


def preflight(site: Site, origin: str, path: str = "/v1/chat/completions", **more: str) -> httpx.Response:
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST", **more}
    return httpx.options(f"{site.url}{path}", headers=asked)


@pytest.mark.parametrize("origin", NAMED)
def test_a_named_origin_may_call_without_a_key(serve: Serve, origin: str) -> None:
    site = serve(headless=True, allowed_origins=NAMED)
    asked = preflight(
        site,
        origin,
        **{
            "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
            "Access-Control-Request-Private-Network": "true",
        },
    )
    assert (asked.status_code, asked.headers[ALLOW]) == (204, origin)
    assert asked.headers["Access-Control-Allow-Headers"] == "authorization,content-type,x-stainless-os"
    assert asked.headers["Access-Control-Allow-Private-Network"] == "true"
    assert "Access-Control-Allow-Credentials" not in asked.headers
    answered = post(site, Origin=origin, Sec_Fetch_Site="cross-site")
    assert (answered.status_code, answered.headers[ALLOW]) == (200, origin)
    assert "Origin" in answered.headers["Vary"]


@pytest.mark.parametrize("origin", ["https://evil.example", "http://chat.example", "https://chat.example.evil", "x"])
def test_any_other_origin_may_not(serve: Serve, origin: str) -> None:
    site = serve(headless=True, allowed_origins=NAMED)
    for refused in (preflight(site, origin), post(site, Origin=origin)):
        assert refused.status_code == 403
        assert ALLOW not in refused.headers
        assert "--allow-origin" in refused.json()["error"]["message"]
    both = httpx.post(f"{site.url}/v1/chat/completions", json=BODY, headers=[("Origin", NAMED[0]), ("Origin", origin)])
    assert both.status_code == 403


@pytest.mark.parametrize("options", [{"require_key": True}, {}])
def test_once_a_key_is_needed_any_origin_may_call_and_read_the_refusal(serve: Serve, options: dict[str, Any]) -> None:
    site = serve(headless=True, **options)
    _, key = site.store.keys.add("ada")
    origin = "https://any.example"
    assert preflight(site, origin).headers[ALLOW] == origin
    answered = post(site, Origin=origin, Authorization=f"Bearer {key}")
    assert (answered.status_code, answered.headers[ALLOW]) == (200, origin)
    refused = post(site, Origin=origin)
    assert (refused.status_code, refused.headers[ALLOW]) == (401, origin)


def test_nothing_but_the_api_may_be_called(serve: Serve) -> None:
    site = serve(headless=True, allowed_origins=NAMED)
    site.store.keys.add("ada")
    for path in ("/health", "/metrics", "/"):
        refused = httpx.get(f"{site.url}{path}", headers={"Origin": NAMED[0]})
        assert (refused.status_code, refused.headers.get(ALLOW)) == (403, None)
        assert preflight(site, NAMED[0], path).status_code == 403


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://Chat.Example/", "https://chat.example"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("https://a.example:443", "https://a.example"),
        ("http://[::1]:80", "http://[::1]"),
        ("moz-extension://0af-1", "moz-extension://0af-1"),
        ("null", "null"),
    ],
)
def test_an_origin_is_read_as_browsers_send_it(text: str, origin: str) -> None:
    assert origin_of(text) == origin
    assert Origins((origin,)).may_call([origin])
    assert not Origins((origin,)).may_call([])


@pytest.mark.parametrize("text", ["*", "chat.example", "https://a.example/page", "https://a.example?x", "", "https://"])
def test_what_is_no_origin_is_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="An origin is like"):
        origin_of(text)
