"""One conversation in a real Chromium: what a person does all day."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.app.site import Site, Tab
from tests.polling import pause

pytestmark = pytest.mark.browser

Serve = Callable[..., Site]
OpenTab = Callable[..., Tab]


def test_sends_and_shows_a_receipt(serve: Serve, tab: OpenTab) -> None:
    one = tab(serve(token_delay_s=0.01, config={"read_ahead": False}).url).open()
    expect(one.by("welcome")).to_contain_text("Scripted-1B")
    one.write("Hello there")
    expect(one.message(0)).to_have_text("Hello there")
    expect(one.by("composer")).to_have_value("")
    expect(one.message(1)).to_have_text("You said: Hello there")
    one.wait_idle()
    expect(one.messages.nth(1).locator(".kw-receipt")).to_contain_text("new, 0 kept")
    one.say("And again")
    receipt = one.messages.nth(3).locator(".kw-receipt")
    expect(receipt).to_have_text(re.compile(r"^[\d.]+ s · \d+ new, \d+ kept$"))
    receipt.click()
    expect(one.messages.nth(3).locator(".kw-receipt-details")).to_contain_text("● in memory")
    expect(one.by("title")).to_have_text("Hello there")
    assert one.page.evaluate("document.activeElement.dataset.testid") == "composer" or receipt.is_visible()


def test_two_copies_in_a_row_leave_the_icon(one: Tab) -> None:
    one.say("hello")
    copy = one.messages.nth(1).get_by_test_id("copy")
    copy.click()
    expect(copy.locator(".kw-icon-check")).to_be_visible()
    copy.click()
    expect(copy.locator(".kw-icon-copy")).to_be_visible()
    expect(copy).to_have_accessible_name("Copy")


def test_an_answer_grows_while_it_is_written(one: Tab, shared_site: Site) -> None:
    shared_site.engine.token_delay_s = 0.004
    one.write("a long one")
    expect(one.message(1)).to_contain_text("word3")
    lengths = set()
    for _ in range(6):
        lengths.add(len(one.message(1).inner_text()))
        pause(0.15)
    assert len(lengths) >= 4
    one.page.keyboard.press("Escape")
    one.wait_idle()
    expect(one.messages.nth(1)).to_contain_text("Stopped")


def test_enter_sends_and_shift_enter_breaks_the_line(one: Tab) -> None:
    one.by("composer").press_sequentially("first")
    one.page.keyboard.press("Shift+Enter")
    one.by("composer").press_sequentially("  second")
    expect(one.by("count")).to_contain_text("14 tokens")
    one.page.keyboard.press("Enter")
    expect(one.message(0)).to_have_text(re.compile(r"first\s+second"))
    expect(one.message(1)).to_contain_text("You said: first")
    one.wait_idle()


def test_stops_while_a_long_message_is_read(one: Tab, shared_site: Site) -> None:
    shared_site.engine.fed_token_delay_s = 0.002
    one.write("read " * 800)
    progress = one.page.locator(".kw-progress-label")
    expect(progress).to_contain_text(re.compile(r"reading [\d,]+ of 4,\d+ tokens"))
    began = time.monotonic()
    one.by("stop").click()
    one.wait_idle()
    assert time.monotonic() - began < 1.5
    expect(one.messages.nth(1)).to_contain_text("Stopped")
    shared_site.engine.fed_token_delay_s = 0.0
    one.say("short")
    expect(one.message(3)).to_contain_text("You said: short")


def test_edits_regenerates_and_switches_siblings(one: Tab) -> None:
    one.say("first version")
    one.by("regenerate").click()
    expect(one.messages.nth(1).get_by_test_id("sibling")).to_have_text("2/2")
    one.wait_idle()
    one.messages.nth(0).hover()
    one.messages.nth(0).get_by_test_id("edit").click()
    expect(one.by("editor")).to_have_value("first version")
    one.by("editor").fill("second version")
    one.by("editor-send").click()
    expect(one.message(1)).to_have_text("You said: second version")
    one.wait_idle()
    expect(one.messages.nth(0).get_by_test_id("sibling")).to_have_text("2/2")
    one.messages.nth(0).get_by_test_id("previous").click()
    expect(one.message(0)).to_have_text("first version")
    expect(one.message(1)).to_have_text("You said: first version")
    expect(one.messages.nth(1).get_by_test_id("sibling")).to_have_text("2/2")
    one.messages.nth(0).get_by_test_id("next").click()
    expect(one.message(1)).to_have_text("You said: second version")
    expect(one.page.locator("[data-testid=editor]")).to_have_count(0)


def test_continues_a_stopped_answer_in_its_place(one: Tab, shared_site: Site) -> None:
    shared_site.engine.token_delay_s = 0.01
    one.write("a long one")
    expect(one.message(1)).to_contain_text("word1")
    one.by("stop").click()
    one.wait_idle()
    begun = one.message(1).inner_text()
    one.messages.nth(1).evaluate("row => { row.isTheSame = true }")
    one.by("continue").click()
    one.wait_running()
    expect(one.message(1)).not_to_have_text(begun)
    one.by("stop").click()
    one.wait_idle()
    assert one.message(1).inner_text().startswith(begun)
    assert one.messages.nth(1).evaluate("row => row.isTheSame")
    expect(one.messages.nth(1).get_by_test_id("sibling")).to_be_hidden()  # it is no other version


def test_a_reload_in_the_middle_of_an_answer_loses_nothing(one: Tab, shared_site: Site) -> None:
    shared_site.engine.token_delay_s = 0.02
    one.write("a long one")
    expect(one.message(1)).to_contain_text("word5 ")
    one.reload()
    one.wait_running()
    expect(one.message(0)).to_have_text("a long one")
    one.by("stop").click()
    one.wait_idle()
    expect(one.message(1)).to_contain_text("You said: a long one word0 word1")


def test_closing_the_tab_does_not_lose_the_answer(serve: Serve, tab: OpenTab) -> None:
    site = serve(token_delay_s=0.1)
    one = tab(site.url).open()
    one.write("hello out there")
    one.wait_running()
    where = one.page.url
    one.page.close()
    other = tab(site.url).open(where)
    expect(other.message(1)).to_have_text("You said: hello out there")


def test_a_refused_message_stays_in_the_composer(serve: Serve, tab: OpenTab) -> None:
    one = tab(serve(context_limit_tokens=300).url).open()
    one.write("   ")
    expect(one.by("problem")).to_have_text("Write a message first.")
    text = "too much " * 100
    one.write(text)
    expect(one.by("problem")).to_contain_text(re.compile(r"This message has at least \d+ tokens"))
    expect(one.by("composer")).to_have_value(text)
    expect(one.messages).to_have_count(0)
    one.say("short")
    expect(one.page.locator(".kw-problem-box")).to_be_hidden()


def test_a_failed_answer_says_so_and_nothing_breaks(one: Tab, shared_site: Site) -> None:
    shared_site.engine.fail = lambda generation: "The model ran out of breath. Regenerate the answer."
    one.write("hello")
    expect(one.messages.nth(1)).to_contain_text("The model ran out of breath")
    one.wait_idle()
    shared_site.engine.fail = lambda generation: None
    one.by("regenerate").click()
    expect(one.message(1)).to_have_text("You said: hello")


def test_an_unexpected_error_is_a_sentence_with_an_id(
    serve: Serve, tab: OpenTab, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = serve()
    one = tab(site.url).open()

    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(site.manager, "send", broken)
    one.write("hello")
    expect(one.by("problem")).to_contain_text(re.compile(r"Something went wrong on the server \(id [0-9a-f]{8}\)"))
    expect(one.by("composer")).to_have_value("hello")
    assert "secret detail" not in one.page.content()


def test_settings_are_kept_and_wrong_ones_refused(one: Tab) -> None:
    one.page.locator("#kw-open-settings").click()
    tokens = one.page.locator("#kw-set-max-new-tokens input")
    expect(tokens).to_have_value("512")
    tokens.fill("0")
    one.page.locator("#kw-settings-save").click()
    wrong = one.page.locator("#kw-set-max-new-tokens .kw-field-error")
    expect(wrong).to_have_text("Max new tokens must be a positive whole number, not 0.")
    tokens.fill("4")
    one.page.locator("#kw-settings-save").click()
    expect(one.page.locator("#kw-settings-note")).to_have_text("Saved. The next answer uses these settings.")
    expect(wrong).to_have_text("")
    one.page.keyboard.press("Escape")
    one.say("hello")
    expect(one.message(1)).to_have_text("You")
    expect(one.messages.nth(1)).to_contain_text("limit of 4 new tokens")


def test_a_reader_who_scrolled_up_is_left_in_peace(one: Tab, shared_site: Site) -> None:
    shared_site.engine.token_delay_s = 0.002
    one.say("line\n" * 60)
    one.write("a long one")
    expect(one.message(2)).to_be_in_viewport()
    expect(one.message(3)).to_contain_text("word9")
    one.page.mouse.move(700, 400)
    one.page.mouse.wheel(0, -600)
    expect(one.page.locator("#kw-to-end")).to_be_visible()
    top = one.page.evaluate("document.getElementById('kw-scroll').scrollTop")
    expect(one.message(3)).to_contain_text("word60")
    assert one.page.evaluate("document.getElementById('kw-scroll').scrollTop") == top
    one.page.locator("#kw-to-end").click()
    expect(one.page.locator("#kw-to-end")).to_be_hidden()
    one.page.keyboard.press("Escape")
    one.wait_idle()
