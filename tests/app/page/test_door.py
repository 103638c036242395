"""None of Gradio's routes exists for a browser, and what the page may ask."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp, Receive, Scope, Send

from app.http.bodies import Bodies
from app.page.door import GRADIO_PATH, NOT_HERE, Door
from app.page.first.frame import FirstPage
from app.paths import ASK_PATH
from tests.app.raw_http import ask
from tests.app.site import Site
from tests.polling import pause

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
OURS = {("GET", "/"), ("HEAD", "/")} | {(method, path) for method in ("GET", "POST") for path in ("/login", "/logout")}


class WatchedDoor(Door):
    """The door, with a list of the requests that it passed on to Gradio."""

    last: WatchedDoor

    def __init__(self, page: FirstPage, gradio: ASGIApp, component_id: int, function: str, bodies: Bodies) -> None:
        self.gradio: Any = gradio
        self.passed: list[Scope] = []
        type(self).last = self

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            self.passed.append(scope)
            await gradio(scope, receive, send)

        super().__init__(page, watched, component_id, function, bodies)


@dataclass(frozen=True, slots=True)
class Watched:
    """A running site and its door."""

    site: Site
    door: WatchedDoor

    @property
    def url(self) -> str:
        return self.site.url


@contextlib.contextmanager
def watched_site(data_dir: Path, **options: Any) -> Iterator[Watched]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.page.mount.Door", WatchedDoor)
        site = Site(data_dir, **options)
        try:
            yield Watched(site, WatchedDoor.last)
        finally:
            site.close()


@pytest.fixture(scope="module")
def module_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched_site(tmp_path_factory.mktemp("door") / "data", context_limit_tokens=300) as watched:
        yield watched


@pytest.fixture
def site(module_site: Watched) -> Watched:
    """One site without a password for all tests here: they leave nothing behind but conversations."""
    module_site.door.passed.clear()
    return module_site


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Watched]:
    """A site behind the password "a kettle"."""
    with watched_site(tmp_path / "data", password="a kettle") as watched:
        yield watched


def all_routes(routes: Any) -> Iterator[tuple[str, str]]:
    for route in routes:
        inner = getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", None)
        if inner:
            yield from all_routes(inner)
        elif hasattr(route, "path"):
            methods = getattr(route, "methods", None) or METHODS  # a mount or a websocket takes any
            for method in methods:
                yield method, route.path


def concrete(path: str) -> str:
    """An address that the route matches."""
    filled = ""
    for piece in path.split("{"):
        name, brace, rest = piece.partition("}")
        filled += (f"{name.partition(':')[0]}-1" if name != "size" else "32") + rest if brace else piece
    return filled


def test_every_route_of_the_installed_gradio_is_refused(site: Watched) -> None:
    gradio = site.door
    routes = set(all_routes(gradio.gradio.routes))
    for known in ("/gradio_api/file={path_or_url:path}", "/gradio_api/upload", "/gradio_api/queue/join", "/config"):
        assert any(path == known for _, path in routes)  # the walk goes all the way down
    assert len(routes) > 80
    assert ("POST", GRADIO_PATH) in routes
    with httpx.Client(base_url=site.url, timeout=20) as client:
        for _, path in sorted(routes):
            for method in METHODS:
                if (method, path) in OURS:
                    continue
                response = client.request(method, concrete(path))
                assert response.status_code == 404, (method, path)
                assert response.text == ("" if method == "HEAD" else NOT_HERE)
    assert gradio.passed == []


@pytest.mark.parametrize(
    "target",
    [
        "//",
        "/.",
        "/./",
        "/%2e",
        "/%2F",
        "/index.html",
        "/?/../config",
        "//config",
        "/config/",
        "/CONFIG",
        "/theme.css/",
        "/Theme.css",
        "/theme%2ecss",
        "/theme.css%00",
        "/theme.css%0a",
        "/theme.css;x",
        "/gradio_api/theme.css",
        "/assets/",
        "/assets",
        "/assets/../config",
        "/assets/..%2fconfig",
        "/assets/%2e%2e/config",
        "/assets/..%5cconfig.js",
        "/assets//index.js",
        "/assets/a/b.js",
        "/assets/.js",
        "/assets/index.js.map",
        "/assets/x.html",
        "/assets/x.svg",
        "/ASSETS/x.js",
        "/static/js/iframeResizer.contentWindow.min.js",
        "/static/img/logo.svg",
        "/svelte/svelte.js",
        "/gradio_api/file=http://leak.invalid/x.png",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api%2ffile=/etc/passwd",
        "/gradio_api//file=/etc/passwd",
        "/gradio_api/./file=/etc/passwd",
        "/gradio_api/run/../file=/etc/passwd",
        "/assets/../gradio_api/file=/etc/passwd",
        "/gradio_api/proxy=https://leak.invalid/x",
        "/gradio_api/file/etc/passwd",
        "/GRADIO_API/file=/etc/passwd",
        "/gradio_api/run/predict",
        "/gradio_api/component_server",
        "/gradio_api/component_server/",
        "/ask/",
        "/Ask",
        "//ask",
        "/./ask",
        "/%61sk",
        "/ask%00",
        "/ask;x",
        "/x/../ask",
        "/x/../gradio_api/info",
        "http://leak.invalid/config",
        "http://leak.invalid/",
        "/favicon.ico",
        "/manifest.json",
        "/robots.txt",
        "/openapi.json",
        "/docs",
        "/logout",
        "/keepwarm",
        "/keepwarm/",
        "/keepwarm/../config",
        "/keepwarm/..%2f..%2fconfig",
        "/health/",
        "/login/",
        "/new/route/of/a/later/version",
    ],
)
def test_no_other_spelling_leads_to_gradio(site: Watched, target: str) -> None:
    for method in ("GET", "POST", "HEAD", "OPTIONS", "DELETE"):
        headers = {"Content-Type": "application/json"} if method == "POST" else {}
        answer = ask(site.url, f"{method} {target}", headers, b"{}" if method == "POST" else b"")
        if target.startswith("/?"):
            assert answer.status == (200 if method in ("GET", "HEAD") else 404)
        elif target == "/logout" and method in ("GET", "POST"):
            assert answer.status == 303
        else:
            assert answer.status in (400, 404, 405), (method, answer)
    assert site.door.passed == []


def test_an_upgrade_to_a_websocket_leads_nowhere(site: Watched) -> None:
    upgrade = {
        "Connection": "Upgrade, close",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    for path in ("/gradio_api/queue/join", "/gradio_api/mcp", "/assets/x"):
        assert ask(site.url, f"GET {path}", upgrade).status in (400, 403, 404)
    assert site.door.passed == []


def test_an_upload_of_any_content_is_refused(site: Watched) -> None:
    multipart = {"files": ("notes.txt", b"not yours", "text/plain")}
    with httpx.Client(base_url=site.url, timeout=20) as client:
        for path in ("/gradio_api/upload", "/gradio_api/upload?upload_id=x", "/gradio_api/process_recording"):
            assert client.post(path, files=multipart).status_code == 404
        assert client.post(ASK_PATH, files=multipart).status_code == 415
    assert site.door.passed == []


# Nothing of a request's own words about hosts is repeated.

HOSTILE_HEADERS = (
    "X-Forwarded-Host",
    "X-Forwarded-Server",
    "X-Forwarded-Prefix",
    "X-Forwarded-Proto",
    "X-Forwarded-Port",
    "X-Gradio-Server",
    "X-Original-Host",
    "X-Original-URL",
    "X-Rewrite-URL",
    "X-Host",
    "Forwarded",
    "Referer",
)


@pytest.mark.parametrize(
    "value", ["evil.example", "http://evil.example/x", "[", "evil.example, 127.0.0.1", "host=evil.example"]
)
def test_what_a_request_says_of_its_host_is_not_repeated(site: Watched, value: str) -> None:
    before = httpx.get(f"{site.url}/").text
    for name in HOSTILE_HEADERS:
        for path in ("/", "/login", "/health", "/nowhere", "/v1/models", "/v1/nowhere/"):
            answer = ask(site.url, f"GET {path}", {name: value})
            assert answer.status < 500
            assert "evil" not in answer.text + str(answer.headers)
        assert ask(site.url, "POST /logout", {name: value}).headers.get("location", "./") in ("./", "login")
    assert len(httpx.get(f"{site.url}/").text) == len(before)


def test_behind_a_password_not_even_the_host_is_repeated(locked: Watched) -> None:
    site = locked
    with httpx.Client(base_url=site.url) as client:
        client.post("/login", data={"password": "a kettle"})
        cookies = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    page = ask(site.url, "GET /", {"Host": "evil.example", "Cookie": cookies, "X-Forwarded-Host": "evil.example"})
    assert page.status == 200
    assert "kw-facts" in page.text
    assert "evil" not in page.text + str(page.headers)
    assert "evil" not in str(ask(site.url, "GET /", {"Host": "evil.example", "Accept": "text/html"}))
    assert ask(site.url, "GET /", {"Host": "evil.example/x@y"}).status == 400


@pytest.mark.parametrize(
    "host", ["[", "a b", "", "evil.example:port", "[::1", "x" * 300, "127.0.0.1:1@evil.example", "a/b"]
)
def test_a_host_that_is_none_is_refused_in_a_sentence(site: Watched, host: str) -> None:
    answer = ask(site.url, "GET /", {"Host": host})
    assert answer.status == 400
    assert "Traceback" not in answer.text
    assert httpx.get(f"{site.url}/health", headers={"origin": "http://["}).status_code == 403


# Questions.

FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}  # Gradio looks for these wherever they are
JUNK = st.recursive(
    st.just(FILE)
    | st.just({"__type__": "update", "value": FILE})
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["open", "send", "regenerate", "edit", "continue", "switch", "follow", "", "__class__", "draw"])
ASKS = st.sampled_from(
    ["pulse", "new", "settings", "save_settings", "rename", "delete", "pin", "unpin", "park", "warm", "verify", "drop"]
) | st.sampled_from(["stop", "count", "__init__"])
FIELDS = ("action", "ask", "conversation_id", "text", "draft", "title", "search", "tier", "ahead", "memory")
FIELDS += ("memory_rows", "have", "list", "shown", "version", "message_id", "step", "find", "zone", "taken")
FIELDS += ("system_prompt", "seed", "stop_strings", "whole", "known")

ENVELOPE = ("data", "fn_index", "component_id", "fn_name", "session_hash", "event_data", "ask")  # mostly Gradio's


def some(names: st.SearchStrategy[Any], key: str, ids: list[str]) -> st.SearchStrategy[Any]:
    """What a page might send, with fields of any type, or anything at all."""
    fields = st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, JUNK))
    named = st.fixed_dictionaries({key: names | JUNK, "conversation_id": st.sampled_from(ids) | JUNK})
    return JUNK | st.tuples(fields, named).map(lambda both: {**both[0], **both[1]})


@pytest.mark.parametrize("kind", ["act", "ask", "anything"])
def test_any_question_gets_an_answer_without_a_traceback(
    site: Watched, kind: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    ids = [site.site.manager.create_conversation("local").conversation_id, "no-such-conversation"]
    questions = {
        "act": some(NAMES, "action", ids).map(
            lambda asked: {**asked, "ask": "act"} if isinstance(asked, dict) else asked
        ),
        "ask": some(ASKS, "ask", ids),
        "anything": JUNK
        | st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(
                ("data", "fn_index", "component_id", "fn_name", "session_hash", "event_data", "ask"), JUNK
            ),
        ),
    }
    caplog.set_level(logging.WARNING)
    client = httpx.Client(base_url=site.url, timeout=30)

    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    @given(questions[kind])
    def fuzz(question: Any) -> None:
        content = json.dumps(question).encode()
        response = client.post(ASK_PATH, content=content, headers={"content-type": "application/json"})
        assert response.status_code == (200 if isinstance(question, dict) else 400)
        assert isinstance(response.json(), dict)
        assert "Traceback" not in response.text
        assert "Something went wrong" not in response.text

    with client:
        fuzz()
    assert caplog.records == []
    assert "Traceback" not in "".join(capfd.readouterr())
    assert httpx.get(f"{site.url}/health").status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"ask": 1e999}',
        b'{"ask": ' + b"9" * 5000 + b"}",
        b'{"ask": true}',
        b"NaN",
        b'{"ask": "act", "action": "follow", "version": 1e999}',
        b'{"ask": "act", "action": "follow", "version": 99999999999999999999}',
    ],
)
def test_a_body_that_is_no_question_is_answered_quietly(
    site: Watched, body: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    response = httpx.post(
        f"{site.url}{ASK_PATH}", content=body, headers={"content-type": "application/json"}, timeout=30
    )
    assert response.status_code in (200, 400)
    assert response.status_code == 400 or "error" in response.text
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_question_is_read_as_its_values_were_counted(site: Watched) -> None:
    """It is read as UTF-8. Read as UTF-16 the same bytes may hold values that were not counted."""
    question = '{"ask":"act","action":"x\u2230","z":[' + "[]," * 6_000 + "0]}"
    for encoding in ("utf-16-le", "utf-16", "utf-32"):
        refused = httpx.post(
            f"{site.url}{ASK_PATH}", content=question.encode(encoding), headers={"content-type": "application/json"}
        )
        assert refused.status_code == 400
    assert site.door.passed == []


def test_one_large_question_is_rebuilt_at_a_time(site: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    now, most, lock, loads = 0, 0, threading.Lock(), json.loads

    def slowly(text: str) -> Any:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        pause(0.02)
        with lock:
            now -= 1
        return loads(text)

    monkeypatch.setattr("app.page.door.json", SimpleNamespace(loads=slowly, dumps=json.dumps))
    content = json.dumps({"ask": "new", "text": "x" * 70_000}).encode()
    headers = {"content-type": "application/json"}
    with ThreadPoolExecutor() as pool:
        asks = [pool.submit(httpx.post, f"{site.url}{ASK_PATH}", content=content, headers=headers) for _ in range(6)]
        assert {one.result().status_code for one in asks} == {200}
    assert most == 1


def test_unknown_questions_are_answered_with_a_sentence(site: Watched) -> None:
    sentence = "The page asked for something that this server does not understand. Reload the page."
    asked = ({}, {"ask": None}, {"ask": ["act"]}, {"ask": "format"}, {"ask": "act"}, {"ask": "act", "action": ["open"]})
    with httpx.Client(base_url=site.url, timeout=20) as client:
        for question in (*asked, 5, [], "x"):
            assert client.post(ASK_PATH, json=question).json()["error"] == sentence


def test_nothing_that_a_page_sends_is_taken_for_a_file(site: Watched, capfd: pytest.CaptureFixture[str]) -> None:
    questions = (FILE, {"ask": FILE}, {"ask": "act", "action": FILE}, {"ask": "act", "action": "send", "text": [FILE]})
    with httpx.Client(base_url=site.url, timeout=20) as client:
        for question in questions:
            reply = client.post(ASK_PATH, json=question)
            assert reply.status_code == 200
            assert "passwd" not in reply.text
    assert "Traceback" not in "".join(capfd.readouterr())


def test_gradio_keeps_nothing_of_a_session_and_the_page_says_nothing_of_people(locked: Watched) -> None:
    site = locked
    with httpx.Client(base_url=site.url, timeout=20) as client:
        client.post("/login", data={"password": "a kettle"})
        where = client.post(ASK_PATH, json={"ask": "new", "session_hash": "mine"}).json()["conversation_id"]
        sent = {"ask": "act", "action": "send", "conversation_id": where, "text": "a very private kettle"}
        assert "private kettle" in client.post(ASK_PATH, json=sent).text
        (owner_id,) = {one.owner_id for one in site.site.store.every_conversation()}
        page = client.get("/").text
        for word in ("private kettle", where, owner_id):
            assert word not in page
        for cookie in client.cookies.values():
            assert cookie.split(".")[0] not in page
    assert list(site.door.gradio.state_holder.session_data) == ["page"]
    kept = site.door.gradio.state_holder.session_data["page"].config_values
    assert "private kettle" not in str(kept)
