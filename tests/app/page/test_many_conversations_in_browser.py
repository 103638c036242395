"""Several conversations, several tabs, restarts: nothing is lost and nothing is mixed up."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import httpx
import pytest
from playwright.sync_api import Route, expect

from tests.app.site import Site, Tab
from tests.polling import pause, until

pytestmark = pytest.mark.browser

Serve = Callable[..., Site]
OpenTab = Callable[..., Tab]
COUNT_DRAWN = """() => {
  window.drawn = 0;
  const count = (changes) => { for (const one of changes) window.drawn += one.addedNodes.length; };
  new MutationObserver(count).observe(document.querySelector(".kw-thread"), { childList: true });
}"""


def test_switches_between_three_conversations_in_the_middle_of_answers(one: Tab, shared_site: Site) -> None:
    shared_site.engine.token_delay_s = 0.001
    names = ["a long one", "b long one", "c long one"]
    for name in names:
        one.new()
        one.write(name)
        expect(one.message(1)).to_contain_text("You said: ")
    for name in [*names, *names]:
        began = time.monotonic()
        one.choose(name)
        expect(one.message(0)).to_have_text(name)
        expect(one.message(1)).to_contain_text(f"You said: {name}")
        assert time.monotonic() - began < 1.5
    for name in names:
        one.choose(name)
        one.wait_idle()
        expect(one.messages).to_have_count(2)
        expect(one.message(1)).to_contain_text(f"You said: {name} word0 word1")
        one.write("x")
        expect(one.messages).to_have_count(4)
        one.wait_idle()
        expect(one.messages.nth(3).locator(".kw-receipt")).not_to_contain_text(", 0 kept")


def test_seven_tabs_work_at_once(serve: Serve, tab: OpenTab) -> None:
    site = serve(token_delay_s=0.03)
    first = tab(site.url).open()
    first.say("all")
    where = first.page.url
    tabs = [first] + [Tab(first.page.context.new_page(), site.url).open(where) for _ in range(6)]
    first.write("a long one")
    for one in tabs:
        expect(one.message(3)).to_contain_text("You said: a long one")
    tabs[6].page.keyboard.press("Escape")
    for one in tabs:
        one.wait_idle()
        expect(one.messages.nth(3)).to_contain_text("Stopped")
        assert one.problems == []


def test_a_programs_one_off_conversation_is_not_listed(serve: Serve, tab: OpenTab) -> None:
    """A search finds it and its memory is shown; once continued, it is a conversation like any other."""
    site = serve()
    one = tab(site.url).open()
    one.say("Mine")
    messages = [{"role": "user", "content": "Give this chat a title"}]

    def ask() -> str:
        body = {"model": site.engine.info.name, "messages": messages}
        answer = httpx.post(f"{site.url}/v1/chat/completions", json=body, timeout=30).raise_for_status().json()
        return str(answer["choices"][0]["message"]["content"])

    messages.append({"role": "assistant", "content": ask()})
    one.by("memory-all").locator("summary").click()
    expect(one.by("memory-row").filter(has_text="Give this chat a title")).to_have_count(1)
    expect(one.by("conversation")).to_have_count(1)
    one.by("search").fill("give this chat")
    expect(one.by("conversation")).to_contain_text("Give this chat a title")
    one.by("search").fill("")
    expect(one.by("conversation")).to_contain_text("Mine")
    messages.append({"role": "user", "content": "Another one"})
    ask()
    expect(one.by("conversation")).to_have_count(2)


def test_renames_searches_and_deletes(one: Tab) -> None:
    for text in ("alpha", "beta"):
        one.new()
        one.say(text)
    row = one.by("conversation").filter(has_text="alpha")
    row.hover()
    row.get_by_test_id("rename").click()
    one.by("name").fill("gamma")
    one.page.keyboard.press("Enter")
    expect(one.by("conversation").filter(has_text="gamma")).to_have_count(1)
    one.page.keyboard.press("Control+k")
    one.page.keyboard.type("gam")
    expect(one.by("conversation")).to_have_count(1)
    one.page.keyboard.press("Enter")
    expect(one.by("title")).to_have_text("gamma")
    expect(one.message(0)).to_have_text("alpha")
    one.by("search").fill("")
    expect(one.by("conversation")).to_have_count(2)
    row = one.by("conversation").filter(has_text="gamma")
    row.hover()
    row.get_by_test_id("delete").click()
    one.by("delete-sure").click()
    expect(one.by("conversation")).to_have_count(1)
    expect(one.by("title")).to_have_text("beta")
    one.page.keyboard.press("Control+Shift+O")
    expect(one.by("welcome")).to_be_visible()


def test_each_conversation_keeps_its_own_draft(one: Tab) -> None:
    one.say("alpha")
    one.by("composer").fill("half a thought")
    one.new()
    expect(one.by("composer")).to_have_value("")
    one.choose("alpha")
    expect(one.by("composer")).to_have_value("half a thought")
    one.reload()
    expect(one.by("composer")).to_have_value("half a thought")


def test_a_draft_that_is_counted_late_stays_in_its_conversation(one: Tab) -> None:
    one.say("alpha")
    held: dict[str, Route] = {}

    def hold(route: Route) -> None:
        body = route.request.post_data or ""
        kind = next((kind for kind in ('"ask":"count"', '"action":"open"') if kind in body), "")
        if kind and kind not in held:
            held[kind] = route
        else:
            route.continue_()

    one.page.route("**/ask", hold)
    one.by("composer").fill("half a thought")
    wait_for(one, lambda: '"ask":"count"' in held)
    one.by("new").click()
    wait_for(one, lambda: '"action":"open"' in held)
    expect(one.by("composer")).to_have_value("")  # before the conversation has come
    with one.page.expect_response("**/ask"):
        held['"ask":"count"'].continue_()
    one.by("composer").press_sequentially("another")
    held['"action":"open"'].continue_()
    expect(one.by("welcome")).to_be_visible()
    expect(one.by("composer")).to_have_value("another")
    one.choose("alpha")
    expect(one.by("composer")).to_have_value("half a thought")


def test_what_was_sent_is_no_draft_once_another_conversation_is_open(one: Tab) -> None:
    one.say("alpha")
    held: list[Route] = []
    hold_first(one, '"action":"send"', held)
    one.write("beta")
    wait_for(one, lambda: len(held) == 1)
    one.by("new").click()
    expect(one.by("composer")).to_have_value("")
    held[0].continue_()
    expect(one.by("welcome")).to_be_visible()
    one.choose("alpha")
    expect(one.message(3)).to_have_text("You said: beta")
    expect(one.by("composer")).to_have_value("")


def test_the_memory_of_a_conversation_that_was_left_is_not_shown(one: Tab, shared_site: Site) -> None:
    shared_site.engine.token_delay_s = 0.01
    held: list[Route] = []
    hold_first(one, '"memory":true', held)
    one.write("a long one")
    wait_for(one, lambda: len(held) == 1)
    old = one.page.url
    one.by("new").click()
    wait_for(one, lambda: one.page.url != old)  # until then a pulse may tell about the one that is left
    here = one.page.locator(".kw-memory-here")
    expect(here.get_by_test_id("memory-row")).to_have_count(0)
    expect(here).not_to_have_class(re.compile("kw-left"))  # the pulse has told what the new one keeps
    here.evaluate(
        "(node) => new MutationObserver(() => { node.dataset.drawn = 'yes'; }).observe(node, { childList: true })"
    )
    held[0].continue_()
    expect(one.by("welcome")).to_be_visible()
    expect(here).not_to_have_attribute("data-drawn", "yes")
    one.choose("a long one")
    one.by("stop").click()


def test_what_another_tab_does_is_seen_during_a_search(one: Tab) -> None:
    one.say("alpha")
    one.by("search").fill("nothing like it")
    expect(one.by("conversation")).to_have_count(0)
    other = Tab(one.page.context.new_page(), one.url).open(one.page.url)
    other.say("beta")
    expect(one.message(3)).to_have_text("You said: beta")
    other.page.close()
    one.by("search").fill("")


def hold_first(one: Tab, words: str, held: list[Route]) -> None:
    """Holds back the first request of the page with these words in it."""

    def hold(route: Route) -> None:
        if words in (route.request.post_data or "") and not held:
            held.append(route)
        else:
            route.continue_()

    one.page.route("**/ask", hold)


def wait_for(one: Tab, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        one.page.wait_for_timeout(20)


def test_the_memory_panel_counts_and_drops(serve: Serve, tab: OpenTab) -> None:
    site = serve()
    one = tab(site.url).open()
    one.say("alpha " * 50)
    row = one.by("memory-row")
    expect(row).to_contain_text("●in memory")
    used = site.manager.memory_view("local").device_used_bytes
    assert used == site.engine.allocated_bytes > 0
    expect(row).to_contain_text(f"{used / 1024 / 1024:.1f} MiB")
    expect(row).to_contain_text("if nothing was kept")
    row.get_by_test_id("drop").click()
    expect(row).to_contain_text("not kept")
    one.by("memory-log").locator("summary").click()
    expect(one.by("log")).to_contain_text("Forgot what alpha")
    assert site.engine.allocated_bytes == 0
    one.say("beta")
    receipt = one.messages.nth(3).locator(".kw-receipt")
    expect(receipt).to_contain_text("read again")
    receipt.click()
    expect(one.messages.nth(3).locator(".kw-receipt-details")).to_contain_text("Why it was read again")


def test_goes_on_after_a_restart_of_the_server(serve: Serve, tab: OpenTab) -> None:
    site = serve()
    one = tab(site.url).open()
    one.say("alpha")
    where = one.page.url.split("#")[1]
    site.close()
    other = serve()
    again = tab(other.url).open(f"{other.url}/#{where}")
    expect(again.message(1)).to_have_text("You said: alpha")
    again.say("beta")
    expect(again.message(3)).to_have_text("You said: beta")


def test_waiting_runs_know_their_place_in_the_queue(serve: Serve, tab: OpenTab) -> None:
    one = tab(serve(token_delay_s=0.02, max_concurrent=1).url).open()
    for name in ("a long one", "b long one", "c long one"):
        one.new()
        one.write(name)
        expect(one.message(0)).to_have_text(name)
    expect(one.page.locator(".kw-progress-label")).to_have_text("2nd in the queue")
    one.by("stop").click()
    one.wait_idle()
    expect(one.messages.nth(1)).to_contain_text("Stopped")


def test_long_histories_show_their_end_and_the_rest_on_demand(serve: Serve, tab: OpenTab) -> None:
    site = serve()
    conversation_id = site.manager.create_conversation("local").conversation_id
    for number in range(20):
        site.manager.send("local", conversation_id, f"turn {number}").wait(10**9, 0.0)
        until(lambda: site.manager.active_run("local", conversation_id) is None)
    one = tab(site.url).open(f"{site.url}/#{conversation_id}")
    expect(one.messages).to_have_count(30)
    expect(one.message(-1)).to_have_text("You said: turn 19")
    one.page.evaluate(COUNT_DRAWN)
    one.write("turn 20")
    expect(one.messages.last.locator(".md")).to_have_text("You said: turn 20")
    one.wait_idle()
    expect(one.messages).to_have_count(30)
    assert one.page.evaluate("window.drawn") == 2  # of the others, none was moved
    one.page.get_by_role("button", name=re.compile("Show earlier messages")).click()
    expect(one.messages).to_have_count(42)
    expect(one.message(0)).to_have_text("turn 0")


@pytest.mark.parametrize("late", ["composer", "bridge", "header"])
def test_the_page_starts_with_its_parts_in_any_order(serve: Serve, tab: OpenTab, late: str) -> None:
    one = tab(serve().url)

    def delay(route: Route) -> None:
        pause(0.8)
        route.continue_()

    one.page.route(f"**/keepwarm/*/{late}.js", delay)
    one.open()
    one.say("hello")
    expect(one.message(1)).to_have_text("You said: hello")


def new_from_a_draft(one: Tab) -> Route:
    """Asks for a new conversation while a draft stands in another one; the request, held back."""
    one.say("the first one")
    one.by("composer").fill("half a sentence")
    held: list[Route] = []
    hold_first(one, '"ask":"new"', held)
    one.by("new").click()
    wait_for(one, lambda: len(held) == 1)
    return held[0]


@pytest.mark.parametrize("is_sent", [True, False])
def test_what_is_written_after_new_belongs_to_the_new_conversation(is_sent: bool, one: Tab) -> None:
    """Also while the server is still asked for it. The draft of the conversation before stays there."""
    asked = new_from_a_draft(one)
    expect(one.by("composer")).to_have_value("")
    one.by("composer").fill("the second one")
    if is_sent:
        one.page.keyboard.press("Enter")
    asked.continue_()
    if is_sent:
        expect(one.message(0)).to_have_text("the second one")
        expect(one.messages).to_have_count(2)
    else:
        expect(one.by("welcome")).to_be_visible()
        expect(one.by("composer")).to_have_value("the second one")
    one.choose("the first one")
    expect(one.messages).to_have_count(2)
    expect(one.by("composer")).to_have_value("half a sentence")


@pytest.mark.parametrize("is_sent", [True, False])
def test_without_a_new_conversation_nothing_goes_to_the_old_one(is_sent: bool, one: Tab) -> None:
    """And neither the draft of the old one is lost, nor what was written meanwhile."""
    asked = new_from_a_draft(one)
    one.by("composer").fill("for the new one")
    if is_sent:
        one.page.keyboard.press("Enter")
    asked.abort()
    expect(one.by("problem")).to_contain_text("The server does not answer")
    expect(one.by("composer")).to_have_value("for the new one")
    expect(one.messages).to_have_count(2)
    one.by("composer").press("Enter")  # after the sentence, by choice
    expect(one.messages).to_have_count(4)
    expect(one.by("composer")).to_have_value("half a sentence")


def test_an_answer_that_is_not_the_servers_loses_nothing(one: Tab) -> None:
    """A proxy's log-in or maintenance page, which comes with a status of success."""
    one.say("the first one")
    one.page.route("**/ask", lambda route: route.fulfill(status=200, content_type="text/html", body="<p>Please wait"))
    one.write("the second one")
    expect(one.by("problem")).to_contain_text("The server does not answer")
    expect(one.by("composer")).to_have_value("the second one")
    one.page.unroute("**/ask")
    one.by("composer").press("Enter")
    expect(one.messages).to_have_count(4)
