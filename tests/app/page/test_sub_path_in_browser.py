"""The page below a path of a proxy's host: one that strips its prefix, and one that does not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from playwright.sync_api import expect

from app.http.sub_path import root_path
from tests.app.site import Site, Tab

pytestmark = pytest.mark.browser

Serve = Callable[..., Site]
OpenTab = Callable[..., Tab]
Proxy = Callable[..., str]


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """`proxy(target, strips)`: the address below which a proxy serves `target`; everything beside it is 404."""
    servers: list[ThreadingHTTPServer] = []
    clients: list[httpx.Client] = []
    threads: list[threading.Thread] = []

    def start(target: str, strips: bool) -> str:
        client = httpx.Client(timeout=30)
        clients.append(client)

        class Below(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                path = self.path.removeprefix("/chat") if strips else self.path
                if not self.path.startswith("/chat") or (strips and not path):
                    status, headers, content = 404, [("Content-Type", "text/plain")], b"Nothing of the proxy's."
                else:
                    sent = {name: value for name, value in self.headers.items() if name.lower() != "accept-encoding"}
                    answer = client.request(self.command, target + path, headers=sent, content=body)
                    status, headers, content = answer.status_code, answer.headers.multi_items(), answer.content
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in ("content-length", "transfer-encoding", "connection", "content-encoding"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = forward

            def log_message(self, format: str, *args: object) -> None:
                """Nothing."""

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Below))
        servers[-1].handle_error = lambda *_: None  # type: ignore[method-assign]  # Chromium gives up connections
        servers[-1].daemon_threads = True
        threads.append(threading.Thread(target=servers[-1].serve_forever))
        threads[-1].start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}/chat"

    yield start
    for server, thread, client in zip(servers, threads, clients, strict=True):
        server.shutdown()
        thread.join()
        server.server_close()
        client.close()


@pytest.mark.parametrize(("strips", "prefix"), [(True, ""), (False, "/chat")])
def test_the_page_works_below_a_path(serve: Serve, tab: OpenTab, proxy: Proxy, strips: bool, prefix: str) -> None:
    url = proxy(serve(password="a kettle", root_path=prefix).url, strips)
    one = tab(url)
    missing: list[str] = []
    outside: list[str] = []
    one.page.on("response", lambda answer: missing.append(answer.url) if answer.status >= 400 else None)
    one.page.on("request", lambda request: None if request.url.startswith(f"{url}/") else outside.append(request.url))
    one.page.goto(f"{url}/")
    one.log_in("a kettle")
    one.wait_ready()
    one.say("alpha")
    expect(one.message(1)).to_have_text("You said: alpha")
    where = one.page.url
    assert where.startswith(f"{url}/#")
    one.new()
    one.page.go_back()
    expect(one.message(1)).to_have_text("You said: alpha")
    one.page.get_by_role("button", name="Log out").click()
    one.page.get_by_role("button", name="Log out", exact=True).click()
    expect(one.page.get_by_label("Password")).to_be_visible()
    one.page.goto(where)
    one.log_in("a kettle")
    one.wait_ready()
    expect(one.message(1)).to_have_text("You said: alpha")
    assert (missing, outside) == ([], [])


def test_paths_with_and_without_the_prefix(serve: Serve) -> None:
    site = serve(root_path="/a/chat")
    with httpx.Client(base_url=site.url) as client:
        for path in ("/", "/health", "/keepwarm/bus.js", "/v1/models"):
            assert client.get(path).status_code == 200
            assert client.get(f"/a/chat{path}").status_code == 200
        for path in ("/a/chatter", "/a", "/a/chat/a/chat/", "/a/chat//", "/a%2Fchat/", "/a/chat/config"):
            assert client.get(path).status_code == 404, path
        there = client.get("/a/chat")
        assert (there.status_code, there.headers["location"]) == (307, "chat/")
        assert "frame-ancestors 'none'" in there.headers["content-security-policy"]


@pytest.mark.parametrize("text", ["chat", "/..", "/a/../b", "//chat", "/a b", "/a?b", "/é", "/a#b", "/a\r\nx"])
def test_what_is_no_path_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="looks like /chat"):
        root_path(text)
    assert (root_path("/"), root_path(""), root_path("/chat/"), root_path("/a/b")) == ("", "", "/chat", "/a/b")
