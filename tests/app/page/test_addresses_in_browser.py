"""Every conversation has an address: Back and Forward, a reload, another device, and addresses of nothing."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Route, expect

from tests.app.site import Site, Tab
from tests.polling import until

pytestmark = pytest.mark.browser

Serve = Callable[..., Site]
OpenTab = Callable[..., Tab]


def test_back_and_forward_lead_through_the_conversations(one: Tab) -> None:
    one.say("alpha")
    one.new()
    one.say("beta")
    one.choose("alpha")
    alpha = one.page.url
    one.by("composer").fill("half a thought")
    one.page.go_back()
    expect(one.by("title")).to_have_text("beta")
    expect(one.message(0)).to_have_text("beta")
    expect(one.by("composer")).to_have_value("")
    assert one.page.url != alpha
    one.page.go_back()
    expect(one.by("title")).to_have_text("alpha")
    expect(one.by("composer")).to_have_value("half a thought")
    one.page.go_forward()
    expect(one.by("title")).to_have_text("beta")
    one.reload()
    expect(one.by("title")).to_have_text("beta")
    one.page.go_back()
    expect(one.by("title")).to_have_text("alpha")


def test_back_in_the_middle_of_an_answer(one: Tab, shared_site: Site) -> None:
    shared_site.engine.token_delay_s = 0.01
    one.say("alpha")
    one.new()
    one.write("a long one")
    expect(one.message(1)).to_contain_text("word1")
    one.page.go_back()
    expect(one.by("title")).to_have_text("alpha")
    expect(one.by("send")).to_be_visible()
    one.page.go_forward()
    expect(one.message(1)).to_contain_text("word2")
    one.wait_running()
    one.by("composer").focus()
    one.page.keyboard.press("Escape")
    one.wait_idle()


def test_another_device_opens_the_same_address(one: Tab, shared_site: Site, tab: OpenTab) -> None:
    one.say("alpha")
    device = tab(shared_site.url).open(one.page.url)
    expect(device.message(1)).to_have_text("You said: alpha")
    device.say("beta")
    expect(one.message(3)).to_have_text("You said: beta")


@pytest.mark.parametrize("wrong", ["0" * 32, "kw-composer", "%00", "x" * 500])
def test_an_address_of_nothing_says_so(one: Tab, wrong: str) -> None:
    one.say("alpha")
    one.page.goto(f"{one.url}/#{wrong}")
    expect(one.by("problem")).to_contain_text("no longer exists, or it belongs to someone else")
    expect(one.by("welcome")).to_be_visible()
    assert re.fullmatch(r".*/#[0-9a-f]{32}", one.page.url)
    one.say("beta")
    expect(one.page.locator(".kw-problem-box")).to_be_hidden()


def test_what_is_written_before_an_address_is_known_to_be_of_nothing_is_kept(one: Tab) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        if held or '"action":"open"' not in (route.request.post_data or ""):
            route.continue_()
        else:
            held.append(route)

    one.page.goto("about:blank")
    one.page.route("**/ask", hold)
    one.page.goto(f"{one.url}/#{'0' * 32}")
    expect(one.by("send")).to_be_visible()
    one.by("composer").press_sequentially("alpha")
    until(lambda: one.page.evaluate("1") and bool(held))
    held[0].continue_()
    expect(one.by("problem")).to_contain_text("no longer exists")
    expect(one.by("composer")).to_have_value("alpha")
    one.by("composer").fill("")
    one.page.unroute("**/ask")


def test_another_persons_address_shows_a_sentence_and_nothing_of_theirs(serve: Serve, tab: OpenTab) -> None:
    site = serve(password="a kettle")
    tabs = [tab(site.url) for _ in range(2)]
    for one in tabs:
        one.page.goto(site.url if one is tabs[0] else tabs[0].page.url)
        one.log_in("a kettle")
        one.wait_ready()
        if one is tabs[0]:
            one.say("my secret")
    expect(tabs[1].by("problem")).to_contain_text("belongs to someone else")
    expect(tabs[1].messages).to_have_count(0)
    expect(tabs[1].page.locator("body")).not_to_contain_text("my secret")


def test_a_conversation_that_was_deleted_is_not_gone_back_to(one: Tab) -> None:
    for name in ("alpha", "beta", "gamma"):
        one.new()
        one.say(name)
    row = one.by("conversation").filter(has_text="gamma")
    row.hover()
    row.get_by_test_id("delete").click()
    one.by("delete-sure").click()
    expect(one.by("title")).to_have_text("beta")
    one.page.go_back()
    expect(one.by("title")).to_have_text("beta")
    expect(one.page.locator(".kw-problem-box")).to_be_hidden()


def test_a_row_of_the_list_is_a_link(one: Tab) -> None:
    one.say("alpha")
    link = one.by("conversation").filter(has_text="alpha").get_by_role("link")
    one.new()
    with one.page.context.expect_page() as opened:
        link.click(modifiers=["Control"])
    other = Tab(opened.value, one.url).wait_ready()
    expect(other.by("title")).to_have_text("alpha")
    expect(one.by("welcome")).to_be_visible()


HIDDEN = "Object.defineProperty(document, 'hidden', {{ configurable: true, get: () => {} }});"
CHANGED = "document.dispatchEvent(new Event('visibilitychange'))"


def test_an_answer_that_ended_unseen_is_marked(one: Tab, shared_site: Site) -> None:
    shared_site.engine.token_delay_s = 0.02
    one.say("alpha")
    expect(one.page).to_have_title("alpha · Keepwarm")
    shared_site.engine.token_delay_s = 0.2
    one.write("beta")
    one.wait_running()
    one.page.evaluate(HIDDEN.format("true") + CHANGED)
    shared_site.engine.token_delay_s = 0.03
    expect(one.page).to_have_title("● alpha · Keepwarm")
    one.page.evaluate(HIDDEN.format("false") + CHANGED)
    expect(one.page).to_have_title("alpha · Keepwarm")
    one.write("gamma " * 10)
    one.wait_running()
    one.new()
    row = one.by("conversation").filter(has_text="alpha")
    expect(row.get_by_label("new answer")).to_be_visible()
    expect(one.page).to_have_title("● New conversation · Keepwarm")
    one.choose("alpha")
    expect(row.get_by_label("new answer")).to_have_count(0)
    expect(one.page).to_have_title("alpha · Keepwarm")


def test_the_page_and_the_log_in_have_an_icon(serve: Serve, tab: OpenTab) -> None:
    site = serve(password="a kettle")
    one = tab(site.url)
    for _ in range(2):
        one.page.goto(site.url)
        for link in one.page.locator("link[rel~=icon], link[rel=apple-touch-icon]").all():
            answer = one.page.request.get(link.evaluate("link => link.href"))
            assert (answer.status, answer.headers["content-type"].split("/")[0]) == (200, "image")
        assert one.page.locator("link[rel~=icon]").count() == 2
        if one.page.get_by_label("Password").count():
            one.log_in("a kettle")
            one.wait_ready()
