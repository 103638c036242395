"""Reading ahead as a person sees it: a switch, a receipt that counts only the last words, a title that appears."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from app.access.auth import LOCAL_OWNER
from sessions.background.titles import TITLE_QUESTION
from tests.app.site import Site, Tab, echo
from tests.polling import pause, until
from tests.sessions.byte_template import END

pytestmark = pytest.mark.browser

Serve = Callable[..., Site]
OpenTab = Callable[..., Tab]
TEXT = "The harbour wakes before the town does"


def naming(ledger: tuple[int, ...]) -> tuple[int, ...]:
    said = echo(ledger)
    return (*b"Boats at Dawn", END) if TITLE_QUESTION.encode() in bytes(i for i in said if i < 256) else tuple(said)


def typed(one: Tab, text: str, delay_ms: int = 25) -> None:
    one.by("composer").press_sequentially(text, delay=delay_ms)


def test_typing_then_sending_shows_what_was_read_ahead(serve: Serve, tab: OpenTab) -> None:
    site = serve(fed_token_delay_s=0.0005, config={"draft_quiet_s": 60.0})
    one = tab(site.url).open()
    expect(one.by("read-ahead")).to_have_attribute("aria-pressed", "true")
    typed(one, TEXT)
    assert site.engine.idle_counts  # it was read while the keys still came
    until(lambda: site.engine.idle_counts[-1][1][-4:] == tuple(b"town"))
    assert site.manager.list_conversations(LOCAL_OWNER)[0].title == "New conversation"  # nothing is stored
    one.page.keyboard.press("Enter")
    one.wait_idle()
    expect(one.message(1)).to_have_text(f"You said: {TEXT}")
    receipt = one.messages.nth(1).locator(".kw-receipt")
    expect(receipt).to_contain_text("7 new, 34 kept")
    receipt.click()
    expect(one.messages.nth(1).locator(".kw-receipt-details")).to_contain_text(
        re.compile("read before sending34 tokens")
    )


def test_a_draft_that_is_quiet_is_read_to_its_end(serve: Serve, tab: OpenTab) -> None:
    site = serve()
    one = tab(site.url).open()
    typed(one, TEXT)
    until(lambda: site.engine.idle_counts and site.engine.idle_counts[-1][1][-5:] == (*b"does", END))
    one.page.keyboard.press("Enter")
    one.wait_idle()
    receipt = one.messages.nth(1).locator(".kw-receipt")
    expect(receipt).to_contain_text("1 new, 40 kept")


def test_the_switch_is_remembered_and_off_means_off(serve: Serve, tab: OpenTab) -> None:
    site = serve()
    one = tab(site.url).open()
    one.by("composer").fill(TEXT)
    until(lambda: site.engine.idle_counts)
    one.by("read-ahead").click()
    expect(one.by("read-ahead")).to_have_attribute("aria-pressed", "false")
    until(lambda: site.engine.idle_counts[-1][1] == (257,))  # cropped to what every message begins with
    assert one.page.evaluate("document.activeElement.dataset.testid") == "composer"
    one.reload()
    expect(one.by("read-ahead")).to_have_attribute("aria-pressed", "false")
    before = len(site.engine.idle_counts)
    one.by("composer").fill(f"{TEXT} and then")
    expect(one.by("count")).to_contain_text("47 tokens")
    pause(0.3)
    assert len(site.engine.idle_counts) == before
    one.page.keyboard.press("Enter")
    one.wait_idle()
    expect(one.messages.nth(1).locator(".kw-receipt")).to_contain_text(re.compile(r"\d+ new, [01] kept"))


def test_a_title_appears_by_itself(serve: Serve, tab: OpenTab) -> None:
    one = tab(serve(answer=naming).url).open()
    one.say("Tell me of boats")
    expect(one.by("title")).to_have_text("Boats at Dawn")
    expect(one.by("conversation").first).to_contain_text("Boats at Dawn")


def test_the_switch_fits_a_phone(serve: Serve, tab: OpenTab) -> None:
    one = tab(serve().url, viewport={"width": 360, "height": 740}).open()
    one.by("composer").fill("word " * 300)
    expect(one.by("count")).to_contain_text("1,500 tokens")
    expect(one.by("read-ahead")).to_be_visible()
    box = one.by("send").bounding_box()
    assert box is not None
    assert box["x"] + box["width"] <= 360
