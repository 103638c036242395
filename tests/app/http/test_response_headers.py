"""The security headers of every response, errors included, and whose requests are answered."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator

import httpx
import pytest

from app.page.first.frame import FirstPage
from tests.app.raw_http import Answer, ask
from tests.app.site import Site

Serve = Callable[..., Site]


@pytest.fixture(scope="module")
def module_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A site that many requests share, because none of them changes anything."""
    site = Site(tmp_path_factory.mktemp("headers") / "data")
    yield site.url
    site.close()


def check(answer: Answer) -> dict[str, str]:
    """The policy's directives, after checking that all required ones are there."""
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["x-dns-prefetch-control"] == "off"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert "camera=()" in answer.headers["permissions-policy"]
    policy = answer.headers["content-security-policy"]
    assert "unsafe-inline" not in policy
    assert "unsafe-eval" not in policy
    directives = {name: value for name, _, value in (part.strip().partition(" ") for part in policy.split(";"))}
    assert directives["default-src"] == "'none'"
    assert directives["base-uri"] == "'none'"
    assert directives["frame-ancestors"] == "'none'"
    assert directives["form-action"] in ("'self'", "'none'")
    return directives


def test_every_response_carries_them(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    site = serve()
    url = site.url
    json_type = {"Content-Type": "application/json"}
    answers = {
        "page": (200, ask(url, "GET /")),
        "head": (200, ask(url, "HEAD /")),
        "own script": (200, ask(url, "GET /keepwarm/bridge.js")),
        "no such asset": (404, ask(url, "GET /keepwarm/nothing.js")),
        "no such route": (404, ask(url, "GET /gradio_api/file=/etc/passwd")),
        "no such method": (404, ask(url, "DELETE /")),
        "login, as there is no password": (303, ask(url, "GET /login")),
        "logout": (303, ask(url, "POST /logout")),
        "health": (200, ask(url, "GET /health")),
        "metrics": (200, ask(url, "GET /metrics")),
        "API": (200, ask(url, "GET /v1/models")),
        "API, no such route": (404, ask(url, "GET /v1/nothing")),
        "API, no JSON": (400, ask(url, "POST /v1/chat/completions", json_type, b"{")),
        "question, no JSON": (400, ask(url, "POST /ask", json_type, b"{")),
        "question, no type": (415, ask(url, "POST /ask", {}, b"{}")),
        "foreign name": (400, ask(url, "GET /", {"Host": "evil.example"})),
        "no name": (400, ask(url, "GET /", {"Host": "["})),
        "foreign origin": (403, ask(url, "POST /login", {"Origin": "http://evil.example"}, b"password=x")),
        "foreign origin at the API": (403, ask(url, "GET /v1/models", {"Origin": "http://evil.example"})),
        "cross-site": (403, ask(url, "GET /keepwarm/page.css", {"Sec-Fetch-Site": "cross-site"})),
        "preflight": (404, ask(url, "OPTIONS /", {"Origin": url, "Access-Control-Request-Method": "PUT"})),
        "too large": (413, ask(url, "POST /login", {"Content-Length": str(2**30)})),
    }
    for name, (status, answer) in answers.items():
        expected = (404, 400, 405) if name == "preflight" else (status,)
        assert answer.status in expected, (name, answer)
        check(answer)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("an unexpected error")

    monkeypatch.setattr(site.manager, "memory", broken)
    monkeypatch.setattr(FirstPage, "response", broken)
    broken_page = ask(url, "GET /")
    assert broken_page.status == 500
    assert broken_page.text == "Something went wrong on the server; its log has the details."
    check(broken_page)


def test_strangers_are_told_the_same(serve: Serve) -> None:
    url = serve(password="a kettle").url
    check(ask(url, "GET /"))
    check(ask(url, "GET /", {"Accept": "text/html"}))
    check(ask(url, "GET /gradio_api/info"))
    assert ask(url, "POST /gradio_api/upload", {}, b"x").status == 401
    login = check(ask(url, "GET /login"))
    assert login["style-src"] == "'self'"
    assert "script-src" not in login
    assert login["form-action"] == "'self'"
    check(ask(url, "POST /login", {"Content-Type": "application/x-www-form-urlencoded"}, b"password=wrong"))


def test_the_pages_policy_names_its_one_inline_script(serve: Serve) -> None:
    page = ask(serve().url, "GET /")
    assert page.headers["cache-control"] == "no-store"
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    directives = check(page)
    assert directives["script-src"] == f"'self' 'sha256-{digest}'"
    assert directives["style-src"] == "'self'"
    for name in ("object-src", "frame-src", "worker-src"):
        assert directives[name] == "'none'"
    assert directives["img-src"] == directives["connect-src"] == directives["font-src"] == "'self'"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("site_word", ["cross-site", "same-site", "same-origin", "none", "nonsense", None])
@pytest.mark.parametrize(
    "how", [("navigate", "document"), ("navigate", "iframe"), ("no-cors", "script"), ("cors", "empty")]
)
def test_another_site_may_only_lead_to_the_page(
    module_url: str, method: str, site_word: str | None, how: tuple[str, str]
) -> None:
    words = {"Sec-Fetch-Mode": how[0], "Sec-Fetch-Dest": how[1]}
    if site_word is not None:
        words["Sec-Fetch-Site"] = site_word
    with httpx.Client(base_url=module_url, timeout=20) as client:
        for path in ("/", "/login", "/keepwarm/page.css", "/keepwarm/bridge.js", "/health", "/metrics", "/v1/models"):
            response = client.request(method, path, headers=words)
            is_visit = method in ("GET", "HEAD") and path in ("/", "/login") and how == ("navigate", "document")
            is_refused = site_word in ("cross-site", "same-site", "nonsense") and not is_visit
            assert (response.status_code == 403) == is_refused
            assert response.headers["content-security-policy"]
            if is_refused and method != "HEAD":
                assert "other sites" in response.text
