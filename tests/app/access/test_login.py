"""`/login` and `/logout` over HTTP: which cookies are set, what they open, and what the pages ask."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from http.cookies import SimpleCookie
from pathlib import Path

import httpx
import pytest
from itsdangerous import URLSafeTimedSerializer
from playwright.sync_api import expect

from app.access.cookie_key import load_secret
from sessions.errors import StoreError
from sessions.store.database import Database
from sessions.store.store import Store
from tests.app.site import Site, Tab

pytestmark = pytest.mark.browser

Serve = Callable[..., Site]
OpenTab = Callable[..., Tab]
NAMES = ("keepwarm_owner", "keepwarm_login")
PASSWORD = {"password": "a kettle"}


def cookie_header(response: httpx.Response) -> dict[str, str]:
    """The cookies that a browser would send from now on, for any port and scheme."""
    return {"Cookie": "; ".join(f"{name}={one.value}" for name, one in set_by(response).items() if one.value)}


def set_by(response: httpx.Response) -> SimpleCookie:
    jar = SimpleCookie()
    for line in response.headers.get_list("set-cookie"):
        jar.load(line)
    return jar


def is_in(client: httpx.Client, cookies: dict[str, str]) -> bool:
    client.cookies.clear()
    status = client.get("/", headers=cookies).status_code
    assert status in (200, 401)
    return status == 200


def test_what_ended_opens_nothing_and_no_other_site_can_end_it(serve: Serve) -> None:
    site = serve(password="a kettle")
    with httpx.Client(base_url=site.url) as client:

        def log_in(cookies: dict[str, str] | None = None) -> httpx.Response:
            client.cookies.clear()
            answer = client.post("/login", data=PASSWORD, headers=cookies or {})
            assert (answer.status_code, answer.headers["location"]) == (303, "./")
            return answer

        first = cookie_header(log_in())
        for headers in (
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
        ):
            assert client.post("/logout", headers={**first, **headers}).status_code == 403
            refused = client.post("/login", data=PASSWORD, headers=headers)
            assert refused.status_code == 403
            assert "set-cookie" not in refused.headers
        for path in ("/login", "/logout"):
            assert "set-cookie" not in client.get(path, headers=first).headers
        assert is_in(client, first)

        second = cookie_header(log_in(first))  # a new token, and the former ended
        assert set(first["Cookie"].split("; ")) & set(second["Cookie"].split("; ")), "the browser stays the same"
        assert (is_in(client, first), is_in(client, second)) == (False, True)

        own, foreign = ("Origin", site.url), ("Origin", "https://evil.example")
        for origins in ([own, foreign], [foreign, own]):
            assert client.post("/logout", headers=[*second.items(), *origins]).status_code == 403
        left = client.post("/logout", headers={**second, "Origin": site.url, "Sec-Fetch-Site": "same-origin"})
        assert (left.status_code, left.headers["location"]) == (303, "login")
        assert not is_in(client, second)
        assert client.get("/", headers={**second, "Accept": "text/html"}).headers["location"] == "login"
        assert client.post("/logout", data={"what": "forget"}, headers=second).status_code == 401
        asking = client.get("/login", headers=second)
        assert asking.headers["cache-control"] == "no-store"
        assert "Whose conversations?" in asking.text
        assert "checked" not in asking.text
        assert "Everyone who knows the password and uses this browser can open" in asking.text
        assert "Whose conversations?" not in client.get("/login").text

        third = cookie_header(log_in(second))
        fourth = cookie_header(log_in(third))
        client.post("/logout", data={"what": "everywhere"}, headers=fourth)
        assert not is_in(client, fourth)
        assert client.post("/logout", data={"what": "nonsense"}, headers=cookie_header(log_in())).status_code == 422


def test_over_tls_no_other_host_can_have_set_the_cookies(serve: Serve) -> None:
    site = serve(password="a kettle", has_tunnel=True)
    with httpx.Client(base_url=site.url) as plain, httpx.Client(base_url=site.tunnel_url) as shared:
        at_home = plain.post("/login", data=PASSWORD)
        assert {name: one["secure"] for name, one in set_by(at_home).items()} == dict.fromkeys(NAMES, "")
        plain.cookies.clear()
        behind_a_proxy = plain.post("/login", data=PASSWORD, headers={"X-Forwarded-Proto": "https"})
        for answer in (shared.post("/login", data=PASSWORD), behind_a_proxy):
            made = {name: one for name, one in set_by(answer).items() if one.value}
            assert set(made) == {f"__Host-{name}" for name in NAMES}
            for one in made.values():
                assert (one["secure"], one["httponly"], one["path"], one["domain"]) == (True, True, "/", "")
                assert one["samesite"].lower() == "lax"
                assert 0 < int(one["max-age"]) <= 365 * 86_400
            for name in NAMES:  # those of before are taken away
                assert set_by(answer)[name].value == ""
        secure = cookie_header(behind_a_proxy)
        assert is_in(shared, secure)
        planted = cookie_header(at_home)
        assert is_in(plain, planted)
        assert not is_in(shared, planted), "a parent domain could have set it"
        over_tls = {**planted, "X-Forwarded-Proto": "https"}
        assert not is_in(plain, over_tls), "someone between browser and proxy could have set it"
        assert "Whose conversations?" in plain.get("/login", headers=over_tls).text, "and they can still be chosen"
        tab, space = "\t", "\xa0"
        for disguise in (space, "\x85", "$", ""):
            name = f"{disguise}__Host-keepwarm_login={planted['Cookie'].split('keepwarm_login=')[1]}"
            assert not is_in(shared, {"Cookie": name.encode("latin-1")})  # type: ignore[dict-item]
        assert is_in(shared, {"Cookie": f"other=1;{tab}{secure['Cookie']}; \x01broken; =nameless"})
        offered = shared.get("/login", headers=planted).text
        assert "Whose conversations?" not in offered


def test_who_may_try_how_often(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    site = serve(password="a kettle", trusted_proxy="127.0.0.1")
    with httpx.Client(base_url=site.url) as client:

        def attempt(address: str, password: str, cookies: dict[str, str] | None = None) -> httpx.Response:
            client.cookies.clear()
            headers = {"X-Forwarded-For": f"192.0.2.99, {address}", **(cookies or {})}
            return client.post("/login", data={"password": password}, headers=headers)

        known = cookie_header(attempt("198.51.100.1", "a kettle"))
        client.post("/logout", headers=known)
        assert [attempt("198.51.100.1", "my own secret").status_code for _ in range(6)] == [401] * 5 + [429]
        blocked = attempt("198.51.100.1", "a kettle")
        assert blocked.status_code == 429
        assert 1 <= int(blocked.headers["retry-after"]) <= 60
        assert "Too many wrong passwords. Try again in" in blocked.text
        assert attempt("198.51.100.1", "a kettle", known).status_code == 303, "a known browser has its own budget"
        assert attempt("198.51.100.2", "a kettle").status_code == 303
        households = [attempt(f"2001:db8:1:2::{number}", "wrong").status_code for number in range(1, 7)]
        assert households == [401] * 5 + [429]
        assert attempt("2001:db8:1:3::1", "a kettle").status_code == 303
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert lines[0] == "login_failed address=198.51.100.1 tries_in_an_hour=1 why=WRONG_WORD"
    assert len([line for line in lines if line.startswith("login_failed")]) == 10
    assert "my own secret" not in caplog.text


def test_a_browser_of_an_earlier_version_stays_logged_in(serve: Serve, tmp_path: Path) -> None:
    Store(tmp_path / "data").close()
    secret = load_secret(tmp_path / "data" / "secret")
    salts = {
        "keepwarm_owner": "keepwarm-owner",
        "keepwarm_login": f"keepwarm-login-{hashlib.sha256(b'a kettle').hexdigest()}",
    }
    old = "; ".join(f"{name}={URLSafeTimedSerializer(secret, salt=salt).dumps('ada')}" for name, salt in salts.items())
    site = serve(password="a kettle")
    c = site.manager.create_conversation("ada").conversation_id
    with httpx.Client(base_url=site.url) as client:
        to_login = client.get("/", headers={"Cookie": old, "Accept": "text/html"})
        assert to_login.headers["location"] == "login"
        answer = client.get("/login", headers={"Cookie": old})
        assert (answer.status_code, answer.headers["location"]) == (303, "./")
        assert is_in(client, cookie_header(answer))
        assert not is_in(client, {"Cookie": old})
        again = client.get("/login", headers={"Cookie": old})
        assert again.status_code == 200
        assert "Whose conversations?" not in again.text
    assert site.manager.view("ada", c).summary.conversation_id == c


def test_a_full_disk_is_said(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    site = serve(password="a kettle")
    with httpx.Client(base_url=site.url) as client:
        cookies = cookie_header(client.post("/login", data=PASSWORD))

        def full(database: Database) -> None:
            raise StoreError("The disk is full.")

        monkeypatch.setattr(Database, "write", full)
        assert is_in(client, cookies)
        for what in ("keep", "forget", "everywhere"):
            refused = client.post("/logout", data={"what": what}, headers=cookies)
            assert (refused.status_code, refused.text) == (503, "You are still logged in. The disk is full.")
        refused = client.post("/login", data=PASSWORD)
        assert refused.status_code == 503
        assert "The disk is full." in refused.text


def log_in(person: Tab, site: Site) -> None:
    person.page.goto(site.url)
    person.page.get_by_label("Password").fill("a kettle")


def test_the_next_person_at_a_browser_sees_nothing_of_the_former(serve: Serve, tab: OpenTab) -> None:
    site = serve(password="a kettle")
    one = tab(site.url)
    log_in(one, site)
    one.page.keyboard.press("Enter")
    one.wait_ready()
    one.say("only mine")
    one.by("log-out").click()
    one.page.get_by_role("button", name="Log out", exact=True).click()

    one.page.wait_for_url("**/login")
    expect(one.page.get_by_text("only mine")).to_have_count(0)
    one.page.get_by_label("Password").fill("a kettle")
    one.page.keyboard.press("Enter")  # nothing was chosen: the browser asks for it
    expect(one.page.get_by_role("group", name="Whose conversations?")).to_be_visible()
    one.page.get_by_label("I am someone else").check()
    one.page.get_by_role("button", name="Continue").click()
    one.wait_ready()
    expect(one.by("conversation").filter(has_text="only mine")).to_have_count(0)

    one.by("log-out").click()
    one.page.get_by_role("button", name="Log out", exact=True).click()
    one.page.wait_for_url("**/login")
    one.page.get_by_label("Password").fill("a kettle")
    one.page.get_by_label("Continue with the conversations kept in this browser").last.check()
    one.page.get_by_role("button", name="Continue").click()
    one.wait_ready()
    expect(one.by("conversation").filter(has_text="only mine")).to_have_count(1)

    one.by("log-out").click()
    expect(one.page.get_by_text("without it they cannot be opened")).to_be_visible()
    one.page.get_by_role("button", name="Forget this browser").click()
    code = one.by("recovery-code").inner_text()
    assert re.fullmatch(r"([a-z2-9]{5}-){4}[a-z2-9]{5}", code)

    other = tab(site.url)
    log_in(other, site)
    other.page.get_by_text("I have a recovery code").click()
    other.page.get_by_label("Recovery code", exact=True).fill(code)
    other.page.keyboard.press("Enter")
    other.wait_ready()
    expect(other.by("conversation").filter(has_text="only mine")).to_have_count(1)
