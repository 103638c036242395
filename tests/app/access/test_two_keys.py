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
NAMES = ("session_id", "response_id", "conversation_id")  # in paths, of what a key owns
ITEMS: dict[str, Any] = {"items": [{"type": "message", "role": "user", "content": "Kept"}]}


def body_for(path: str, text: str, **more: Any) -> dict[str, Any]:
    """What asks for an answer to the text, in the protocol of the path."""
    if path == "/conversations":
        return {}
    if path.startswith("/conversations/"):
        return ITEMS if path.endswith("/items") else {"metadata": {"by": "another"}}
    if path in ("/completions", "/tokenize"):
        return {"model": MODEL, "prompt": text}
    if path == "/detokenize":
        return {"model": MODEL, "tokens": [65]}
    if path in ("/responses", "/responses/input_tokens", "/embeddings"):
        return {"model": MODEL, "input": text}
    if path == "/messages":
        return {"model": MODEL, "messages": [user(text)], "max_tokens": 100}
    return {"model": MODEL, "messages": [user(text)], **({} if path.startswith("/messages") else more)}


def sent_to(method: str, path: str) -> dict[str, Any] | None:
    """What a route that names something of a key is sent."""
    return body_for(path, "Mine?") if method == "post" and path.startswith("/conversations/") else None


def operations(http: httpx.Client, headers: dict[str, str]) -> list[tuple[str, str]]:
    """(method, path) of everything that `/v1/openapi.json` lists."""
    paths = http.get("/v1/openapi.json", headers=headers).json()["paths"]
    return [(method, path) for path, methods in paths.items() for method in methods]


def named_in(path: str) -> str | None:
    """The kind of name that a path has a place for."""
    return next((name for name in NAMES if f"{{{name}}}" in path), None)


def test_neither_key_reaches_what_the_other_has(site: Site, http: httpx.Client) -> None:
    keys = {name: {"Authorization": f"Bearer {site.store.keys.add(name)[1]}"} for name in ("ada", "bob")}
    has: dict[str, dict[str, list[str]]] = {}
    items: dict[str, str] = {}  # of a conversation one
    for name, key in keys.items():
        sessions = list(_talk(http, name, key))
        named = [http.post("/v1/responses", json=body_for("/responses", f"{name} {n}"), headers=key) for n in range(2)]
        made = [http.post("/v1/conversations", json={}, headers=key).json()["id"] for _ in range(2)]
        has[name] = {
            "session_id": sessions,
            "response_id": [answered.json()["id"] for answered in named],
            "conversation_id": [*made, *(f"conv_{session_id}" for session_id in sessions)],
        }
        assert http.post(f"/v1/conversations/{made[0]}/items", json=ITEMS, headers=key).status_code == 200
        for its_id in has[name]["conversation_id"]:
            said = http.get(f"/v1/conversations/{its_id}/items", headers=key).json()["data"]
            items[its_id] = said[0]["id"] if said else "msg_none"
    assert not set(has["ada"]["session_id"]) & set(has["bob"]["session_id"])
    before = {name: _sessions(http, keys[name]) for name in keys}
    calls = 0
    for method, path in operations(http, keys["ada"]):
        kind = named_in(path)
        if kind is None:
            continue
        for mine, theirs in (("ada", "bob"), ("bob", "ada")):
            for its_id in has[theirs][kind]:
                address = f"/v1{path.format(**{kind: its_id, 'item_id': items.get(its_id)})}"
                answer = http.request(method, address, headers=keys[mine], json=sent_to(method, path))
                assert answer.status_code == 404, (method, path, answer.text)
                assert answer.json()["error"]["code"] == "session_not_found"
                calls += 1
            for its_id in mangled(has[theirs][kind][0]):
                quoted = quote(its_id, safe="", errors="replace")
                address = (
                    f"/v1{path.replace(f'{{{kind}}}', quoted).replace('{item_id}', items.get(its_id, 'msg_none'))}"
                )
                answer = http.request(method, address, headers=keys[mine], json=sent_to(method, path))
                assert 400 <= answer.status_code < 500 or (quoted == "" and answer.status_code == 307), (method, path)
                assert has[theirs][kind][0] not in answer.text
                calls += 1
    for mine, theirs in (("ada", "bob"), ("bob", "ada")):
        for field in ("previous_response_id", "conversation"):
            kind = "response_id" if field.startswith("previous") else "conversation_id"
            for its_id in has[theirs][kind]:
                body = body_for("/responses", "Mine?") | {field: its_id}
                for path in ("/v1/responses", "/v1/responses/input_tokens"):
                    answer = http.post(path, json=body, headers=keys[mine])
                    assert (answer.status_code, answer.json()["error"]["param"]) == (400 + 4 * (field[0] == "c"), field)
                    calls += 1
    assert calls >= 250
    assert {name: _sessions(http, keys[name]) for name in keys} == before


def test_every_route_that_names_no_session_shows_ones_own(site: Site, http: httpx.Client) -> None:
    keys = {name: {"Authorization": f"Bearer {site.store.keys.add(name)[1]}"} for name in ("ada", "bob")}
    theirs = list(_talk(http, "ada", keys["ada"]))
    told = set()
    for number, (method, path) in enumerate(operations(http, keys["bob"])):
        if named_in(path):
            continue
        text = f"ada says 3, {number}"  # bob's own answers to one protocol do not warm those to another
        http.request(method, f"/v1{path.format(model=MODEL)}", json=body_for(path, text), headers=keys["ada"])
        body = body_for(path, text, prompt_cache_key="ada 3")
        asked = http.request(method, f"/v1{path.format(model=MODEL)}", json=body, headers=keys["bob"])
        assert asked.status_code == (400 if path == "/embeddings" else 200), (path, asked.text)
        assert not [session_id for session_id in theirs if session_id in asked.text]
        if "reused" in (asked.json().get("keepwarm") or {}):
            told.add(path)
            assert asked.json()["keepwarm"]["reused"] == 0
        after = http.get("/v1/sessions", params={"after": theirs[0]}, headers=keys["bob"])
        assert not [session_id for session_id in theirs if session_id in after.text]
    assert told == {"/chat/completions", "/completions", "/messages", "/responses"}


def test_without_a_key_no_route_answers(site: Site, http: httpx.Client) -> None:
    key = {"Authorization": f"Bearer {site.store.keys.add('ada')[1]}"}
    (session_id, *_) = _talk(http, "ada", key)
    for method, path in operations(http, key):
        body = body_for(path, "Hello")
        for headers in ({}, {"Authorization": "Bearer kw-wrong"}, {"Cookie": "keepwarm_login=x"}):
            address = f"/v1{path.format(**dict.fromkeys((*NAMES, 'item_id'), session_id), model=MODEL)}"
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
