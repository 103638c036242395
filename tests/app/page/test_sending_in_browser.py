"""One's own message stands at once, and is neither lost nor doubled, whatever the network or the person does."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress

import pytest
from playwright.sync_api import CDPSession, Error, Locator, Route, expect

from tests.app.site import Site, Tab
from tests.polling import until

pytestmark = pytest.mark.browser

OpenTab = Callable[..., Tab]
LOCAL = "local"
LOST = "The server does not answer"


class Held:
    """The first request with these words in it, held back."""

    def __init__(self, one: Tab, words: str = '"action":"send"') -> None:
        self._one, self._words = one, words
        self._routes: list[Route] = []
        one.page.route("**/ask", self._hold)

    def _hold(self, route: Route) -> None:
        if self._words in (route.request.post_data or "") and not self._routes:
            self._routes.append(route)
        else:
            route.continue_()

    def wait(self) -> None:
        """Until it is there."""
        self._route()

    def _route(self) -> Route:
        for _ in range(500):
            if self._routes:
                return self._routes[0]
            self._one.page.wait_for_timeout(20)
        raise AssertionError(f"no request with {self._words}")

    def release(self) -> None:
        self._route().continue_()

    def lose(self) -> None:
        """It never reaches the server."""
        self._route().abort()

    def lose_reply(self) -> None:
        """It reaches the server, but the reply is lost."""
        route = self._route()
        route.fetch()
        with suppress(Error):  # a page that was reloaded meanwhile has given up
            route.abort()


def sending(one: Tab) -> Locator:
    return one.page.locator(".kw-sending")


def texts(site: Site, conversation_id: str) -> list[str]:
    """What a person said in this conversation, as the server has it."""
    return [m.text for m in site.manager.view(LOCAL, conversation_id).messages if m.role == "user"]


def here(one: Tab) -> str:
    return one.page.url.split("#")[1]


def test_it_stands_at_once_and_its_row_stays(one: Tab, shared_site: Site) -> None:
    held = Held(one)
    one.write("alpha")
    expect(sending(one)).to_have_text(re.compile("alpha\\s*Sending"))
    expect(one.message(0)).to_have_text("alpha")
    expect(one.by("composer")).to_have_value("")
    expect(one.by("welcome")).to_be_hidden()
    expect(one.by("stop")).to_be_visible()
    one.messages.nth(0).evaluate("row => { row.isTheSame = true }")
    held.release()
    expect(one.message(1)).to_have_text("You said: alpha")
    expect(sending(one)).to_have_count(0)
    assert one.messages.nth(0).evaluate("row => row.isTheSame")
    expect(one.messages).to_have_count(2)
    one.wait_idle()
    assert texts(shared_site, here(one)) == ["alpha"]


@pytest.mark.parametrize("first", [True, False])
def test_without_the_server_it_is_back_before_what_was_written_meanwhile(one: Tab, first: bool) -> None:
    if not first:
        one.say("before")
    count = one.messages.count()
    held = Held(one)
    one.write("alpha")
    expect(sending(one)).to_have_count(1)
    one.by("composer").press_sequentially("and more")
    held.lose()
    expect(one.by("problem")).to_contain_text(LOST)
    expect(one.by("composer")).to_have_value("alpha\nand more")
    expect(one.messages).to_have_count(count)
    if first:
        expect(one.by("welcome")).to_be_visible()
    one.by("composer").press("Enter")
    expect(one.message(count)).to_have_text(re.compile("alpha\\s+and more"))
    one.wait_idle()


def test_enter_twice_sends_once(one: Tab, shared_site: Site) -> None:
    held = Held(one)
    one.write("alpha")
    one.page.keyboard.press("Enter")
    one.by("composer").fill("beta")
    one.page.keyboard.press("Enter")
    expect(one.by("problem")).to_contain_text("An answer is being written")
    expect(one.by("composer")).to_have_value("beta")
    held.release()
    expect(one.message(1)).to_have_text("You said: alpha")
    one.wait_idle()
    expect(one.messages).to_have_count(2)
    expect(one.by("composer")).to_have_value("beta")
    assert texts(shared_site, here(one)) == ["alpha"]


def test_a_double_click_sends_and_does_not_stop(one: Tab) -> None:
    one.by("composer").fill("a long one")
    one.by("send").dblclick()
    expect(one.message(1)).to_contain_text("word60")
    one.wait_idle()
    expect(one.messages.nth(1)).not_to_contain_text("Stopped")


@pytest.mark.parametrize("has_come", [True, False])
def test_a_reload_in_between_neither_loses_nor_doubles_it(one: Tab, shared_site: Site, has_come: bool) -> None:
    one.say("yes")
    where = here(one)
    held = Held(one)
    one.write("yes")  # the same once more: an older message is not taken for it
    expect(sending(one)).to_have_count(1)
    if has_come:
        held.lose_reply()
        until(lambda: len(texts(shared_site, where)) == 2)
    held.wait()
    one.reload()
    if not has_come:
        expect(one.by("composer")).to_have_value("yes")
        one.by("composer").press("Enter")
    expect(one.message(3)).to_have_text("You said: yes")
    one.wait_idle()
    expect(one.by("composer")).to_have_value("")
    one.reload()
    expect(one.by("composer")).to_have_value("")
    assert texts(shared_site, where) == ["yes", "yes"]


@pytest.mark.parametrize("is_sent_again", [True, False])
def test_where_only_the_reply_was_lost_it_is_not_doubled(one: Tab, shared_site: Site, is_sent_again: bool) -> None:
    one.say("before")
    held = Held(one)
    one.write("alpha")
    expect(sending(one)).to_have_count(1)
    held.lose_reply()
    if is_sent_again:
        expect(one.by("composer")).to_have_value(re.compile("alpha|^$"))
        one.by("composer").press("Enter")
    expect(one.message(3)).to_have_text("You said: alpha")
    expect(one.by("composer")).to_have_value("")
    one.wait_idle()
    expect(one.messages).to_have_count(4)
    assert texts(shared_site, here(one)) == ["before", "alpha"]


def test_two_tabs_at_once(one: Tab, shared_site: Site) -> None:
    shared_site.engine.token_delay_s = 0.01
    one.say("before")
    other = Tab(one.page.context.new_page(), one.url).open(one.page.url)
    held = Held(one)
    one.write("from here")
    expect(sending(one)).to_have_count(1)
    other.write("a long one from there")
    expect(other.message(3)).to_contain_text("word1")
    held.release()
    expect(one.by("problem")).to_contain_text("answer")  # one at a time
    expect(one.by("composer")).to_have_value("from here")
    expect(one.message(2)).to_have_text("a long one from there")
    one.by("stop").click()
    one.wait_idle()
    one.by("composer").press("Enter")
    expect(one.message(5)).to_have_text("You said: from here")
    one.wait_idle()
    other.page.close()
    assert texts(shared_site, here(one)) == ["before", "a long one from there", "from here"]


def test_after_new_it_stands_alone_until_its_conversation_is_known(one: Tab) -> None:
    one.say("alpha")
    asked = Held(one, '"ask":"new"')
    one.by("new").click()
    asked.wait()
    one.write("beta")
    expect(sending(one)).to_be_visible()
    expect(one.page.locator(".message-row:visible")).to_have_count(1)
    expect(one.by("composer")).to_have_value("")
    asked.lose()
    expect(one.by("problem")).to_contain_text(LOST)
    expect(one.by("composer")).to_have_value("beta")
    expect(one.page.locator(".message-row:visible")).to_have_count(2)


def test_new_right_after_the_first_message_is_another_conversation(one: Tab, shared_site: Site) -> None:
    held = Held(one)
    first = here(one)
    one.write("alpha")
    held.wait()
    one.by("new").click()
    expect(sending(one)).to_have_count(0)
    until(lambda: here(one) != first)
    held.release()
    expect(one.by("conversation").filter(has_text="alpha")).to_have_count(1)
    expect(one.by("welcome")).to_be_visible()
    assert texts(shared_site, first) == ["alpha"]


def test_what_fails_behind_another_conversation_is_said_and_kept(one: Tab) -> None:
    one.say("alpha")
    held = Held(one)
    one.write("beta")
    held.wait()
    one.by("new").click()
    expect(sending(one)).to_have_count(0)
    held.lose()
    expect(one.by("problem")).to_contain_text("A message to another conversation was not sent")
    one.choose("alpha")
    expect(one.by("composer")).to_have_value("beta")
    expect(one.messages).to_have_count(2)


def test_stop_right_away(one: Tab, shared_site: Site) -> None:
    shared_site.engine.token_delay_s = 0.01
    held = Held(one)
    one.write("a long one")
    one.by("stop").click()
    held.release()
    one.wait_idle()
    expect(one.messages.nth(1)).to_contain_text("Stopped")
    assert texts(shared_site, here(one)) == ["a long one"]


def edit(one: Tab, text: str) -> None:
    one.messages.nth(0).hover()
    one.messages.nth(0).get_by_test_id("edit").click()
    one.by("editor").fill(text)
    one.page.keyboard.press("Enter")


def test_another_version_stands_at_once(one: Tab, shared_site: Site) -> None:
    one.say("first")
    held = Held(one, '"action":"edit"')
    edit(one, "second")
    expect(sending(one)).to_have_text(re.compile("second\\s*Sending"))
    expect(one.page.locator(".message-row:visible")).to_have_count(1)
    one.page.keyboard.press("Enter")
    held.release()
    expect(one.message(1)).to_have_text("You said: second")
    one.wait_idle()
    expect(one.messages.nth(0).get_by_test_id("sibling")).to_have_text("2/2")
    expect(sending(one)).to_have_count(0)
    assert texts(shared_site, here(one)) == ["second"]


def test_another_version_that_was_not_sent_is_still_being_edited(one: Tab) -> None:
    one.say("first")
    held = Held(one, '"action":"edit"')
    edit(one, "second")
    held.lose()
    expect(one.by("problem")).to_contain_text(LOST)
    expect(one.by("editor")).to_have_value("second")
    expect(one.by("editor")).to_be_focused()
    expect(one.message(1)).to_have_text("You said: first")
    one.page.keyboard.press("Escape")
    expect(one.message(0)).to_have_text("first")
    expect(one.by("composer")).to_have_value("")


def test_another_version_is_kept_as_it_is_written(one: Tab) -> None:
    one.say("first")
    one.messages.nth(0).hover()
    one.messages.nth(0).get_by_test_id("edit").click()
    one.by("editor").fill("half a second")
    one.reload()
    expect(one.message(0)).to_have_text("first")
    for value, key in (("half a second", "Escape"), ("first", "Escape")):
        one.messages.nth(0).hover()
        one.messages.nth(0).get_by_test_id("edit").click()
        expect(one.by("editor")).to_have_value(value)
        one.by("editor").press(key)


def test_while_a_message_is_on_its_way_nothing_else_is_silently_refused(one: Tab) -> None:
    one.say("alpha")
    held = Held(one)
    one.write("beta")
    held.wait()
    one.messages.nth(0).hover()
    one.messages.nth(0).get_by_test_id("edit").click()
    one.by("editor").fill("gamma")
    one.by("editor").press("Enter")
    expect(one.by("problem")).to_have_text("Another message is still being sent.")
    expect(one.by("editor")).to_have_value("gamma")
    held.release()
    expect(one.message(3)).to_have_text("You said: beta")
    expect(one.by("problem")).to_be_hidden()
    one.wait_idle()
    one.by("editor").press("Enter")
    expect(one.message(1)).to_have_text("You said: gamma")
    one.wait_idle()


def compose(session: CDPSession, text: str) -> None:
    at = len(text)
    session.send("Input.imeSetComposition", {"text": text, "selectionStart": at, "selectionEnd": at})


def test_what_comes_back_waits_for_the_input_method(one: Tab) -> None:
    one.say("before")
    session = one.page.context.new_cdp_session(one.page)
    held = Held(one)
    one.write("alpha")
    held.wait()
    ends = "addEventListener('compositionend', () => { window.ends = (window.ends ?? 0) + 1 })"
    one.page.evaluate(f"() => {{ window.ends = 0; {ends} }}")
    compose(session, "にほ")
    held.lose()
    expect(one.by("problem")).to_contain_text(LOST)
    compose(session, "にほん")
    expect(one.by("composer")).to_have_value("にほん")
    assert one.page.evaluate("window.ends") == 0
    session.send("Input.insertText", {"text": "日本"})
    expect(one.by("composer")).to_have_value("alpha\n日本")
    one.reload()
    expect(one.by("composer")).to_have_value("alpha\n日本")


def test_an_editor_that_comes_back_leaves_the_input_method_alone(one: Tab) -> None:
    one.say("first")
    session = one.page.context.new_cdp_session(one.page)
    held = Held(one, '"action":"edit"')
    edit(one, "second")
    held.wait()
    one.by("composer").click()
    compose(session, "にほ")
    held.lose()
    expect(one.by("editor")).to_have_value("second")
    compose(session, "にほん")
    session.send("Input.insertText", {"text": "日本"})
    expect(one.by("composer")).to_have_value("日本")
    expect(one.by("composer")).to_be_focused()
    one.by("editor").press("Escape")


@pytest.mark.parametrize("how", ["written", "sent"])
def test_after_new_a_reload_keeps_what_has_no_conversation_yet(one: Tab, how: str) -> None:
    one.say("alpha")
    old = here(one)
    asked = Held(one, '"ask":"new"')
    one.by("new").click()
    asked.wait()
    one.by("composer").fill("beta")
    if how == "sent":
        one.by("composer").press("Enter")
        expect(sending(one)).to_be_visible()
        one.by("composer").press_sequentially("gamma")
    one.reload()
    expect(one.by("welcome")).to_be_visible()
    expect(one.by("composer")).to_have_value("beta" if how == "written" else "beta\ngamma")
    assert here(one) != old
    one.page.go_back()
    expect(one.message(0)).to_have_text("alpha")
    expect(one.by("composer")).to_have_value("")
    one.page.go_forward()
    expect(one.by("composer")).to_have_value(re.compile("^beta"))
    one.reload()
    expect(one.by("composer")).to_have_value(re.compile("^beta"))


def test_a_tab_that_is_closed_right_after_enter_has_sent_it(shared_site: Site, tab: OpenTab) -> None:
    one = tab(shared_site.url).open()
    where = here(one)
    one.write("alpha")
    one.page.close()
    until(lambda: texts(shared_site, where) == ["alpha"])
