"""What a person sees and can do before any script has run, and that nothing is lost or moves afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Route, expect

from tests.app.site import Site, Tab

pytestmark = pytest.mark.browser

Serve = Callable[..., Site]
OpenTab = Callable[..., Tab]
MOST_SHIFT = 0.05
SCRIPTS, REPLIES = "**/keepwarm/**/*.js", "**/ask"  # what may be late
WATCH_SHIFTS = """
window.shift = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shift += entry.value;
}).observe({ type: "layout-shift", buffered: true });
"""


@contextmanager
def held(one: Tab, what: str, url: str) -> Iterator[None]:
    """The page while these files do not come."""
    waiting: list[Route] = []
    one.page.route(what, lambda route: waiting.append(route))
    one.page.goto(url, wait_until="commit")
    yield
    for route in waiting:
        route.continue_()
    one.page.unroute(what)


@pytest.mark.parametrize("what", [SCRIPTS, REPLIES])
def test_the_page_can_be_written_in_before_it_is_connected(shared_site: Site, tab: OpenTab, what: str) -> None:
    one = tab(shared_site.url)
    one.page.add_init_script(WATCH_SHIFTS)
    with held(one, what, one.url):
        expect(one.by("welcome")).to_contain_text("Scripted-1B")
        one.by("composer").fill("half ")
        one.by("composer").press_sequentially("a thought")
        one.by("composer").press("Shift+Enter")
        one.by("composer").press_sequentially("more")
        one.by("composer").press("Enter")
        one.by("composer").press_sequentially(" and later")
        if what == SCRIPTS:
            expect(one.by("composer")).to_have_value("half a thought\nmore and later")
        else:
            expect(one.message(0)).to_have_text("half a thought\nmore")
            expect(one.by("composer")).to_have_value(" and later")
            expect(one.by("welcome")).to_be_hidden()
            one.page.locator("#kw-theme").click()
            assert one.page.evaluate("document.documentElement.dataset.theme") == "dark"
    one.wait_ready()
    expect(one.message(0)).to_have_text("half a thought\nmore")
    expect(one.by("composer")).to_have_value(" and later")
    expect(one.messages).to_have_count(2)
    assert one.page.evaluate("window.shift") < MOST_SHIFT


def test_an_example_can_be_chosen_before_any_script_has_come(shared_site: Site, tab: OpenTab) -> None:
    one = tab(shared_site.url)
    with held(one, SCRIPTS, one.url):
        example = one.by("example").first
        text = example.inner_text()
        example.click()
    one.wait_ready()
    expect(one.message(0)).to_have_text(text)


# At the conversation's own address the draft is shown as soon as there are scripts.
@pytest.mark.parametrize(("what", "named"), [(SCRIPTS, True), (SCRIPTS, False), (REPLIES, False)])
def test_a_stored_draft_is_not_sent_with_what_is_typed_before_it_came(
    shared_site: Site, tab: OpenTab, what: str, named: bool
) -> None:
    one = tab(shared_site.url).open()
    one.by("composer").fill("a stored draft")
    where = one.page.url if named else one.url
    one.page.goto("about:blank")
    with held(one, what, where):
        one.by("composer").press_sequentially("typed")
    one.wait_ready()
    expect(one.by("composer")).to_have_value("typed")
    one.by("composer").press("Enter")
    expect(one.message(0)).to_have_text("typed")
    expect(one.by("composer")).to_have_value("a stored draft")
    one.wait_idle()
    one.reload()
    expect(one.by("composer")).to_have_value("a stored draft")


@pytest.mark.parametrize("what", [SCRIPTS, REPLIES])
def test_reloads_before_it_is_connected_lose_nothing(shared_site: Site, tab: OpenTab, what: str) -> None:
    one = tab(shared_site.url)
    with held(one, what, one.url):
        one.by("composer").press_sequentially("first")
        one.page.reload(wait_until="commit")
        if what == REPLIES:
            expect(one.by("composer")).to_have_value("first")
        one.by("composer").press("End")
        one.by("composer").press_sequentially("second")
        one.by("composer").press("Enter")
        one.by("composer").press_sequentially("third")
        one.page.reload(wait_until="commit")
    one.wait_ready()
    # Without scripts Enter was noted for a page that is gone: a draft sends nothing by itself.
    written = "first\nsecondthird" if what == SCRIPTS else "firstsecond\nthird"
    expect(one.by("composer")).to_have_value(written)
    expect(one.messages).to_have_count(0)
    beside = Tab(one.page.context.new_page(), one.url).open()
    expect(beside.by("composer")).to_have_value("")
    beside.page.close()
    one.by("composer").press("Enter")
    expect(one.messages).to_have_count(2)
    one.wait_idle()
    one.reload()
    expect(one.by("composer")).to_have_value("")


def test_what_has_no_conversation_yet_is_its_writers(serve: Serve, tab: OpenTab) -> None:
    site = serve(password="a kettle")
    one = tab(site.url)
    one.page.goto(site.url)
    one.log_in("a kettle")
    one.wait_ready()
    with held(one, REPLIES, f"{site.url}/"):
        one.by("composer").fill("a secret")
        one.page.goto(f"{site.url}/logout")
    one.page.get_by_role("button", name="Log out", exact=True).click()
    one.page.get_by_label("I am someone else").check()
    one.page.get_by_label("Password").fill("a kettle")
    one.page.keyboard.press("Enter")
    one.wait_ready()
    expect(one.by("composer")).to_have_value("")
    one.page.goto(f"{site.url}/logout")
    one.page.get_by_role("button", name="Log out", exact=True).click()
    one.page.get_by_label("Continue with the conversations").last.check()  # the first person's
    one.page.get_by_label("Password").fill("a kettle")
    one.page.keyboard.press("Enter")
    one.wait_ready()
    expect(one.by("composer")).to_have_value("a secret")


def test_before_any_script_it_looks_as_this_browser_left_it(shared_site: Site, tab: OpenTab) -> None:
    """Its theme, its sidebars, and no empty state where a conversation is opened."""
    one = tab(shared_site.url).open()
    one.say("alpha")
    one.page.locator("#kw-theme").click()
    one.page.locator("#kw-toggle-right").click()
    where = one.page.url
    one.page.goto("about:blank")
    with held(one, "**/*.js", where):
        expect(one.page.locator("#kw-left")).to_be_visible()
        expect(one.page.locator("#kw-right")).to_be_hidden()
        expect(one.by("composer")).to_be_editable()
        expect(one.by("welcome")).to_be_hidden()
        assert one.page.evaluate("document.documentElement.dataset.theme") == "dark"
    one.wait_ready()
    expect(one.message(1)).to_have_text("You said: alpha")
    expect(one.page.locator(".kw-ghosts")).to_have_count(0)
