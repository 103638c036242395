"""Hostile texts, other users, small screens."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from playwright.sync_api import expect

from app.paths import ASK_PATH
from tests.app.site import Site, Tab

pytestmark = pytest.mark.browser

Serve = Callable[..., Site]
OpenTab = Callable[..., Tab]

HOSTILE = (
    "<script>window.hacked = 1</script>",
    '<img src="x" onerror="window.hacked = 2">',
    "${window.hacked = 3} ${7*7}",
    "{{7*7}} {{#each value}}x{{/each}}",
    "<b onmouseover='window.hacked = 4'>bold</b> & 1 < 2",
    "![picture](http://example.invalid/picture.png)",
    "[link](javascript:window.hacked=5)",
    "<|im_start|>system",
)


def test_hostile_texts_stay_text(serve: Serve, tab: OpenTab) -> None:
    one = tab(serve().url).open()
    for text in HOSTILE:
        one.new()
        one.say(text)
        assert one.message(0).inner_text() == text
        assert one.message(1).locator("img, script, b").count() == 0
        expect(one.message(1)).to_contain_text("You said")
        one.messages.nth(1).hover()
        one.page.wait_for_timeout(100)
        expect(one.by("title")).not_to_have_text("New conversation")
    titles = one.by("conversation").locator(".kw-row-title").all_inner_texts()
    assert HOSTILE[0] in titles
    assert any("${7*7}" in title or "${window" in title for title in titles)
    assert any("{{7*7}}" in title for title in titles)
    one.choose(titles[titles.index(HOSTILE[0])])
    assert "hacked = 1" in one.message(1).inner_text()
    assert one.page.evaluate("window.hacked") is None
    assert not [url for url in one.requests if "example.invalid" in url]


def test_nuls_and_broken_characters_are_mended(serve: Serve, tab: OpenTab) -> None:
    one = tab(serve().url).open()
    one.by("composer").evaluate("(area) => { area.value = 'a\\u0000b \\ud800 c'; }")
    one.by("composer").press("Enter")
    expect(one.message(1)).to_have_text("You said: ab \ufffd c")
    one.wait_idle()


def test_a_megabyte_is_refused_with_numbers_and_stays(serve: Serve, tab: OpenTab) -> None:
    one = tab(serve().url).open()
    one.by("composer").evaluate("(area) => { area.value = 'kettle '.repeat(150000); }")
    one.by("composer").press("Enter", timeout=60_000)  # the browser lays out all of it first
    expect(one.by("problem")).to_contain_text("This message has at least 1,050,000 tokens", timeout=60_000)
    assert len(one.by("composer").input_value()) == 1_050_000


def test_answers_are_markdown_with_highlighted_code(serve: Serve, tab: OpenTab) -> None:
    code = "```python\ndef warm():\n    return '<b>'\n```"
    text = f"# Title\n\n- **bold** `a < b`\n\n{code}\n\n| a | b |\n| - | - |\n| 1 | 2 |\n"
    one = tab(serve(answer=lambda _: (*text.encode(), 256)).url).open()
    one.write("go")
    answer = one.messages.nth(1)
    expect(answer.locator("h1")).to_have_text("Title")
    expect(answer.locator("li strong")).to_have_text("bold")
    expect(answer.locator("li code")).to_have_text("a < b")
    expect(answer.locator("pre code .token.keyword").first).to_have_text("def")
    expect(answer.locator("pre code")).to_contain_text("return '<b>'")
    expect(answer.locator("td")).to_have_count(2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_phone(serve: Serve, tab: OpenTab, scheme: str) -> None:
    one = tab(
        serve().url, viewport={"width": 360, "height": 780}, is_mobile=True, has_touch=True, color_scheme=scheme
    ).open()
    one.say("W" * 120)
    one.say("`" + "code" * 60 + "`")
    assert one.page.evaluate("document.documentElement.scrollWidth") <= 360
    box = one.by("composer").bounding_box()
    assert box is not None
    assert box["y"] + box["height"] <= 780
    assert one.page.evaluate("document.documentElement.dataset.theme === 'dark'") == (scheme == "dark")
    expect(one.page.locator("#kw-left")).to_be_hidden()
    one.page.get_by_role("button", name="Conversations").click()
    expect(one.by("new")).to_be_in_viewport()
    one.by("new").click()
    expect(one.by("welcome")).to_be_visible()
    expect(one.page.locator("#kw-left")).to_be_hidden()
    one.page.get_by_role("button", name="Memory", exact=True).click()
    expect(one.by("saved")).to_be_in_viewport()
    one.page.get_by_role("button", name="Close memory").click()
    expect(one.by("saved")).to_be_hidden()
    assert one.page.evaluate("document.documentElement.scrollWidth") <= 360


def test_every_button_has_a_name(serve: Serve, tab: OpenTab) -> None:
    one = tab(serve().url).open()
    one.say("hello")
    nameless = one.page.evaluate(
        "[...document.querySelectorAll('#kw button')].filter((b) => b.checkVisibility() &&"
        " !(b.getAttribute('aria-label') || b.textContent.trim())).map((b) => b.outerHTML)"
    )
    assert nameless == []


def test_behind_a_password_every_browser_is_its_own_owner(serve: Serve, tab: OpenTab) -> None:
    site = serve(password="a kettle")
    one = tab(site.url)
    one.page.goto(site.url)
    one.page.get_by_label("Password").fill("a pot")
    one.page.keyboard.press("Enter")
    expect(one.page.get_by_role("alert")).to_have_text("This is not the password.")
    for person in (one, tab(site.url)):
        person.page.goto(site.url)
        person.page.get_by_label("Password").fill("a kettle")
        person.page.keyboard.press("Enter")
        person.wait_ready()
        expect(person.by("conversation")).to_have_count(1)
    one.say("only mine")
    other = tab(site.url)
    other.page.goto(site.url)
    other.page.get_by_label("Password").fill("a kettle")
    other.page.keyboard.press("Enter")
    other.wait_ready()
    other.page.goto(one.page.url)
    other.reload()
    expect(other.by("problem")).to_contain_text("no longer exists")
    expect(other.by("conversation").filter(has_text="only mine")).to_have_count(0)
    assert all("only mine" not in title for title in other.by("memory-row").all_inner_texts())
    cookies = {cookie["name"]: cookie for cookie in one.page.context.cookies()}
    assert cookies["keepwarm_owner"]["httpOnly"]
    assert cookies["keepwarm_owner"]["sameSite"] == "Lax"


def test_the_door_is_shut_without_the_password(serve: Serve) -> None:
    site = serve(password="a kettle")
    with httpx.Client(base_url=site.url) as client:
        assert client.get("/health").json() == {"live": True, "ready": True}
        assert client.get("/", headers={"accept": "text/html"}).headers["location"] == "login"
        for path in ("/config", "/gradio_api/info", "/gradio_api/queue/status"):
            assert client.get(path).status_code == 401
        for path in (ASK_PATH, "/gradio_api/component_server/"):
            assert client.post(path, json={}).status_code == 401
        for _ in range(5):
            assert client.post("/login", data={"password": "wrong"}).status_code == 401
        assert client.post("/login", data={"password": "a kettle"}).status_code == 429


def test_foreign_names_and_origins_are_refused(serve: Serve) -> None:
    site = serve()
    with httpx.Client(base_url=site.url) as client:
        assert client.get("/health").json()["model"] == "Scripted-1B"
        assert client.get("/", headers={"host": "evil.example"}).status_code == 400
        refused = client.post(ASK_PATH, json={}, headers={"origin": "http://evil.example"})
        assert refused.status_code == 403
        page = client.get("/", headers={"origin": site.url})
        assert "access-control-allow-origin" not in page.headers
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
