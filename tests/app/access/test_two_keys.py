"""Two keys and every route of the OpenAPI document: neither key finds, changes or reuses what the other has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx

from tests.app.conftest import MODEL, user
from tests.app.site import Site
from tests.sessions.strange_calls import mangled

EACH_HAS = 12


def operations(http: httpx.Client, headers: dict[str, str]) -> list[tuple[str, str]]:
    """(method, path) of everything that `/v1/openapi.json` lists."""
    paths = http.get("/v1/openapi.json", headers=headers).json()["paths"]
    return [(method, path) for path, methods in paths.items() for method in methods]


def test_neither_key_reaches_what_the_other_has(site: Site, http: httpx.Client) -> None:
    keys = {name: {"Authorization": f"Bearer {site.store.keys.add(name)[1]}"} for name in ("ada", "bob")}
    has: dict[str, list[str]] = {name: list(_talk(http, name, keys[name])) for name in keys}
    assert not set(has["ada"]) & set(has["bob"])
    before = {name: _sessions(http, keys[name]) for name in keys}
    calls = 0
    for method, path in operations(http, keys["ada"]):
        if "{session_id}" not in path:
            continue
        for mine, theirs in (("ada", "bob"), ("bob", "ada")):
            for session_id in has[theirs]:
                answer = http.request(method, f"/v1{path.format(session_id=session_id)}", headers=keys[mine])
                assert answer.status_code == 404, (method, path)
                assert answer.json()["error"]["code"] == "session_not_found"
                calls += 1
            for session_id in mangled(has[theirs][0]):
                quoted = quote(session_id, safe="", errors="replace")
                answer = http.request(method, f"/v1{path.replace('{session_id}', quoted)}", headers=keys[mine])
                assert 400 <= answer.status_code < 500 or (quoted == "" and answer.status_code == 307), (method, path)
                assert has[theirs][0] not in answer.text
                calls += 1
    assert calls >= 164
    assert {name: _sessions(http, keys[name]) for name in keys} == before


def test_every_route_that_names_no_session_shows_ones_own(site: Site, http: httpx.Client) -> None:
    keys = {name: {"Authorization": f"Bearer {site.store.keys.add(name)[1]}"} for name in ("ada", "bob")}
    theirs = list(_talk(http, "ada", keys["ada"]))
    for method, path in operations(http, keys["bob"]):
        if "{session_id}" in path:
            continue
        body = {"model": MODEL, "messages": [user("ada says 3")], "prompt_cache_key": "ada 3"}
        asked = http.request(method, f"/v1{path.format(model=MODEL)}", json=body, headers=keys["bob"])
        assert asked.status_code == 200, path
        assert not [session_id for session_id in theirs if session_id in asked.text]
        if "usage" in asked.json():
            assert asked.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        after = http.get("/v1/sessions", params={"after": theirs[0]}, headers=keys["bob"])
        assert not [session_id for session_id in theirs if session_id in after.text]


def test_without_a_key_no_route_answers(site: Site, http: httpx.Client) -> None:
    key = {"Authorization": f"Bearer {site.store.keys.add('ada')[1]}"}
    (session_id, *_) = _talk(http, "ada", key)
    for method, path in operations(http, key):
        body = {"model": MODEL, "messages": [user("Hello")]}
        for headers in ({}, {"Authorization": "Bearer kw-wrong"}, {"Cookie": "keepwarm_login=x"}):
            address = f"/v1{path.format(session_id=session_id, model=MODEL)}"
            assert http.request(method, address, json=body, headers=headers).status_code == 401, (method, path)


def _talk(http: httpx.Client, name: str, key: dict[str, str]) -> Iterator[str]:
    """Conversations under names that both keys use, and with each key's own texts."""
    for number in range(EACH_HAS):
        body = {"model": MODEL, "messages": [user(f"{name} says {number}")], "prompt_cache_key": f"{name} {number}"}
        if number % 2:
            body["prompt_cache_key"] = f"chat {number}"
        yield http.post("/v1/chat/completions", json=body, headers=key).json()["keepwarm"]["session_id"]


def _sessions(http: httpx.Client, key: dict[str, str]) -> list[dict[str, Any]]:
    """The snapshot without what changes by itself."""
    rows = http.get("/v1/sessions", headers=key).json()["data"]
    return [{name: row[name] for name in ("id", "title", "tokens", "is_pinned", "last_used_at")} for row in rows]
